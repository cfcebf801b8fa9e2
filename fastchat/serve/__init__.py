"""Chatting with a fine-tuned model: in the terminal, or from code with `load_chat`."""
