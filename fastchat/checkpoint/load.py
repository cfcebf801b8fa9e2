"""Loading every weight of a checkpoint back into the model that is being trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.gather import WeightAccess, stored_tensors
from fastchat.errors import CheckpointError
from fastchat.model.adapter_parts import adapter_parts, split


@torch.no_grad()
def load_weights(model: Any, folder: Path, *, adapter: bool, weights: WeightAccess) -> None:
    """Copies the saved weights into `model`, in place; every process must call it. `adapter`: only the adapter.

    `weights`: the engine that trains `model`. CheckpointError if a tensor is missing, unexpected, or has another
    shape or dtype.
    """
    wanted = _adapter_tensors(model) if adapter else {name: [tensor] for name, tensor in _model_tensors(model).items()}
    paths = [folder / "adapter_model.safetensors"] if adapter else sorted(folder.glob("*.safetensors"))
    if not paths or not paths[0].is_file():
        raise CheckpointError(f"{folder} has no weights")
    left = dict(wanted)
    for name, stored in stored_tensors(paths):
        targets = left.pop(name, None)
        if targets is None:
            raise CheckpointError(f"{folder}: {name} is in the checkpoint, but is not trained in this run")
        for target, part in zip(targets, split(name, stored, len(targets)), strict=True):
            with weights.whole(target, write=True) as values:
                if part.shape != values.shape:
                    raise CheckpointError(f"{folder}: {name} is {tuple(part.shape)}, the model's {tuple(values.shape)}")
                values.copy_(part)
    if left:
        raise CheckpointError(f"{folder} lacks {len(left)} trained tensors, such as {next(iter(left))}")


def _adapter_tensors(model: Any) -> dict[str, list[torch.Tensor]]:
    """Name in an adapter's file -> the parameters that it is made of."""
    named = dict(model.named_parameters())
    return {name: [named[part] for part in parts] for name, parts in adapter_parts(model).items()}


def _model_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Name in a model's files -> parameter or buffer; tied weights once."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    state = model.state_dict(keep_vars=True)
    kept = {name: tensor for name, tensor in state.items() if name not in tied}
    known = {id(tensor) for tensor in kept.values()}
    kept.update({n: t for n, t in state.items() if n in tied and id(t) not in known})
    return kept
