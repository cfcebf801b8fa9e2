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
from fastchat.data.encoding.plain_text import lead_of
from fastchat.data.encoding.supervision import ALL, Encoded, learned_segments
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate


class Why(IntEnum):
    """The reasons; tokens with those up to TEXT are supervised."""

    ANSWER = 0
    ANSWER_START = 1
    STOP = 2
    BOUNDARY_LEARNED = 3
    CONTEXT_LEARNED = 4
    TEXT = 5
    TEMPLATE = 6
    BOS = 7
    SYSTEM = 8
    USER = 9
    TOOL = 10
    TOOLS = 11
    BEFORE = 12
    EXCLUDED = 13
    EMPTY = 14
    OTHER_EXAMPLE = 15
    NOT_LAST = 16
    EXAMPLE = 17
    BOUNDARY = 18
    CUT = 19
    AFTER = 20
    DROPPED = 21

    @property
    def learned(self) -> bool:
        return self <= Why.TEXT


# reason: (its name, one sentence that explains it)
EXPLAINED = {
    Why.ANSWER: ("answer", "the assistant has to write it"),
    Why.ANSWER_START: (
        "answer begins",
        "the first token that is not in the inference prompt; it may include the template's space before the answer",
    ),
    Why.STOP: ("stop", "ends the turn: the assistant has to write it in order to stop"),
    Why.BOUNDARY_LEARNED: (
        "boundary, learned",
        "one token has characters of the answer and of the template next to it; it is learned, because the "
        "assistant has to write part of it",
    ),
    Why.CONTEXT_LEARNED: (
        "context, learned",
        "--train_on all learns everything except BOS; part of the prompt at inference",
    ),
    Why.TEXT: ("text", "continued pre-training learns every token of a plain text"),
    Why.TEMPLATE: ("template", "the template writes it; part of the prompt at inference"),
    Why.BOS: ("sequence start", "the tokenizer or the template adds it at the start; the model never has to write it"),
    Why.SYSTEM: ("system", "a system message is context"),
    Why.USER: ("user", "a user's message is context"),
    Why.TOOL: ("tool", "the output of a tool is context"),
    Why.TOOLS: ("tools", "the schemas of the tools are context"),
    Why.BEFORE: ("text before", "the token before this piece of a longer text; it is learned in the piece before"),
    Why.EXCLUDED: ("excluded", 'not learned: its turn, or the row, has "train": false'),
    Why.EMPTY: ("empty answer", "an answer without text is kept but not learned"),
    Why.OTHER_EXAMPLE: (
        "other example",
        "learned in another example of this dialogue, which has the prompt that inference sends for it",
    ),
    Why.NOT_LAST: ("not the last", "--train_on last learns only the last answer of a dialogue"),
    Why.EXAMPLE: ("example", "an example that the template adds before every dialogue"),
    Why.BOUNDARY: (
        "boundary",
        "one token has characters of an answer and of another message; it is not learned",
    ),
    Why.CUT: ("cut", "after --model_max_length, which cuts off something to learn; training does not see it"),
    Why.AFTER: ("after the end", "after --model_max_length; nothing in it would be learned, training does not see it"),
    Why.DROPPED: ("dropped", "the whole row is not trained on"),
}
# The roles of turns, and kinds of text within them.
ROLES = ("template", "system", "user", "tool", "assistant", "reasoning", "tool call", "tools", "text")
_KINDS = {"reasoning": "reasoning", "call": "tool call", "tools": "tools"}  # of a segment -> role
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
    """Turn, role and reason of every token of a rendering of the dialogue, including those after the cut.

    Args:
        rendered: the rendering that the example is made from.
        encoded: `rendered` encoded by `chat_encoder`, uncut.
        example: what training uses of it.
        texts: what each token contributes to the text.
    """
    flags = learned_segments(rendered.segments, chat_encoder.train_on)
    keep, size, owners = len(example.input_ids), len(texts), _owners(rendered, encoded, chat_encoder, texts, flags)
    base = [
        _base_reasons(segment, kind, dialogue, chat_encoder, example.parts > 1)
        for segment, kind in zip(rendered.segments, _kinds(rendered.segments), strict=True)
    ]
    straddling, bos = set(encoded.straddling), _bos_positions(encoded, chat_encoder)
    starts = _answer_starts(rendered, encoded, owners)
    alone, stops = straddling | bos | starts, _stop_starts(rendered.segments, owners, texts, chat_encoder)
    edges = {
        0,
        min(keep, size),
        *stops.values(),
        *_changes(owners),
        *_changes(encoded.supervised),
        *alone,
        *(i + 1 for i in alone),
    }
    runs = []
    for start, end in pairwise([*sorted(edges - {size}), size]):
        learned = encoded.supervised[start]
        turn, role, why = (-1, 0, Why.BOS) if owners[start] < 0 else base[owners[start]][learned]
        if start >= stops.get(owners[start], size):
            role, why = ROLES.index("assistant"), Why.STOP if learned else why
        if start in straddling:
            why = Why.BOUNDARY_LEARNED if learned else Why.BOUNDARY
        elif start in starts:
            why = Why.ANSWER_START
        elif start in bos and why is Why.TEMPLATE:
            why = Why.BOS
        if example.dropped is not None:
            why = Why.DROPPED if learned else why
        elif start >= keep:
            why = Why.CUT if example.lost else Why.AFTER
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


def explain_text(example: Example, chat_encoder: ChatEncoder) -> list[Run]:
    """The same for an example that is a piece of a plain text."""
    text, lead = ROLES.index("text"), len(lead_of(chat_encoder))
    before, eos = int(example.part > 0), chat_encoder.encoder.eos
    num, ends = len(example.input_ids), int(example.is_last and eos is not None)
    runs = [
        Run(lead, -1, 0, Why.BOS),
        Run(before, 0, text, Why.BEFORE),
        Run(num - lead - before - ends, 0, text, Why.TEXT),
        Run(ends, 0, 0, Why.STOP),
    ]
    return [run for run in runs if run.count] if num else []


def _kinds(segments: Sequence[Segment]) -> list[str]:
    """The kind of each segment; the template's own text around those of one kind in one turn is of that kind too: the
    markup of a tool call, the tags around reasoning."""
    kinds = [segment.kind for segment in segments]
    written = [i for i, segment in enumerate(segments) if segment.role != "template"]
    for a, b in pairwise(written):
        if kinds[a] == kinds[b] != "" and segments[a].turn == segments[b].turn:
            kinds[a + 1 : b] = [kinds[a]] * (b - a - 1)
    for i, segment in enumerate(segments):
        if segment.role == "template" and (segment.supervised or segment.excluded) and not kinds[i]:
            before, after = (_next_kind(segments, i, by) for by in (-1, 1))
            kinds[i] = after if after == "call" else before or after
    return kinds


def _next_kind(segments: Sequence[Segment], at: int, by: int) -> str:
    """The kind of the next text that is not the template's, in the same turn; "" if there is none."""
    turn, at = segments[at].turn, at + by
    while 0 <= at < len(segments) and segments[at].turn == turn:
        if segments[at].role != "template":
            return segments[at].kind
        at += by
    return ""


def _stop_starts(
    segments: Sequence[Segment], owners: Sequence[int], texts: Sequence[str], chat_encoder: ChatEncoder
) -> dict[int, int]:
    """The last segment of every learned turn, if it is the template's -> the first token of its stop. With tool calls
    the segment also has the end of their markup, which is before the stop."""
    template = chat_encoder.template
    own = template.stops if isinstance(template, TokenizerTemplate) else (template.stop,)
    stops = sorted(filter(None, map(chat_encoder.substitute, own)), key=len, reverse=True)
    last = {segment.turn: i for i, segment in enumerate(segments) if segment.supervised}
    ends = {i for i in last.values() if segments[i].role == "template"}
    places: dict[int, tuple[int, int]] = {}
    for start, end in pairwise([0, *_changes(owners), len(owners)] if owners else []):
        places[owners[start]] = (places.get(owners[start], (start, end))[0], end)
    starts = {}
    for owner in ends & places.keys():
        text = chat_encoder.substitute(segments[owner].text)
        left = len(next((stop for stop in stops if text.endswith(stop)), text))
        first, start = places[owner]
        while left > 0 and start > first:
            start -= 1
            left -= len(texts[start])
        starts[owner] = start
    return starts


def _base_reasons(
    segment: Segment, kind: str, dialogue: Dialogue, chat_encoder: ChatEncoder, several: bool
) -> list[tuple[int, int, Why]]:
    """(turn, role, reason) of a segment's tokens that are not supervised, and of those that are, unless they are a
    stop. `several`: whether the dialogue is several examples."""
    role = ROLES.index(_KINDS.get(kind, segment.role))
    not_learned = (segment.turn, role, _not_learned(segment, dialogue, chat_encoder, several))
    if not segment.supervised:
        return [not_learned, (segment.turn, role, Why.CONTEXT_LEARNED)]
    return [not_learned, (segment.turn, role if kind else ROLES.index("assistant"), Why.ANSWER)]


def _not_learned(segment: Segment, dialogue: Dialogue, chat_encoder: ChatEncoder, several: bool) -> Why:
    if segment.excluded and chat_encoder.train_on == ALL and segment.role != "assistant":
        train = dialogue.system_train if segment.turn < 0 else dialogue.turns[segment.turn].train
        return Why.OTHER_EXAMPLE if several and train else Why.EXCLUDED
    if segment.role == "template":
        return Why.TEMPLATE
    if segment.turn < 0 and segment.role != "system":
        return Why.EXAMPLE
    if segment.kind == "tools":
        return Why.TOOLS
    if segment.role in _MESSAGES:
        return _MESSAGES[segment.role]
    turn = dialogue.turns[segment.turn]
    if turn.is_empty:
        return Why.EMPTY
    if not turn.train:
        return Why.EXCLUDED
    return Why.OTHER_EXAMPLE if several else Why.NOT_LAST


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
