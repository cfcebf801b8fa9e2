"""A process with one thread can copy itself (fork): the copies begin with all that it has loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

# Set before numpy is imported: without threads of its libraries.
NO_LIBRARY_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Set before `tokenizers` encodes several texts: without threads of its own.
NO_TOKENIZER_THREADS = {"TOKENIZERS_PARALLELISM": "false"}


def may_fork() -> bool:
    """Whether this process has no second thread, so that a copy of it is complete."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # not Linux
        return False


@contextlib.contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, or remove those with the value None, inside the block."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
