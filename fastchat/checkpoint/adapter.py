"""Saving a LoRA adapter: the weights as the engine has them, checked by reading the file back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.gather import check_finite, compare_files
from fastchat.errors import CheckpointError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(folder: Path, model: Any, trained: dict[str, torch.Tensor]) -> None:
    """Writes adapter_model.safetensors and adapter_config.json and verifies them. For global rank 0.

    `model`: the PeftModel; `trained`: as returned by `gather_trained`. NumericError for weights that are not finite,
    CheckpointError if the file does not have every trained tensor exactly.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    check_finite(trained)
    tensors = get_peft_model_state_dict(model, state_dict=dict(trained), save_embedding_layers=False)
    if len(tensors) != len(trained):
        raise CheckpointError(f"{len(trained)} tensors are trained but the adapter would have {len(tensors)}")
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    compare_files([folder / WEIGHTS], tensors)
    write_config(folder, model)


def write_config(folder: Path, model: Any) -> None:
    """adapter_config.json, with the base as an absolute path, so that the adapter can be used from anywhere."""
    config = model.peft_config["default"]
    base, inference = config.base_model_name_or_path, config.inference_mode
    if base and Path(base).expanduser().is_dir():
        config.base_model_name_or_path = str(Path(base).expanduser().resolve())
    config.inference_mode = True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.base_model_name_or_path, config.inference_mode = base, inference
