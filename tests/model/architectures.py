"""Tiny models of many architectures, in memory, for tests of what LoRA adapts in them."""

from __future__ import annotations

from typing import Any

import torch

_LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_NEOX = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
_DEEPSEEK = {**_LLAMA, "num_key_value_heads": 4, **_MLA, **_ROUTED, "first_k_dense_replace": 1}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
SIZES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": _NEOX,
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2},
    "opt": {**_NEOX, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "phi": _NEOX,
    "phi3": _LLAMA,
    "glm4": {**_LLAMA, "head_dim": 8},
    "starcoder2": _LLAMA,
    "lfm2": {**_LLAMA, "layer_types": ["conv", "full_attention"]},
    "nemotron": _LLAMA,
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48},
    "mamba": {"hidden_size": 32, "state_size": 8},
    "mamba2": {"hidden_size": 32, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_h1": {**_LLAMA, **_MAMBA2, "mamba_d_ssm": 64},
    "bamba": {**_LLAMA, **_MAMBA2, "attn_layer_indices": [1]},
    "jamba": {**_LLAMA, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8},
    "recurrent_gemma": {**_LLAMA, "block_types": ["recurrent", "attention"], "lru_width": 32},
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "context_length": 64},
    "mixtral": {**_LLAMA, "num_local_experts": 4},
    "qwen2_moe": {**_LLAMA, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_LLAMA, **_EXPERTS, "head_dim": 8, "mlp_only_layers": [0]},
    "qwen3_next": {**_LLAMA, **_EXPERTS, **_LINEAR_ATTENTION, "head_dim": 8, "shared_expert_intermediate_size": 16},
    "gpt_oss": {**_LLAMA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {
        **_LLAMA,
        **_MAMBA2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
        "layer_types": ["mamba", "attention"],
    },
    "jetmoe": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    "llama4_text": {**_LLAMA, "head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48},
    "phimoe": {**_LLAMA, "num_local_experts": 4},
    "gemma4_text": {  # experts next to attention and MLP; a layer called gate that is none of theirs
        **_LLAMA,
        "head_dim": 8,
        "global_head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 96,
        "attention_k_eq_v": True,
    },
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": {**_DEEPSEEK, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 8},
    "minimax": {**_LLAMA, "num_local_experts": 4, "head_dim": 8, "block_size": 16},
    "zamba2": {  # its two hybrid blocks share the weights of one transformer
        **_LLAMA,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1,
        "mamba_headdim": 8,
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
    },
}


def tiny(arch: str, **more: Any) -> Any:
    """A model with two blocks and random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {"vocab_size": 96, "max_position_embeddings": 64, "pad_token_id": 0, "num_hidden_layers": 2}
    values |= {"bos_token_id": 1, "eos_token_id": 2}
    if any(key in SIZES[arch] for key in ("n_layer", "n_layers")):
        del values["num_hidden_layers"]
    if arch in ("mpt", "ctrl", "gpt2", "gptj", "gpt_bigcode"):
        del values["max_position_embeddings"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **values | SIZES[arch] | more))


def loss(model: Any) -> torch.Tensor:
    """Of a fixed row of tokens."""
    ids = torch.arange(3, 43)[None]
    return model(input_ids=ids, labels=ids, use_cache=False).loss
