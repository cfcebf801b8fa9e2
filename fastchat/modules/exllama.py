"""Upstream's ExLlamaV2 settings."""

from __future__ import annotations

from dataclasses import dataclass

from fastchat.upstream_names import refuse


@dataclass
class ExllamaConfig:
    """Programs pass one only to request that engine."""

    max_seq_len: int
    gpu_split: str | None = None
    cache_8bit: bool = False


__getattr__ = refuse(__name__)
