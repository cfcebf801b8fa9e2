"""One example for the terminal: a line of counts, what the dialogue has besides texts, its tokens with supervised ones
marked, and straddling tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fastchat.conversation import Dialogue
from fastchat.data.encoding.beginning import encode_beginnings
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import Example, tokenize_dialogues
from fastchat.data.encoding.renderings import renderings_of
from fastchat.data.rows.records import Record
from fastchat.data.view.terminal import legend, paint, safe, token_texts
from fastchat.errors import counted

# For a shortened example: tokens at both ends of each run, the minimum to omit between them, and runs.
_HEAD, _TAIL, _LEAST, _RUNS = 64, 24, 12, 8


def shown(
    record: Record, example: Example, chat_encoder: ChatEncoder, max_length: int, *, colour: bool, short: bool = False
) -> str:
    """One example for the terminal; `short` omits the middle of long runs, and everything after the first few runs."""
    texts = token_texts(chat_encoder.encoder, example.input_ids)
    supervised = [label == token for label, token in zip(example.labels, example.input_ids, strict=True)]
    plain = record.dialogue is not None and record.dialogue.plain
    in_turns = "" if plain else f" in {counted(example.trained_turns, 'answer')}"
    if example.parts > 1 and not plain:
        in_turns = f" in turn {', '.join(str(turn + 1) for turn in example.answers)}"
    untrained = example.untrained_turns if example.parts == 1 else 0
    parts = [
        f"example {example.part + 1} of {example.parts}" if example.parts > 1 else "",
        counted(len(texts), "token"),
        f"{example.num_supervised:,} learned{in_turns}",
        f"{counted(untrained, 'answer')} not learned" if untrained else "",
        _after_the_end(example, max_length) if example.truncated_tokens else "",
        f"{counted(example.escaped, 'special-token string')} kept as plain text" if example.escaped else "",
    ]
    painted = paint(*(shorten(texts, supervised) if short else (texts, supervised)), colour)
    contents = _contents(record.dialogue) if record.dialogue is not None and example.part == 0 else ""
    lines = [f"--- {safe(record.place)}: {', '.join(part for part in parts if part)}", safe(contents), painted]
    if example.straddling:
        lines.append(_straddling(record, example, texts, supervised, chat_encoder, max_length))
    return "\n".join(line for line in lines if line)


def _after_the_end(example: Example, max_length: int) -> str:
    """What training does not see of the dialogue."""
    at_least = "at least " if example.at_least else ""
    cut = f"{at_least}{counted(example.truncated_tokens, 'token')} cut off at --model_max_length {max_length}"
    return f"{cut}, {example.lost:,} of them would be learned" if example.lost else f"{cut}, none would be learned"


def _contents(dialogue: Dialogue) -> str:
    """What a dialogue has besides the texts of its turns; "" if nothing."""
    names = [str(tool.get("function", tool).get("name")) if isinstance(tool, dict) else "?" for tool in dialogue.tools]
    parts = [f"tools: {', '.join(names)}"] if names else []
    parts += [f"{key}={value!r}" for key, value in dialogue.template_arguments.items()]
    for number, turn in enumerate(dialogue.turns, start=1):
        parts += [f"turn {number}: reasoning"] if turn.reasoning else []
        parts += [f"turn {number}: calls {', '.join(call.name for call in turn.calls)}"] if turn.calls else []
    return "; ".join(parts)


def first_example(
    records: Sequence[Record], chat_encoder: ChatEncoder, *, max_length: int, overlong: str, colour: bool
) -> str:
    """The first record with supervised tokens, shortened, and a legend; "" if there is none."""
    for record in records:
        pairs = [] if record.dialogue is None else [(record.index, record.dialogue)]
        for example in tokenize_dialogues(pairs, chat_encoder, max_length=max_length, overlong=overlong):
            if example.dropped is None:
                text = shown(record, example, chat_encoder, max_length, colour=colour, short=True)
                return f"{text}\n{legend(colour)}"
    return ""


def shorten(texts: Sequence[str], supervised: Sequence[bool]) -> tuple[list[str], list[bool]]:
    """The tokens without the middle of long supervised or unsupervised runs: their boundaries are what matters.

    Example: 3 tokens of a question and 100 of an answer become those 3, the answer's first 64,
    " … 12 tokens … ", and its last 24.
    """
    out: list[str] = []
    marks: list[bool] = []
    done = 0
    for number, (learned, run) in enumerate(groupby(range(len(texts)), key=lambda i: supervised[i])):
        places = list(run)
        if number == _RUNS:
            out.append(f" … {len(texts) - done:,} more tokens")
            marks.append(False)
            break
        left_out = len(places) - _HEAD - _TAIL
        kept = [texts[i] for i in places]
        if left_out >= _LEAST:
            kept = [*kept[:_HEAD], f" … {left_out:,} tokens … ", *kept[-_TAIL:]]
        out += kept
        marks += [learned] * len(kept)
        done += len(places)
    return out, marks


def _straddling(
    record: Record,
    example: Example,
    texts: Sequence[str],
    supervised: Sequence[bool],
    chat_encoder: ChatEncoder,
    max_length: int,
) -> str:
    assert record.dialogue is not None
    rendered = renderings_of(record.dialogue, chat_encoder)[example.part]
    positions = next(encode_beginnings([rendered], chat_encoder, max_length)).straddling
    named = [
        f"{safe(repr(texts[at]))} at {at} ({'learned' if supervised[at] else 'not learned'})"
        for at in positions
        if at < len(texts)
    ]
    return f"tokens with characters of an answer and of other text: {', '.join(named)}"
