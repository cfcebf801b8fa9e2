"""Parquet -> rows, a few at a time: see tables.py for what a row is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.tables import BATCH, NumberedRow, columns_to_read, rows_of
from fastchat.errors import DataError, brief

# A column of a few bytes can expand to its longest value in every row (by dictionary and run-length encoding).
_MOST_UNFOLDED = 4 << 30  # bytes of the rows of one batch


def parquet_rows(path: str, whole: bool = False, columns: Columns = AS_THEY_ARE) -> Iterator[tuple[NumberedRow, float]]:
    """Every row of a file in order, each with the share of the file that has been read, from 0 to 1.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            total = file.metadata.num_rows
            wanted, unread = columns_to_read(file.schema_arrow, whole, columns)
            batches = file.iter_batches(_batch_size(file.metadata), columns=wanted, use_threads=False)
            for row in rows_of(batches, unread, whole):
                yield row, row.number / total
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        reason = brief(error)
        raise DataError(f"{path}: cannot be read as parquet ({reason}); copy or download it again.") from None


def _batch_size(metadata: Any) -> int:
    """A number of rows that fits into memory even if each had the longest value of its column."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=1)
    return max(1, min(BATCH, _MOST_UNFOLDED // max(largest, 1)))
