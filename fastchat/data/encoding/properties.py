"""Five properties of the labels, checked on the actual tokenizer and template before training.

1  the ids of the inference prompt are a prefix of the training ids, for every supervised answer
2  every supervised answer ends with its stop, and the stop is supervised
3  one BOS at the start if the tokenizer adds one, never doubled, never supervised
4  no text of a message becomes a control token
5  an independent second method derives the same labels

They are checked on harmless dialogues, and on dialogues with every control string of the tokenizer and the template.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NoReturn

from fastchat.conversation import Dialogue, RefusedByTemplate, Rendered, Template, ToolCall, Turn
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import tokenize_dialogues
from fastchat.data.encoding.prefix import TORN, leaves_prompt
from fastchat.data.encoding.probes import more_probes, probes_of
from fastchat.data.encoding.renderings import answers_of, renderings_of
from fastchat.data.encoding.supervision import ALL, LAST, Encoded
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate
from fastchat.errors import DataError, SettingsError, say

_NAMES = (
    "the ids of the inference prompt are a prefix of the training ids",
    "every learned answer ends with its stop, which is learned",
    "one BOS at the start, never doubled and never learned",
    "no text becomes a control token",
    "the labels derived a second time agree",
)


def prove(chat_encoder: ChatEncoder) -> str:
    """Check all five; returns one line for the log.

    Raises:
        SettingsError: one does not hold; the message names it and shows the tokens at that position.
    """
    own = isinstance(chat_encoder.template, TokenizerTemplate)
    harmless = probes_of(chat_encoder.template)
    hostile = list(_hostile(chat_encoder, harmless))
    dialogues = [*harmless, *(_accepted(chat_encoder, hostile) if own else hostile)]
    _check(chat_encoder, harmless, dialogues)
    more = list(_accepted(chat_encoder, more_probes(chat_encoder.template)))
    try:
        _check(chat_encoder, more, more)
    except SettingsError as error:
        # A sample of the data is checked in any case: this must not stop a run on other dialogues.
        say(f"WARNING: dialogues with tools or reasoning cannot be trained on exactly: {error}")
        more = []
    return (
        f"proven on this tokenizer with template {chat_encoder.template.name}, on {len(dialogues) + len(more)} "
        "dialogues: prompts are prefixes, stops are learned, one BOS, no text becomes a control token, labels agree"
    )


def _check(chat_encoder: ChatEncoder, harmless: Sequence[Dialogue], dialogues: Sequence[Dialogue]) -> None:
    """Properties 1 to 4 of `dialogues`, and 5 of the `harmless` ones of them."""
    for dialogue in dialogues:
        for rendered in renderings_of(dialogue, chat_encoder):
            encoded = chat_encoder.encode(rendered)
            _prompts(chat_encoder, rendered.dialogue or dialogue, rendered, encoded)
            _stops(chat_encoder, rendered, encoded)
            _one_bos(chat_encoder, rendered, encoded)
            _no_control(chat_encoder, rendered, encoded)
    try:
        examples = list(tokenize_dialogues(enumerate(harmless), chat_encoder, max_length=1 << 30))
        LabelCrossCheck(chat_encoder).check(
            (harmless[x.index], x.input_ids, x.labels, x.part) for x in examples if x.dropped is None
        )
    except DataError as error:
        raise SettingsError(f"{_failed(chat_encoder, 5)}: {error}") from error


def _hostile(chat_encoder: ChatEncoder, harmless: Sequence[Dialogue]) -> Iterator[Dialogue]:
    """Every control string of the tokenizer, and the template's text around messages, as the text of every role."""
    encoder = chat_encoder.encoder
    known = [c for c in encoder.added if c.strip()] + [c.content for c in chat_encoder.controls.values() if c]
    written = (
        [s for s in chat_encoder.template.literals() if s.strip()]
        if isinstance(chat_encoder.template, Template)
        else []
    )
    text = "a " + " b".join(dict.fromkeys([*known[:64], *written])) + " c"
    turns = (Turn("user", text), Turn("assistant", text), Turn("user", "And now?"), Turn("assistant", f"x{text}"))
    yield Dialogue(turns)
    if any(dialogue.system for dialogue in harmless):
        yield Dialogue(turns, text)
    if chat_encoder.template.shows_calls:
        call = ToolCall("run", {"text": text, text: [text]})
        said = (turns[0], Turn("assistant", "", calls=(call,)), Turn("tool", text), Turn("assistant", text))
        function = {"name": "run", "description": text, "parameters": {"properties": {"text": {"description": text}}}}
        yield Dialogue(said, text, tools=({"type": "function", "function": function},))


def _accepted(chat_encoder: ChatEncoder, dialogues: Sequence[Dialogue]) -> Iterator[Dialogue]:
    """The dialogues that the tokenizer's own template accepts; with harmless answers if it does not accept theirs, as
    it may remove what looks like reasoning from them."""
    for dialogue in dialogues:
        turns = (replace(t, text=t.text and "Fine.") if t.role == "assistant" else t for t in dialogue.turns)
        for one in (dialogue, replace(dialogue, turns=tuple(turns))):
            with contextlib.suppress(RefusedByTemplate):
                renderings_of(one, chat_encoder)
                yield one
                break


def _prompts(chat_encoder: ChatEncoder, shown: Dialogue, rendered: Rendered, encoded: Encoded) -> None:
    for turn in _answers(chat_encoder, rendered):
        prompt = encode_prompt(shown.before(turn), chat_encoder)
        _, at = leaves_prompt(encoded.input_ids, prompt)
        if at is not None:
            _fail(chat_encoder, 1, encoded, at)


def _stops(chat_encoder: ChatEncoder, rendered: Rendered, encoded: Encoded) -> None:
    encoder, template = chat_encoder.encoder, chat_encoder.template
    written = template.stops if isinstance(template, TokenizerTemplate) else (template.stop,)
    eos = encoder.eos.content if encoder.eos else ""
    stops = [chat_encoder.substitute(stop) if stop else eos for stop in written or ("",)]
    bare = all(map(_bare, stops))  # rwkv stops at two line ends
    wanted = [_bare(stop) if bare else stop for stop in stops]
    for turn in _answers(chat_encoder, rendered):
        owners = [rendered.segments[segment] if segment >= 0 else None for segment in encoded.segment_of]
        own = [i for i, owner in enumerate(owners) if owner and owner.supervised and owner.turn == turn]
        learned = [i for i in own if encoded.supervised[i]]
        said = chat_encoder.encoder.decode([encoded.input_ids[i] for i in learned[-64:]])
        said = _bare(said) if bare else said
        if not any(stop in said[-len(stop) - TORN :] for stop in wanted):
            _fail(chat_encoder, 2, encoded, learned[-1] if learned else 0)


def _one_bos(chat_encoder: ChatEncoder, rendered: Rendered, encoded: Encoded) -> None:
    bos = chat_encoder.encoder.bos
    if bos is None or bos == chat_encoder.encoder.eos:
        return
    ids = encoded.input_ids
    doubled = next((i for i, (a, b) in enumerate(pairwise(ids)) if a == b == bos.id), None)
    learned = next((i for i, s in enumerate(encoded.supervised) if s and ids[i] == bos.id), None)
    if doubled is not None or learned is not None:
        _fail(chat_encoder, 3, encoded, doubled if doubled is not None else learned or 0)
    own = isinstance(chat_encoder.template, TokenizerTemplate)
    if chat_encoder.encoder.adds_bos and ids[0] != bos.id and not own:
        _fail(chat_encoder, 3, encoded, 0)
    written = sum(chat_encoder.substitute(s.text).count(bos.content) for s in rendered.segments if s.role == "template")
    if ids.count(bos.id) > written + (encoded.segment_of[0] == -1):
        _fail(chat_encoder, 3, encoded, len(ids) - 1 - ids[::-1].index(bos.id))


def _no_control(chat_encoder: ChatEncoder, rendered: Rendered, encoded: Encoded) -> None:
    encoder = chat_encoder.encoder
    unknown = encoder.unknown
    control = {c.id for c in chat_encoder.controls.values() if c}
    special = {t["id"] for c, t in encoder.added.items() if t["special"] and c != unknown} | control
    added = {t["id"] for c, t in encoder.added.items() if c != unknown and c.replace("▁", " ").strip()} | control
    for i, (token, segment) in enumerate(zip(encoded.input_ids, encoded.segment_of, strict=True)):
        owner = rendered.segments[segment] if segment >= 0 else None
        spoken = owner is not None and owner.role == "assistant" and not owner.plain
        # With a tokenizer's own template, the model may write added tokens that are not special.
        forbidden = special - _spoken(chat_encoder) if spoken else added
        forbidden = set() if owner is None or owner.role == "template" else forbidden
        if token in forbidden:
            _fail(chat_encoder, 4, encoded, i)


def _spoken(chat_encoder: ChatEncoder) -> set[int]:
    """Added tokens that are not special: the model writes them itself (<think>)."""
    return {t["id"] for t in chat_encoder.encoder.added.values() if not t["special"]}


def _answers(chat_encoder: ChatEncoder, rendered: Rendered) -> list[int]:
    """The supervised answers of a rendering."""
    answers = answers_of(rendered)
    return answers[-1:] if chat_encoder.train_on == LAST else answers


def _bare(text: str) -> str:
    return "".join(text.replace("▁", " ").split())


def _failed(chat_encoder: ChatEncoder, number: int) -> str:
    learned = " (--train_on all)" if chat_encoder.train_on == ALL else ""
    return (
        f"the tokenizer {chat_encoder.encoder.name} with template {chat_encoder.template.name!r}{learned}: "
        f"property {number} of the labels does not hold ({_NAMES[number - 1]})"
    )


def _fail(chat_encoder: ChatEncoder, number: int, encoded: Encoded, at: int) -> NoReturn:
    around = chat_encoder.encoder.decode(encoded.input_ids[max(at - 6, 0) : at + 6])
    raise SettingsError(f"{_failed(chat_encoder, number)}, at token {at}: {around!r}. Choose another template.")
