"""Five properties of the labels, checked on the actual tokenizer and template before training.

1  the ids of the inference prompt are a prefix of the training ids, for every supervised answer
2  every supervised answer ends with its stop, and the stop is supervised
3  one BOS at the start if the tokenizer adds one, never doubled, never supervised
4  no text of a message becomes a control token
5  an independent second method derives the same labels

They are checked on harmless dialogues, and on dialogues with every control string of the tokenizer and the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NoReturn

from fastchat.conversation import Dialogue, Rendered, Template, Turn
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import tokenize_dialogue
from fastchat.data.encoding.prefix import TORN, leaves_prompt
from fastchat.data.encoding.probes import HARMLESS
from fastchat.data.encoding.supervision import ALL, Encoded
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate
from fastchat.errors import DataError, SettingsError

_NAMES = (
    "the ids of the inference prompt are a prefix of the training ids",
    "every supervised answer ends with its stop, which is supervised",
    "one BOS at the start, never doubled and never supervised",
    "no text becomes a control token",
    "the labels derived a second time agree",
)


def prove(chat_encoder: ChatEncoder) -> str:
    """Check all five; returns one line for the log.

    Raises:
        SettingsError: one does not hold; the message names it and shows the tokens at that position.
    """
    harmless = chat_encoder.template.probes if isinstance(chat_encoder.template, TokenizerTemplate) else HARMLESS
    dialogues = [*harmless, *_hostile(chat_encoder, harmless)]
    for dialogue in dialogues:
        rendered = chat_encoder.template.render(dialogue)
        encoded = chat_encoder.encode(rendered)
        _prompts(chat_encoder, dialogue, encoded)
        _stops(chat_encoder, dialogue, rendered, encoded)
        _one_bos(chat_encoder, rendered, encoded)
        _no_control(chat_encoder, rendered, encoded)
    try:
        made = [(d, tokenize_dialogue(d, chat_encoder, max_length=1 << 30)) for d in harmless]
        LabelCrossCheck(chat_encoder).check((d, x.input_ids, x.labels) for d, x in made if x.dropped is None)
    except DataError as error:
        raise SettingsError(f"{_failed(chat_encoder, 5)}: {error}") from error
    return (
        f"proven on this tokenizer with template {chat_encoder.template.name}, on {len(dialogues)} dialogues: "
        "prompts are prefixes, stops are supervised, one BOS, no text becomes a control token, labels agree"
    )


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


def _prompts(chat_encoder: ChatEncoder, dialogue: Dialogue, encoded: Encoded) -> None:
    for turn in _answers(chat_encoder, dialogue):
        prompt = encode_prompt(dialogue.before(turn), chat_encoder)
        _, at = leaves_prompt(encoded.input_ids, prompt)
        if at is not None:
            _fail(chat_encoder, 1, encoded, at)


def _stops(chat_encoder: ChatEncoder, dialogue: Dialogue, rendered: Rendered, encoded: Encoded) -> None:
    stop = chat_encoder.template.stop
    stop = (
        chat_encoder.substitute(stop) if stop else chat_encoder.encoder.eos.content if chat_encoder.encoder.eos else ""
    )
    wanted = _bare(stop) or stop  # rwkv stops at two line ends
    for turn in _answers(chat_encoder, dialogue):
        owners = [rendered.segments[segment] if segment >= 0 else None for segment in encoded.segment_of]
        own = [i for i, owner in enumerate(owners) if owner and owner.supervised and owner.turn == turn]
        learned = [i for i in own if encoded.supervised[i]]
        said = chat_encoder.encoder.decode([encoded.input_ids[i] for i in learned[-64:]])
        said = _bare(said) if _bare(stop) else said
        if wanted not in said[-len(wanted) - TORN :]:
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
        role = rendered.segments[segment].role if segment >= 0 else "template"
        # With a tokenizer's own template, the model may write added tokens that are not special.
        forbidden = set() if role == "template" else special - _spoken(chat_encoder) if role == "assistant" else added
        if token in forbidden:
            _fail(chat_encoder, 4, encoded, i)


def _spoken(chat_encoder: ChatEncoder) -> set[int]:
    """Added tokens that are not special: the model writes them itself (<think>)."""
    return {t["id"] for t in chat_encoder.encoder.added.values() if not t["special"]}


def _answers(chat_encoder: ChatEncoder, dialogue: Dialogue) -> list[int]:
    """The supervised answers of a dialogue in which all are to be trained on."""
    answers = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant" and turn.train]
    return answers[-1:] if chat_encoder.template.only_last or chat_encoder.train_on == "last" else answers


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
