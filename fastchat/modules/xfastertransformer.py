"""Upstream's xFasterTransformer settings."""

from __future__ import annotations

from dataclasses import dataclass

from fastchat.upstream_names import refuse


@dataclass
class XftConfig:
    """Programs pass one only to request that engine."""

    max_seq_len: int = 4096
    beam_width: int = 1
    eos_token_id: int = -1
    pad_token_id: int = -1
    num_return_sequences: int = 1
    is_encoder_decoder: bool = False
    padding: bool = True
    early_stopping: bool = False
    data_type: str = "bf16_fp16"


__getattr__ = refuse(__name__)
