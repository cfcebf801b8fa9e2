"""Malformed rows and keys that are not read, each collected into one message for the user."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from fastchat.data.rows.keys import seems_to_be
from fastchat.errors import DataError, counted

MAX_LISTED = 20
_ALIKE = 3  # listed, if all rows of the data have the same problem
_MAX_KEYS = 8  # named in a message; _MAX_COUNTED are counted separately (a row may have arbitrary keys)
_MAX_COUNTED = 1000
MAX_SHOWN = 60
# The way out where a row is something else.
AS_TURNS = (
    'A dialogue is a list of turns: {"messages": [{"role": "user", "content": "..."}, '
    '{"role": "assistant", "content": "..."}]}.'
)


class BadRow(Exception):
    """One malformed row. Rows are counted by `reason`, which is short and fixed; `detail` says what was found.

    `way_out`: what to do about all rows with this problem; said once.
    """

    def __init__(self, reason: str, detail: str = "", way_out: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def shown(value: object) -> str:
    """`value` as one printable line of at most 60 characters: text from a file may contain escape sequences."""
    if isinstance(value, str) and len(value) > MAX_SHOWN:
        value = value[:MAX_SHOWN]
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


class BadRowReport:
    """Collects malformed rows over all files: the first 20 of them in full, and the number of each reason."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        self.by_reason: Counter[str] = Counter()
        self._ways_out: dict[str, str] = {}  # by reason, of its first row

    def add(self, source: str, line: int, bad: BadRow) -> None:
        """Add one malformed row of `source`; `line` counts from 1."""
        self.by_reason[bad.reason] += 1
        if bad.way_out:
            self._ways_out.setdefault(bad.reason, bad.way_out)
        if len(self.listed) < MAX_LISTED:
            self.listed.append(f"{source}:{line}: {bad}")

    @property
    def total(self) -> int:
        """Number of malformed rows seen."""
        return self.by_reason.total()

    def reasons(self) -> str:
        """`broken JSON × 3, unknown role × 1`, most frequent first."""
        return ", ".join(f"{reason} × {n}" for reason, n in self.by_reason.most_common())

    def error(self, num_rows: int) -> DataError:
        """The error that stops a run: file:line: reason of the first 20, and the total by reason."""
        alike = self.total == num_rows and len(self.by_reason) == 1  # it is the file that is wrong, not some rows
        listed = self.listed[:_ALIKE] if alike else self.listed
        more = self.total - len(listed)
        lines = [f"{self.total:,} of {counted(num_rows, 'row')} cannot be read:"]
        lines += [f"  {entry}" for entry in listed]
        lines += [f"  ... and {more} more"] if more else []
        way_out = "Fix these rows, or skip them with --on_bad_row skip."
        if self.total == num_rows:
            way_out = "No row is left. Is this the right file? For the supported formats see docs/data.md."
        lines += [f"by reason: {self.reasons()}", *self._ways_out.values(), way_out]
        return DataError("\n".join(lines))

    def summary(self, num_rows: int) -> str:
        """One line about the rows that `--on_bad_row skip` skipped."""
        rows = f"{self.total:,} of {counted(num_rows, 'row')}"
        return f"skipped {rows} that cannot be read ({self.reasons()}); first: {self.listed[0]}"


class UnreadKeys:
    """Counts the keys of rows and turns that are not read, over all files."""

    def __init__(self) -> None:
        self._num: dict[str, Counter[str]] = {"turn": Counter(), "row": Counter()}
        self._others: Counter[str] = Counter()

    def add(self, found: Mapping[tuple[str, str], int], columns: Sequence[str] = ()) -> None:
        """Count those of one row, ("row" or "turn", key) -> how many have it, and the unread columns of its table."""
        for (kind, key), num in found.items():
            self._count(kind, key, num)
        for column in columns:
            self._count("row", column, 1)

    def _count(self, kind: str, key: str, num: int) -> None:
        counted = self._num[kind]
        if key in counted or len(counted) < _MAX_COUNTED:
            counted[key] += num
        else:
            self._others[kind] += num

    @property
    def lines(self) -> list[str]:
        """`keys of turns that are not read: 'note' (12 turns)`, most frequent first; none where all are read."""
        return [line for kind in self._num if (line := self._line(kind))]

    def _line(self, kind: str) -> str:
        found = self._num[kind]
        most = found.most_common()
        named = [f"{shown(key)} ({num:,} {kind}{'s' if num > 1 else ''})" for key, num in most[:_MAX_KEYS]]
        num_more = max(len(most) - _MAX_KEYS, 0)
        more = f" and {num_more:,}{' or more' if self._others[kind] else ''} others" if num_more else ""
        meant = {ours: key for key in reversed(list(found)) if (ours := seems_to_be(key))}
        way = f"; name the ones to read: --data_columns '{json.dumps(meant)}'" if meant else ""
        return f"keys of {kind}s that are not read: {', '.join(named)}{more}{way}" if named else ""
