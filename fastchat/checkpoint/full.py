"""Saving a fully fine-tuned model: sharded safetensors, checked by reading the files back."""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastchat.bars import waiting
from fastchat.checkpoint.gather import check_finite, compare_files
from fastchat.errors import CheckpointError
from fastchat.model.tokenizer import base_stop_ids

MAX_SHARD = "5GB"


def write_model(
    folder: Path, model: Any, tensors: dict[str, torch.Tensor], tokenizer: Any, stop_ids: Collection[int] = ()
) -> None:
    """Writes a model that `AutoModelForCausalLM.from_pretrained` loads, and verifies the weights. For global rank 0.

    `tensors`: as returned by `gather_all`. `tokenizer`, `stop_ids`: see `saved_configs`. NumericError for weights that
    are not finite, CheckpointError if the files differ from them.
    """
    check_finite(tensors)
    config, generation = model.config, model.generation_config
    model.config, model.generation_config = saved_configs(model, tokenizer, stop_ids)
    try:
        with waiting(
            "writing the weights", sum(tensor.nbytes for tensor in tensors.values()), partial(_written, folder)
        ):
            model.save_pretrained(str(folder), state_dict=dict(tensors), max_shard_size=MAX_SHARD)
        _name_dtype(folder, model, tensors)
    finally:
        model.config, model.generation_config = config, generation
    compare_files(sorted(folder.glob("*.safetensors")), _as_saved(model, tensors))
    if not (folder / "config.json").is_file():
        raise CheckpointError("config.json was not written")


def _name_dtype(folder: Path, model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """The config names the dtype of the files, also where the engine keeps the weights in another one."""
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), model.dtype)
    if dtype != model.dtype:
        model.config.dtype = str(dtype).removeprefix("torch.")
        model.config.save_pretrained(str(folder))


def _written(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _as_saved(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that the files should have: tied weights once, under the names used in published checkpoints."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    kept = {name: tensor for name, tensor in tensors.items() if name not in tied}
    known = {tensor.data_ptr() for tensor in kept.values()}
    kept.update({n: t for n, t in tensors.items() if n in tied and t.data_ptr() not in known})
    if getattr(model, "_weight_conversions", None):  # mixture-of-experts models are fused while they train
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(model, kept)
    return kept


def saved_configs(model: Any, tokenizer: Any, stop_ids: Collection[int]) -> tuple[Any, Any]:
    """(config, generation config) to save: both have the special token ids of `tokenizer`.

    `stop_ids` are added to the EOS and to the base's own stops, so that generation ends where an answer ends.
    """
    config, generation = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    config.use_cache = True  # was only off for training
    text = config.get_text_config()
    stops = dict.fromkeys([*base_stop_ids(model, tokenizer.added_tokens_decoder), *stop_ids])
    if tokenizer.eos_token_id is not None:
        stops[tokenizer.eos_token_id] = None
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids["eos_token_id"] = next(iter(stops), None) if len(stops) < 2 else list(stops)
    for part in {id(part): part for part in (config, text, generation)}.values():
        for name, value in ids.items():
            if value is not None and (part is not config or hasattr(part, name)):
                setattr(part, name, value)
    if not generation.do_sample and any(value is not None for value in (generation.temperature, generation.top_p)):
        generation.do_sample = (
            True  # Llama-2's own file sets a temperature without it, which transformers refuses to write
        )
    return config, generation
