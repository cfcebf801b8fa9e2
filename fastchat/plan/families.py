"""The known families of decoders, and the shape of a model from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastchat.errors import SettingsError
from fastchat.plan.architecture import Architecture, Family

LLAMA = Family()
_GEMMA = Family(norm="gemma", tied=True, defaults=(("head_dim", 256),))
FAMILIES: dict[str, Family] = {  # transformers' model_type; tests/plan compares each with the real class
    "llama": LLAMA,
    "mistral": LLAMA,
    "ministral": LLAMA,
    "smollm3": LLAMA,
    "granite": LLAMA,
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head", defaults=(("head_dim", 128),)),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=4, sdpa=False),  # it also norms the outputs of attention and MLP
    "gemma3_text": replace(
        _GEMMA,
        norms=4,
        qk_norm="head",
        defaults=(
            ("head_dim", 256),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("vocab_size", 262_208),
            ("max_position_embeddings", 131_072),
        ),
    ),
    "phi3": Family(fused=True),
    "olmo2": Family(norm="gemma", qk_norm="full"),
    "olmo3": Family(norm="gemma", qk_norm="full"),
    "cohere": Family(norm="cohere", norms=1, tied=True),
    "starcoder2": Family(
        norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True, tied=True, mlp_names=("c_fc", "c_proj")
    ),
}
_NESTED = {"gemma3": "gemma3_text", "mistral3": "mistral"}  # text models inside a multimodal config
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")


def architecture_from_config(config: Mapping[str, Any], name: str) -> Architecture:
    """The shape in a config.json. Raises SettingsError if a size is missing or the model is not a dense decoder.

    A family that is not in the table is treated as a Llama of the same sizes, with a note.
    """
    text: Mapping[str, Any] = config
    kind, notes = str(config.get("model_type", "")), []
    if isinstance(config.get("text_config"), Mapping):
        text = {"dtype": config.get("dtype") or config.get("torch_dtype"), **config["text_config"]}
        kind = str(text.get("model_type") or _NESTED.get(kind, kind))
    if any(int(text.get(key) or 0) > 1 for key in _EXPERTS):
        raise SettingsError(f"{name}: {kind or 'this model'} is a mixture of experts; only dense decoders are planned")
    family = FAMILIES.get(kind)
    if family is None:
        notes.append(f"unknown model type {kind!r}: treated as a Llama of the same sizes")
        family = LLAMA
    values: dict[str, Any] = dict(family.defaults) | {key: value for key, value in text.items() if value is not None}
    hidden, heads = _size(values, "hidden_size", name), _size(values, "num_attention_heads", name)
    return Architecture(
        name=name,
        family=_with_switches(family, kind, values),
        hidden=hidden,
        num_layers=_size(values, "num_hidden_layers", name),
        num_heads=heads,
        num_kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        intermediate=_size(values, "intermediate_size", name),
        vocab=_size(values, "vocab_size", name),
        tied=bool(values.get("tie_word_embeddings", family.tied)),
        dtype=values.get("dtype") or values.get("torch_dtype"),
        max_positions=int(values.get("max_position_embeddings") or 0),
        softcap=bool(values.get("final_logit_softcapping")),
        notes=tuple(notes),
    )


def _with_switches(family: Family, kind: str, values: Mapping[str, Any]) -> Family:
    """The family with the options of a config.json: biases, and Cohere's norms on queries and keys."""
    changed: dict[str, Any] = {}
    if kind not in ("qwen2", "starcoder2", "phi3") and values.get("attention_bias"):
        changed |= {"qkv_bias": True, "o_bias": True}
    if values.get("mlp_bias"):
        changed["mlp_bias"] = True
    if kind == "starcoder2" and values.get("use_bias") is False:
        changed |= {"qkv_bias": False, "o_bias": False, "mlp_bias": False}
    if kind == "cohere" and values.get("use_qk_norm"):
        changed["qk_norm"] = "full"
    return replace(family, **changed)


def _size(values: Mapping[str, Any], key: str, name: str) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"{name}: {key} in config.json is {value!r}, so its memory cannot be planned")
    return value
