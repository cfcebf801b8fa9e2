"""Tables (parquet, Arrow) -> rows: the same values that the JSON reader makes, so that the same checks apply to all.

A table has a value in every column of every row, so a key that a row does not have is null there: nulls are removed,
as if the key were missing. Only columns relevant to a conversation are read, unless all are requested.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.keys import FORM_KEYS, PAIRS, is_read
from fastchat.data.rows.row_size import MAX_ROW_BYTES, too_large
from fastchat.data.rows.strict_json import check_strings

BATCH = 256  # rows converted to Python objects at a time, if they are small
_PLAIN = (str, bool, int, float)


@dataclass(frozen=True)
class NumberedRow:
    """One row: `number` counts from 1; `value` is None where `problem` says what is wrong.

    `unread` are the columns of its table that were not read.
    """

    number: int
    value: dict[str, Any] | None
    problem: BadRow | None = None
    unread: tuple[str, ...] = ()


def columns_to_read(schema: Any, whole: bool, columns: Columns) -> tuple[list[str], tuple[str, ...]]:
    """(columns that are read, columns with values that are not) of a table's `pyarrow.Schema`. `whole`: all are read.

    All are also read if they do not make a form, or a mapped one is missing, so that the error message can name them.
    """
    names, mapped = schema.names, columns.of_row
    found = {*names, *(ours for ours, theirs in columns.names.items() if theirs in names)}
    if whole or not mapped <= set(names) or not any(found >= {key, PAIRS.get(key, key)} for key in FORM_KEYS):
        return list(names), ()
    wanted = [name for name in names if is_read(name) or name in mapped]
    unread = (name for name in names if name not in wanted and str(schema.field(name).type) != "null")
    return wanted, tuple(unread)


def rows_of(batches: Iterable[Any], unread: tuple[str, ...], json_only: bool = False) -> Iterator[NumberedRow]:
    """The rows of some record batches, numbered from 1. `json_only`: values JSON cannot represent are a problem."""
    number = 0
    for batch in batches:
        for row in _values(batch):
            number += 1
            yield _checked(number, row, unread, json_only)


def _values(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a batch; one by one if it is large, or if a text in it is not UTF-8, to find the row."""
    if batch.nbytes <= MAX_ROW_BYTES:
        try:
            yield from batch.to_pylist()
            return
        except UnicodeDecodeError:
            pass
    for at in range(batch.num_rows):
        one = batch.slice(at, 1)
        try:
            yield one.to_pylist()[0] if one.nbytes <= MAX_ROW_BYTES else too_large(one.nbytes)
        except UnicodeDecodeError as error:
            yield BadRow("invalid UTF-8", f"byte 0x{error.object[error.start]:02x}")


def _checked(number: int, row: dict[str, Any] | BadRow, unread: tuple[str, ...], json_only: bool) -> NumberedRow:
    if isinstance(row, BadRow):
        return NumberedRow(number, None, row, unread)
    try:
        value = _without_nulls(row, json_only)
        check_strings(value)
    except BadRow as problem:
        return NumberedRow(number, None, problem, unread)
    return NumberedRow(number, value, None, unread)


def _without_nulls(value: Any, json_only: bool) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item, json_only) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item, json_only) for item in value]
    if json_only and value is not None and not isinstance(value, _PLAIN):
        raise BadRow("wrong type", f"{shown(value)} is a {type(value).__name__}, which JSON cannot represent")
    return value
