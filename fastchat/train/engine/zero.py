"""DeepSpeed: ZeRO stage 0 to 3. Optimizer state, gradients and weights divided among the processes, by stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.manifest import read_manifest
from fastchat.checkpoint.resume_state import LATEST
from fastchat.errors import CheckpointError, values_without_secrets
from fastchat.train.deepspeed_config import stage_of
from fastchat.train.engine import zero3, zero_universal
from fastchat.train.engine.base import Engine

# Bytes per trained number in addition to the weights: two float32 moments, float32 copies, the module's own.
_STATE_BYTES = 16


class ZeRO(Engine):
    """DeepSpeed with the stage that its configuration names.

    `whole` and `numel` go by DeepSpeed's mark on each tensor and need no attached engine.
    """

    accelerate_kinds = ("DEEPSPEED",)
    casts_weights = True
    restores_weights = True
    backward_arguments = {"scale_wrt_gas": False}  # the loss is already divided for the whole step

    def __init__(self, config: dict[str, Any], world_size: int) -> None:
        super().__init__(world_size)
        self.stage = self.zero_stage = stage_of(config)
        self.name = f"zero{self.stage}"
        self.partitions = self.stage == 3
        self.wrapped: Any = None

    # ---- weights ----

    def whole(self, tensor: Any, *, write: bool = False) -> AbstractContextManager[Any]:
        return zero3.whole(tensor, write=write)

    def numel(self, tensor: torch.Tensor) -> int:
        return getattr(tensor, "ds_numel", tensor.numel())

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """A forward pass fetches ahead: after an evaluation some parameters are still arriving, and those cannot be
        gathered. DeepSpeed brings them home before it saves by itself, and so do we."""
        if not self.partitions:
            yield
            return
        self.wrapped.optimizer.checkpoint_event_prologue()
        yield
        self.wrapped.optimizer.checkpoint_event_epilogue()

    def loading(self) -> Callable[[torch.dtype], AbstractContextManager[None]] | None:
        return _partitioned_in if self.partitions else None

    def weights_in_reach(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        return zero3.weights_in_reach(model)

    def gather_as_one(self, module: torch.nn.Module) -> None:
        if self.partitions:
            from deepspeed.utils import set_z3_leaf_module

            set_z3_leaf_module(module, True)

    def reads(self, module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
        if self.partitions:
            from deepspeed.runtime.zero import register_external_parameter

            register_external_parameter(module, parameter)

    # ---- training ----

    def prepare(self, trainer: Any) -> None:
        super().prepare(trainer)
        # accelerate would do the same a moment later, with a warning
        trainer.accelerator.gradient_accumulation_steps = trainer.args.gradient_accumulation_steps

    def attach(self, trainer: Any) -> None:
        engine = self.wrapped = trainer.model_wrapped
        stage = engine.zero_optimization_stage()
        assert stage == self.stage, f"DeepSpeed runs stage {stage}, not {self.stage}"
        self.plugin: Any = trainer.accelerator.state.deepspeed_plugin
        if stage in (1, 2):
            engine.optimizer.check_grad_overflow = True  # else a bfloat16 step is made with NaN gradients

    def before_step(self, good: bool) -> None:
        """DeepSpeed has made the step already, or has left it out and keeps the schedule waiting by itself."""

    def compute_dtype(self, weights: torch.dtype) -> torch.dtype:
        engine = self.wrapped
        half = torch.bfloat16 if engine.bfloat16_enabled() else torch.float16 if engine.fp16_enabled() else None
        return half or weights

    def settings(self) -> dict[str, Any]:
        """DeepSpeed's configuration, every "auto" filled in."""
        config = self.plugin.deepspeed_config
        return json.loads(json.dumps(config, default=str), parse_constant=str)  # one of its values is infinity

    # ---- checkpoints ----

    def state_bytes(self, numbers: int, weight_bytes: int) -> int:
        return numbers * _STATE_BYTES

    def save(self, folder: Path, *, adapter: bool) -> None:
        """DeepSpeed's shards, one or two files per process."""
        with self._safe_files() as safe:
            self.wrapped.save_checkpoint(str(folder), exclude_frozen_parameters=adapter)
        if safe.error is not None:
            raise safe.error

    def load(self, folder: Path, *, adapter: bool) -> None:
        if not (folder / LATEST).is_file():
            raise CheckpointError(f"{folder} has no {LATEST}: DeepSpeed's optimizer state is not there")
        if read_manifest(folder).world_size == self.world_size:
            self._load(folder, None, adapter)
            return
        config = self.wrapped._config
        zero_universal.check_optimizer(self.wrapped.optimizer.optimizer)
        with zero_universal.converted(folder, _safe_classes()) as universal:
            config.load_universal_checkpoint = True
            try:
                self._load(universal, zero_universal.TAG, adapter)
            finally:
                config.load_universal_checkpoint = False
            zero_universal.mend(self.wrapped.optimizer.optimizer, universal)

    def _load(self, folder: Path, tag: str | None, adapter: bool) -> None:
        with self._safe_files():
            loaded, _ = self.wrapped.load_checkpoint(str(folder), tag=tag, load_module_strict=not adapter)
        if loaded is None:
            raise CheckpointError(f"{folder}: DeepSpeed found no state of its own in it")

    @contextmanager
    def _safe_files(self) -> Iterator[Any]:
        engine = self.wrapped
        before = engine.checkpoint_engine
        engine.checkpoint_engine = safe = safe_files()
        try:
            yield safe
        finally:
            engine.checkpoint_engine = before


@contextmanager
def _partitioned_in(dtype: torch.dtype) -> Iterator[None]:
    """Let ZeRO-3 partition weights in `dtype` while a model is loaded.

    Without this a bf16 checkpoint silently becomes float32, twice its size, when the run itself has neither bf16 nor
    fp16 switched on. Where it has, DeepSpeed casts every parameter to that precision anyway.
    """
    from transformers.integrations.deepspeed import deepspeed_config

    config: Any = deepspeed_config()  # the one that transformers reads while it loads
    key = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if key is None or any(config.get(name, {}).get("enabled", False) is True for name in ("bf16", "fp16")):
        yield
        return
    before = config.get(key)
    config[key] = {"enabled": True}
    try:
        yield
    finally:
        if before is None:
            del config[key]
        else:
            config[key] = before


def _safe_classes() -> list[Any]:
    """The classes that DeepSpeed's files hold in addition to tensors; none of them runs code when it is made."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def safe_files() -> Any:
    """A DeepSpeed checkpoint engine that reads with `weights_only` and keeps write errors for later.

    DeepSpeed's own unpickles code. `.error` holds the first exception of a write: DeepSpeed's processes meet in a
    barrier after writing, so one that raised at once would leave the others waiting there.
    """
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    class SafeFiles(CheckpointEngine):
        error: BaseException | None = None

        def __init__(self) -> None:
            self.name = "safe"

        def create(self, info: Any) -> None:
            self.error = None

        def save(self, state_dict: Any, path: str) -> None:
            if "ds_config" in state_dict:  # DeepSpeed notes what it was configured with, and reads it nowhere
                state_dict = {**state_dict, "ds_config": values_without_secrets(state_dict["ds_config"])}
            try:
                torch.save(state_dict, path)
            except Exception as error:  # noqa: BLE001
                self.error = self.error or error

        def load(self, path: str, map_location: Any = None) -> Any:
            with torch.serialization.safe_globals(_safe_classes()):
                try:
                    return torch.load(path, map_location=map_location, weights_only=True)
                except Exception as error:  # noqa: BLE001
                    reason = str(error).strip().splitlines()[0]
                    raise CheckpointError(f"{path} cannot be loaded safely: {reason}") from None

        def commit(self, info: Any) -> bool:
            return True

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            try:
                Path(path).mkdir(parents=True, exist_ok=exist_ok)
            except OSError as error:
                self.error = self.error or error

    return SafeFiles()
