"""What upstream's data tools share: their flags, reading row by row, writing, and counting what is left out.

A tool is a function from one row to the rows that take its place. It raises BadRow for a row that is no conversation
at all (the run stops, or skips it under --on_bad_row skip) and Dropped for one that it is there to leave out.
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
    """A sound row that the tool leaves out; rows are counted by `reason`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass
class Tally:
    """How many rows came in and went out, why others did not, and what else happened to those that did."""

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
    """A parser with the flags of every tool.

    `out` is the default of --out-file, "" where it must be given, None where the tool writes no such file.
    """
    parser = Parser(prog=f"python -m fastchat.data.{name}", description=description)
    more: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_argument(
        "--in-file", "--in", required=True, metavar="FILE", help=".json, .jsonl, either with .gz", **more
    )
    if out is not None:
        wanted: dict[str, Any] = {"default": out} if out else {"required": True}
        shown = "; .jsonl: one row per line, else one array" + (" (%(default)s)" if out else "")
        parser.add_argument("--out-file", "--out", metavar="FILE", help=f"what to write{shown}", **wanted)
    on_bad_row = "what happens to rows that cannot be read (%(default)s)"
    parser.add_argument("--on-bad-row", choices=("stop", "skip"), default="stop", help=on_bad_row)
    return parser


def add_slice(parser: Parser) -> None:
    """Add upstream's --begin and --end."""
    parser.add_argument("--begin", type=int, metavar="N", help="the first row to take, counted from 0")
    parser.add_argument("--end", type=int, metavar="N", help="the row before which to stop")


def check_slice(args: argparse.Namespace) -> None:
    """Raises SettingsError for a slice that holds no row."""
    begin, end = args.begin or 0, args.end
    if begin < 0 or (end is not None and end <= begin):
        raise SettingsError(
            f"--begin {args.begin} --end {end}: no row lies there; rows count from 0, --end is not taken."
        )


# --- rows


class Rows:
    """The rows of some files, one after the other, from place `begin` to before `end` of all of them."""

    def __init__(self, paths: Sequence[str], on_bad_row: str, begin: int | None = None, end: int | None = None):
        self.paths, self.on_bad_row, self.begin, self.end = paths, on_bad_row, begin or 0, end
        self.num_read = 0
        self.report = BadRowReport()

    def each(self, function: Callable[[int, dict[str, Any]], T]) -> Iterator[T]:
        """What `function` makes of each good row, given its place in the input and the row.

        Raises:
            DataError: rows cannot be read, or `function` raised BadRow, and --on_bad_row is "stop"; after the last row,
                with all of them listed.
            SettingsError: --begin lies behind the last row.
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
            raise SettingsError(f"--begin {self.begin}: there are not so many rows in {', '.join(self.paths)}.")
        if self.report.total and self.on_bad_row == "stop":
            raise self.report.error(self.num_read)
        if self.report.total:
            say(self.report.summary(self.num_read))


def convert(
    args: argparse.Namespace, function: Callable[[int, dict[str, Any], Tally], Iterable[dict[str, Any]]]
) -> None:
    """Write to --out-file what `function` makes of each row of --in-file, and print the counts.

    `function` gets the row's place, the row, and the tally for its notes; it may raise BadRow or Dropped.
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
    """The same rows, counted by a bar where stderr is a terminal."""
    if not sys.stderr.isatty():
        return rows
    from tqdm import tqdm

    return tqdm(rows, unit=" rows", file=sys.stderr, delay=1)


# --- conversations


@dataclass(frozen=True)
class TurnList:
    """The turns of a row as they stand in it.

    Attributes:
        key: where they stand: "conversations", "items" or "messages".
        text_key: under which key each has its text.
        entries: the turns, and `roles`: whose each is ("system", "user", "assistant", "tool").
        kinds: the roles, but "function_call" for an assistant's call that says so.
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
        """1 where the first turn is the system's, else 0."""
        return int(self.roles[:1] == [SYSTEM])


def turn_list(row: dict[str, Any]) -> TurnList:
    """The turns of a ShareGPT or messages row. Raises BadRow for anything that training could not read either."""
    parse_row(row)
    key = format_of(row)
    if key not in TURN_LISTS:
        raise BadRow("not a list of turns", "an Alpaca row; convert_alpaca makes a conversation of it")
    keys = TURN_LISTS[key]
    names = [entry[keys.role] for entry in row[key]]
    kinds = [CALL if name == CALL else keys.roles[name] for name in names]
    return TurnList(key, keys.text, row[key], [keys.roles[name] for name in names], kinds)
