"""Weights that are views of mapped files: used without keeping them in memory.

transformers maps safetensors files and, on a CPU, leaves the weights where they are. Each page stays in the process
after its first use, so one forward pass brings the whole model into memory. The pages can be given back at any time:
the next use takes them from the system's cache of the file.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) +/")


class MappedFiles:
    """The files that are mapped into this process now. None where the system does not list them (outside Linux): then
    nothing is given back."""

    def __init__(self) -> None:
        found = sorted(_unchanged_mappings())
        self._starts, self._ends = [start for start, _ in found], [end for _, end in found]
        self._system = ctypes.CDLL(None) if found else None

    def release(self, tensor: torch.Tensor) -> None:
        """Gives back the pages of a tensor that is a view of a mapped file; nothing for any other tensor. Its values
        stay usable. Nobody may have written to it."""
        if self._system is None or tensor.device.type != "cpu" or not tensor.nbytes:
            return
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        at = bisect_right(self._starts, start) - 1
        if at < 0 or end > self._ends[at]:
            return
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self._system.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED)


@contextmanager
def released_after_use(model: nn.Module) -> Iterator[None]:
    """Inside the block every module gives back the pages of its weights after each of its forward passes, so that they
    take the memory of one layer. Nothing inside may write to the weights."""
    files = MappedFiles()

    def release(module: nn.Module, *_: object) -> None:
        for parameter in module.parameters():
            files.release(parameter)

    release(model)
    handles = [module.register_forward_hook(release) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unchanged_mappings() -> Iterator[tuple[int, int]]:
    """(start, end) of the mappings of files of which no page was written to in this process: a written page is the
    process's own, and giving it back would lose it."""
    path = Path("/proc/self/smaps")
    if _DONTNEED is None or not path.is_file():
        return
    here = None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if "-" in line.partition(" ")[0]:
            found = _MAPPING.match(line)
            here = (int(found[1], 16), int(found[2], 16)) if found and found[3] != "0" else None
        elif here and line.startswith("Anonymous:") and line.split()[1] == "0":
            yield here
