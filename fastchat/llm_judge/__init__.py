"""Readers of MT-bench files that evaluation programs import; judging itself is not included."""
