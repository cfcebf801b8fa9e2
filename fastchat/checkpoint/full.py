"""Saving a fully fine-tuned model: sharded safetensors, checked by reading the files back."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.gather import check_finite, compare_files
from fastchat.errors import CheckpointError

MAX_SHARD = "5GB"


def write_model(folder: Path, model: Any, tensors: dict[str, torch.Tensor], stop_ids: Collection[int] = ()) -> None:
    """Writes a model that `AutoModelForCausalLM.from_pretrained` loads, and verifies the weights. For global rank 0.

    `tensors`: what `gather_all` gave. `stop_ids` join the EOS of generation_config.json, so that generation ends
    where an answer ends. NumericError for weights that are not finite, CheckpointError where the files differ from
    them.
    """
    check_finite(tensors)
    config, generation = model.config, model.generation_config
    model.config = copy.deepcopy(config)
    model.config.use_cache = True  # off only while training
    model.generation_config = _generation_config(generation, stop_ids)
    try:
        model.save_pretrained(str(folder), state_dict=dict(tensors), max_shard_size=MAX_SHARD)
    finally:
        model.config, model.generation_config = config, generation
    compare_files(sorted(folder.glob("*.safetensors")), _as_saved(model, tensors))
    if not (folder / "config.json").is_file():
        raise CheckpointError("config.json was not written")


def _as_saved(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the files should hold: tied weights once, under the names of published checkpoints."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    kept = {name: tensor for name, tensor in tensors.items() if name not in tied}
    known = {tensor.data_ptr() for tensor in kept.values()}
    kept.update({n: t for n, t in tensors.items() if n in tied and t.data_ptr() not in known})
    if getattr(model, "_weight_conversions", None):  # mixture-of-experts models are fused while they train
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(model, kept)
    return kept


def _generation_config(generation: Any, stop_ids: Collection[int]) -> Any:
    generation = copy.deepcopy(generation)
    own = generation.eos_token_id
    known = [] if own is None else list(own) if isinstance(own, (list, tuple)) else [own]
    stops = list(dict.fromkeys([*known, *stop_ids]))
    generation.eos_token_id = stops[0] if len(stops) == 1 else stops or None
    if not generation.do_sample and any(value is not None for value in (generation.temperature, generation.top_p)):
        generation.do_sample = (
            True  # Llama-2's own file sets a temperature without it, which transformers refuses to write
        )
    return generation
