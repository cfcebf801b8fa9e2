"""The known families of decoders, and the shape of a model from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastchat.plan.architecture import Architecture, Family
from fastchat.plan.layers import head_dim_of, latent_of, layers_of, num_experts, number, recurrent_of, size

LLAMA = Family()
_GEMMA = Family(norm="gemma", tied=True, defaults=(("head_dim", 256),))
_GEMMA3 = (("head_dim", 256), ("num_attention_heads", 8), ("num_key_value_heads", 4))
_GEMMA3 += (("vocab_size", 262_208), ("max_position_embeddings", 131_072))
_COHERE = Family(norm="cohere", norms=1, tied=True)
_OLMO2 = Family(norm="gemma", qk_norm="full", post_norm=True)
_QWEN3 = Family(qk_norm="head", defaults=(("head_dim", 128),))
_QWEN3_NEXT = Family(norm="gemma", qk_norm="head", attention_gate=True, shared="shared_expert", shared_gate=True)
_QWEN3_NEXT = replace(_QWEN3_NEXT, defaults=(("head_dim", 256),))
_GLM = Family(fused_mlp=True, attention_biases=("qkv",), qkv_bias=True)
_DEEPSEEK = Family(float32_router=True)
_GLM4_MOE = replace(_DEEPSEEK, attention_biases=("qkv",))
_PLAIN_MLP = {"gated": False, "mlp_names": ("up_proj", "down_proj")}
FAMILIES: dict[str, Family] = {  # transformers' model_type; tests/plan compares each with the real class
    "llama": LLAMA,
    "mistral": LLAMA,
    "ministral": LLAMA,
    "ministral3": LLAMA,
    "smollm3": LLAMA,
    "granite": LLAMA,
    "ernie4_5": replace(LLAMA, tied=True),
    "seed_oss": Family(attention_biases=("qkv",)),
    "hunyuan_v1_dense": Family(qk_norm="head"),
    "arcee": Family(**_PLAIN_MLP),
    "qwen2": Family(qkv_bias=True),
    "qwen3": _QWEN3,
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=4, sdpa=False),  # it also norms the outputs of attention and MLP
    "gemma3_text": replace(_GEMMA, norms=4, qk_norm="head", defaults=_GEMMA3),
    "phi3": Family(fused_qkv=True, fused_mlp=True),
    "glm": _GLM,
    "glm4": replace(_GLM, norms=4),
    "exaone4": Family(qk_norm="head", post_norm=True),
    "olmo": Family(norm="plain"),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "nemotron": Family(norm="layer", **_PLAIN_MLP),
    "stablelm": Family(norm="layer"),
    "starcoder2": Family(
        norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True, tied=True, mlp_names=("c_fc", "c_proj")
    ),
    "qwen3_5_text": _QWEN3_NEXT,
    # mixtures of experts
    "mixtral": LLAMA,
    "qwen2_moe": Family(qkv_bias=True, shared="shared_expert", shared_gate=True),
    "qwen3_moe": Family(qk_norm="head"),
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "olmoe": Family(qk_norm="full"),
    "flex_olmo": _OLMO2,
    "granitemoe": Family(prefix="block_sparse_moe"),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": _GLM4_MOE,
    "glm4_moe_lite": _DEEPSEEK,
    "ernie4_5_moe": Family(tied=True, router_bias=True, router_fixed=True, float32_router=True),
    "phimoe": Family(norm="layer", router_name="router"),
    "exaone_moe": replace(_DEEPSEEK, qk_norm="head"),
    "dots1": replace(_DEEPSEEK, qk_norm="head"),
    "minimax_m2": Family(qk_norm="full"),
    "hunyuan_v1_moe": Family(qk_norm="head", shared="shared_mlp", shared_always=True, router_name="gate.wg"),
    "cohere2_moe": _COHERE,
    "llama4_text": Family(
        qk_norm="l2",
        prefix="feed_forward",
        shared="shared_expert",
        shared_always=True,
        router_name="router",
        every_expert=True,
    ),
    "gpt_oss": Family(
        norm="gemma",
        qkv_bias=True,
        o_bias=True,
        sdpa=False,
        sinks=True,
        expert_bias=True,
        router_bias=True,
        expert_between=6,
    ),
}
# Families since GPT-2, without a gate in the MLP, planned by their sizes only: their matrices have other names.
_OLDER = replace(FAMILIES["starcoder2"], mlp_names=("up_proj", "down_proj"))
_OLDER_TYPES = ("gpt2", "gpt_neo", "gptj", "gpt_neox", "gpt_bigcode", "codegen", "opt", "bloom", "falcon", "mpt", "phi")
_ALIASES = {  # names of the same sizes in their config.json
    "hidden_size": ("n_embd", "d_model", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
_NESTED = {"gemma3": "gemma3_text", "mistral3": "mistral", "llama4": "llama4_text"}  # inside a multimodal config


def architecture_from_config(config: Mapping[str, Any], name: str) -> Architecture:
    """The shape in a config.json. Raises SettingsError if a size is missing.

    A family that is not in the table is planned as a Llama (or GPT-2) of the same sizes, with the same experts, with a
    note.
    """
    text: Mapping[str, Any] = config
    kind, notes = str(config.get("model_type", "")), []
    if isinstance(config.get("text_config"), Mapping):
        text = {"dtype": config.get("dtype") or config.get("torch_dtype"), **config["text_config"]}
        kind = str(text.get("model_type") or _NESTED.get(kind, kind))
    text = _renamed(text, kind)
    family = FAMILIES.get(kind)
    if family is None:
        family = _OLDER if kind in _OLDER_TYPES else LLAMA
        like = "GPT-2" if kind in _OLDER_TYPES else "Llama with experts" if num_experts(text) else "Llama"
        notes.append(
            f"unknown model type {kind!r}: planned as a {like} of the same sizes; compare the plan with the peak "
            "memory that the first steps of training report"
        )
    values: dict[str, Any] = dict(family.defaults) | {key: value for key, value in text.items() if value is not None}
    family = _with_switches(family, kind, values)
    hidden, heads = size(values, "hidden_size", name), size(values, "num_attention_heads", name)
    kinds, order = layers_of(family, values, name)
    return Architecture(
        name=name,
        model_type=kind,
        known=kind in FAMILIES,
        family=family,
        hidden=hidden,
        num_heads=heads,
        num_kv_heads=number(values, "num_key_value_heads", name) or heads,
        head_dim=head_dim_of(values, name),
        intermediate=number(values, "intermediate_size", name),
        vocab=size(values, "vocab_size", name),
        tied=bool(values.get("tie_word_embeddings", family.tied)),
        kinds=kinds,
        order=order,
        latent=latent_of(values, name),
        recurrent=recurrent_of(values, name),
        dtype=_dtype(values.get("dtype") or values.get("torch_dtype")),
        packed=_packed(config),
        max_positions=number(values, "max_position_embeddings", name),
        head_bias=bool(values.get("lm_head_bias") or (kind in _BIASED["use_bias"][1:] and values.get("use_bias"))),
        residual_dropout=any(values.get(key) for key in ("residual_dropout", "resid_pdrop", "hidden_dropout")),
        softcap=bool(values.get("final_logit_softcapping")),
        notes=tuple(notes),
    )


def _renamed(text: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The values with today's names of the sizes."""
    values = dict(text)
    for name, others in _ALIASES.items():
        if values.get(name) is None:
            values[name] = next((values[other] for other in others if values.get(other)), None)
    if kind in _OLDER_TYPES and values["intermediate_size"] is None and isinstance(values["hidden_size"], int):
        values["intermediate_size"] = 4 * values["hidden_size"]
    return values


def _dtype(value: Any) -> str | None:
    """The dtype of the checkpoint; None if training does not load it as it is."""
    return value if value in ("float32", "bfloat16", "float16", "float64") else None


def _packed(config: Mapping[str, Any]) -> str | None:
    """The format of quantized weights in the checkpoint, such as "mxfp4"."""
    quantized = config.get("quantization_config")
    return str(quantized.get("quant_method")) if isinstance(quantized, Mapping) else None


# Families whose biases no `attention_bias` changes.
_OWN_BIASES = ("qwen2", "qwen2_moe", "starcoder2", "phi3", "nemotron_h", "stablelm")


def _with_switches(family: Family, kind: str, values: Mapping[str, Any]) -> Family:
    """The family with the options of a config.json: biases, and norms on queries and keys."""
    changed: dict[str, Any] = {}
    if kind not in _OWN_BIASES and "attention_bias" in values:
        biased = bool(values["attention_bias"])
        changed |= {f"{part}_bias": biased for part in family.attention_biases}
    for key, parts in _BIASES.items():
        if key in values and (kind in _BIASED.get(key, (kind,))):
            changed |= {f"{part}_bias": bool(values[key]) for part in parts}
    if "use_qk_norm" in values and kind in ("cohere", "glm4_moe"):
        changed["qk_norm"] = {"cohere": "full", "glm4_moe": "head"}[kind] if values["use_qk_norm"] else None
    return replace(family, **changed)


_BIASES = {  # further settings for biases, and the matrices that they are for
    "mlp_bias": ("mlp",),
    "attention_out_bias": ("o",),
    "use_qkv_bias": ("qkv",),
    "qkv_bias": ("qkv",),
    "use_bias": ("qkv", "o", "mlp"),
}
_BIASED = {"use_bias": ("starcoder2", "ernie4_5", "ernie4_5_moe")}  # the only families with that meaning
