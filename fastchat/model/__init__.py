"""Tokenizer, RoPE, attention, base weights, what text passes through of multimodal models, and LoRA: the only room that calls `from_pretrained`."""
