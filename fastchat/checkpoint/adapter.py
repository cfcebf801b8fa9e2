"""Saving a LoRA adapter: the weights as the engine has them, checked by reading the file back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.gather import check_finite, compare_files
from fastchat.errors import CheckpointError
from fastchat.model.adapter_parts import adapter_parts, file_config, joined, unsaved

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(folder: Path, model: Any, trained: dict[str, torch.Tensor]) -> None:
    """Writes adapter_model.safetensors and adapter_config.json and verifies them. For global rank 0.

    `model`: the PeftModel; `trained`: as returned by `gather_trained`. NumericError for weights that are not finite,
    CheckpointError if the file does not have every trained tensor exactly.
    """
    from safetensors.torch import save_file

    check_finite(trained)
    parts = adapter_parts(model)
    if left_out := unsaved(model, parts):
        raise CheckpointError(f"{left_out[0]} is trained, but the adapter's file would not have it")
    tensors = {name: joined(name, [trained[part] for part in names]) for name, names in parts.items()}
    save_file(_unshared(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    compare_files([folder / WEIGHTS], tensors)
    write_config(folder, model)


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, each tensor in memory of its own: tied weights have several names in the file."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return found


def write_config(folder: Path, model: Any) -> None:
    """adapter_config.json, with the base as an absolute path, so that the adapter can be used from anywhere."""
    config = file_config(model)
    base = config.base_model_name_or_path
    if base and Path(base).expanduser().is_dir():
        config.base_model_name_or_path = str(Path(base).expanduser().resolve())
    config.inference_mode = True
    config.save_pretrained(str(folder))
