"""Which ids of a rendered dialogue are supervised.

The renderer marks what an assistant has to generate (`Segment.supervised`); `--train_on` selects which part of it, or
what in addition, is supervised; and each token gets its label from the segments it is in (labels.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fastchat.conversation import Segment

if TYPE_CHECKING:
    from fastchat.data.encoding.chat_encoder import Control

IGNORED = -100  # the label of a token that is not supervised
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


class Tokens(NamedTuple):
    """The tokens of a plain text.

    `offsets` are as in PlainTokens. None if the tokens' lengths in bytes are known (`FastPath.lengths`) and tile the
    text, which has `added` bytes (0 or 1) fewer than they: the space that a tokenizer adds before the first word.
    """

    ids: list[int]
    offsets: list[tuple[int, int]] | None
    added: int = 0


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


@dataclass(slots=True)
class Piece:
    """One control token, or the text between two of them: `parts` are (text, segment index), and its tokens are `ids`
    with the rest of `Tokens`."""

    control: Control | None = None
    segment: int = -1
    parts: list[tuple[str, int]] = field(default_factory=list)
    position: str = "first"
    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] | None = None
    added: int = 0

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
