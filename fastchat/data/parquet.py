"""Parquet -> rows: the same values that the JSON reader makes, so that one check of their form serves both.

A parquet file has a value in every column of every row, so what a row does not say stands there as null: nulls are left
out, as if the key were not there. Only columns that say something about a conversation are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastchat.data.bad_rows import BadRow
from fastchat.data.formats import COLUMNS, FORMAT_KEYS
from fastchat.data.strict_json import check_strings
from fastchat.errors import DataError, brief

_BATCH = 256  # rows


@dataclass(frozen=True)
class NumberedRow:
    """One row: `number` counts from 1; `value` is None where `problem` says what is wrong."""

    number: int
    value: dict[str, Any] | None
    problem: BadRow | None = None


def parquet_rows(path: str) -> Iterator[tuple[NumberedRow, float]]:
    """Every row of a file in order, each with the share of the file that has been read, from 0 to 1.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            names, total = file.schema_arrow.names, file.metadata.num_rows
            # Without a known one all are read, so that the message can name what is there.
            wanted = [name for name in names if name in COLUMNS] if set(names) & set(FORMAT_KEYS) else None
            number = 0
            for batch in file.iter_batches(_BATCH, columns=wanted, use_threads=False):
                for row in _rows_of(batch):
                    number += 1
                    yield _checked(number, row), number / total
    except (pyarrow.ArrowException, OSError) as error:
        reason = brief(error)
        raise DataError(f"{path}: cannot be read as parquet ({reason}); copy or download it again.") from None


def _rows_of(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a batch; one by one where a text in it is not UTF-8, to find the row that has it."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield BadRow("invalid UTF-8", f"byte 0x{error.object[error.start]:02x}")


def _checked(number: int, row: dict[str, Any] | BadRow) -> NumberedRow:
    if isinstance(row, BadRow):
        return NumberedRow(number, None, row)
    value = _without_nulls(row)
    try:
        check_strings(value)
    except BadRow as problem:
        return NumberedRow(number, None, problem)
    return NumberedRow(number, value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
