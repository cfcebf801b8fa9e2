"""Fingerprints of models: enough to notice that an adapter or a checkpoint is used with a base that is not its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fastchat.bars import each
from fastchat.files import sha256_of_blocks

_WHOLE = 64 << 20  # files up to this size are read whole
_BLOCK, _BLOCKS = 256 << 10, 64


def model_fingerprint(folder: str | Path) -> str | None:
    """Hex digest over the weight files of a model folder; None if it is not a folder or has none.

    Of files above 64 MiB the size, both ends and 64 blocks in between are read: 0.1 s instead of minutes, and any
    further training changes all of them.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        return None
    names = sorted(n for n in os.listdir(folder) if n.endswith(".safetensors") and not n.startswith("adapter_model."))
    return (
        sha256_of_blocks(
            block for name in each(names, "reading the weights", "file") for block in _blocks(folder / name)
        )
        if names
        else None
    )


def _blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{size}:".encode()
    with open(path, "rb") as file:
        if size <= _WHOLE:
            while block := file.read(1 << 20):
                yield block
            return
        for number in range(_BLOCKS + 1):
            file.seek((size - _BLOCK) * number // _BLOCKS)
            yield file.read(_BLOCK)
