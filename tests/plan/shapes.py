"""Small models of every family, as transformers configs, for the tests of this folder."""

from __future__ import annotations

from typing import Any

DENSE = ("llama", "mistral", "ministral", "ministral3", "smollm3", "granite", "ernie4_5", "seed_oss", "arcee")
DENSE += ("hunyuan_v1_dense", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "glm", "glm4", "exaone4")
DENSE += ("olmo", "olmo2", "olmo3", "cohere", "cohere2", "nemotron", "stablelm", "starcoder2")
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "granitemoe", "deepseek_v2", "deepseek_v3")
EXPERTS += ("glm4_moe", "glm4_moe_lite", "ernie4_5_moe", "exaone_moe", "dots1", "minimax_m2", "hunyuan_v1_moe")
EXPERTS += ("cohere2_moe", "phimoe", "llama4_text", "gpt_oss")
RECURRENT = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
FAMILIES = DENSE + EXPERTS + RECURRENT
_EXTRA: dict[str, dict[str, Any]] = {
    "ministral": {"head_dim": 64},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "minimax_m2": {"head_dim": 64},
    "cohere2_moe": {"head_dim": 64},
    "qwen2_moe": {"shared_expert_intermediate_size": 384},
    "deepseek_v2": {"first_k_dense_replace": 1},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "dots1": {"n_shared_experts": 2, "first_k_dense_replace": 1},
    "llama4_text": {"head_dim": 64, "moe_layers": [1, 2], "intermediate_size_mlp": 1024, "num_experts_per_tok": 1},
    "gpt_oss": {"head_dim": 64},
    **dict.fromkeys(RECURRENT, {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}),
}
_EXPERTS = {  # the sizes of experts and of the attention that some of these models have, where the config has the key
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    "moe_intermediate_size": 256,
    **{"n_group": 1, "topk_group": 1, "q_lora_rank": 192, "kv_lora_rank": 128},
    **{"qk_rope_head_dim": 32, "qk_nope_head_dim": 48, "v_head_dim": 64},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 96},
}


def config(family: str, **changed: Any) -> Any:
    """A transformers config: 3 layers, hidden 512, 8 heads and 2 key-value heads, unless changed."""
    from transformers import AutoConfig

    values: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "pad_token_id": 0,
    }
    if family not in DENSE:
        plain = AutoConfig.for_model(family)
        known = plain.to_dict().keys() | plain.attribute_map.keys()
        values |= {key: value for key, value in _EXPERTS.items() if key in known}
    return AutoConfig.for_model(family, **values | _EXTRA.get(family, {}) | changed)


def llama(architecture: Any) -> Any:
    """The transformers config of an `Architecture` of Llama's family."""
    a = architecture
    return config(
        "llama",
        hidden_size=a.hidden,
        intermediate_size=a.intermediate,
        num_hidden_layers=a.num_layers,
        num_attention_heads=a.num_heads,
        num_key_value_heads=a.num_kv_heads,
        vocab_size=a.vocab,
    )
