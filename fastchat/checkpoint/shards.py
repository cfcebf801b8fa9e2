"""Writing safetensors files tensor by tensor: the memory of one tensor, and the digest of each file on the way.

The files have the bytes that safetensors' own `save_file` gives, which needs all tensors of a file at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from fastchat.bars import Progress, bar
from fastchat.errors import CheckpointError
from fastchat.files import sha256_of_blocks, write_text

_BLOCK = 1 << 22  # bytes written and read back at a time
# In the order in which safetensors puts them into a file.
_DTYPES = {
    **{torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32"},
    **{torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16"},
    **{torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
_PLACES = {dtype: place for place, dtype in enumerate(_DTYPES)}


def write_shards(
    folder: Path,
    planned: Mapping[str, torch.Tensor],
    take: Callable[[str], torch.Tensor],
    *,
    max_shard: str,
    num_parameters: int,
) -> dict[str, dict[str, Any]]:
    """Writes a model's weights under the names and in the shards of `save_pretrained`; {file: {"size", "sha256"}}.

    `planned`: tensors without memory (device "meta") with the shapes and dtypes to write. `take` gives the tensor of a
    name and is called once for each. Every tensor is read back and compared, bit for bit, after it is written. Raises
    CheckpointError if one differs, OSError if the disk is full.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    parts = split_torch_state_dict_into_shards(
        dict(planned), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard
    )
    found: dict[str, dict[str, Any]] = {}
    with bar("writing the weights", sum(tensor.nbytes for tensor in planned.values())) as progress:
        for name, tensors in parts.filename_to_tensors.items():
            shapes = {tensor: planned[tensor] for tensor in tensors}
            found[name] = _write_file(folder / name, shapes, take, progress)
    if parts.is_sharded:
        metadata = {"total_parameters": num_parameters, **parts.metadata}
        index = {"metadata": metadata, "weight_map": parts.tensor_to_filename}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
    return found


def _write_file(
    path: Path, shapes: Mapping[str, torch.Tensor], take: Callable[[str], torch.Tensor], progress: Progress
) -> dict[str, Any]:
    """One file; its size and digest."""
    with open(path, "w+b") as file:
        digest = sha256_of_blocks(_written(file, shapes, take, progress))
        return {"size": file.tell(), "sha256": digest}


def _written(
    file: IO[bytes], shapes: Mapping[str, torch.Tensor], take: Callable[[str], torch.Tensor], progress: Progress
) -> Iterator[Any]:
    """The blocks of the file, each after it was written."""
    names = sorted(shapes, key=lambda name: (_place(name, shapes[name].dtype), name))
    header = _header(names, shapes)
    file.write(header)
    yield header
    for name in names:
        tensor, wanted = take(name), shapes[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise CheckpointError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} and not {wanted.dtype} {tuple(wanted.shape)}: "
                "nothing was saved"
            )
        for block in _blocks(tensor):
            at = file.tell()
            file.write(block)
            file.flush()
            if os.pread(file.fileno(), len(block), at) != block:
                raise CheckpointError(f"{name} read back from disk differs from what was merged; check the disk")
            progress.advance(len(block))
            yield block


def _blocks(tensor: torch.Tensor) -> Iterator[bytes]:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    for begin in range(0, len(data), _BLOCK):
        yield data[begin : begin + _BLOCK].tobytes()


def _place(name: str, dtype: torch.dtype) -> int:
    if dtype not in _PLACES:
        raise CheckpointError(f"{name} is {dtype}, which safetensors files do not have: nothing was saved")
    return _PLACES[dtype]


def _header(names: list[str], shapes: Mapping[str, torch.Tensor]) -> bytes:
    """The length of the description of the file (8 bytes) and the description, filled up to a multiple of 8."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        tensor = shapes[name]
        entry = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        described[name] = entry | {"data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
