"""A token store of records that are in memory, for tests that need no file and no cache."""

from __future__ import annotations

from collections.abc import Sequence

from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.rows.records import Record
from fastchat.data.tokens.store import TokenStore, check_supervised, make_shard, usable


def build_store(
    records: Sequence[Record], chat_encoder: ChatEncoder, *, max_length: int, overlong: str
) -> tuple[TokenStore, dict[str, int]]:
    """The store and the counts of `records`, in order; the errors are those of a run."""
    part = make_shard(usable(records), chat_encoder, max_length=max_length, overlong=overlong)
    part.counts["rows"] += len(records)
    part.counts.update(f"dropped_{record.dropped}" for record in records if record.dropped)
    check_supervised(part.counts, max_length)
    return TokenStore.of_parts([part]), dict(part.counts)
