"""Working together: a step that some processes of the run do, and an error in one of them that all raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from fastchat.errors import UserError

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """(this process, number of processes); (0, 1) without a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def everyone(work: Callable[[], T]) -> list[T]:
    """Runs `work` in every process and gives all results, by rank. The first user error of any is raised in all."""
    result: Any = None
    error: UserError | None = None
    try:
        result = work()
    except UserError as met:
        error = met
    if not dist.is_initialized():
        if error is not None:
            raise error
        return [result]
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (result, error))
    for _, met in outcomes:
        if met is not None:
            raise met
    return [result for result, _ in outcomes]


def first(work: Callable[[], T]) -> T | None:
    """Runs `work` in global rank 0 and gives its result to all; its user error is raised in all."""
    return everyone(work if rank_and_size()[0] == 0 else lambda: None)[0]
