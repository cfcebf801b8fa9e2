"""Bytes -> rows: a strict reader of JSON (`.json`, `.jsonl`, plain or gzipped), parquet and Arrow that keeps each row's
location.

The format is detected from the content, so a `.json` file with JSON lines is fine. A byte order mark, CRLF and blank
lines are accepted; anything else that is not valid JSON is reported, never repaired. No file is loaded as a whole: one
line, or about a megabyte of an array, is in memory at a time, and no row larger than MAX_ROW_BYTES.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from fastchat.data.rows.arrow import ARROW_FILE, ARROW_STREAM, arrow_rows
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.no_file import refuse_other_kinds, refuse_special, unreadable
from fastchat.data.rows.parquet import parquet_rows
from fastchat.data.rows.row_size import LIMIT, MAX_ROW_BYTES, too_large
from fastchat.data.rows.strict_json import BadValue, StrictDecoder
from fastchat.data.rows.tables import NumberedRow
from fastchat.errors import DataError, brief
from fastchat.files import JsonError, parse_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The table formats, by the first bytes of a file.
_TABLES = {b"PAR1": parquet_rows, ARROW_FILE: arrow_rows, ARROW_STREAM: arrow_rows}
_TEXT_KINDS = {".csv": "CSV", ".tsv": "tab-separated text", ".txt": "plain text"}
_PLAIN = 'it must be JSON (.json or .jsonl), such as one {"text": "..."} per line for a text to be learned as it is'
_BLOCK = 1 << 20  # bytes of an array that are read at a time
_FIRST = 1 << 16  # bytes of the first line that are read to detect the format
_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte that is not UTF-8
_NEXT_TOKEN = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|[\[\]{},]')


@dataclass(frozen=True)
class Row:
    """One row as it is in the file: `value` is the JSON object, or None if `problem` says what is wrong.

    `line` counts from 1; for a table (parquet, Arrow) it is the row number. `unread`: the columns of the table that
    were not read.
    """

    source: str
    line: int
    value: dict[str, Any] | None
    problem: BadRow | None = None
    unread: tuple[str, ...] = ()


class RowReader:
    """Reads one file once, row by row, and reports its progress.

    >>> reader = RowReader("chats.jsonl")
    >>> for row in reader: print(row.line, reader.share)
    """

    def __init__(self, path: str, whole: bool = False, columns: Columns = AS_THEY_ARE):
        """`whole`: every column of a table is read, not only those that training reads, with these `columns`."""
        self.path, self.whole, self.columns = path, whole, columns
        self._file: IO[bytes] | None = None
        self._size = 0
        self._rows_share = 0.0  # of a table

    @property
    def share(self) -> float:
        """How much of the file has been read, from 0 to 1."""
        if self._file is None or self._file.closed:
            return self._rows_share
        return min(self._file.tell() / self._size, 1.0) if self._size else 1.0

    def __iter__(self) -> Iterator[Row]:
        """Yield every row in order, malformed ones included.

        Raises:
            DataError: the file is missing, a folder, unreadable, broken, of another kind, or holds no row at all.
        """
        num_rows = 0
        with _opened(self.path) as raw:
            self._size = os.fstat(raw.fileno()).st_size
            table = next((rows for magic, rows in _TABLES.items() if _starts_with(raw, magic)), None)
            for row in self._table_rows(table) if table else self._json_rows(raw):
                num_rows += 1
                yield row
        self._rows_share = 1.0
        if not num_rows:
            needed = "" if table else "; it must be a JSON array of objects, or have one object per line"
            raise DataError(f"{self.path}: the file has no rows{needed}.")

    def _json_rows(self, raw: IO[bytes]) -> Iterator[Row]:
        self._file = raw
        zipped = _starts_with(raw, b"\x1f\x8b") or self.path.endswith(".gz")
        yield from _rows(gzip.open(raw) if zipped else raw, self.path)  # noqa: SIM115 (closed with the file below it)

    def _table_rows(self, rows: Callable[[str, bool, Columns], Iterator[tuple[NumberedRow, float]]]) -> Iterator[Row]:
        for row, share in rows(self.path, self.whole, self.columns):
            self._rows_share = share
            yield Row(self.path, row.number, row.value, row.problem, row.unread)


def read_rows(path: str, whole: bool = False) -> Iterator[Row]:
    """Every row of a file in order, malformed ones included. Arguments and errors as of RowReader."""
    return iter(RowReader(path, whole))


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open the file; every error in reading it becomes one DataError."""
    refuse_special(path)
    try:
        with open(path, "rb") as raw:
            yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked as gzip ({error}); copy or download it again.") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _starts_with(raw: IO[bytes], magic: bytes) -> bool:
    found = raw.read(len(magic))
    raw.seek(0)
    return found == magic


def _rows(stream: IO[bytes] | gzip.GzipFile, path: str) -> Iterator[Row]:
    decoder, number = StrictDecoder(), 1
    raw = _without_mark(stream.readline(_FIRST), path)
    while raw and not raw.strip():
        number += raw.endswith(b"\n")
        raw = stream.readline(_FIRST)
    if not raw:
        return
    _refuse_tables(raw, path)
    if not raw.lstrip().startswith(b"["):
        yield from _line_rows(decoder, _numbered(stream, number, raw), path)
    elif raw.lstrip()[1:].lstrip().startswith(b"{"):
        yield from _array_rows(decoder, _Text(stream, raw, path), number, path)
    else:
        raw = _whole_line(stream, raw, number, path)
        blank, following = bytearray(), stream.readline(MAX_ROW_BYTES)
        while following and not following.strip():
            blank += following
            following = stream.readline(MAX_ROW_BYTES)
            _check_gap(len(blank), number, path)
        if following and _is_array_of_values(raw):  # a bad first row, in a file of JSON lines
            yield _line_row(decoder, raw, number, path)
            number += 1 + blank.count(b"\n")
            yield from _line_rows(decoder, _numbered(stream, number, following), path)
        else:
            yield from _array_rows(decoder, _Text(stream, raw + blank + following, path), number, path)


def _whole_line(stream: IO[bytes] | gzip.GzipFile, begun: bytes, number: int, path: str) -> bytes:
    line = begun if begun.endswith(b"\n") else begun + stream.readline(MAX_ROW_BYTES)
    _check_gap(len(line), number, path)
    return line


def _check_gap(num_bytes: int, number: int, path: str) -> None:
    """Raise DataError if no row begins within MAX_ROW_BYTES from line `number` on."""
    if num_bytes > MAX_ROW_BYTES:
        raise DataError(
            f"{path}:{number}: no row within {MAX_ROW_BYTES >> 20} MiB; this is not a file of conversations."
        )


def _numbered(stream: IO[bytes] | gzip.GzipFile, number: int, begun: bytes) -> Iterator[tuple[int, bytes | BadRow]]:
    """Line `number`, whose beginning has been read already, and all lines after it; BadRow for one that is too long."""
    while begun:
        line, size = begun, len(begun)
        if not line.endswith(b"\n"):
            line += stream.readline(MAX_ROW_BYTES + 1 - size)
            size = len(line)
        if size <= MAX_ROW_BYTES or line.endswith(b"\n"):
            yield number, line
        else:
            while block := stream.readline(_BLOCK):
                size += len(block)
                if block.endswith(b"\n"):
                    break
            yield number, too_large(size)
        number, begun = number + 1, stream.readline(MAX_ROW_BYTES + 1)


def _without_mark(first_line: bytes, path: str) -> bytes:
    refuse_other_kinds(first_line, path)
    if b"\0" in first_line[:2]:  # UTF-16 without a mark; or a file of zeros
        raise DataError(f"{path}: begins with a NUL byte, so it is not UTF-8 JSON; copy or convert it again.")
    return first_line.removeprefix(BYTE_ORDER_MARK)


def _refuse_tables(first_line: bytes, path: str) -> None:
    """Raise DataError for a file that is not JSON by its name and first line, instead of one bad row per line."""
    kind = next((kind for ending, kind in _TEXT_KINDS.items() if path.removesuffix(".gz").lower().endswith(ending)), "")
    is_plain = kind == _TEXT_KINDS[".txt"]
    if kind and not first_line.lstrip().startswith((b"[", b"{")):
        start = first_line[:60].decode("utf-8", "replace").strip()
        way_out = f"convert it: fastchat data from-csv --in-file {path} --out-file rows.jsonl"
        raise DataError(f"{path}: is {kind}, not JSON; it begins with {start!r}; {_PLAIN if is_plain else way_out}.")


def _is_array_of_values(line: bytes) -> bool:
    """Whether a line is a complete JSON value other than an array of objects, so not a file of rows by itself."""
    try:
        value = parse_json(line, constants=True)
    except JsonError:
        return False
    return not (isinstance(value, list) and value and isinstance(value[0], dict))


# --- one JSON object per line


def _line_rows(decoder: StrictDecoder, lines: Iterator[tuple[int, bytes | BadRow]], path: str) -> Iterator[Row]:
    """Rows of a file of JSON lines, from the first one that is not blank on."""
    number, raw = next(lines)
    second = next(lines, None)
    after = second[1] if second else b"{"
    if isinstance(raw, bytes) and raw.strip() == b"{" and isinstance(after, bytes) and after.lstrip()[:1] != b"{":
        raise DataError(
            f"{path}:{number}: a JSON object spread over several lines. "
            "Use a JSON array of objects ([ ... ]), or one complete object per line."
        )
    yield _line_row(decoder, raw, number, path)
    for number, raw in itertools.chain([second] if second else [], lines):
        if isinstance(raw, BadRow) or raw.strip():
            yield _line_row(decoder, raw, number, path)


def _line_row(decoder: StrictDecoder, raw: bytes | BadRow, number: int, path: str) -> Row:
    if isinstance(raw, BadRow):
        return Row(path, number, None, raw)
    try:
        text = raw.decode("utf-8").strip(" \t\r\n")
        value, end = decoder.decode(text, 0)
        if end != len(text):
            raise BadRow("broken JSON", f"text after the object, at character {end + 1}")
        return Row(path, number, value)
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x}, at byte {error.start + 1} of the line"
        return Row(path, number, None, BadRow("invalid UTF-8", where))
    except BadRow as problem:
        return Row(path, number, None, problem)


# --- one JSON array


class _Text:
    """The text of a file from some position on, as far as it has been read; invalid UTF-8 bytes become surrogates."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, begun: bytes, path: str):
        self._stream, self._path = stream, path
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self.text, self.ended, self.has_bad_bytes = "", False, False
        self._add(begun)

    def more(self) -> bool:
        """Read on, doubling the text; False at the end of the file.

        Raises DataError if the text in memory exceeds the size limit of a row.
        """
        if self.full:
            start = brief(self.text[:_BLOCK].lstrip(), 60)
            raise DataError(
                f"{self._path}: one element of the array, or the text after a broken one, has more than "
                f"{MAX_ROW_BYTES >> 20} MiB ({LIMIT}). It begins with {start!r}."
            )
        if not self.ended:
            block = self._stream.read(max(_BLOCK, len(self.text)))
            self.ended = not block
            self._add(block, final=self.ended)
        return not self.ended

    @property
    def full(self) -> bool:
        """Whether the text in memory exceeds the size limit of a row."""
        return len(self.text) > MAX_ROW_BYTES + _BLOCK

    def drop(self, end: int) -> None:
        """Forget everything before character `end`."""
        self.text = self.text[end:]

    def skip_space(self, start: int) -> int:
        """Position of the first character at or after `start` that is not white space."""
        while (at := _skip_space(self.text, start)) == len(self.text) and self.more():
            pass
        return at

    def _add(self, block: bytes, final: bool = False) -> None:
        added = self._decoder.decode(block, final)
        self.has_bad_bytes |= not added.isascii() and _ESCAPED_BYTE.search(added) is not None
        self.text += added


def _array_rows(decoder: StrictDecoder, file: _Text, number: int, path: str) -> Iterator[Row]:
    """Rows of a file that is one JSON array opening on line `number`; each has the line where its element starts."""
    start = file.skip_space(file.skip_space(0) + 1)
    line = number + file.text.count("\n", 0, start)
    end = start
    empty = file.text[start : start + 1] == "]"
    while not empty:
        value, end, problem = _element(decoder, file, start)
        text = file.text
        if file.has_bad_bytes and (bad := _ESCAPED_BYTE.search(text, start, end)):
            bad_line = line + text.count("\n", start, bad.start())
            problem = BadRow("invalid UTF-8", f"byte 0x{ord(bad.group()) - 0xDC00:02x}, in line {bad_line}")
        if end == len(text):
            last_line = line + text.count("\n", start)
            problem = BadRow(
                "truncated JSON", f"no end of this element or of the array up to the last line, {last_line}"
            )
        yield Row(path, line, None if problem else value, problem)
        if end == len(text):
            return
        if text[end] == "]":
            break
        after = file.skip_space(end + 1)
        line += file.text.count("\n", start, after)
        start = after
        if start > _BLOCK:
            file.drop(start)
            start = 0
    after = file.skip_space(end + 1)
    if after < len(file.text):
        line += file.text.count("\n", start, after)
        yield Row(path, line, None, BadRow("broken JSON", "text after the end of the array"))


def _element(decoder: StrictDecoder, file: _Text, start: int) -> tuple[Any, int, BadRow | None]:
    """The element at `start`; the position of the comma or bracket after it, or of the end of the text; its problem.

    An element that ends with the text read so far, or does not parse, may be complete with more of the file, so more is
    read. (After an element that is really broken, up to the size limit of a row is read.)
    """
    while True:
        value, end, problem = None, start, None
        try:
            value, end = decoder.decode(file.text, start)
        except BadRow as found:
            problem = found
            end = found.end if isinstance(found, BadValue) else start
        end = _skip_space(file.text, end)
        follows = file.text[end : end + 1]
        sure = follows in (",", "]") and (problem is None or isinstance(problem, BadValue))
        if sure or (file.full and not _is_cut(problem)) or not file.more():
            break
    if follows not in ("", ",", "]"):
        problem = problem or BadRow("broken JSON", "neither a comma nor ] after this element")
        end = _next_separator(file.text, end)
    return value, end, problem


def _is_cut(problem: BadRow | None) -> bool:
    return problem is not None and problem.reason == "truncated JSON"


def _next_separator(text: str, start: int) -> int:
    """Where the broken element at `start` seems to end: the next comma or ] outside strings and brackets."""
    unclosed: list[str] = []
    for token in _NEXT_TOKEN.finditer(text, start):
        mark = token.group()
        if not unclosed and mark in (",", "]"):
            return token.start()
        if mark in ("[", "{"):
            unclosed.append(mark)
        opener = {"]": "[", "}": "{"}.get(mark)
        while opener in unclosed and unclosed.pop() != opener:
            pass  # brackets inside that were never closed
    return len(text)


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()
