"""Tokenising in several processes; the result does not depend on their number.

The main process reads the files, so that all bad rows are reported in one place. Batches of dialogues go to the workers
and come back as flat arrays, in order; only a few are in progress at any time. Workers are started with "spawn" where
the main process has threads (of torch, of the process group, of the tokenizer), which are not safe to fork.
"""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from fastchat.conversation import Dialogue
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.tokens.store import TokenShard, make_shard
from fastchat.errors import ResourceError
from fastchat.one_thread import NO_TOKENIZER_THREADS, environment, may_fork

BATCH = 256  # dialogues that go to a worker at a time
_UNDER_WAY = 3  # batches per worker that are queued, being tokenised, or waiting to be written
_COLLECT_AFTER = (50_000, 20, 100)  # objects, and collections of the younger generations
BYTES_PER_WORKER = 4 << 20  # of data: with less, starting a worker takes longer than it saves


@dataclass
class Batch:
    """Dialogues to tokenise, as (index, dialogue); the counts of dropped rows between them; the bytes read so far."""

    dialogues: list[tuple[int, Dialogue]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    names: dict[int, str | None] = field(default_factory=dict)  # the rows' own ids
    bytes_read: int = 0


def num_workers(asked: int | None, num_bytes: int) -> int:
    """The number of tokenising processes: as requested, else one per CPU, but not more than the data keeps busy."""
    return asked or max(1, min(available_cpus(), num_bytes // BYTES_PER_WORKER))


def available_cpus() -> int:
    """The CPUs that this process may use, by its affinity and the quota of its container."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return cpus


@contextlib.contextmanager
def rarely_collected() -> Iterator[None]:
    """For code that makes many objects and no cycles of them: garbage is looked for a hundredth as often, which by
    default costs a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def tokenised(
    batches: Iterable[Batch],
    chat_encoder: ChatEncoder,
    *,
    max_length: int,
    overlong: str,
    on_bad_row: str = "stop",
    workers: int,
) -> Iterator[tuple[Batch, TokenShard]]:
    """Every batch with its shard, in order.

    Raises:
        DataError: tokenising a dialogue failed; the error is that of the first such batch.
        ResourceError: a worker died.
    """
    how: dict[str, Any] = {"max_length": max_length, "overlong": overlong, "on_bad_row": on_bad_row}
    if workers == 1:
        for batch in batches:
            yield batch, make_shard(batch.dialogues, chat_encoder, **how)
        return
    batches = iter(batches)
    if may_fork():  # what the encoder prepares at its first data is then part of every copy
        for batch in islice(batches, 1):
            yield batch, make_shard(batch.dialogues, chat_encoder, **how)
    forks = may_fork()
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork" if forks else "spawn"),
        initializer=_start,
        initargs=(chat_encoder if forks else (chat_encoder.described(), chat_encoder.encoder.name), how),
    )

    def submit(batch: Batch) -> Future[TokenShard]:
        with _quiet_workers():  # this starts a worker as long as there are too few
            return pool.submit(_work, batch.dialogues)

    try:
        yield from _in_order(batches, submit, workers * _UNDER_WAY)
    except BrokenProcessPool:
        raise ResourceError(
            f"one of the {workers} tokenising processes died, most likely because it ran out of memory; "
            "try a smaller --preprocessing_num_workers"
        ) from None
    except OSError as error:
        raise ResourceError(
            f"the {workers} tokenising processes cannot be started ({error.strerror or error}); "
            "try a smaller --preprocessing_num_workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # what is in progress takes a second at most


def _in_order(
    batches: Iterable[Batch], submit: Callable[[Batch], Future[TokenShard]], most: int
) -> Iterator[tuple[Batch, TokenShard]]:
    under_way: deque[tuple[Batch, Future[TokenShard]]] = deque()
    for batch in batches:
        under_way.append((batch, submit(batch)))
        if len(under_way) >= most:
            first, future = under_way.popleft()
            yield first, future.result()
    for first, future in under_way:
        yield first, future.result()


@contextlib.contextmanager
def _quiet_workers() -> Iterator[None]:
    """Set what the processes started in this context inherit: one thread each, no rank, and no main module."""
    # A launcher's variables would make a library believe that the worker is a process of the run.
    no_rank = dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    main = sys.modules["__main__"]
    # "spawn" runs the caller's script again in the worker. Nothing here needs it, it may import torch, and a script
    # that trains without `if __name__ == "__main__":` would start another training there.
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with environment({**NO_TOKENIZER_THREADS, **no_rank}):
            yield
    finally:
        sys.modules["__main__"] = main


# --- in the worker

_WORKER: dict[str, Any] = {}


def _start(chat_encoder: ChatEncoder | tuple[dict[str, Any], str], how: dict[str, Any]) -> None:
    """`chat_encoder`: itself in a copy of the main process, else what describes it, and its name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the main process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.set_threshold(*_COLLECT_AFTER)
    if isinstance(chat_encoder, tuple):
        from fastchat.data.encoding.text_encoder import TextEncoder

        with contextlib.redirect_stderr(io.StringIO()):  # the main process has logged it already
            chat_encoder = TextEncoder.from_description(*chat_encoder)
    _WORKER["chat_encoder"], _WORKER["how"] = chat_encoder, how


def _end_with_parent() -> None:
    """Exit if the main process is killed; otherwise the workers would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(dialogues: list[tuple[int, Dialogue]]) -> TokenShard:
    return make_shard(dialogues, _WORKER["chat_encoder"], **_WORKER["how"])
