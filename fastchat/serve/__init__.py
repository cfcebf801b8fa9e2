"""Talking to a tuned model: in the terminal, and from code through `load_chat`."""
