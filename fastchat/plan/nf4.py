"""The exact size of a matrix in nf4 with double quantization, as bitsandbytes stores it (blocks of 64 and of 256)."""

from __future__ import annotations

from dataclasses import dataclass

from fastchat.plan.units import ceil_div

BLOCK = 64  # weights that share one scale
NESTED_BLOCK = 256  # scales that share one scale of scales
LEVELS = 16 * 4  # the 16 float32 values of nf4: one tensor per matrix
NESTED_LEVELS = 256 * 4  # the 256 float32 values of the scales' 8-bit type: also one tensor per matrix
OFFSET = 4  # the mean of the scales, float32


@dataclass(frozen=True)
class Quantised:
    """Bytes of one quantized matrix."""

    codes: int  # two weights per byte
    scales: int  # for dequantization: a byte per 64 weights, 4 bytes per 256 of those, three constants


def quantised_size(elements: int) -> Quantised:
    """The size of a matrix with `elements` weights.

    >>> quantised_size(4096 * 4096)
    Quantised(codes=8388608, scales=267332)
    """
    blocks = ceil_div(elements, BLOCK)
    nested = ceil_div(blocks, NESTED_BLOCK)
    return Quantised(codes=ceil_div(elements, 2), scales=blocks + 4 * nested + LEVELS + NESTED_LEVELS + OFFSET)
