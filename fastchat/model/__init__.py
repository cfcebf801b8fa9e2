"""Tokenizer, RoPE, attention, base weights, multimodal models and LoRA: the only room that calls `from_pretrained`."""
