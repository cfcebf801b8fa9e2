"""Engines of the API server: token ids in, token ids out. No engine here computes anything itself: they pass requests
to vLLM or to transformers."""
