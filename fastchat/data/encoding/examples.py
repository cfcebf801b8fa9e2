"""Dialogues -> examples: ids, labels, and what was cut.

A dialogue is one example, or several if the template shows an answer differently once it is history: then each of them
has the prompt that inference would send for its answers (renderings.py). A plain text is one example, or several if it
is longer than the maximum length (plain_text.py).

An example that is longer than the maximum length is cut after the last assistant turn that fits, so that a complete
dialogue remains. If not even the first answer fits, it is cut inside that answer: its first tokens are supervised and
no stop token is, because the model must not learn to stop there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastchat.conversation import Dialogue, Rendered, Segment
from fastchat.data.encoding.beginning import encode_beginnings
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.fast_path import FastPath
from fastchat.data.encoding.labels import Labelled
from fastchat.data.encoding.plain_text import encode_text, lead_of, pieces_of, text_of
from fastchat.data.encoding.renderings import renderings_of
from fastchat.data.encoding.supervision import IGNORED, learned_segments
from fastchat.data.encoding.tokenizer_template import RefusedByTemplate
from fastchat.data.rows.drop_reasons import EMPTY, NO_ANSWER_FITS, NOTHING_TO_LEARN, REFUSED, TOO_LONG
from fastchat.data.tokens.lost import gains_of
from fastchat.errors import DataError

OVERLONG = ("truncate", "drop", "error")
# Renderings per call of the tokenizer: enough to keep its threads busy, small enough to keep memory flat.
_BATCH = 256


@dataclass(slots=True)
class Outcome:
    """What has become of one dialogue; its examples share it, and it is complete with the last of them.

    Attributes:
        turns: turns of all roles in the whole dialogue. answers: those of the assistant.
        plain: whether it is a plain text.
        trained, left_out: examples that are trained on, and that are not.
        dropped: the reason why the first one that is not trained on is not.
        learned: answers that are trained on, or would be without the length limit; of these, `unreached` are in
            examples that are not trained on.
        loses, cut, at_least: whether an example of it loses supervised tokens, was cut, or is only partly counted.
        special_token_strings: in its messages. escaped: those of them that needed an extra split.
    """

    turns: int = 0
    answers: int = 0
    plain: bool = False
    trained: int = 0
    left_out: int = 0
    dropped: str | None = None
    learned: int = 0
    unreached: int = 0
    loses: bool = False
    cut: bool = False
    at_least: bool = False
    special_token_strings: int = 0
    escaped: int = 0

    @property
    def untrained_turns(self) -> int:
        """Answers that are not trained on because of the row's own keys or --train_on last."""
        return self.answers - self.learned

    def add(self, example: Example, learned: int) -> None:
        """Count one more example, with `learned` answers to train on before any cut."""
        self.learned += learned
        if example.dropped is None:
            self.trained += 1
            self.cut = self.cut or example.truncated_tokens > 0
            self.at_least = self.at_least or example.at_least
        else:
            self.left_out += 1
            self.unreached += learned
            self.dropped = self.dropped or example.dropped
        self.loses = self.loses or example.lost > 0
        # Later examples of a dialogue show the messages of the earlier ones again.
        self.special_token_strings = max(self.special_token_strings, example.special_token_strings)
        self.escaped = max(self.escaped, example.escaped)


@dataclass(slots=True)
class Example:
    """Some or all answers of one dialogue with the prompts before them, or a piece of a plain text, ready to train on.

    Attributes:
        index: the number of its row in the input, from 0.
        input_ids, labels: [T], equal lengths; a label is the token's own id or -100. Lists, but int32 arrays from
            `examples_in_arrays`.
        part, parts: its number among the examples of its dialogue, from 0, and how many these are.
        answers: the turns of the answers that are trained on, in full or up to a cut.
        dropped: the reason why it is not trained on, None if it is.
        truncated_tokens: number of ids cut off. If `at_least` is set, a lower bound: the end of a dialogue that is far
            too long is never encoded (and `escaped` covers only its beginning).
        cut_turns: answers that would be trained on but are after the cut.
        straddling: tokens with characters of an answer and of other text.
        special_token_strings: special-token strings in its messages, which are encoded as plain text.
        escaped: those of them that needed an extra split.
        lost: supervised tokens that are cut off, or dropped with the example.
        refusal: why the template rejects the dialogue, if it does.
        gains: (length, tokens): a limit of `length` would keep that many more of the lost tokens, see lost.py.
        notes: what the template had to do to show it, see `Rendered.notes`.
        outcome: of the whole dialogue; complete with its last example.
    """

    index: int
    input_ids: Any = field(default_factory=list)
    labels: Any = field(default_factory=list)
    part: int = 0
    parts: int = 1
    answers: tuple[int, ...] = ()
    dropped: str | None = None
    truncated_tokens: int = 0
    cut_turns: int = 0
    straddling: int = 0
    special_token_strings: int = 0
    escaped: int = 0
    lost: int = 0
    gains: list[tuple[int, int]] = field(default_factory=list)
    refusal: str = ""
    at_least: bool = False
    notes: tuple[str, ...] = ()
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def num_supervised(self) -> int:
        if isinstance(self.labels, np.ndarray):
            return int(np.count_nonzero(self.labels != IGNORED))
        return len(self.labels) - self.labels.count(IGNORED)

    @property
    def trained_turns(self) -> int:
        """The number of answers that are trained on."""
        return len(self.answers)

    @property
    def untrained_turns(self) -> int:
        """Answers of the whole dialogue that are not trained on, see `Outcome`."""
        return self.outcome.untrained_turns

    @property
    def is_last(self) -> bool:
        """Whether it is the last example of its dialogue."""
        return self.part + 1 == self.parts


def tokenize_dialogue(
    dialogue: Dialogue, chat_encoder: ChatEncoder, *, max_length: int, overlong: str = "truncate", index: int = 0
) -> Example:
    """Convert a dialogue that is one example; `tokenize_dialogues` also converts those that are several.

    Args:
        max_length: the maximum number of ids in an example.
        overlong: "truncate", "drop" or "error" for a longer one.

    Raises:
        DataError: an overlong dialogue under "error"; the message names file and line.

    Example: with a vicuna template, `[..., "ASSISTANT", ":", "▁Yo", "</s>"]` gets
    the labels `[..., -100, -100, id("▁Yo"), id("</s>")]`.
    """
    pairs = [(index, dialogue)]
    (example,) = tokenize_dialogues(pairs, chat_encoder, max_length=max_length, overlong=overlong)
    return example


def tokenize_dialogues(
    dialogues: Iterable[tuple[int, Dialogue]],
    chat_encoder: ChatEncoder,
    *,
    max_length: int,
    overlong: str = "truncate",
    on_bad_row: str = "stop",
) -> Iterator[Example]:
    """Convert (index, dialogue) pairs to examples, one or more of each, in order; they are tokenised in batches.

    Raises DataError for a dialogue that the template rejects; with `on_bad_row` "skip" it is dropped (REFUSED).
    """
    how = {"max_length": max_length, "overlong": overlong, "on_bad_row": on_bad_row}
    for example in examples_in_arrays(dialogues, chat_encoder, **how):
        if example.dropped is None:
            example.input_ids, example.labels = example.input_ids.tolist(), example.labels.tolist()
        yield example


def examples_in_arrays(
    dialogues: Iterable[tuple[int, Dialogue]],
    chat_encoder: ChatEncoder,
    *,
    max_length: int,
    overlong: str,
    on_bad_row: str,
) -> Iterator[Example]:
    """`tokenize_dialogues` with ids and labels in int32 arrays: no Python object is made for a token."""
    assert overlong in OVERLONG, overlong
    maker = _Maker(chat_encoder, max_length, overlong)
    for index, dialogue in dialogues:
        if dialogue.plain:
            yield from maker.finished()
            yield from maker.of_text(index, dialogue)
            continue
        outcome = Outcome(len(dialogue.turns), sum(turn.role == "assistant" for turn in dialogue.turns))
        try:
            rendered = renderings_of(dialogue, chat_encoder)
        except RefusedByTemplate as refusal:
            if on_bad_row != "skip":
                raise DataError(f"{str(refusal).rstrip('.')}. Skip such rows with --on_bad_row skip.") from refusal
            refused = Example(index, dropped=REFUSED, refusal=str(refusal), outcome=outcome)
            outcome.add(refused, 0)
            maker.waiting.append((dialogue, None, refused))
            continue
        for part, one in enumerate(rendered):
            example = Example(index, part=part, parts=len(rendered), notes=one.notes, outcome=outcome)
            maker.waiting.append((dialogue, one, example))
            if len(maker.waiting) >= _BATCH:
                yield from maker.finished()
    yield from maker.finished()


@dataclass
class _Maker:
    """Fills the ids and labels of examples in. `waiting`: those to fill, None instead of the rendering of a refused
    dialogue."""

    chat_encoder: ChatEncoder
    max_length: int
    overlong: str
    waiting: list[tuple[Dialogue, Rendered | None, Example]] = field(default_factory=list)

    @property
    def fast(self) -> FastPath:
        return self.chat_encoder.encoder.fast

    def finished(self) -> Iterator[Example]:
        """The waiting examples, complete."""
        rendered = [one for _, one, _ in self.waiting if one is not None]
        self.fast.announce(s.text for one in rendered for s in one.segments if s.role != "template")
        encodings = encode_beginnings(rendered, self.chat_encoder, self.max_length)
        for dialogue, one, example in self.waiting:
            if one is not None:
                self._fill(example, dialogue, one, next(encodings))
            yield example
        self.waiting.clear()

    def _fill(self, example: Example, dialogue: Dialogue, rendered: Rendered, found: Labelled) -> None:
        after = set() if found.whole else _behind(rendered, found, self.chat_encoder.train_on)
        learned = _answers_of(rendered, found.learned_in)
        example.special_token_strings = found.special_token_strings
        example.at_least = not found.whole
        self._cut(example, dialogue, rendered, found, learned, len(learned | after))
        example.outcome.add(example, len(learned | after))

    def _cut(
        self, example: Example, dialogue: Dialogue, rendered: Rendered, found: Labelled, learned: set[int], wanted: int
    ) -> None:
        """`learned`: the answers with supervised ids. `wanted`: how many answers the rendering has to train on."""
        keep = total = len(found.input_ids)
        if total > self.max_length:
            what = "the dialogue" if example.parts == 1 else f"the dialogue up to turn {_last_turn(rendered) + 1}"
            self._check_length(dialogue, what, total, found.whole)
            ends = _ends(rendered, found)
            example.lost, example.gains = gains_of(found.supervised.tolist(), ends, self.max_length, self.overlong)
            if self.overlong == "drop":
                example.dropped, example.truncated_tokens = TOO_LONG, total
                return
            # Up to the end of the last assistant turn that fits, else as much as fits.
            keep = max((end for end in ends if end <= self.max_length), default=self.max_length)
            example.truncated_tokens = total - keep
            found = found.beginning(keep)
            learned = _answers_of(rendered, found.learned_in)
        example.answers = tuple(sorted(learned))
        example.cut_turns = wanted - len(example.answers)
        example.straddling = len(found.straddling)
        example.escaped = found.escaped
        if not found.learned_in:
            example.dropped = NO_ANSWER_FITS if example.truncated_tokens else NOTHING_TO_LEARN
        else:
            example.input_ids, example.labels = found.input_ids, found.labels

    def of_text(self, index: int, dialogue: Dialogue) -> Iterator[Example]:
        """The examples of a plain text; nothing of it is lost, unless --overlong drops it."""
        text, lead, outcome = text_of(dialogue), lead_of(self.chat_encoder), Outcome(plain=True)
        trained = all(turn.train for turn in dialogue.turns)
        if not text.strip() or not trained:
            left_out = Example(index, dropped=NOTHING_TO_LEARN if text.strip() else EMPTY, outcome=outcome)
            outcome.add(left_out, 0)
            yield left_out
            return
        self.fast.announce([text])
        ids, escaped = encode_text(text, self.chat_encoder)
        pieces = pieces_of(len(ids), len(lead), self.max_length)
        found = self.chat_encoder.special_token_strings([Segment(text, "user")])
        if len(pieces) > 1 and self.overlong != "truncate":
            self._check_length(dialogue, "the text", len(lead) + len(ids), True)
            lost = Example(index, dropped=TOO_LONG, truncated_tokens=len(lead) + len(ids), outcome=outcome)
            lost.lost, lost.gains = len(ids), [(len(lead) + len(ids), len(ids))]
            outcome.add(lost, 0)
            yield lost
            return
        for part, (start, end) in enumerate(pieces):
            row = np.array([*lead, *ids[max(start - 1, 0) : end]], np.int32)
            labels = row.copy()
            labels[: len(row) - (end - start)] = IGNORED
            example = Example(index, row, labels, part, len(pieces))
            example.special_token_strings, example.escaped, example.outcome = found, escaped, outcome
            outcome.add(example, 0)
            yield example

    def _check_length(self, dialogue: Dialogue, what: str, total: int, exact: bool) -> None:
        """Raise DataError for something overlong under --overlong error."""
        if self.overlong == "error":
            raise DataError(
                f"{dialogue.where}: {what} has {'' if exact else 'at least '}{total} tokens and --model_max_length is "
                f"{self.max_length}. Raise --model_max_length, or use --overlong truncate|drop."
            )


def _answers_of(rendered: Rendered, segments: Iterable[int]) -> set[int]:
    """The answers that some segments are of."""
    owners = (rendered.segments[i] for i in segments)
    return {owner.turn for owner in owners if owner.supervised}


def _behind(rendered: Rendered, found: Labelled, train_on: str) -> set[int]:
    """The supervised answers that are, wholly or partly, after what was encoded."""
    start = int(found.segment_of.max(initial=0))
    learned = learned_segments(rendered.segments, train_on)
    return _answers_of(rendered, (i for i in range(start, len(learned)) if learned[i]))


def _ends(rendered: Rendered, found: Labelled) -> list[int]:
    """The lengths at which each supervised answer is complete, including its stop; ascending."""
    segments = rendered.segments
    positions = np.flatnonzero(found.supervised)
    last_of = dict(zip(found.segment_of[positions].tolist(), positions.tolist(), strict=True))  # of each segment
    last_trained: dict[int, int] = {}  # turn of an answer -> position of its last supervised id, its stop
    for segment, position in last_of.items():
        if segments[segment].supervised:
            turn = segments[segment].turn
            last_trained[turn] = max(position, last_trained.get(turn, 0))
    return sorted(position + 1 for position in last_trained.values())


def _last_turn(rendered: Rendered) -> int:
    return max(segment.turn for segment in rendered.segments)
