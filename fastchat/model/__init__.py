"""Tokenizer, RoPE, attention, base weights and LoRA: the only room that calls `from_pretrained`."""
