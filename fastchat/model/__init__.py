"""Tokenizer, RoPE, attention, base weights, multimodal models and LoRA: the only package that calls `from_pretrained`.

`load_model`, `get_conversation_template` and `add_model_args` are upstream's (model_adapter.py).
"""

from fastchat.model.model_adapter import add_model_args, get_conversation_template, load_model

__all__ = ["add_model_args", "get_conversation_template", "load_model"]
