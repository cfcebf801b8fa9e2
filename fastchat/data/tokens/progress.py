"""Progress bars for tokenising, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def byte_bar(description: str, num_bytes: int, progress: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that counts bytes of files, so it can estimate the time before the number of rows is known.

    Yields a function to call with the bytes read so far and the number of dialogues added since the last call.
    """
    if not progress:
        yield lambda bytes_read, num_dialogues: None
        return
    from tqdm import tqdm

    made = 0
    with tqdm(total=num_bytes, desc=description, unit="B", unit_scale=True, file=sys.stderr, delay=1) as bar:

        def update(bytes_read: int, num_dialogues: int) -> None:
            nonlocal made
            made += num_dialogues
            bar.set_postfix_str(f"{made:,} dialogues", refresh=False)
            bar.update(bytes_read - bar.n)

        yield update
