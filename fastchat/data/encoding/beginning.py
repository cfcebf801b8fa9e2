"""Encoding of dialogues of which only the beginning can be kept: what lies far behind the cut is never encoded.

A message of megabytes costs a gigabyte as tokens, and a few hundred of them are kept. So of a text that is far longer
than the window, a beginning is encoded, with as many tokens to spare that its end cannot change the ids that are kept.
That is checked with a second, longer beginning; where the two disagree, more is encoded, in the end everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fastchat.conversation import Rendered

if TYPE_CHECKING:
    from fastchat.data.encoding.chat_encoder import ChatEncoder
    from fastchat.data.encoding.supervision import Encoded

# Characters per token of the window: beyond the first number a text is far too long, of the second a beginning is made.
_FAR, _ENOUGH = 64, 16
_AT_LEAST = 1 << 14  # characters
_SPARE = 256  # tokens behind the window, which the end of a beginning may change
_MOST_AT_ONCE = 1 << 20  # characters that are encoded at a time
_WORD_END = re.compile(r"\S(?=\s)")


def encode_beginnings(rendered: Sequence[Rendered], chat_encoder: ChatEncoder, max_length: int) -> Iterator[Encoded]:
    """Each rendered dialogue encoded, exactly in its first `max_length` + 1 ids; `Encoded.whole` says whether wholly.

    Raises DataError as `ChatEncoder.encode` does.
    """
    batch: list[Rendered] = []
    size = 0
    for one in rendered:
        length = _length(one)
        if length > _FAR * max_length + 4 * _AT_LEAST:
            yield from chat_encoder.encode_many(batch)
            batch, size = [], 0
            yield _beginning(one, chat_encoder, max_length, length)
            continue
        if size + length > _MOST_AT_ONCE:
            yield from chat_encoder.encode_many(batch)
            batch, size = [], 0
        batch.append(one)
        size += length
    yield from chat_encoder.encode_many(batch)


def _beginning(rendered: Rendered, chat_encoder: ChatEncoder, max_length: int, length: int) -> Encoded:
    size = _ENOUGH * max_length + _AT_LEAST
    while 3 * size < length:
        shorter, longer = _cut(rendered, size), _cut(rendered, size + size // 3 * 3 // 2 + 1)
        if shorter is not None and longer is not None:
            one, other = (chat_encoder.encode(part) for part in (shorter, longer))
            if len(one.input_ids) >= max_length + _SPARE and _same(one, other, max_length + 1):
                other.whole, other.special_token_strings = False, chat_encoder.special_token_strings(rendered.segments)
                return other
        size *= 2
    return chat_encoder.encode(rendered)


def _length(rendered: Rendered) -> int:
    return sum(len(segment.text) for segment in rendered.segments)


def _same(one: Encoded, other: Encoded, size: int) -> bool:
    """Whether two encodings agree in everything about their first `size` tokens."""
    pairs = ((one.input_ids, other.input_ids), (one.supervised, other.supervised), (one.segment_of, other.segment_of))
    straddling = ([at for at in encoded.straddling if at < size] for encoded in (one, other))
    return all(a[:size] == b[:size] for a, b in pairs) and next(straddling) == next(straddling)


def _cut(rendered: Rendered, size: int) -> Rendered | None:
    """About the first `size` characters; None where the cut would lie in the template's text, or leave nothing out.

    It lies at the end of a word where there is one, and never in or before white space: what follows white space says
    what becomes of it.
    """
    for index, segment in enumerate(rendered.segments):
        if size < len(segment.text):
            if segment.role == "template":
                return None
            end = _word_end(segment.text, size)
            part = replace(segment, text=segment.text[:end])
            # The rest stays there without text: which answer is the last one decides what is learned.
            rest = (replace(later, text="") for later in rendered.segments[index + 1 :])
            return None if end is None else Rendered((*rendered.segments[:index], part, *rest))
        size -= len(segment.text)
    return None


def _word_end(text: str, size: int) -> int | None:
    found = _WORD_END.search(text, size, size + _AT_LEAST)
    if found:
        return found.end()
    visible = re.compile(r"\S").search(text, size)
    return visible.end() if visible else None
