"""Tiny random multimodal models: a language model with a vision or audio tower, as transformers builds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.builders import make_tokenizer

_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION |= {"image_size": 28, "patch_size": 14}
_PICTURE = {"image_token_index": 800}

# What a config has besides its text_config; for text_config itself, what it has in addition to other models.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({}, {**_PICTURE, "vision_config": _VISION, "mm_tokens_per_image": 4}),
    "mistral3": (
        {"model_type": "mistral"},
        {**_PICTURE, "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8}},
    ),
    "llava": ({"model_type": "llama"}, {**_PICTURE, "vision_config": {**_VISION, "model_type": "clip_vision_model"}}),
    "qwen2_5_vl": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        {
            "image_token_id": 800,
            "video_token_id": 801,
            "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
            | {"out_hidden_size": 32, "fullatt_block_indexes": [1]},
        },
    ),
    "mllama": (  # a decoder layer that attends to images only
        {"num_hidden_layers": 3, "cross_attention_layers": [1], "pad_token_id": 0}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {
            **_PICTURE,
            "vision_config": {**_VISION, "num_global_layers": 1, "attention_heads": 4, "vision_output_dim": 64}
            | {"intermediate_layers_indices": [0], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]},
        },
    ),
    "qwen2_audio": (
        {"model_type": "qwen2"},
        {
            "audio_token_index": 800,
            "audio_config": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
            | {"num_mel_bins": 8, "max_source_positions": 32},
        },
    ),
}


def make_multimodal(directory: Path, family: str) -> Path:
    """A model of `family` with a tokenizer of 809 tokens, as safetensors. Returns the directory."""
    import torch
    from transformers import AutoConfig, AutoModelForMultimodalLM

    text, more = FAMILIES[family]
    sizes = {"vocab_size": 809, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = AutoConfig.for_model(family, text_config=sizes | {"bos_token_id": 1, "eos_token_id": 2} | text, **more)
    make_tokenizer("metaspace_bos", directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForMultimodalLM.from_config(config).save_pretrained(directory)
    return directory
