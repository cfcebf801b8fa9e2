"""Files -> records: every row of every file, in order, as a dialogue or with the reason why there is none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fastchat.conversation import Dialogue
from fastchat.data.rows.bad_rows import BadRow, BadRowReport, UnreadKeys
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.drop_reasons import UNREADABLE
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.no_file import unreadable
from fastchat.data.rows.reading import Row, RowReader
from fastchat.data.rows.unshown import refuse_unshown
from fastchat.errors import say

OnBadRow = Literal["stop", "skip"]


@dataclass
class Record:
    """One row of the input: `dialogue`, or None and why in `dropped` ("empty_dialogue", "bad_row: broken JSON" ...).

    `index` counts the rows of all files from 0; `line` counts from 1 within the file `source`; `origin` is what the row
    itself says under its key `source`.
    """

    index: int
    dialogue: Dialogue | None
    dropped: str | None
    source: str
    line: int
    id: str | None = None
    origin: str | None = None

    @property
    def place(self) -> str:
        """`file:line`, and the record's own id if it has one."""
        return f"{self.source}:{self.line}" + (f" (id {self.id!r})" if self.id is not None else "")


class Records:
    """The records of some files, read once and one at a time: memory use does not depend on their number.

    Attributes:
        num_rows: rows read so far; `rows_of_file`: the number of rows of each file that was read to its end.
        bad: the malformed rows; as soon as there is one, `stopping` says whether the run will stop because of it.

    >>> for record in Records(["a.json", "b.parquet"], on_bad_row="skip"): ...
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        on_bad_row: OnBadRow = "stop",
        reasoning: bool = False,
        calls: bool = False,
        reads_argument: Callable[[str], bool] = lambda name: True,
        columns: Columns | None = None,
        beginning: bool = False,
    ):
        """`reasoning`, `calls`: whether the template shows separate reasoning texts, and tools with their calls; if
        not, rows with them are malformed. `reads_argument`: whether the template reads an argument of that name; rows
        with others are counted. `columns`: the names of keys and roles in these files. `beginning`: only the first rows
        are of interest; errors about all rows, and messages, are left to whoever reads all."""
        assert not isinstance(paths, str), paths
        self.paths, self.on_bad_row = [str(path) for path in paths], on_bad_row
        self.reasoning, self.calls, self._reads_argument = reasoning, calls, reads_argument
        self.columns = (columns or Columns()).fresh()
        self._beginning = beginning
        self.num_rows = 0
        self.rows_of_file: list[int] = []
        self.bad = BadRowReport()
        self._unread = UnreadKeys()
        self._notes: list[str] = []
        self._treatments: Counter[str] = Counter()
        self._reader: RowReader | None = None  # of the file being read
        self._bytes_done = 0  # of the files before it

    def __iter__(self) -> Iterator[Record]:
        """One Record per row.

        Raises:
            DataError: a file cannot be read or is empty; or, after the last row, no row has a mapped column, or rows
                are malformed and `on_bad_row` is "stop": the message then lists the first 20 as file:line: reason, and
                the total by reason.
        """
        for path in self.paths:
            self._reader, before = RowReader(path, columns=self.columns), self.num_rows
            for row in self._reader:
                self.num_rows += 1
                yield self._record(self.num_rows - 1, row)
            self.rows_of_file.append(self.num_rows - before)
            self._bytes_done += _size(path)
        if self._beginning:
            return
        self._notes = self.columns.check_found()
        if self.stopping:
            raise self.bad.error(self.num_rows)
        for line in self.lines:
            say(line)

    @property
    def stopping(self) -> bool:
        return self.on_bad_row == "stop" and self.bad.total > 0

    @property
    def lines(self) -> list[str]:
        """Messages about the rows: skipped rows, mapped names that were not found, and keys that were not read."""
        skipped = [self.bad.summary(self.num_rows)] if self.bad.total else []
        return skipped + self._notes + self._unread.lines

    @property
    def counts(self) -> dict[str, int]:
        """rows, bad_rows, and how often each treatment of keys.TREATMENTS was applied."""
        totals = {"rows": self.num_rows, "bad_rows": self.bad.total}
        return {**totals, **dict(sorted(self._treatments.items()))}

    @property
    def num_bytes(self) -> int:
        """Size of all files together. Raises DataError for a missing file."""
        return sum(map(_size, self.paths))

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, over all files."""
        if self._reader is None:
            return 0
        ended = len(self.rows_of_file) == len(self.paths)
        return self._bytes_done + (0 if ended else int(self._reader.share * _size(self._reader.path)))

    def _record(self, index: int, row: Row) -> Record:
        try:
            if row.problem is not None:
                raise row.problem
            assert row.value is not None
            parsed = parse_row(row.value, row.source, row.line, self.columns, self.reasoning)
            if parsed.dialogue is not None:
                refuse_unshown(parsed.dialogue, reasoning=self.reasoning, calls=self.calls)
        except BadRow as bad:
            self.bad.add(row.source, row.line, bad)
            return Record(index, None, UNREADABLE + bad.reason, row.source, row.line)
        self._treatments.update(parsed.treatments)
        if parsed.dialogue and not all(map(self._reads_argument, parsed.dialogue.template_arguments)):
            self._treatments["ignored_arguments"] += 1
        self._unread.add(parsed.unread, row.unread)
        return Record(index, parsed.dialogue, parsed.dropped, row.source, row.line, parsed.id, parsed.origin)


@dataclass
class LoadedDialogues:
    """All records, and how many rows, bad rows, drops and treatments there were."""

    records: list[Record]
    counts: dict[str, int]


def load_dialogues(
    paths: Sequence[str],
    *,
    on_bad_row: OnBadRow = "stop",
    reasoning: bool = False,
    calls: bool = False,
    columns: Columns | None = None,
) -> LoadedDialogues:
    """All records at once, in memory. Arguments and errors are those of `Records`."""
    records = Records(paths, on_bad_row=on_bad_row, reasoning=reasoning, calls=calls, columns=columns)
    return LoadedDialogues(list(records), records.counts)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise unreadable(path, error) from None
