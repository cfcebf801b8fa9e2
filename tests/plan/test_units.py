"""Sizes as users write them."""

from __future__ import annotations

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.units import GIB, MIB, human, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * GIB),
        ("24", 24 * GIB),
        ("24 gib", 24 * GIB),
        ("80GB", 80 * 10**9),
        ("24576MiB", 24 * GIB),
        ("0.5g", GIB // 2),
        ("1TiB", 1024 * GIB),
        ("4096b", 4096),
    ],
)
def test_reads_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "--gpu_memory") == size


@pytest.mark.parametrize("text", ["", "lots", "-24GiB", "0", "0GiB", "24 XB", "1.2.3GiB", "GiB", "nan"])
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--gpu_memory is .*24GiB"):
        parse_bytes(text, "--gpu_memory")


def test_writes_sizes() -> None:
    assert [human(x) for x in (0, 512, 10 * 1024, 200 * MIB, 3.6 * GIB, 24 * GIB, 160 * GIB, -2 * GIB)] == [
        "0",
        "512 B",
        "10 KiB",
        "200 MiB",
        "3.60 GiB",
        "24.0 GiB",
        "160 GiB",
        "-2.00 GiB",
    ]
