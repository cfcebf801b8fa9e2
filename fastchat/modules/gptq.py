"""Upstream's GPTQ settings."""

from __future__ import annotations

from dataclasses import dataclass

from fastchat.upstream_names import refuse


@dataclass
class GptqConfig:
    """`wbits` of 16 requests nothing."""

    ckpt: str | None = None
    wbits: int = 16
    groupsize: int = -1
    act_order: bool = True


__getattr__ = refuse(__name__)
