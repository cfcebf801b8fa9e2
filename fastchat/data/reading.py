"""Bytes -> rows: a strict reader of `.json` and `.jsonl`, plain or gzipped, that knows the line of every row.

Whether a file is one JSON array or JSON lines is decided by its content, so a `.json` file holding JSON lines is fine.
Tolerated: a byte order mark, CRLF, blank lines. Everything else that is not exactly JSON is named, never repaired.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastchat.data.bad_rows import BadRow
from fastchat.data.strict_json import BadValue, StrictDecoder
from fastchat.errors import DataError, nearest

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_KINDS = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PK": "a zip archive",
    b"PAR1": "a parquet file",
}
_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte that is not UTF-8
_NEXT_TOKEN = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|[\[\]{},]')


@dataclass(frozen=True)
class Row:
    """One row as it stands in the file: `value` is the JSON object, or None where `problem` says what is wrong."""

    source: str
    line: int
    value: dict[str, Any] | None
    problem: BadRow | None = None


def read_rows(path: str) -> Iterator[Row]:
    """Yield every row of a file in order, malformed ones included.

    Raises:
        DataError: the file is missing, a folder, unreadable, broken gzip, of another kind, or holds no row at all.
    """
    num_rows = 0
    with _opened(path) as stream:
        for row in _rows(stream, path):
            num_rows += 1
            yield row
    if not num_rows:
        raise DataError(f"{path}: the file holds no rows; it needs a JSON array of objects, or one object per line.")


@contextmanager
def _opened(path: str) -> Iterator[Iterable[bytes]]:
    """The file as a stream of plain bytes, with every way in which reading it can fail told as one DataError."""
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b" or path.endswith(".gz")
            raw.seek(0)
            yield gzip.open(raw) if zipped else raw  # noqa: SIM115 (closed with the file below it)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked as gzip ({error}); copy or download it again.") from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: OSError) -> DataError:
    """What to tell the user about a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file.{_neighbours(path)}")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: is a folder; give the file in it (.json, .jsonl, or either with .gz).")
    return DataError(f"{path}: cannot be read ({error.strerror or error}).")


def _neighbours(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f" There is no folder {folder} either."
    close = nearest(os.path.basename(path), os.listdir(folder))
    return f" In the same folder: {', '.join(close)}." if close else ""


def _rows(stream: Iterable[bytes], path: str) -> Iterator[Row]:
    decoder = StrictDecoder()
    lines = enumerate(stream, start=1)
    for number, raw in lines:
        if number == 1:
            raw = _without_mark(raw, path)
        if not raw.strip():
            continue
        if not raw.lstrip().startswith(b"["):
            return (yield from _line_rows(decoder, lines, number, raw, path))
        rest = b"".join(line for _, line in lines)
        if rest.strip() and _is_array_of_values(raw):  # a bad first row, in a file of JSON lines
            following = enumerate(io.BytesIO(rest), start=number + 1)
            return (yield from _line_rows(decoder, following, number, raw, path))
        return (yield from _array_rows(decoder, raw + rest, number, path))


def _without_mark(first_line: bytes, path: str) -> bytes:
    for magic, kind in _OTHER_KINDS.items():
        if first_line.startswith(magic):
            raise DataError(f"{path}: is {kind}; it needs to be UTF-8 JSON (.json or .jsonl, either with .gz).")
    return first_line.removeprefix(BYTE_ORDER_MARK)


def _is_array_of_values(line: bytes) -> bool:
    """Whether a line is a whole JSON array that does not hold objects, so that it is no file of rows by itself."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not (isinstance(value, list) and value and isinstance(value[0], dict))


# --- one JSON object per line


def _line_rows(
    decoder: StrictDecoder, lines: Iterator[tuple[int, bytes]], number: int, raw: bytes, path: str
) -> Iterator[Row]:
    """Rows of a file of JSON lines, from line `number` (already read: `raw`) on."""
    second = next(lines, None)
    if raw.strip() == b"{" and second and not second[1].lstrip().startswith(b"{"):
        raise DataError(
            f"{path}:{number}: a JSON object spread over several lines. "
            "It needs a JSON array of objects ([ ... ]), or one whole object per line."
        )
    yield _line_row(decoder, raw, number, path)
    for number, raw in itertools.chain([second] if second else [], lines):
        if raw.strip():
            yield _line_row(decoder, raw, number, path)


def _line_row(decoder: StrictDecoder, raw: bytes, number: int, path: str) -> Row:
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


def _array_rows(decoder: StrictDecoder, content: bytes, number: int, path: str) -> Iterator[Row]:
    """Rows of a file that is one JSON array opening on line `number`; each has the line where its element starts."""
    text, has_bad_bytes = _decoded(content)
    start = _skip_space(text, _skip_space(text, 0) + 1)
    line = number + text.count("\n", 0, start)
    end = start
    empty = text[start : start + 1] == "]"
    while not empty:
        value, end, problem = _element(decoder, text, start)
        if has_bad_bytes and (bad := _ESCAPED_BYTE.search(text, start, end)):
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
        after = _skip_space(text, end + 1)
        line += text.count("\n", start, after)
        start = after
    after = _skip_space(text, end + 1)
    if after < len(text):
        line += text.count("\n", start, after)
        yield Row(path, line, None, BadRow("broken JSON", "text after the end of the array"))


def _element(decoder: StrictDecoder, text: str, start: int) -> tuple[Any, int, BadRow | None]:
    """The element at `start`; where the comma or bracket behind it is, or the text ends; and what is wrong with it."""
    value, end, problem = None, start, None
    try:
        value, end = decoder.decode(text, start)
    except BadRow as found:
        problem = found
        end = found.end if isinstance(found, BadValue) else start
    end = _skip_space(text, end)
    if text[end : end + 1] not in ("", ",", "]"):
        problem = problem or BadRow("broken JSON", "neither a comma nor ] after this element")
        end = _next_separator(text, end)
    return value, end, problem


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


def _decoded(content: bytes) -> tuple[str, bool]:
    """The text, and whether it holds bytes that are not UTF-8 (each then stands as one lone surrogate)."""
    try:
        return content.decode("utf-8"), False
    except UnicodeDecodeError:
        return content.decode("utf-8", errors="surrogateescape"), True


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()
