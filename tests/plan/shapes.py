"""Small models of every family, as transformers configs, for the tests of this folder."""

from __future__ import annotations

from typing import Any

FAMILIES = ("llama", "mistral", "ministral", "smollm3", "granite", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
FAMILIES += ("phi3", "olmo2", "olmo3", "cohere", "starcoder2")
_EXTRA: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 64},
    "qwen3": {"head_dim": 128},
    "phi3": {"pad_token_id": 0},
    "smollm3": {"pad_token_id": 0},
    "ministral": {"head_dim": 64},
}
TARGETS = {  # the layers that LoRA sits on, where they are not the usual seven
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "starcoder2": ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"),
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
    }
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
