"""Size limit of a row: reading one takes several times its size in memory, and a small gzipped file can be one row."""

from __future__ import annotations

from fastchat.data.rows.bad_rows import BadRow

MAX_ROW_BYTES = 32 << 20  # a million and more words, in any format


def too_large(num_bytes: int) -> BadRow:
    """What is wrong with a row of `num_bytes`."""
    return BadRow("row too large", f"{_mebibytes(num_bytes)}; {LIMIT}")


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.1f} MiB"


LIMIT = f"a row may have at most {MAX_ROW_BYTES >> 20} MiB; shorten its texts, or split the dialogue into several rows"
