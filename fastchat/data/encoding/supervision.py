"""Which ids of a rendered dialogue are supervised.

The renderer marks what an assistant has to generate (`Segment.supervised`); `--train_on` selects which part of it, or
what in addition, is supervised; and each token gets its label from the segments it is in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING

from fastchat.conversation import Segment

if TYPE_CHECKING:
    from fastchat.data.encoding.chat_encoder import Control

_START = itemgetter(0)  # of a token's offsets

ASSISTANT, LAST, ALL = "assistant", "last", "all"
TRAIN_ON = (ASSISTANT, LAST, ALL)
# What a run logs for a choice that is not the default.
SAID = {
    ASSISTANT: "",
    LAST: "--train_on last: only the last trained answer of each dialogue is learned; the others are context",
    ALL: "WARNING: --train_on all: prompts are learned as well, every token except BOS and the turns with "
    '"train": false; the model learns to write the user\'s turns too',
}


# The ids of a text, and (start, end) of each token in its characters; neither ever decreases from token to token.
PlainTokens = tuple[list[int], list[tuple[int, int]]]


@dataclass(slots=True)
class Encoded:
    """Ids of one rendered dialogue.

    Attributes:
        input_ids: [T].
        supervised: [T], whether the token is supervised.
        segment_of: [T], index into the rendered segments; -1 for a BOS that the tokenizer adds.
        straddling: positions of supervised tokens with characters of an answer and of other text, or of a supervised
            and of an unsupervised segment.
        special_token_strings: the number of special-token strings in messages.
        escaped: how many of them were kept plain text by an extra split.
        whole: False where this is only the beginning of a dialogue that is far too long.
    """

    input_ids: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    segment_of: list[int] = field(default_factory=list)
    straddling: list[int] = field(default_factory=list)
    special_token_strings: int = 0
    escaped: int = 0
    whole: bool = True

    def add(self, token_id: int, supervised: bool, segment: int) -> None:
        self.input_ids.append(token_id)
        self.supervised.append(supervised)
        self.segment_of.append(segment)


@dataclass(slots=True)
class Piece:
    """One control token, or the text between two of them: `parts` are (text, segment index)."""

    control: Control | None = None
    segment: int = -1
    parts: list[tuple[str, int]] = field(default_factory=list)
    position: str = "first"

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)


def learned_segments(segments: Sequence[Segment], train_on: str) -> list[bool]:
    """For each segment, whether it is supervised under `--train_on`.

    Example: in `USER:` ` Hi` ` ASSISTANT:` ` Yo` `</s>`, repeated once, "assistant" supervises ` Yo` and `</s>` both
    times, "last" only the second time, "all" everything; but nothing in a dialogue whose answers are all excluded.
    """
    if train_on == ALL:
        if any(segment.excluded for segment in segments) and not any(segment.supervised for segment in segments):
            return [False] * len(segments)
        return [not segment.excluded for segment in segments]
    if train_on == LAST:
        last = max((segment.turn for segment in segments if segment.supervised), default=-1)
        return [segment.supervised and segment.turn == last for segment in segments]
    assert train_on == ASSISTANT, train_on
    return [segment.supervised for segment in segments]


def count_piece(piece: Piece, found: PlainTokens) -> dict[int, int]:
    """The number of a piece's tokens that start in each of its segments; every token is counted once."""
    *but_last, last = [index for _, index in piece.parts] or [piece.segment]
    counts: dict[int, int] = {}
    total = num_before = 0
    ids, offsets = found
    for (text, _), index in zip(piece.parts, but_last, strict=False):
        total += len(text)
        num = bisect_left(offsets, total, key=_START)
        counts[index] = counts.get(index, 0) + num - num_before
        num_before = num
    counts[last] = counts.get(last, 0) + len(ids) - num_before
    return counts


def label_piece(
    out: Encoded,
    piece: Piece,
    found: PlainTokens,
    segments: Sequence[Segment],
    learned: Sequence[bool],
) -> None:
    """Assign a segment and a label to every token of a text piece.

    A token with characters of several segments is recorded as straddling if their labels differ, or if prompt and
    answer meet in it: then the prompt alone has other ids, whatever is supervised. It is supervised if the model has to
    generate any of them, unless it also has characters of an unsupervised message or of an excluded answer.

    Args:
        found: its tokens.
        learned: for each of the rendered `segments`, whether it is supervised.
    """
    ids, offsets = found
    owners, ends = [index for _, index in piece.parts], list(accumulate(len(text) for text, _ in piece.parts))
    first, last, begin = len(out.input_ids), len(owners) - 1, 0
    out.input_ids += ids
    for at, owner in enumerate(owners):
        # Only tokens at the edges of segments are looked at one by one: there are far fewer of them.
        end = bisect_left(offsets, ends[at], begin, key=_START) if at < last else len(ids)
        out.supervised += [learned[owner]] * (end - begin)
        out.segment_of += [owner] * (end - begin)
        crossing = end
        while at < last and crossing > begin and offsets[crossing - 1][1] > ends[at]:
            crossing -= 1
        for token in range(crossing, end):
            until = bisect_left(ends, offsets[token][1], at, last)
            _label_crossing(out, first + token, owners[at : until + 1], segments, learned)
        begin = end


def _label_crossing(
    out: Encoded, position: int, held: list[int], segments: Sequence[Segment], learned: Sequence[bool]
) -> None:
    """Label the token at a position, which has characters of all segments in `held`."""
    wanted = [i for i in held if learned[i]]
    torn = len(wanted) < len(held) or len({segments[i].supervised for i in held}) > 1
    if wanted and torn:
        out.straddling.append(position)
        supervised = all(learned[i] or _is_neutral(segments[i]) for i in held)
        out.supervised[position] = supervised
        out.segment_of[position] = wanted[0] if supervised else held[0]


def _is_neutral(segment: Segment) -> bool:
    """Whether characters of an unsupervised segment may be supervised along with others in one token."""
    return segment.role == "template" and not segment.excluded
