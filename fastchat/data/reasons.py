"""Why each token of a dialogue is learned, or is not: one reason per token, for people to read.

The labels are not made here. `explain` reads what made them, and fails loudly where its reasons say something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from fastchat.conversation import Dialogue, Rendered, Segment
from fastchat.data.binding import BoundEncoder, Encoded
from fastchat.data.tokenization import IGNORED, Example


class Why(IntEnum):
    """The reasons; those up to BOUNDARY_LEARNED are learned."""

    ANSWER = 0
    ANSWER_START = 1
    STOP = 2
    BOUNDARY_LEARNED = 3
    TEMPLATE = 4
    BOS = 5
    SYSTEM = 6
    USER = 7
    TOOL = 8
    EXCLUDED = 9
    EMPTY = 10
    ONLY_LAST = 11
    EXAMPLE = 12
    BOUNDARY = 13
    CUT = 14
    DROPPED = 15

    @property
    def learned(self) -> bool:
        return self <= Why.BOUNDARY_LEARNED


# reason: (its name, one sentence about it)
EXPLAINED = {
    Why.ANSWER: ("answer", "the assistant has to write it"),
    Why.ANSWER_START: (
        "answer begins",
        "the first token that inference does not send; it may hold the template's space before the answer",
    ),
    Why.STOP: ("stop", "ends the turn: the assistant has to write it to stop"),
    Why.BOUNDARY_LEARNED: (
        "boundary, learned",
        "one token holds characters of the answer and of the template beside it; it is learned, because the assistant "
        "has to write a part of it",
    ),
    Why.TEMPLATE: ("template", "the template writes it; inference sends it in the prompt"),
    Why.BOS: ("sequence start", "the tokenizer or the template puts it in front; no model has to write it"),
    Why.SYSTEM: ("system", "a system message is context"),
    Why.USER: ("user", "a user's message is context"),
    Why.TOOL: ("tool", "what a tool returned is context"),
    Why.EXCLUDED: ("excluded", 'an answer not to be learned: its turn says "train": false, or --train_on skips it'),
    Why.EMPTY: ("empty answer", "an answer without text is kept and not learned"),
    Why.ONLY_LAST: (
        "earlier answer",
        "this template shows earlier answers otherwise than they were written, so only the last one can be learned",
    ),
    Why.EXAMPLE: ("example", "an example that the template shows before every dialogue"),
    Why.BOUNDARY: (
        "boundary",
        "one token holds characters of an answer and of somebody else's message; it is not learned",
    ),
    Why.CUT: ("cut", "behind --model_max_length; training never sees it"),
    Why.DROPPED: ("dropped", "the whole record is left out of training"),
}
ROLES = ("template", "system", "user", "tool", "assistant")
_MESSAGES = {"system": Why.SYSTEM, "user": Why.USER, "tool": Why.TOOL}


def explain(
    dialogue: Dialogue,
    rendered: Rendered,
    encoded: Encoded,
    example: Example,
    bound: BoundEncoder,
    texts: Sequence[str],
) -> list[tuple[int, int, Why]]:
    """(turn, index into ROLES, reason) of every token of the whole dialogue, those behind the cut included.

    Args:
        encoded: `rendered` encoded by `bound`, uncut.
        example: what training gets of it.
        texts: what each token contributes to the text.
    """
    keep, straddling, owners = len(example.input_ids), set(encoded.straddling), _owners(rendered, encoded, bound, texts)
    base = [_base_reasons(segment, dialogue, bound) for segment in rendered.segments]
    bos = bound.encoder.bos if bound.encoder.bos != bound.encoder.eos else None
    begun: set[int] = set()  # turns whose first learned token has come
    found = []
    for position, (token_id, learned, segment) in enumerate(
        zip(encoded.input_ids, encoded.supervised, owners, strict=True)
    ):
        turn, role, why = (-1, 0, Why.BOS) if segment < 0 else base[segment][learned]
        if position in straddling:
            why = Why.BOUNDARY_LEARNED if learned else Why.BOUNDARY
        elif learned and turn not in begun:
            why = Why.ANSWER_START
        elif why is Why.TEMPLATE and bos and token_id == bos.id:
            why = Why.BOS
        if learned:
            begun.add(turn)
        if example.dropped is not None:
            why = Why.DROPPED if learned else why
        elif position >= keep:
            why = Why.CUT
        found.append((turn, role, why))
    _check(found, encoded, example)
    return found


def _check(found: list[tuple[int, int, Why]], encoded: Encoded, example: Example) -> None:
    keep = len(example.input_ids)
    assert encoded.input_ids[:keep] == example.input_ids, example.index
    labels = [*example.labels, *[IGNORED] * (len(found) - keep)]
    for position, ((_, _, why), label) in enumerate(zip(found, labels, strict=True)):
        assert why.learned == (label != IGNORED), (example.index, position, why, label)


def _base_reasons(segment: Segment, dialogue: Dialogue, bound: BoundEncoder) -> list[tuple[int, int, Why]]:
    """(turn, role, reason) of a segment's tokens that are not learned, and of those that are."""
    learned = Why.ANSWER if segment.role == "assistant" else Why.STOP
    not_learned = (segment.turn, ROLES.index(segment.role), _not_learned(segment, dialogue, bound))
    return [not_learned, (segment.turn, ROLES.index("assistant"), learned)]


def _not_learned(segment: Segment, dialogue: Dialogue, bound: BoundEncoder) -> Why:
    if segment.role == "template":
        return Why.TEMPLATE
    if segment.turn < 0 and segment.role != "system":
        return Why.EXAMPLE
    if segment.role in _MESSAGES:
        return _MESSAGES[segment.role]
    turn = dialogue.turns[segment.turn]
    if not turn.text.strip():
        return Why.EMPTY
    return Why.ONLY_LAST if turn.train and bound.template.only_last else Why.EXCLUDED


def _owners(rendered: Rendered, encoded: Encoded, bound: BoundEncoder, texts: Sequence[str]) -> list[int]:
    """Whose each token is: the segment in which it ends, -1 for a BOS that the tokenizer adds.

    A token may begin with the space of the segment before it: " I" after "USER:" is the user's all the same. A learned
    one that ends behind the answer stays with it. Where the tokens' text is not the rendered text (a normaliser changed
    it), a token is the segment's in which it begins.
    """
    added = sum(segment < 0 for segment in encoded.segment_of[:1])
    ends = [-1] * added + _ends(rendered, encoded.segment_of[added:], bound, texts[added:])
    return [
        begin if learned and not rendered.segments[end].supervised else end
        for begin, end, learned in zip(encoded.segment_of, ends, encoded.supervised, strict=True)
    ]


def _ends(rendered: Rendered, begins: list[int], bound: BoundEncoder, texts: Sequence[str]) -> list[int]:
    parts = [bound.substitute(s.text) if s.role == "template" else s.text for s in rendered.segments]
    wanted, text = "".join(parts), "".join(texts)
    space = len(text) - len(wanted)  # some tokenizers put one in front of the first word
    if space not in (0, 1) or text[space:] != wanted:
        return begins
    until, total = [], space
    for part in parts:
        total += len(part)
        until.append(total)
    found, at, position = [], 0, 0
    for begin, own in zip(begins, texts, strict=True):
        position += len(own)
        while until[at] < position:
            at += 1
        found.append(max(at, begin))
    return found
