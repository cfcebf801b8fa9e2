"""Steps without walks through all modules of the model.

transformers' Trainer asks the model for its parameters and zeroes their gradients in every step. Of an adapter's model
with hundreds of frozen modules that takes as long as several of its layers when batches are small.
"""

from __future__ import annotations

from typing import Any

import torch

from fastchat.train.checkpointing import CheckpointTrainer


class Trained:
    """In place of a model where only its parameters are asked for: those that have gradients."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.list = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def parameters(self) -> list[torch.nn.Parameter]:
        return self.list

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.list:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.detach_().zero_()


class LeanTrainer(CheckpointTrainer):
    """Remembers what is trained, and the modules whose mode tells whether evaluation has changed it.

    Under DeepSpeed and FSDP the engine's own model is asked, as they look for all of its parameters.
    """

    _trained: Trained | None = None

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        kind = self.accelerator.distributed_type.value
        if kind == "NO" or kind.startswith("MULTI_"):
            wrapped: Any = self.model_wrapped
            self._trained = Trained(wrapped)
            wrapped.zero_grad = self._trained.zero_grad
        return prepared

    def into_training_mode(self, model: Any) -> None:
        """`model.train()`, unless it is still in that mode."""
        inner: Any = self.model
        base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        if not (model.training and inner.training and base.training):
            model.train()

    def _clip_grad_norm(self, model: Any) -> Any:
        return super()._clip_grad_norm(self._trained or model)  # pyright: ignore[reportAttributeAccessIssue]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(self._trained or model, grad_norm)
