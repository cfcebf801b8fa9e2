"""Detection of GPUs (nvidia-smi) and memory (/proc/meminfo), without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fastchat.plan.units import MIB

_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,uuid", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int  # bytes


def detect_gpus() -> list[Gpu]:
    """The NVIDIA GPUs visible to this process (as limited by CUDA_VISIBLE_DEVICES); empty without a driver."""
    if shutil.which(_QUERY[0]) is None:
        return []
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return visible_gpus(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(listing: str, visible: str | None) -> list[Gpu]:
    """The GPUs in nvidia-smi's csv output (name, MiB, uuid), limited by CUDA_VISIBLE_DEVICES.

    >>> visible_gpus("NVIDIA H100, 81559, GPU-a\\nNVIDIA H100, 81559, GPU-b", "1")
    [Gpu(name='NVIDIA H100', memory=85520809984)]
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.count(",") >= 2]
    gpus = [(row[2], Gpu(row[0], int(row[1]) * MIB)) for row in rows if row[1].isdigit()]
    if visible is None:
        return [gpu for _, gpu in gpus]
    chosen = []
    for word in (word.strip() for word in visible.split(",")):
        found = [g for at, (uuid, g) in enumerate(gpus) if word == str(at) or (word and uuid.startswith(word))]
        if not found:
            break  # CUDA stops at the first unknown name
        chosen.append(found[0])
    return chosen


def detect_cpu_memory(meminfo: str = "/proc/meminfo") -> int | None:
    """The memory of this host in bytes, or the limit of the container; None if /proc/meminfo does not have it."""
    try:
        lines = Path(meminfo).read_text(encoding="ascii", errors="replace").splitlines()
        total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    limits = [_limit(path) for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    return min([total, *(limit for limit in limits if limit)])


def _limit(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
