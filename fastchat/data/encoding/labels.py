"""Labels of many dialogues at once: one pass over flat arrays, without a Python object per token.

The tokens of all dialogues are laid out one after the other, and so are the texts that they are tokens of: the parts.
A part is the text that one segment has in one piece, or a control token, which counts as one byte. Where each token
begins and ends is the running sum of the tokens' lengths in bytes, and a token belongs to the part in which it begins:

    parts     |USER: |Hi| ASSISTANT:| Yo|</s>|
    lengths    6      2  11          3   1            in bytes
    tokens    |USER|:| Hi| ASS|IST|ANT|:| Yo|</s>|    " Hi" begins in the first part and ends in the second

Only tokens that end in another part than they begin in are looked at one by one; there are few of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from fastchat.conversation import Segment
from fastchat.data.encoding.supervision import IGNORED, Encoded, Piece

if TYPE_CHECKING:
    from fastchat.data.encoding.chat_encoder import Control

_NEVER = np.iinfo(np.int64).max


@dataclass(slots=True)
class Labelled:
    """`Encoded` in arrays, which may be views of those of a whole batch.

    Attributes:
        input_ids, labels: int32 [T]; a label is the token's own id or -100.
        supervised: bool [T]. segment_of: int32 [T]. The other attributes are those of `Encoded`.
        learned_in: the segments with a supervised token, ascending.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    supervised: np.ndarray
    segment_of: np.ndarray
    straddling: list[int] = field(default_factory=list)
    learned_in: list[int] = field(default_factory=list)
    special_token_strings: int = 0
    escaped: int = 0
    whole: bool = True

    def beginning(self, size: int) -> Labelled:
        """The first `size` tokens."""
        supervised, segment_of = self.supervised[:size], self.segment_of[:size]
        return replace(
            self,
            input_ids=self.input_ids[:size],
            labels=self.labels[:size],
            supervised=supervised,
            segment_of=segment_of,
            straddling=[position for position in self.straddling if position < size],
            learned_in=np.unique(segment_of[supervised]).tolist(),
        )

    def encoded(self) -> Encoded:
        """The same in lists."""
        ids, supervised, segment_of = (x.tolist() for x in (self.input_ids, self.supervised, self.segment_of))
        counts = (self.special_token_strings, self.escaped)
        return Encoded(ids, supervised, segment_of, self.straddling, *counts, whole=self.whole)


@dataclass(slots=True)
class _Parts:
    """The parts of all dialogues, and which of them each token is in; all lists are ascending but the last two.

    Attributes:
        ids: [N]. sizes: [P], the length of each part.
        tokens_of, parts_of: [D + 1], the tokens and the parts of dialogue d are those from [d] up to [d + 1].
        first_tokens, first_parts: [Q], where each piece begins.
        controls: the tokens that are control tokens. added: first tokens with a byte that is not in the text.
        exact: (piece, its offsets) of pieces whose tokens' lengths are not known.
        segments: [P], the segment of each part, by its index in the dialogue. learned: [P], whether it is supervised.
    """

    ids: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tokens_of: list[int] = field(default_factory=lambda: [0])
    parts_of: list[int] = field(default_factory=lambda: [0])
    first_tokens: list[int] = field(default_factory=list)
    first_parts: list[int] = field(default_factory=list)
    controls: list[int] = field(default_factory=list)
    added: list[int] = field(default_factory=list)
    exact: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)

    def add(self, pieces: Sequence[Piece], learned: Sequence[bool], opens: Control | None) -> None:
        """Append the pieces of one dialogue. `opens`: the control token that is never supervised."""
        ids, sizes, segments, flags = self.ids, self.sizes, self.segments, self.learned
        for piece in pieces:
            control = piece.control
            if control is None and not piece.ids:  # the tokenizer leaves nothing of its text
                continue
            self.first_tokens.append(len(ids))
            self.first_parts.append(len(sizes))
            if control is not None:
                self.controls.append(len(ids))
                ids.append(control.id)
                sizes.append(1)
                segments.append(piece.segment)
                # A model never has to generate BOS.
                supervised = control != opens and learned[piece.segment]
                flags.append(supervised)
                continue
            if piece.offsets is not None:
                self.exact.append((len(self.first_tokens) - 1, piece.offsets))
            elif piece.added:
                self.added.append(len(ids))
            ids += piece.ids
            in_characters = piece.offsets is not None
            for text, segment in piece.parts:
                sizes.append(len(text) if in_characters or text.isascii() else len(text.encode()))
                segments.append(segment)
                flags.append(learned[segment])
        self.tokens_of.append(len(ids))
        self.parts_of.append(len(sizes))


@dataclass(slots=True)
class _Layout:
    """Where the tokens are. `part_of`: int64 [N], the part in which each token begins. `ends`: int64 [N], where it
    ends. `part_ends`: int64 [P]. `crossing`: the tokens that end in another part of their piece."""

    ids: np.ndarray
    part_of: np.ndarray
    ends: np.ndarray
    part_ends: np.ndarray
    crossing: list[int]


def _lay_out(parts: _Parts, lengths: np.ndarray | None) -> _Layout:
    """`lengths`: int [V], of every id in bytes; None if all pieces have offsets."""
    ids, sizes = np.array(parts.ids, np.int32), np.array(parts.sizes, np.int64)
    part_ends = np.cumsum(sizes)
    part_starts = part_ends - sizes
    widths = lengths[ids].astype(np.int64) if lengths is not None else np.zeros(len(ids), np.int64)
    widths[parts.controls] = 1
    widths[parts.added] -= 1
    next_tokens, next_parts = (
        [*first[1:], size][: len(first)]
        for first, size in ((parts.first_tokens, len(ids)), (parts.first_parts, len(sizes)))
    )
    for piece, _ in parts.exact:
        widths[parts.first_tokens[piece] : next_tokens[piece]] = 0
        size = part_ends[next_parts[piece] - 1] - part_starts[parts.first_parts[piece]]
        widths[next_tokens[piece] - 1] = size
    ends = np.cumsum(widths)
    starts = ends - widths
    for piece, offsets in parts.exact:
        span, base = slice(parts.first_tokens[piece], next_tokens[piece]), part_starts[parts.first_parts[piece]]
        pairs = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)
        starts[span], ends[span] = base + pairs[:, 0], base + pairs[:, 1]
    begins = np.searchsorted(starts, part_starts)
    begins[parts.first_parts] = parts.first_tokens
    part_of = np.repeat(np.arange(len(sizes)), np.diff(begins, append=len(ids)))
    limits = part_ends.copy()
    limits[np.array(next_parts, np.int64) - 1] = _NEVER  # what a piece has at its end is its last part's
    return _Layout(ids, part_of, ends, part_ends, np.flatnonzero(ends > limits[part_of]).tolist())


def count(pieces: Sequence[Piece], num_segments: int, lengths: np.ndarray | None) -> Counter[int]:
    """The number of tokens that begin in each segment of one dialogue; every token is counted once."""
    parts = _Parts()
    parts.add(pieces, [False] * max(num_segments, 1), None)
    counts: Counter[int] = Counter(dict.fromkeys(parts.segments, 0))
    if parts.ids:
        per_part = np.bincount(_lay_out(parts, lengths).part_of, minlength=len(parts.sizes))
        for segment, number in zip(parts.segments, per_part.tolist(), strict=True):
            counts[segment] += number
    return counts


def label(
    dialogues: Sequence[tuple[Sequence[Segment], Sequence[Piece], Sequence[bool]]],
    opens: Control | None,
    lengths: np.ndarray | None,
) -> list[Labelled]:
    """Assign a segment and a label to every token.

    A token with characters of several segments is recorded as straddling if their labels differ, or if prompt and
    answer meet in it: then the prompt alone has other ids, whatever is supervised. It is supervised if the model has to
    generate any of them, unless it also has characters of an unsupervised message or of an excluded answer.

    Args:
        dialogues: of each, its segments, its pieces with their tokens, and for each segment whether it is supervised.
        opens: the control token that opens a sequence and is never supervised.
        lengths: as in `_lay_out`.
    """
    parts = _Parts()
    for _, pieces, learned in dialogues:
        parts.add(pieces, learned, opens)
    layout = _lay_out(parts, lengths)
    segment_of = np.array(parts.segments, np.int32)[layout.part_of]
    supervised = np.array(parts.learned, bool)[layout.part_of]
    straddling = _label_crossing(dialogues, parts, layout, segment_of, supervised)
    labels = np.where(supervised, layout.ids, np.int32(IGNORED))
    learned_in = _learned_in(parts, segment_of, supervised, [len(segments) for segments, _, _ in dialogues])
    made = []
    for number in range(len(dialogues)):
        span = slice(parts.tokens_of[number], parts.tokens_of[number + 1])
        views = (layout.ids[span], labels[span], supervised[span], segment_of[span])
        made.append(Labelled(*views, straddling[number], learned_in[number]))
    return made


def _label_crossing(
    dialogues: Sequence[tuple[Sequence[Segment], Sequence[Piece], Sequence[bool]]],
    parts: _Parts,
    layout: _Layout,
    segment_of: np.ndarray,
    supervised: np.ndarray,
) -> list[list[int]]:
    """Label the tokens with characters of several segments; returns the straddling ones of each dialogue."""
    straddling: list[list[int]] = [[] for _ in dialogues]
    crossing = _with_learned(parts, layout)
    ends = layout.part_ends.tolist() if crossing else []
    for token in crossing:
        number = bisect_right(parts.tokens_of, token) - 1
        segments, _, learned = dialogues[number]
        first = int(layout.part_of[token])
        piece = bisect_right(parts.first_parts, first)
        last = (parts.first_parts[piece] if piece < len(parts.first_parts) else len(ends)) - 1
        held = parts.segments[first : bisect_left(ends, layout.ends[token], first, last) + 1]
        wanted = [i for i in held if learned[i]]
        torn = len(wanted) < len(held) or len({segments[i].supervised for i in held}) > 1
        if wanted and torn:
            straddling[number].append(token - parts.tokens_of[number])
            both = all(learned[i] or _is_neutral(segments[i]) for i in held)
            supervised[token] = both
            segment_of[token] = wanted[0] if both else held[0]
    return straddling


def _with_learned(parts: _Parts, layout: _Layout) -> list[int]:
    """The crossing tokens that may have characters of a supervised part: the other ones are not supervised."""
    crossing = np.array(layout.crossing, np.int64)
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(parts.learned)])
    after_last = np.searchsorted(layout.part_ends, layout.ends[crossing]) + 1
    held = before[np.minimum(after_last, len(parts.learned))] - before[layout.part_of[crossing]]
    return crossing[held > 0].tolist()


def _is_neutral(segment: Segment) -> bool:
    """Whether characters of an unsupervised segment may be supervised along with others in one token."""
    return segment.role == "template" and not segment.excluded


def _learned_in(
    parts: _Parts, segment_of: np.ndarray, supervised: np.ndarray, num_segments: list[int]
) -> list[list[int]]:
    """For each dialogue, its segments that have a supervised token."""
    bases = np.cumsum([0, *num_segments])
    numbered = segment_of + np.repeat(bases[:-1], np.diff(parts.tokens_of))
    found = np.flatnonzero(np.bincount(numbered[supervised], minlength=int(bases[-1])))
    edges = np.searchsorted(found, bases).tolist()
    found, starts = found.tolist(), bases.tolist()
    return [
        [segment - start for segment in found[left:right]]
        for start, left, right in zip(starts, edges, edges[1:], strict=False)
    ]
