"""The rows of the data commands' files, with a bar for how much of them has been read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from fastchat.bars import bar
from fastchat.data.rows.reading import Row, RowReader
from fastchat.errors import counted


def read_with_bar(paths: Sequence[str], what: str, *, whole: bool = False) -> Iterator[Row]:
    """Every row of some files in order, malformed ones included. `what` is done with them: "converting", for example;
    `whole` and errors as of RowReader."""
    sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in paths]
    before = num_rows = 0
    with bar(what, sum(sizes)) as progress:
        for path, size in zip(paths, sizes, strict=True):
            reader = RowReader(path, whole)
            for row in reader:
                yield row
                num_rows += 1
                progress.to(before + int(size * reader.share), counted(num_rows, "row"))
            before += size
