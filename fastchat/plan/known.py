"""Models with a shape that is known without a file: Llama-2 by size, and the hub models of the recipes and scripts."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from fastchat.errors import SettingsError
from fastchat.plan.architecture import Architecture
from fastchat.plan.families import architecture_from_config

# The shapes of the published checkpoints; a test compares the sums with their published parameter counts.
_LLAMA2 = {"model_type": "llama", "vocab_size": 32_000, "max_position_embeddings": 4096, "dtype": "float16"}
_GEMMA = {"model_type": "gemma", "vocab_size": 256_000, "max_position_embeddings": 8192, "dtype": "bfloat16"}
_GEMMA |= {"head_dim": 256}


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
    }


_GEMMA_7B = _GEMMA | _sizes(3072, 28, 16, 16, 24576)
_HUB: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _LLAMA2 | _sizes(4096, 32, 32, 32, 11008),
    "meta-llama/Llama-2-13b-hf": _LLAMA2 | _sizes(5120, 40, 40, 40, 13824),
    "meta-llama/Llama-2-70b-hf": _LLAMA2 | _sizes(8192, 80, 64, 8, 28672),
    "google/gemma-1.1-2b-it": _GEMMA | _sizes(2048, 18, 8, 1, 16384),
    "google/gemma-1.1-7b-it": _GEMMA_7B,
    "google/codegemma-1.1-7b-it": _GEMMA_7B,
    "google/gemma-2-9b-it": _GEMMA
    | _sizes(3584, 42, 16, 8, 14336)
    | {"model_type": "gemma2", "final_logit_softcapping": 30.0},
    "mistralai/Mistral-7B-v0.3": {
        **_sizes(4096, 32, 32, 8, 14336),
        "model_type": "mistral",
        "vocab_size": 32_768,
        "max_position_embeddings": 32_768,
        "dtype": "bfloat16",
    },
    "Qwen/Qwen2.5-7B": {
        **_sizes(3584, 28, 28, 4, 18944),
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "max_position_embeddings": 131_072,
        "dtype": "bfloat16",
    },
}
_BY_LOWER = {name.lower(): name for name in _HUB}

_SIZES = {size: f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b")}
SIZES = tuple(_SIZES)


def architecture_of_size(size: str) -> Architecture:
    """The Llama-2 of that size ("7b", "13b", "70b"), without a dtype. Raises SettingsError for any other size."""
    if size.lower() not in _SIZES:
        close = difflib.get_close_matches(size.lower(), SIZES, n=1, cutoff=0.3)
        hint = f" (nearest: {close[0]})" if close else ""
        raise SettingsError(
            f"--model_size {size} is not one of {', '.join(SIZES)}{hint}; for another model give --model_name_or_path"
        )
    name = _SIZES[size.lower()]
    return replace(architecture_from_config(_HUB[name], name), dtype=None)


def architecture_of_hub_name(name: str) -> Architecture | None:
    """The shape of a hub model of the recipes and scripts, with a note about its source; None for other models.

    >>> architecture_of_hub_name("google/gemma-2-9b-it").num_layers
    42
    """
    known = _BY_LOWER.get(name.lower())
    if known is None:
        return None
    note = f"the built-in architecture of {known} was used; nothing was downloaded"
    return replace(architecture_from_config(_HUB[known], name), notes=(note,))
