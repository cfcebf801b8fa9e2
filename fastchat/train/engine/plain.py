"""torch alone: one process, or several with whole copies of the model whose gradients are averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.resume_state import OPTIMIZER, SCALER, load_tensors
from fastchat.processes import rank
from fastchat.train.engine.base import Engine


class Plain(Engine):
    """One process. Half precision is autocast, float16 with a loss scale."""

    name = "plain"
    accelerate_kinds = ("NO", "MULTI_")

    def attach(self, trainer: Any) -> None:
        self.wrapped: Any = trainer.model_wrapped
        assert self._is_running(), f"accelerate made a {type(self.wrapped).__name__}, not {self.name}"
        self.optimizer: Any = trainer.optimizer  # in accelerate's wrapper
        self.scaler: Any = getattr(trainer.accelerator, "scaler", None)
        self.scaled = bool(trainer.args.fp16)
        self.precision = str(trainer.accelerator.mixed_precision)

    def _is_running(self) -> bool:
        return not isinstance(self.wrapped, torch.nn.parallel.DistributedDataParallel)

    def before_step(self, good: bool) -> None:
        if not good:
            self.wrapped.zero_grad(set_to_none=True)  # the optimizer finds nothing to do
        if not self.scaled:
            self.optimizer._is_overflow = not good  # then the schedule waits too, as it does under DeepSpeed

    def compute_dtype(self, weights: torch.dtype) -> torch.dtype:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, weights)

    def save(self, folder: Path, *, adapter: bool) -> None:
        if rank() != 0:
            return
        torch.save(self._inner_optimizer().state_dict(), folder / OPTIMIZER)
        if self.scaler is not None:
            torch.save(self.scaler.state_dict(), folder / SCALER)

    def load(self, folder: Path, *, adapter: bool) -> None:
        self._inner_optimizer().load_state_dict(load_tensors(folder / OPTIMIZER))
        if self.scaler is not None:
            self.scaler.load_state_dict(load_tensors(folder / SCALER))

    def _inner_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)


class DDP(Plain):
    """Several processes, each with the whole model, under torch's DistributedDataParallel."""

    name = "ddp"

    def _is_running(self) -> bool:
        return not super()._is_running()
