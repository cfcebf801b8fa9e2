"""What upstream's data tools share: their flags, reading row by row, writing, and counting dropped rows.

A tool is a function from one row to the rows that replace it. It raises BadRow for a row that is not a conversation
(the command stops, or skips it with --on_bad_row skip) and Dropped for a row that it is meant to remove.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from fastchat.data.rows.bad_rows import BadRow, BadRowReport
from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.drop_reasons import listed
from fastchat.data.rows.formats import Parsed, parse_row
from fastchat.data.rows.keys import ASSISTANT, CALL, CALLS, DEVELOPER, PAIRS, SYSTEM, TURN_LISTS, TURN_TEXT
from fastchat.data.rows.turns import kind_of
from fastchat.data.rows.values import THE_ROW, content_of, is_given, json_list
from fastchat.data.rows.writing import RowFile, check_output
from fastchat.data.tools.command import Parser
from fastchat.data.tools.reading import read_with_bar
from fastchat.errors import SettingsError, say, show
from fastchat.settings.parsing import to_mapping

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
            lines.append(f"dropped: {self.dropped.total():,} ({listed(self.dropped)})")
        return "\n".join([*lines, *(f"{note}: {n:,}" for note, n in self.notes.most_common() if n)])


# --- flags


def tool_parser(
    name: str, description: str, example: str, *, out: str | None = "", several: bool = False, columns: bool = True
) -> Parser:
    """A parser with the flags that all tools share.

    `name` is that of the command, and `example` its flags in an example. `out` is the default of --out-file, "" if it
    is required, None if the tool does not write such a file. `columns`: whether the tool reads turns, so that it has to
    know the names of the file's columns and roles.
    """
    prog = f"fastchat data {name}"
    parser = Parser([f"{prog} {example}"], prog=prog, description=description)
    more: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_argument(
        "--in-file", "--in", required=True, metavar="FILE", help="input: .json, .jsonl, either with .gz", **more
    )
    if out is not None:
        wanted: dict[str, Any] = {"default": out} if out else {"required": True}
        out_help = "output file; .jsonl: one row per line, else one array"
        parser.add_argument("--out-file", "--out", metavar="FILE", help=out_help, **wanted)
    if columns:
        names = "names of the file's columns: a JSON object, our key -> the file's"
        parser.add_argument("--data-columns", metavar="JSON", help=names)
        roles = "names of the file's roles: a JSON object, the file's role -> ours"
        parser.add_argument("--data-roles", metavar="JSON", help=roles)
    on_bad_row = "what to do with rows that cannot be read"
    parser.add_argument("--on-bad-row", choices=("stop", "skip"), default="stop", help=on_bad_row)
    return parser


def columns_of(args: argparse.Namespace) -> Columns:
    """The names of the file's columns and roles, from the flags. Raises SettingsError."""
    given = {name: getattr(args, name, None) for name in ("data_columns", "data_roles")}
    made = {name: to_mapping(text or "{}", f"--{name.replace('_', '-')}") for name, text in given.items()}
    for name, value in made.items():
        if not isinstance(value, dict):
            raise SettingsError(f"--{name.replace('_', '-')} is {value!r}, but a JSON object is expected")
    return Columns(made["data_columns"], made["data_roles"])


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

    def __init__(self, args: argparse.Namespace):
        """`args`: the flags of `tool_parser` and `add_slice`."""
        self.paths = [args.in_file] if isinstance(args.in_file, str) else args.in_file
        self.on_bad_row = args.on_bad_row
        self.begin, self.end = getattr(args, "begin", None) or 0, getattr(args, "end", None)
        self.columns = columns_of(args)
        self.num_read = 0
        self.report = BadRowReport()

    def each(self, function: Callable[[int, dict[str, Any]], T]) -> Iterator[T]:
        """The result of `function` for each good row; its arguments are the row's position in the input and the row.
        `columns` maps the keys of these rows.

        Raises:
            DataError: rows cannot be read, or `function` raised BadRow, and --on_bad_row is "stop"; raised after the
                last row, listing the bad rows.
            SettingsError: --begin is after the last row.
        """
        rows = enumerate(read_with_bar(self.paths, "reading", whole=True))
        for index, row in islice(rows, self.begin, self.end):
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
        for line in self.columns.check_found("--data-columns"):
            say(line)
        if self.report.total and self.on_bad_row == "stop":
            raise self.report.error(self.num_read)
        if self.report.total:
            say(self.report.summary(self.num_read))


Convert = Callable[[int, dict[str, Any], Tally, Columns], Iterable[dict[str, Any]]]


def convert(args: argparse.Namespace, function: Convert) -> None:
    """Write the rows that `function` returns for each row of --in-file to --out-file, and print the counts.

    `function` gets the row's position, the row, the tally for its notes, and the names of the file's columns; it may
    raise BadRow or Dropped.
    """
    tally, rows = Tally(), Rows(args)
    check_output("--out-file", args.out_file, rows.paths)

    def made(index: int, row: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            return list(function(index, row, tally, rows.columns))
        except Dropped as dropped:
            tally.dropped[dropped.reason] += 1
            return []

    with RowFile(args.out_file) as out:
        for new_rows in rows.each(made):
            for row in new_rows:
                out.add(row)
    tally.num_in, tally.num_out = rows.num_read, out.num_rows
    if rows.report.total:
        tally.dropped["unreadable"] = rows.report.total
    show(str(tally))


# --- conversations


@dataclass(frozen=True)
class TurnList:
    """The turns of a row, as they are in the file.

    Attributes:
        key: the key of the list in the file: "conversations", "messages" ...
        entries: the turns, and `texts`: the text of each, "" for one that only calls tools.
        kinds: "system", "user", "assistant", "tool", or "function_call" for an assistant turn that calls tools.
        calls: whether a turn has calls that are not in its text.
        parsed: what training reads.
    """

    key: str
    entries: list[dict[str, Any]]
    texts: list[str]
    kinds: list[str]
    calls: list[bool]
    parsed: Parsed
    text_keys: list[str]

    @property
    def roles(self) -> list[str]:
        """The role of each turn: "system", "user", "assistant" or "tool"."""
        return [ASSISTANT if kind == CALL else kind for kind in self.kinds]

    @property
    def num_system(self) -> int:
        """1 if the first turn is a system turn, else 0."""
        return int(self.kinds[:1] == [SYSTEM])

    def with_text(self, entry: int, text: str) -> dict[str, Any]:
        """The turn at this position with another text; all else is kept."""
        old = self.entries[entry]
        return old if self.texts[entry] == text else {**old, self.text_keys[entry]: text}


def turn_list(row: dict[str, Any], columns: Columns = AS_THEY_ARE, thinks: bool = False) -> TurnList:
    """The turns of a row that is a list of turns. Arguments as of `parse_row`. Raises BadRow for other rows, and if
    training cannot read it."""
    parsed = parse_row(row, columns=columns, thinks=thinks)
    if parsed.form not in TURN_LISTS:
        hint = "convert it with convert_alpaca first" if parsed.form in PAIRS else "a plain text has no turns"
        raise BadRow("not a list of turns", f"a row with {parsed.form!r}; {hint}")
    key = columns.in_file(parsed.form, row)
    made = TurnList(key, json_list(row[key], key, THE_ROW), [], [], [], parsed, [])
    for number, entry in enumerate(made.entries, start=1):
        turn, where = columns.turn(entry), f"turn {number}"
        kind = kind_of(turn, columns, where)
        ours = next((name for name in TURN_TEXT if turn.get(name) is not None), TURN_TEXT[0])
        is_object = isinstance(turn.get(ours), dict)
        apart = is_object or any(is_given(turn.get(name)) for name in CALLS)
        made.texts.append("" if is_object or turn.get(ours) is None else content_of(turn, ours, where))
        made.text_keys.append(columns.in_file(ours, entry))
        made.calls.append(apart)
        made.kinds.append(CALL if apart or kind == CALL else SYSTEM if kind == DEVELOPER else kind)
    return made
