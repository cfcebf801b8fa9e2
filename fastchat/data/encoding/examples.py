"""Dialogues -> examples: ids, labels, and what was cut.

A dialogue that is longer than the maximum length is cut after the last assistant turn that fits, so that a complete
dialogue remains. If not even the first answer fits, it is cut inside that answer: its first tokens are supervised and
no stop token is, because the model must not learn to stop there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from fastchat.conversation import Dialogue, Rendered
from fastchat.data.encoding.beginning import encode_beginnings
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.supervision import Encoded, learned_segments
from fastchat.data.encoding.tokenizer_template import RefusedByTemplate
from fastchat.data.tokens.lost import gains_of
from fastchat.errors import DataError

IGNORED = -100
REFUSED = "refused_by_template"  # the reason for dropping it
OVERLONG = ("truncate", "drop", "error")
# Dialogues per call of the tokenizer: enough to keep its threads busy, small enough to keep memory flat.
_BATCH = 256


@dataclass(slots=True)
class Example:
    """One dialogue, ready to train on.

    Attributes:
        index: the number of its row in the input, from 0.
        input_ids, labels: [T], equal lengths; a label is the token's own id or -100.
        dropped: the reason why the dialogue is not trained on, None if it is.
        truncated_tokens: number of ids cut off. If `at_least` is set, a lower bound: the end of a dialogue that is far
            too long is never encoded (and `escaped` covers only its beginning).
        cut_turns: answers that would be trained on but are after the cut.
        trained_turns, untrained_turns: assistant turns that are trained on (in full or up to a cut), and those that are
            not because of the row's own keys or because the template shows only the last answer as it was generated.
        straddling: tokens with characters of an answer and of other text.
        turns: turns of all roles in the whole dialogue.
        special_token_strings: special-token strings in its messages, which are encoded as plain text.
        escaped: those of them that needed an extra split.
        lost: supervised tokens that are cut off, or dropped with the dialogue.
        refusal: why the template rejects the dialogue, if it does.
        gains: (length, tokens): a limit of `length` would keep that many more of the lost tokens, see lost.py.
    """

    index: int
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    dropped: str | None = None
    truncated_tokens: int = 0
    trained_turns: int = 0
    untrained_turns: int = 0
    cut_turns: int = 0
    straddling: int = 0
    turns: int = 0
    special_token_strings: int = 0
    escaped: int = 0
    lost: int = 0
    gains: list[tuple[int, int]] = field(default_factory=list)
    refusal: str = ""
    at_least: bool = False

    @property
    def num_supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def tokenize_dialogue(
    dialogue: Dialogue, chat_encoder: ChatEncoder, *, max_length: int, overlong: str = "truncate", index: int = 0
) -> Example:
    """Convert one dialogue to one example.

    Args:
        max_length: the maximum number of ids in an example.
        overlong: "truncate", "drop" or "error" for a longer one.

    Raises:
        DataError: an overlong dialogue under "error"; the message names file and line.

    Example: with a vicuna template, `[..., "ASSISTANT", ":", "▁Yo", "</s>"]` gets
    the labels `[..., -100, -100, id("▁Yo"), id("</s>")]`.
    """
    pairs = [(index, dialogue)]
    return next(tokenize_dialogues(pairs, chat_encoder, max_length=max_length, overlong=overlong))


def tokenize_dialogues(
    dialogues: Iterable[tuple[int, Dialogue]],
    chat_encoder: ChatEncoder,
    *,
    max_length: int,
    overlong: str = "truncate",
    on_bad_row: str = "stop",
) -> Iterator[Example]:
    """Convert (index, dialogue) pairs to examples, in order and in batches.

    Raises DataError for a dialogue that the template rejects; with `on_bad_row` "skip" it is dropped (REFUSED).
    """
    assert overlong in OVERLONG, overlong
    pairs = iter(dialogues)
    while batch := list(islice(pairs, _BATCH)):
        rendered = [_rendered(dialogue, chat_encoder, on_bad_row) for _, dialogue in batch]
        texts = [text for text in rendered if isinstance(text, Rendered)]
        encodings = encode_beginnings(texts, chat_encoder, max_length)
        for (index, dialogue), text in zip(batch, rendered, strict=True):
            if isinstance(text, Rendered):
                yield _example(index, dialogue, text, next(encodings), chat_encoder.train_on, max_length, overlong)
            else:
                yield Example(index, dropped=REFUSED, refusal=text, turns=len(dialogue.turns))


def _rendered(dialogue: Dialogue, chat_encoder: ChatEncoder, on_bad_row: str) -> Rendered | str:
    """The rendered dialogue; or, if rejected dialogues are skipped, the reason for the rejection."""
    try:
        return chat_encoder.template.render(dialogue)
    except RefusedByTemplate as refusal:
        if on_bad_row == "skip":
            return str(refusal)
        raise DataError(f"{str(refusal).rstrip('.')}. Skip such rows with --on_bad_row skip.") from refusal


def _example(
    index: int, dialogue: Dialogue, rendered: Rendered, encoded: Encoded, train_on: str, max_length: int, overlong: str
) -> Example:
    total = len(encoded.input_ids)
    answers = sum(turn.role == "assistant" for turn in dialogue.turns)
    learned = len(
        _learned(rendered, encoded, total) | (set() if encoded.whole else _behind(rendered, encoded, train_on))
    )
    example = Example(
        index,
        untrained_turns=answers - learned,
        turns=len(dialogue.turns),
        special_token_strings=encoded.special_token_strings,
    )
    example.at_least = not encoded.whole
    keep = total
    if total > max_length:
        if overlong == "error":
            at_least = "" if encoded.whole else "at least "
            raise DataError(
                f"{dialogue.where}: the dialogue has {at_least}{total} tokens and --model_max_length is {max_length}. "
                "Raise --model_max_length, or use --overlong truncate|drop."
            )
        ends = _ends(rendered, encoded)
        example.lost, example.gains = gains_of(encoded.supervised, ends, max_length, overlong)
        if overlong == "drop":
            example.dropped, example.truncated_tokens = "overlong", total
            return example
        # Up to the end of the last assistant turn that fits, else as much as fits.
        keep = max((end for end in ends if end <= max_length), default=max_length)
        example.truncated_tokens = total - keep
    example.input_ids = encoded.input_ids[:keep]
    supervised = encoded.supervised[:keep]
    example.labels = [i if s else IGNORED for i, s in zip(example.input_ids, supervised, strict=True)]
    example.trained_turns = len(_learned(rendered, encoded, keep))
    example.cut_turns = learned - example.trained_turns
    example.straddling = sum(position < keep for position in encoded.straddling)
    example.escaped = encoded.escaped
    if not any(supervised):
        example.dropped = "no_answer_within_length" if example.truncated_tokens else "no_trained_turn"
        example.input_ids, example.labels = [], []
    return example


def _learned(rendered: Rendered, encoded: Encoded, keep: int) -> set[int]:
    """The answers with a supervised id among the first `keep`."""
    pairs = zip(encoded.segment_of[:keep], encoded.supervised[:keep], strict=True)
    owners = (rendered.segments[segment] for segment, supervised in pairs if supervised)
    return {owner.turn for owner in owners if owner.supervised}


def _behind(rendered: Rendered, encoded: Encoded, train_on: str) -> set[int]:
    """The supervised answers that are, wholly or partly, after what was encoded."""
    start = max(encoded.segment_of, default=0)
    wanted = enumerate(learned_segments(rendered.segments, train_on))
    return {
        rendered.segments[i].turn for i, learned in wanted if i >= start and learned and rendered.segments[i].supervised
    }


def _ends(rendered: Rendered, encoded: Encoded) -> list[int]:
    """The lengths at which each supervised answer is complete, including its stop; ascending."""
    segments = rendered.segments
    last_trained: dict[int, int] = {}  # turn of an answer -> position of its last supervised id, its stop
    for position, (segment, supervised) in enumerate(zip(encoded.segment_of, encoded.supervised, strict=True)):
        if supervised and segments[segment].supervised:
            last_trained[segments[segment].turn] = position
    return sorted(position + 1 for position in last_trained.values())
