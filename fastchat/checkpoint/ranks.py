"""Working together: a step that some processes of the run do, and an error in one of them that all raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from fastchat.errors import PeerFailed, UserError

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """(this process, number of processes); (0, 1) without a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def everyone(work: Callable[[], T]) -> list[T]:
    """Runs `work` in every process and gives all results, by rank. The first user error of any is raised in all.

    After any other error in one process that one raises it and the others PeerFailed: a process that left alone would
    meet the others in the middle of different collective operations.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as met:  # noqa: BLE001 - raised below
        error = met
    if not dist.is_initialized():
        if error is not None:
            raise error
        return [result]
    told = error if error is None or isinstance(error, UserError) else PeerFailed(f"rank {dist.get_rank()}: {error}")
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (result, told))
    errors = sorted((met for _, met in outcomes if met is not None), key=lambda met: isinstance(met, PeerFailed))
    if not errors:
        return [result for result, _ in outcomes]
    if isinstance(errors[0], PeerFailed) and error is not None:
        raise error
    raise errors[0]


def first(work: Callable[[], T]) -> T | None:
    """Runs `work` in global rank 0 and gives its result to all; its error is raised in all, see `everyone`."""
    made: list[Any] = [None]  # sent once, not gathered from all: it may be large

    def mine() -> None:
        made[0] = work()

    everyone(mine if rank_and_size()[0] == 0 else lambda: None)
    if dist.is_initialized():
        dist.broadcast_object_list(made, src=0)
    return made[0]
