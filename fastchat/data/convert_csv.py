"""Convert a table of text (CSV or TSV, as spreadsheets save it) to rows with the names in its first line as keys.

    fastchat data from-csv --in-file faq.csv --out-file faq.jsonl

    question,answer        ->  {"question": "Hi", "answer": "Hello."}
    Hi,Hello.

An empty cell is an absent value. Which columns are the dialogue is not guessed: rows that training does not know by
their names are named with `--data_columns`, and the command says how.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

from fastchat.bars import bar
from fastchat.data.rows.bad_rows import BadRow, BadRowReport
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.no_file import refuse_special, unreadable
from fastchat.data.rows.row_size import MAX_ROW_BYTES
from fastchat.data.rows.writing import RowFile, check_output
from fastchat.data.tools.command import run
from fastchat.data.tools.row_tool import Tally, tool_parser
from fastchat.errors import DataError, say, show

_DELIMITERS = (",", ";", "\t", "|")  # spreadsheets write a semicolon where the comma is the decimal sign


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    about = "Convert a CSV or TSV file, with the names of its columns in the first line, to rows that training reads."
    parser = tool_parser("from-csv", about, "--in-file faq.csv --out-file faq.jsonl", columns=False)
    return run(convert, parser, argv)


def convert(args: argparse.Namespace) -> None:
    """Write one object per row of the table, and say which columns it has. Raises UserError."""
    check_output("--out-file", args.out_file, [args.in_file])
    tally, report, way_out = Tally(), BadRowReport(), ""
    opened = _opened(args.in_file)
    with opened as file, RowFile(args.out_file) as out, bar("converting", opened.size) as progress:
        table = _Table(file, args.in_file)
        for line, cells in table:
            progress.to(opened.position())
            if not cells:
                tally.notes["empty lines, left out"] += 1
                continue
            tally.num_in += 1
            try:
                row = table.row(cells)
            except BadRow as problem:
                report.add(args.in_file, line, problem)
                continue
            way_out = way_out if out.num_rows else _way_out(row)
            out.add(row)
        if report.total and args.on_bad_row == "stop":
            raise report.error(tally.num_in)
        if not out.num_rows:
            raise DataError(f"{args.in_file}: there are no rows after the names of the columns.")
    if report.total:
        say(report.summary(tally.num_in))
        tally.dropped["unreadable"] = report.total
    tally.num_out = out.num_rows
    show(f"columns: {', '.join(table.names)}\n{tally}")
    if way_out:
        show(way_out)


def _way_out(row: dict[str, str]) -> str:
    """What to add to the training command, if it does not know the names of the columns."""
    try:
        parse_row(row)
    except BadRow as problem:
        return problem.way_out
    return ""


class _Table:
    """The rows of a file as (line, cells); `names` are the cells of its first line."""

    def __init__(self, file: IO[str], path: str):
        self.path = path
        csv.field_size_limit(MAX_ROW_BYTES)
        first = file.readline()
        counts = {mark: first.count(mark) for mark in _DELIMITERS}
        delimiter = max(counts, key=lambda mark: counts[mark])
        if not counts[delimiter]:
            raise DataError(f"{path}: the first line must be the names of the columns, separated by commas.")
        self.names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]
        wrong = next((name for name in self.names if not name or self.names.count(name) > 1), None)
        if wrong is not None:
            problem = f"the column {wrong!r} is there twice" if wrong else "a column has no name"
            raise DataError(f"{path}:1: {problem}; the first line must be the names of the columns.")
        self._reader = csv.reader(file, delimiter=delimiter, strict=True)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        line = 2
        try:
            for cells in self._reader:
                yield line, cells
                line = self._reader.line_num + 2
        except csv.Error as error:
            raise DataError(f"{self.path}:{line}: the row that begins here cannot be read ({error}).") from None

    def row(self, cells: list[str]) -> dict[str, str]:
        """The object of one row, without empty cells. Raises BadRow."""
        if len(cells) != len(self.names):
            detail = f"{len(cells)} instead of {len(self.names)}; a cell with a delimiter or a line end needs quotes"
            raise BadRow("wrong number of cells", detail)
        return {name: cell for name, cell in zip(self.names, cells, strict=True) if cell}


class _opened:
    """Opens the file as text; every error in reading it becomes one DataError."""

    def __init__(self, path: str):
        refuse_special(path)
        self._path = path

    def __enter__(self) -> IO[str]:
        try:
            self._raw = open(self._path, "rb")  # noqa: SIM115 - __exit__ closes it
        except OSError as error:
            raise unreadable(self._path, error) from None
        self.size = os.fstat(self._raw.fileno()).st_size
        content: Any = gzip.GzipFile(fileobj=self._raw) if self._path.endswith(".gz") else self._raw
        self._file = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
        return self._file

    def position(self) -> int:
        """How many bytes of the file have been read."""
        return self._raw.tell()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        self._raw.close()
        if isinstance(error, UnicodeDecodeError):
            raise DataError(f"{self._path}: is not UTF-8; save it as 'CSV UTF-8' in the spreadsheet.") from None
        if isinstance(error, OSError | EOFError):
            raise DataError(f"{self._path}: cannot be read ({error}).") from None


if __name__ == "__main__":
    sys.exit(main())
