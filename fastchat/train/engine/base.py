"""What an engine answers. The answers here are those of one that keeps everything whole in every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.gather import WeightAccess
from fastchat.errors import SettingsError


class Engine(WeightAccess):
    """One engine. Its life: made before the model loads; `prepare` when the Trainer is made, `attach` once it
    has prepared training.

    name: as manifests and training.json record it. world_size: processes, each of which trains on its own share of the
    global batch. accelerate_kinds: how accelerate's `distributed_type` begins. partitions: whether a process holds only
    a part of each weight. casts_weights: whether half precision means weights that the engine casts, with float32
    copies for the update; otherwise it is autocast. restores_weights: whether `load` brings back the trained weights as
    well. backward_arguments: what `accelerator.backward` is given. zero_stage: DeepSpeed's, 0 for other engines.
    library: the field of training.json that `settings` is for.
    """

    name: str
    accelerate_kinds: tuple[str, ...]
    partitions = False
    casts_weights = False
    restores_weights = False
    backward_arguments: dict[str, Any] = {}
    zero_stage = 0
    library = "deepspeed"

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def global_batch(self, micro: int, accumulation: int) -> int:
        """Rows of one optimizer step, over all processes; `micro` per process and forward pass."""
        return micro * accumulation * self.world_size

    # ---- before training is prepared ----

    def numel(self, tensor: torch.Tensor) -> int:
        """Numbers in the whole tensor."""
        return tensor.numel()

    def loading(self) -> Callable[[torch.dtype], AbstractContextManager[None]] | None:
        """What `load_base_model` has to open around the reading of weights of a dtype. None: nothing."""
        return None

    def weights_in_reach(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Within it forward and backward of `model` compute as if its weights were whole. Every process enters it and
        does the same things in the same order."""
        return nullcontext()

    def gather_as_one(self, module: torch.nn.Module) -> None:
        """From now on all parameters inside `module` are gathered together, when its forward begins."""

    def reads(self, module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
        """`module` computes with the `parameter` of another module, which has to be whole then."""

    def divide(self, model: torch.nn.Module, device: torch.device) -> None:
        """The model is complete; an engine that divides it among the processes by itself does so now."""

    def casts_by_itself(self, weights: torch.dtype, half: torch.dtype) -> bool:
        """Whether weights of that dtype compute in `half` before training is prepared, without autocast."""
        return self.casts_weights and weights == half

    def gradients(self, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> Sequence[torch.Tensor | None]:
        """The gradient of `loss` by each of the parameters, None where it has none, before training is prepared.
        Every process has the same loss; `grad` of the parameters stays as it is."""
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    # ---- training ----

    def prepare(self, trainer: Any) -> None:
        """The Trainer has been made; accelerate is told here what it has to know before it prepares training.

        SettingsError where accelerate was told by others (`accelerate launch`) to run something else.
        """
        kind = "DEEPSPEED" if trainer.is_deepspeed_enabled else trainer.accelerator.distributed_type.value
        if not kind.startswith(self.accelerate_kinds):
            raise SettingsError(
                f"accelerate is configured for {kind}, but the settings ask for {self.name}: start with deepspeed or "
                "torchrun instead of `accelerate launch`, unset the ACCELERATE_* variables, and choose with --engine"
            )

    def attach(self, trainer: Any) -> None:
        """Once the Trainer has prepared training. AssertionError where something else than this engine was made."""
        raise NotImplementedError

    def norm(self, norm: Any) -> Any:
        """The norm of all gradients, from what clipping them gave."""
        return norm

    def before_step(self, good: bool) -> None:
        """Right before the optimizer's step; where the step is not `good` it must change nothing, and neither may the
        schedule move."""
        raise NotImplementedError

    def compute_dtype(self, weights: torch.dtype) -> torch.dtype:
        """What forward and backward compute in; `weights` is the dtype they were loaded as."""
        raise NotImplementedError

    def line(self) -> str:
        """The engine in the block that a run prints before its first step."""
        return self.name

    def settings(self) -> dict[str, Any] | None:
        """The configuration that the running engine was given, as plain values, for the record. None: it has none."""
        return None

    # ---- checkpoints ----

    def state_bytes(self, numbers: int, weight_bytes: int) -> int:
        """About how large the state of all processes is that `save` writes for `numbers` trained numbers, whose weights
        take `weight_bytes`."""
        return 2 * weight_bytes  # torch's Adam: two moments in the weights' dtype

    def save(self, folder: Path, *, adapter: bool) -> None:
        """Writes the engine's own state (optimizer, loss scale). Every process calls it. `adapter`: without what is
        frozen."""
        raise NotImplementedError

    def load(self, folder: Path, *, adapter: bool) -> None:
        """Puts back what `save` wrote. Every process calls it. CheckpointError: missing, or not safe to load."""
        raise NotImplementedError


_WHOLE = {"plain": "whole", "ddp": "whole"}  # engines whose state is the same, and whole


def find_mismatch(path: Path, saved: str, now: str) -> str | None:
    """Why the state in the checkpoint `path`, of the engine `saved`, does not fit the engine `now`; None where it does.
    Weights fit everywhere, and state fits any number of processes."""
    if _WHOLE.get(saved, saved) == _WHOLE.get(now, now):
        return None
    return (
        f"{path} was saved under {saved} and this run is {now}: its optimizer state does not fit; use the same "
        "--engine or --deepspeed, or continue with the weights alone (--resume_weights_only)"
    )
