"""Why each token of a dialogue is supervised or not: one reason per token, for the preview.

The labels are not made here. `explain` uses the same inputs, and raises an AssertionError if its reasons disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

from fastchat.conversation import Dialogue, Rendered, Segment
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import IGNORED, Example
from fastchat.data.encoding.supervision import ALL, Encoded, learned_segments


class Why(IntEnum):
    """The reasons; tokens with those up to CONTEXT_LEARNED are supervised."""

    ANSWER = 0
    ANSWER_START = 1
    STOP = 2
    BOUNDARY_LEARNED = 3
    CONTEXT_LEARNED = 4
    TEMPLATE = 5
    BOS = 6
    SYSTEM = 7
    USER = 8
    TOOL = 9
    EXCLUDED = 10
    EMPTY = 11
    ONLY_LAST = 12
    NOT_LAST = 13
    EXAMPLE = 14
    BOUNDARY = 15
    CUT = 16
    DROPPED = 17

    @property
    def learned(self) -> bool:
        return self <= Why.CONTEXT_LEARNED


# reason: (its name, one sentence that explains it)
EXPLAINED = {
    Why.ANSWER: ("answer", "the assistant has to write it"),
    Why.ANSWER_START: (
        "answer begins",
        "the first token that is not in the inference prompt; it may include the template's space before the answer",
    ),
    Why.STOP: ("stop", "ends the turn: the assistant has to write it in order to stop"),
    Why.BOUNDARY_LEARNED: (
        "boundary, supervised",
        "one token has characters of the answer and of the template next to it; it is supervised, because the "
        "assistant has to write part of it",
    ),
    Why.CONTEXT_LEARNED: (
        "context, supervised",
        "--train_on all supervises everything except BOS; part of the prompt at inference",
    ),
    Why.TEMPLATE: ("template", "the template writes it; part of the prompt at inference"),
    Why.BOS: ("sequence start", "the tokenizer or the template adds it at the start; the model never has to write it"),
    Why.SYSTEM: ("system", "a system message is context"),
    Why.USER: ("user", "a user's message is context"),
    Why.TOOL: ("tool", "the output of a tool is context"),
    Why.EXCLUDED: ("excluded", 'not supervised: its turn, or the row, has "train": false'),
    Why.EMPTY: ("empty answer", "an answer without text is kept but not supervised"),
    Why.ONLY_LAST: (
        "earlier answer",
        "this template renders earlier answers differently, so only the last one can be supervised",
    ),
    Why.NOT_LAST: ("not the last", "--train_on last supervises only the last trained answer of a dialogue"),
    Why.EXAMPLE: ("example", "an example that the template adds before every dialogue"),
    Why.BOUNDARY: (
        "boundary",
        "one token has characters of an answer and of another message; it is not supervised",
    ),
    Why.CUT: ("cut", "after --model_max_length; training does not see it"),
    Why.DROPPED: ("dropped", "the whole row is not trained on"),
}
ROLES = ("template", "system", "user", "tool", "assistant")
_MESSAGES = {"system": Why.SYSTEM, "user": Why.USER, "tool": Why.TOOL}


class Run(NamedTuple):
    """Consecutive tokens with the same turn, role and reason; `role` is an index into ROLES."""

    count: int
    turn: int
    role: int
    why: Why


def explain(
    dialogue: Dialogue,
    rendered: Rendered,
    encoded: Encoded,
    example: Example,
    chat_encoder: ChatEncoder,
    texts: Sequence[str],
) -> list[Run]:
    """Turn, role and reason of every token of the whole dialogue, including those after the cut.

    Args:
        encoded: `rendered` encoded by `chat_encoder`, uncut.
        example: what training uses of it.
        texts: what each token contributes to the text.
    """
    flags = learned_segments(rendered.segments, chat_encoder.train_on)
    keep, size, owners = len(example.input_ids), len(texts), _owners(rendered, encoded, chat_encoder, texts, flags)
    base = [_base_reasons(segment, dialogue, chat_encoder) for segment in rendered.segments]
    straddling, bos = set(encoded.straddling), _bos_positions(encoded, chat_encoder)
    starts = _answer_starts(rendered, encoded, owners)
    alone = straddling | bos | starts
    edges = {0, min(keep, size), *_changes(owners), *_changes(encoded.supervised), *alone, *(i + 1 for i in alone)}
    runs = []
    for start, end in pairwise([*sorted(edges - {size}), size]):
        learned = encoded.supervised[start]
        turn, role, why = (-1, 0, Why.BOS) if owners[start] < 0 else base[owners[start]][learned]
        if start in straddling:
            why = Why.BOUNDARY_LEARNED if learned else Why.BOUNDARY
        elif start in starts:
            why = Why.ANSWER_START
        elif start in bos and why is Why.TEMPLATE:
            why = Why.BOS
        if example.dropped is not None:
            why = Why.DROPPED if learned else why
        elif start >= keep:
            why = Why.CUT
        runs.append(Run(end - start, turn, role, why))
    _check(runs, encoded, example)
    return runs


def _check(runs: list[Run], encoded: Encoded, example: Example) -> None:
    keep = len(example.input_ids)
    assert encoded.input_ids[:keep] == example.input_ids, example.index
    start = 0
    for run in runs:
        labels = example.labels[start : start + run.count]
        num_learned = len(labels) - labels.count(IGNORED)
        assert num_learned == (run.count if run.why.learned else 0), (example.index, start, run, num_learned)
        start += run.count


def _changes(values: Sequence[int]) -> list[int]:
    """The positions whose value differs from the one before."""
    return [i for i, (a, b) in enumerate(pairwise(values), start=1) if a != b]


def _bos_positions(encoded: Encoded, chat_encoder: ChatEncoder) -> set[int]:
    bos = chat_encoder.encoder.bos
    if bos is None or bos == chat_encoder.encoder.eos:
        return set()
    return {i for i, token_id in enumerate(encoded.input_ids) if token_id == bos.id}


def _answer_starts(rendered: Rendered, encoded: Encoded, owners: Sequence[int]) -> set[int]:
    """The first supervised token of each turn."""
    starts: dict[int, int] = {}
    for i in sorted({0, *_changes(encoded.supervised), *_changes(owners)}):
        if encoded.supervised[i : i + 1] == [True] and (owner := rendered.segments[owners[i]]).supervised:
            starts.setdefault(owner.turn, i)
    return set(starts.values())


def _base_reasons(segment: Segment, dialogue: Dialogue, chat_encoder: ChatEncoder) -> list[tuple[int, int, Why]]:
    """(turn, role, reason) of a segment's tokens that are not supervised, and of those that are."""
    role = ROLES.index(segment.role)
    not_learned = (segment.turn, role, _not_learned(segment, dialogue, chat_encoder))
    if not segment.supervised:
        return [not_learned, (segment.turn, role, Why.CONTEXT_LEARNED)]
    learned = Why.ANSWER if segment.role == "assistant" else Why.STOP
    return [not_learned, (segment.turn, ROLES.index("assistant"), learned)]


def _not_learned(segment: Segment, dialogue: Dialogue, chat_encoder: ChatEncoder) -> Why:
    if segment.role == "template":
        return Why.EXCLUDED if segment.excluded and chat_encoder.train_on == ALL else Why.TEMPLATE
    if segment.turn < 0 and segment.role != "system":
        return Why.EXAMPLE
    if segment.excluded and segment.role != "assistant" and chat_encoder.train_on == ALL:
        return Why.EXCLUDED
    if segment.role in _MESSAGES:
        return _MESSAGES[segment.role]
    turn = dialogue.turns[segment.turn]
    if not turn.text.strip():
        return Why.EMPTY
    if not turn.train:
        return Why.EXCLUDED
    return Why.ONLY_LAST if chat_encoder.template.only_last else Why.NOT_LAST


def _owners(
    rendered: Rendered, encoded: Encoded, chat_encoder: ChatEncoder, texts: Sequence[str], flags: Sequence[bool]
) -> list[int]:
    """The segment that each token belongs to, by its first non-space character; -1 for a BOS added by the tokenizer.

    A token may begin with the space of the segment before it: " I" after "USER:" still belongs to the user. If the
    tokens' text is not the rendered text (a normaliser changed it), a token belongs to the segment in which it begins.
    """
    added = sum(segment < 0 for segment in encoded.segment_of[:1])
    letters = [-1] * added + _of_letters(rendered, encoded.segment_of[added:], chat_encoder, texts[added:])
    return [
        begin if learned and not flags[letter] else letter
        for begin, letter, learned in zip(encoded.segment_of, letters, encoded.supervised, strict=True)
    ]


def _of_letters(rendered: Rendered, begins: list[int], chat_encoder: ChatEncoder, texts: Sequence[str]) -> list[int]:
    parts = [chat_encoder.substitute(s.text) if s.role == "template" else s.text for s in rendered.segments]
    wanted, text = "".join(parts), "".join(texts)
    space = len(text) - len(wanted)  # some tokenizers add one before the first word
    if space not in (0, 1) or text[space:] != wanted:
        return begins
    segment_ends = list(accumulate((len(part) for part in parts), initial=space))[1:]
    token_ends = list(accumulate(map(len, texts)))
    found = list(begins)
    for behind in [*_changes(begins), len(begins)] if begins else []:
        last = behind - 1  # only the last token of a segment can reach into another
        letter = token_ends[last] - len(texts[last].lstrip())
        while letter < token_ends[last] and segment_ends[found[last]] <= letter:
            found[last] += 1
    return found
