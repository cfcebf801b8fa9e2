"""Encoding of dialogues of which only the beginning can be kept: text far after the cut is never encoded.

Tokenising a message of several megabytes takes a gigabyte of memory, although only a few hundred tokens are kept. So if
a text is far longer than the maximum length, only a beginning is encoded, with enough tokens to spare that its end
cannot change the ids that are kept. A second, longer beginning verifies that; if the two disagree, more is encoded, and
in the end everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from fastchat.conversation import Rendered

if TYPE_CHECKING:
    from fastchat.data.encoding.chat_encoder import ChatEncoder
    from fastchat.data.encoding.labels import Labelled

# Characters per token of the maximum length: above the first a text is far too long, the second makes a beginning.
_FAR, _ENOUGH = 64, 16
_AT_LEAST = 1 << 14  # characters
_SPARE = 256  # tokens after the maximum length, which the end of a beginning may change
_MOST_AT_ONCE = 1 << 20  # characters that are encoded at a time
_TEXT = attrgetter("text")
_WORD_END = re.compile(r"\S(?=\s)")


def encode_beginnings(rendered: Sequence[Rendered], chat_encoder: ChatEncoder, max_length: int) -> Iterator[Labelled]:
    """Encode each rendered dialogue; at least the first `max_length` + 1 ids are exact. `whole`: all of them.

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


def _beginning(rendered: Rendered, chat_encoder: ChatEncoder, max_length: int, length: int) -> Labelled:
    size = _ENOUGH * max_length + _AT_LEAST
    while 3 * size < length:
        shorter, longer = _cut(rendered, size), _cut(rendered, size + size // 3 * 3 // 2 + 1)
        if shorter is not None and longer is not None:
            one, other = chat_encoder.encode_many([shorter, longer])
            if len(one.input_ids) >= max_length + _SPARE and _same(one, other, max_length + 1):
                other.whole, other.special_token_strings = False, chat_encoder.special_token_strings(rendered.segments)
                return other
        size *= 2
    return chat_encoder.encode_many([rendered])[0]


def _length(rendered: Rendered) -> int:
    return sum(map(len, map(_TEXT, rendered.segments)))


def _same(one: Labelled, other: Labelled, size: int) -> bool:
    """Whether two encodings agree completely in their first `size` tokens."""
    pairs = ((one.input_ids, other.input_ids), (one.supervised, other.supervised), (one.segment_of, other.segment_of))
    straddling = ([at for at in encoded.straddling if at < size] for encoded in (one, other))
    return all(np.array_equal(a[:size], b[:size]) for a, b in pairs) and next(straddling) == next(straddling)


def _cut(rendered: Rendered, size: int) -> Rendered | None:
    """Roughly the first `size` characters; None if the cut would be in the template's text, or cut nothing off.

    The cut is at the end of a word if there is one, and never in or before white space, whose tokens depend on what
    follows it.
    """
    for index, segment in enumerate(rendered.segments):
        if size < len(segment.text):
            if segment.role == "template":
                return None
            end = _word_end(segment.text, size)
            part = replace(segment, text=segment.text[:end])
            # The other segments are kept without text: which answer is the last decides what is supervised.
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
