"""What upstream's data tools share: their flags, reading row by row, writing, and counting dropped rows.

A tool is a function from one row to the rows that replace it. It raises BadRow for a row that is not a conversation
(the command stops, or skips it with --on_bad_row skip) and Dropped for a row that it is meant to remove.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TypeVar

from fastchat.data.rows.bad_rows import BadRow, BadRowReport
from fastchat.data.rows.formats import CALL, REASONING_KEYS, SYSTEM, TURN_LISTS, format_of, parse_row
from fastchat.data.rows.reading import Row, read_rows
from fastchat.data.rows.writing import RowFile, check_output
from fastchat.data.tools.command import Parser
from fastchat.errors import SettingsError, say, show

T = TypeVar("T")


class Dropped(Exception):
    """A valid row that the tool removes; rows are counted by `reason`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass
class Tally:
    """The number of rows read and written, the reasons for dropped rows, and notes on those that were written."""

    num_in: int = 0
    num_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"#in: {self.num_in:,}, #out: {self.num_out:,}"]
        if self.dropped:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in self.dropped.most_common())
            lines.append(f"dropped: {self.dropped.total():,} ({reasons})")
        return "\n".join([*lines, *(f"{note}: {n:,}" for note, n in self.notes.most_common() if n)])


# --- flags


def tool_parser(name: str, description: str, *, out: str | None = "", several: bool = False) -> Parser:
    """A parser with the flags that all tools share.

    `out` is the default of --out-file, "" if it is required, None if the tool does not write such a file.
    """
    parser = Parser(prog=f"python -m fastchat.data.{name}", description=description)
    more: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_argument(
        "--in-file", "--in", required=True, metavar="FILE", help=".json, .jsonl, either with .gz", **more
    )
    if out is not None:
        wanted: dict[str, Any] = {"default": out} if out else {"required": True}
        shown = "; .jsonl: one row per line, else one array" + (" (%(default)s)" if out else "")
        parser.add_argument("--out-file", "--out", metavar="FILE", help=f"output file{shown}", **wanted)
    on_bad_row = "what to do with rows that cannot be read (%(default)s)"
    parser.add_argument("--on-bad-row", choices=("stop", "skip"), default="stop", help=on_bad_row)
    return parser


def add_slice(parser: Parser) -> None:
    """Add upstream's --begin and --end."""
    parser.add_argument("--begin", type=int, metavar="N", help="first row to use, counted from 0")
    parser.add_argument("--end", type=int, metavar="N", help="row at which to stop (exclusive)")


def check_slice(args: argparse.Namespace) -> None:
    """Raise SettingsError for an empty slice."""
    begin, end = args.begin or 0, args.end
    if begin < 0 or (end is not None and end <= begin):
        raise SettingsError(
            f"--begin {args.begin} --end {end}: the slice is empty; rows count from 0, and --end is exclusive."
        )


# --- rows


class Rows:
    """The rows of some files, concatenated, from row `begin` up to but not including row `end`."""

    def __init__(self, paths: Sequence[str], on_bad_row: str, begin: int | None = None, end: int | None = None):
        self.paths, self.on_bad_row, self.begin, self.end = paths, on_bad_row, begin or 0, end
        self.num_read = 0
        self.report = BadRowReport()

    def each(self, function: Callable[[int, dict[str, Any]], T]) -> Iterator[T]:
        """The result of `function` for each good row; its arguments are the row's position in the input and the row.

        Raises:
            DataError: rows cannot be read, or `function` raised BadRow, and --on_bad_row is "stop"; raised after the
                last row, listing the bad rows.
            SettingsError: --begin is after the last row.
        """
        rows = enumerate(chain.from_iterable(read_rows(path, whole=True) for path in self.paths))
        for index, row in _with_bar(islice(rows, self.begin, self.end)):
            self.num_read += 1
            try:
                if row.value is None:
                    raise row.problem or BadRow("broken JSON")
                made = function(index, row.value)
            except BadRow as problem:
                self.report.add(row.source, row.line, problem)
                continue
            yield made
        self._finish()

    def _finish(self) -> None:
        if not self.num_read:
            raise SettingsError(f"--begin {self.begin}: is after the last row of {', '.join(self.paths)}.")
        if self.report.total and self.on_bad_row == "stop":
            raise self.report.error(self.num_read)
        if self.report.total:
            say(self.report.summary(self.num_read))


def convert(
    args: argparse.Namespace, function: Callable[[int, dict[str, Any], Tally], Iterable[dict[str, Any]]]
) -> None:
    """Write the rows that `function` returns for each row of --in-file to --out-file, and print the counts.

    `function` gets the row's position, the row, and the tally for its notes; it may raise BadRow or Dropped.
    """
    paths = [args.in_file] if isinstance(args.in_file, str) else args.in_file
    check_output("--out-file", args.out_file, paths)
    slice_ = (getattr(args, "begin", None), getattr(args, "end", None))
    tally, rows = Tally(), Rows(paths, args.on_bad_row, *slice_)

    def made(index: int, row: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            return list(function(index, row, tally))
        except Dropped as dropped:
            tally.dropped[dropped.reason] += 1
            return []

    with RowFile(args.out_file) as out:
        for new_rows in rows.each(made):
            for row in new_rows:
                out.add(row)
    tally.num_in, tally.num_out = rows.num_read, out.num_rows
    if rows.report.total:
        tally.dropped["cannot be read"] = rows.report.total
    show(str(tally))


def _with_bar(rows: Iterator[tuple[int, Row]]) -> Iterable[tuple[int, Row]]:
    """The same rows, with a progress bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        return rows
    from tqdm import tqdm

    return tqdm(rows, unit=" rows", file=sys.stderr, delay=1)


# --- conversations


@dataclass(frozen=True)
class TurnList:
    """The turns of a row, as they are in the file.

    Attributes:
        key: the key of the list: "conversations", "items" or "messages".
        text_key: the key of a turn's text.
        entries: the turns, and `roles`: the role of each ("system", "user", "assistant", "tool").
        kinds: the roles, except "function_call" for an assistant turn that is marked as a call.
    """

    key: str
    text_key: str
    entries: list[dict[str, Any]]
    roles: list[str]
    kinds: list[str]

    @property
    def texts(self) -> list[str]:
        return [entry[self.text_key] for entry in self.entries]

    @property
    def reasoning(self) -> list[str | None]:
        return [
            next((said for key in REASONING_KEYS if (said := entry.get(key) or "").strip()), None)
            for entry in self.entries
        ]

    @property
    def num_system(self) -> int:
        """1 if the first turn is a system turn, else 0."""
        return int(self.roles[:1] == [SYSTEM])


def turn_list(row: dict[str, Any]) -> TurnList:
    """The turns of a ShareGPT or messages row. Raises BadRow for a row that training cannot read either."""
    parse_row(row)
    key = format_of(row)
    if key not in TURN_LISTS:
        raise BadRow("not a list of turns", "an Alpaca row; convert it with convert_alpaca first")
    keys = TURN_LISTS[key]
    names = [entry[keys.role] for entry in row[key]]
    kinds = [CALL if name == CALL else keys.roles[name] for name in names]
    return TurnList(key, keys.text, row[key], [keys.roles[name] for name in names], kinds)
