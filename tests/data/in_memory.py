"""A token store of records that are in memory, for tests that need no file and no cache."""

from __future__ import annotations

from collections.abc import Sequence

from fastchat.data.binding import BoundEncoder
from fastchat.data.loading import Record
from fastchat.data.store import TokenStore, check_supervised, make_part, usable


def build_store(
    records: Sequence[Record], bound: BoundEncoder, *, max_length: int, overlong: str
) -> tuple[TokenStore, dict[str, int]]:
    """The store and the counts of `records`, in order; the errors are those of a run."""
    part = make_part(usable(records), bound, max_length=max_length, overlong=overlong)
    part.counts["rows"] += len(records)
    part.counts.update(f"dropped_{record.dropped}" for record in records if record.dropped)
    check_supervised(part.counts, max_length)
    return TokenStore.of_parts([part]), dict(part.counts)
