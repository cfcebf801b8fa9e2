"""Which machine a process is on. Host names coincide where containers are started from one image, and process numbers
are those of a container: a machine is its boot and its process namespace.
"""

from __future__ import annotations

import functools
import os
import socket
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@functools.cache
def machine_id() -> str:
    """The same for all processes that see each other by number, and no others; constant until the next boot."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} {uuid.getnode():x}"


@dataclass(frozen=True)
class Place:
    """Where a process of a run is: global rank, rank on its machine, process number, host name, machine."""

    rank: int
    local_rank: int
    pid: int
    host: str
    machine: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """For messages of a run on several machines.

        >>> str(Place(1, 0, 4242, "node-b", "f3 pid:[7]"))
        'rank 1 on node-b (process 4242)'
        """
        return f"rank {self.rank} on {self.host} (process {self.pid})"

    def seen_from(self, other: Place) -> str:
        """The same, without the host if `other` is on it too."""
        return f"rank {self.rank} (process {self.pid})" if self.machine == other.machine else str(self)


def here() -> Place:
    """The place of this process, from the launcher's variables; rank 0 without a launcher."""
    rank, local = (max(0, int(os.environ.get(name, "0"))) for name in ("RANK", "LOCAL_RANK"))
    return Place(rank, local, os.getpid(), socket.gethostname(), machine_id())


def are_several(places: Sequence[Place]) -> bool:
    """Whether they are on more than one machine."""
    return len({place.machine for place in places}) > 1


def named(places: Sequence[Place], most: int = 4) -> str:
    """The hosts of some processes, with the ranks on each.

    >>> a, b = Place(0, 0, 1, "node-a", "x"), Place(1, 1, 2, "node-a", "x")
    >>> named([a, b]), named([a, Place(2, 0, 1, "node-b", "y")])
    ('node-a (ranks 0, 1)', 'node-a (rank 0) and node-b (rank 2)')
    """
    hosts: dict[str, list[Place]] = {}
    for place in places:
        hosts.setdefault(place.machine, []).append(place)
    shown = [f"{found[0].host} ({_ranks([place.rank for place in found])})" for found in hosts.values()]
    if len(shown) > most:
        shown = [*shown[:most], f"{len(shown) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    consecutive = ranks == list(range(ranks[0], ranks[0] + len(ranks)))
    listed = f"{ranks[0]}-{ranks[-1]}" if consecutive and len(ranks) > 2 else ", ".join(map(str, ranks))
    return f"ranks {listed}"
