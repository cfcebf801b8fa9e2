"""Upstream's AWQ settings."""

from __future__ import annotations

from dataclasses import dataclass

from fastchat.upstream_names import refuse


@dataclass
class AWQConfig:
    """`wbits` of 16 requests nothing."""

    ckpt: str | None = None
    wbits: int = 16
    groupsize: int = -1


__getattr__ = refuse(__name__)
