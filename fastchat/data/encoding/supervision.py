"""Which ids of a rendered dialogue are learned.

The renderer says what an assistant has to generate (`Segment.supervised`); `--train_on` says how much of it, or what
besides it, is learned; and each token takes its label from the segments it lies in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastchat.conversation import Segment

if TYPE_CHECKING:
    from fastchat.data.encoding.chat_encoder import Control

ASSISTANT, LAST, ALL = "assistant", "last", "all"
TRAIN_ON = (ASSISTANT, LAST, ALL)
# What a run says of a choice that is not the default.
SAID = {
    ASSISTANT: "",
    LAST: "--train_on last: of each dialogue only the last trained answer is learned; the others are context",
    ALL: "WARNING: --train_on all: prompts are learned as well, every token but BOS and the turns that say "
    '"train": false; the model learns to write the user\'s turns too',
}


PlainTokens = list[tuple[int, int, int]]  # (id, start, end) of each token, in characters of a text


@dataclass(slots=True)
class Encoded:
    """Ids of one rendered dialogue.

    Attributes:
        input_ids: [T].
        supervised: [T], whether the token is learned.
        segment_of: [T], index into the rendered segments; -1 for a BOS that the tokenizer adds.
        straddling: positions of learned tokens that hold characters of an answer and of something else, or of a learned
            and of an unlearned segment.
        special_token_strings: how many control strings stand in messages.
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
    """For each segment, whether `--train_on` has it learned.

    Example: of `USER:` ` Hi` ` ASSISTANT:` ` Yo` `</s>` (twice, say), "assistant" learns ` Yo` and `</s>` both times,
    "last" the second time only, "all" everything; but nothing of a dialogue whose answers are all left out.
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
    """How many of a piece's tokens start in each of its segments; every token is counted once."""
    *but_last, last = [index for _, index in piece.parts] or [piece.segment]
    counts: dict[int, int] = {}
    total = num_before = 0
    starts = [start for _, start, _ in found]
    for (text, _), index in zip(piece.parts, but_last, strict=False):
        total += len(text)
        num = bisect_left(starts, total)
        counts[index] = counts.get(index, 0) + num - num_before
        num_before = num
    counts[last] = counts.get(last, 0) + len(found) - num_before
    return counts


def label_piece(
    out: Encoded,
    piece: Piece,
    found: PlainTokens,
    segments: Sequence[Segment],
    learned: Sequence[bool],
) -> None:
    """Give every token of a text piece its segment and label.

    A token that holds characters of several segments is noted where they disagree, or where prompt and answer meet in
    it: then the prompt alone has other ids, however much is learned. It is learned if the model has to generate any of
    them, unless it also holds characters of a message, or of an answer left out, that is not learned.

    Args:
        found: its tokens.
        learned: for each of the rendered `segments`.
    """
    ends, owners, total = [], [], 0
    for text, index in piece.parts:
        total += len(text)
        ends.append(total)
        owners.append(index)
    last, at = len(ends) - 1, 0
    for token_id, start, end in found:
        while at < last and start >= ends[at]:
            at += 1
        owner, supervised = owners[at], learned[owners[at]]
        if end > ends[at] and at < last:
            until = at + 1
            while until < last and end > ends[until]:
                until += 1
            held = owners[at : until + 1]
            wanted = [i for i in held if learned[i]]
            torn = len(wanted) < len(held) or len({segments[i].supervised for i in held}) > 1
            if wanted and torn:
                out.straddling.append(len(out.input_ids))
                supervised = all(learned[i] or _is_neutral(segments[i]) for i in held)
                owner = wanted[0] if supervised else owner
        out.add(token_id, supervised, owner)


def _is_neutral(segment: Segment) -> bool:
    """Whether it does no harm to learn a character of an unlearned segment along with others."""
    return segment.role == "template" and not segment.excluded
