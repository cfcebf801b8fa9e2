"""Files -> records: every row of every file, in order, as a dialogue or with the reason why it is none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastchat.conversation import Dialogue
from fastchat.data.bad_rows import BadRow, BadRowReport
from fastchat.data.formats import parse_row, row_id
from fastchat.data.reading import Row, read_rows, unreadable
from fastchat.errors import say


@dataclass
class Record:
    """One row of the input: `dialogue`, or None and why in `dropped` ("empty_dialogue", "bad_row: broken JSON" ...).

    `index` counts the rows of all files from 0; `line` counts from 1 within `source`.
    """

    index: int
    dialogue: Dialogue | None
    dropped: str | None
    source: str
    line: int
    id: str | None = None

    @property
    def place(self) -> str:
        """`file:line`, and the record's own id where it has one."""
        return f"{self.source}:{self.line}" + (f" (id {self.id!r})" if self.id is not None else "")


@dataclass
class LoadedDialogues:
    """All records, and how many rows, bad rows, drops and treatments there were."""

    records: list[Record]
    counts: dict[str, int]


def load_dialogues(paths: Sequence[str], *, on_bad_row: Literal["stop", "skip"] = "stop") -> LoadedDialogues:
    """Read all `paths` to the end; one Record per row.

    Raises:
        DataError: a file cannot be read or is empty; or rows are malformed and `on_bad_row` is "stop": the message then
            lists the first 20 as file:line: reason, and the total by reason.
    """
    assert not isinstance(paths, str), paths
    records: list[Record] = []
    counts: Counter[str] = Counter()
    report = BadRowReport()
    for path in paths:
        for row in read_rows(str(path)):
            records.append(_record(len(records), row, counts, report))
    if report.total and on_bad_row == "stop":
        raise report.error(len(records))
    if report.total:
        say(report.summary(len(records)))
    totals = {"rows": len(records), "bad_rows": report.total}
    return LoadedDialogues(records, {**totals, **dict(sorted(counts.items()))})


def _record(index: int, row: Row, counts: Counter[str], report: BadRowReport) -> Record:
    try:
        if row.problem is not None:
            raise row.problem
        assert row.value is not None
        parsed = parse_row(row.value, row.source, row.line)
    except BadRow as bad:
        report.add(row.source, row.line, bad)
        return Record(index, None, f"bad_row: {bad.reason}", row.source, row.line)
    counts.update(parsed.treatments)
    return Record(index, parsed.dialogue, parsed.dropped, row.source, row.line, row_id(row.value))


def data_fingerprint(paths: Sequence[str]) -> str:
    """sha256 of the files' bytes in hex: of one file what `sha256sum` prints, of several the sha256 of those sums.

    Raises:
        DataError: a file cannot be read.
    """
    sums = [_sha256(path) for path in paths]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from None
    return digest.hexdigest()
