"""What vLLM can serve and in which form, as read in its sources: config/lora.py, lora/peft_helper.py, its LoRA kernels,
and how `--dtype auto` is resolved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The values of `max_lora_rank`.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_HALF = ("float16", "bfloat16")
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings|output_layer)$")


def cannot_apply(config: Mapping[str, Any], dtype: str) -> list[str]:
    """What of an adapter vLLM does not apply, in a few words each; empty if it can serve the adapter.

    `config`: its adapter_config. `dtype`: of the weights, as `serving_dtype` gives it.
    """
    found = []
    if config.get("use_dora"):
        found.append("DoRA")
    if saved := config.get("modules_to_save"):
        found.append(f"modules trained whole ({', '.join(sorted(saved))})")
    if config.get("trainable_token_indices"):
        found.append("rows of the embedding that were trained")
    if targets := config.get("target_parameters"):
        targets = [targets] if isinstance(targets, str) else sorted(targets)
        found.append(f"an adapter on parameters ({', '.join(targets)})")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        found.append("trained biases")
    modules = config.get("target_modules") or []
    modules = [modules] if isinstance(modules, str) else sorted(modules)
    if embedded := [name for name in modules if _EMBEDDINGS.search(name)]:
        found.append(f"an adapter on {', '.join(embedded)}")
    # It scales every layer by alpha / r, and ignores keys that it does not know.
    if patterns := [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]:
        found.append(f"a scaling that differs by layer ({', '.join(patterns)})")
    if int(config["r"]) > RANKS[-1]:
        found.append(f"rank {config['r']}, of at most {RANKS[-1]}")
    if dtype == "float32":
        found.append("weights in float32, while its LoRA kernels compute in 16 bits")
    return found


def max_rank(config: Mapping[str, Any]) -> int:
    """The smallest value of `max_lora_rank` for an adapter that can be served."""
    return next(allowed for allowed in RANKS if allowed >= int(config["r"]))


def serving_dtype(config: Mapping[str, Any], trained: str | None = None) -> str:
    """The value of `dtype` with which vLLM keeps the weights as they are: "auto" would round float32 to 16 bits.

    `config`: the model's config.json, {} if it is not at hand. `trained`: the dtype of the base while an adapter was
    trained on it.
    """
    if trained in _HALF:
        return trained
    text = config.get("text_config") or {}
    stored = next((part[key] for part in (config, text) for key in ("dtype", "torch_dtype") if part.get(key)), None)
    return "float32" if str(stored).removeprefix("torch.") == "float32" else "auto"
