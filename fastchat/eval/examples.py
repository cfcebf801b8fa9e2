"""Files -> what is evaluated: examples with the ids and labels of training, and the questions to answer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fastchat.conversation import Dialogue, Rendered
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.data.encoding.cross_check import spread
from fastchat.data.encoding.examples import IGNORED, Example, tokenize_dialogues
from fastchat.data.encoding.renderings import answers_of, renderings_of
from fastchat.data.encoding.supervision import Encoded
from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.records import OnBadRow, Record, Records
from fastchat.data.tokens.counts import count_example, hint_at_causes, plain_line, refused_line, table
from fastchat.data.tokens.lost import Lost
from fastchat.errors import DataError, say
from fastchat.eval.answers import read_answer

_BATCH = 256  # rows in memory that are not encoded yet


@dataclass(frozen=True)
class Question:
    """An answer of the data, to be compared with a generated one.

    Attributes:
        number: of the answer in its dialogue, from 1.
        prompt: the ids that inference sends for it, with the data's own answers before.
        reference: its text, read as generated ids are.
    """

    number: int
    prompt: list[int]
    reference: str


@dataclass(frozen=True)
class Evaluated:
    """One example, with the ids and labels of training.

    Attributes:
        row: the number of its dialogue in the input, from 0. part: its number among the examples of that dialogue.
        place: `file:line`, and the row's own id if it has one. id: that id.
        source: the row's own `source` key, else the name of its file.
        answer_of: [T], for each token the number of the answer that it is in, or that comes next; from 1.
        questions: its complete answers; empty where nothing is to be generated, and for plain text.
    """

    row: int
    part: int
    place: str
    id: str | None
    source: str
    input_ids: list[int]
    labels: list[int]
    answer_of: list[int]
    questions: list[Question] = field(default_factory=list)

    @property
    def num_supervised(self) -> int:
        """Supervised tokens; the first token of a row is predicted by nothing."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Limits:
    """What is taken of the data.

    Attributes:
        max_length, overlong, on_bad_row, columns: as in training.
        max_samples: the number of dialogues, spread evenly over the data; None for all.
        questions: whether answers will be generated.
    """

    max_length: int
    overlong: str = "truncate"
    on_bad_row: OnBadRow = "stop"
    columns: Columns = AS_THEY_ARE
    max_samples: int | None = None
    questions: bool = False


@dataclass
class EvalData:
    """The examples, the counts of all that the files hold (see tokens/counts.py), and their table in words."""

    examples: list[Evaluated]
    counts: dict[str, int]
    table: str


def read_examples(files: Sequence[str], chat_encoder: ChatEncoder, limits: Limits) -> EvalData:
    """Read and encode. What is skipped, dropped or cut is said. Raises DataError if nothing is left to evaluate."""
    template = chat_encoder.template
    records = Records(
        files,
        on_bad_row=limits.on_bad_row,
        reasoning=template.shows_reasoning,
        calls=template.shows_calls,
        reads_argument=template.reads_argument,
        columns=limits.columns,
    )
    counts: Counter[str] = Counter()
    gains: Counter[int] = Counter()
    refusal = ""
    kept: dict[int, list[tuple[Record, Example]]] = {}
    for record, example in _encoded(records, chat_encoder, limits):
        if example is None:
            counts[f"dropped_{record.dropped}"] += 1
            continue
        count_example(counts, example)
        gains.update(dict(example.gains))
        refusal = refusal or example.refusal
        if example.dropped is None:
            kept.setdefault(record.index, []).append((record, example))
    counts.update(records.counts)
    for line in [*refused_line(counts, refusal), plain_line(counts)]:
        if line:
            say(line)
    if not kept:
        cause = hint_at_causes(counts, limits.max_length)
        raise DataError(f"there is nothing to evaluate: no token of the data is learned. {cause}")
    chosen = spread(list(kept.values()), len(kept) if limits.max_samples is None else limits.max_samples)
    examples = [
        _evaluated(record, example, chat_encoder, limits.questions) for several in chosen for record, example in several
    ]
    return EvalData(examples, dict(counts), table(counts, Lost.of(counts, gains.items()), limits.max_length))


def _encoded(records: Records, chat_encoder: ChatEncoder, limits: Limits) -> Iterator[tuple[Record, Example | None]]:
    """Every record with each of its examples, in input order; None for a record without a dialogue."""
    rows = (record for record in records if not records.stopping)
    while batch := list(islice(rows, _BATCH)):
        dialogues = [(record.index, record.dialogue) for record in batch if record.dialogue is not None]
        how = {"max_length": limits.max_length, "overlong": limits.overlong, "on_bad_row": limits.on_bad_row}
        by_index = {record.index: record for record in batch}
        yield from ((record, None) for record in batch if record.dialogue is None)
        for example in tokenize_dialogues(dialogues, chat_encoder, **how):
            yield by_index[example.index], example


def _evaluated(record: Record, example: Example, chat_encoder: ChatEncoder, questions: bool) -> Evaluated:
    dialogue = record.dialogue
    assert dialogue is not None
    made = Evaluated(
        row=record.index,
        part=example.part,
        place=record.place,
        id=record.id,
        source=record.origin if record.origin is not None else os.path.basename(record.source),
        input_ids=list(example.input_ids),
        labels=list(example.labels),
        answer_of=[1] * len(example.input_ids),
    )
    if dialogue.plain:
        return made
    rendered = renderings_of(dialogue, chat_encoder)[example.part]
    encoded = chat_encoder.encode(rendered)
    size = len(example.input_ids)
    assert encoded.input_ids[:size] == example.input_ids, f"{record.place}: encoded twice, with different ids"
    number_of = _numbers(dialogue)
    made.answer_of[:] = _answers(rendered, encoded, number_of)[:size]
    if questions:
        made.questions.extend(_questions(dialogue, rendered, encoded, size, chat_encoder, number_of))
    return made


def _numbers(dialogue: Dialogue) -> list[int]:
    """For each turn the number of the answer that it is, or that comes next; from 1."""
    numbers, answers = [], 0
    for turn in dialogue.turns:
        numbers.append(answers + 1)
        answers += turn.role == "assistant"
    return numbers


def _answers(rendered: Rendered, encoded: Encoded, number_of: list[int]) -> list[int]:
    found, last = [], 1
    for segment in encoded.segment_of:
        turn = rendered.segments[segment].turn if segment >= 0 else -1
        last = number_of[turn] if turn >= 0 else last
        found.append(last)
    return found


def _questions(
    dialogue: Dialogue,
    rendered: Rendered,
    encoded: Encoded,
    size: int,
    chat_encoder: ChatEncoder,
    number_of: list[int],
) -> Iterator[Question]:
    """The answers that are trained on, and complete within the first `size` ids."""
    shown = rendered.dialogue or dialogue
    learned = [rendered.segments[at] if at >= 0 else None for at in encoded.segment_of]
    for turn in answers_of(rendered):
        places = [
            place
            for place, segment in enumerate(learned)
            if segment is not None and segment.supervised and segment.turn == turn and encoded.supervised[place]
        ]
        if not places or places[-1] >= size:
            continue
        prompt = encode_prompt(shown.before(turn), chat_encoder)
        text, _ = read_answer(chat_encoder, prompt, [encoded.input_ids[place] for place in places])
        yield Question(number_of[turn], prompt, text)
