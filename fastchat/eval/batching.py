"""Batches that are made smaller where they do not fit into the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fastchat.errors import ResourceError, is_out_of_memory, say


def halving(
    batches: list[list[int]], work: Callable[[list[int]], None], too_small: Callable[[int], str]
) -> Iterator[list[int]]:
    """Call `work` with each batch of numbers, and give the batch once that is done. A batch that does not fit into the
    memory is halved, and later ones are then no larger.

    Raises ResourceError for a single number that does not fit; `too_small(number)` says what the memory is too small
    for.
    """
    waiting = list(batches)
    while waiting:
        batch = waiting.pop(0)
        if _fits(work, batch):
            yield batch
            continue
        torch.cuda.empty_cache()
        if len(batch) == 1:
            raise ResourceError(f"the memory is too small {too_small(batch[0])}: use another device or fewer bits")
        size = (len(batch) + 1) // 2
        say(f"{len(batch)} rows at once do not fit into the memory: continuing with {size}")
        waiting = [part[at : at + size] for part in [batch, *waiting] for at in range(0, len(part), size)]


def _fits(work: Callable[[list[int]], None], batch: list[int]) -> bool:
    """Whether `work` was done. What it had allocated is free when this returns."""
    try:
        work(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
