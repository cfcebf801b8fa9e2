"""The five properties of the mask, proven on the tokenizer and the template at hand before anything is trained.

1  the inference prompt's ids are how the training ids begin, at every learned answer
2  every learned answer ends in its stop, and the stop is learned
3  one BOS in front where the tokenizer adds one, never doubled, never learned
4  no text of a message becomes a control token
5  a second way of deriving the labels, which shares nothing with the first, finds the same

They are checked on harmless dialogues and on ones that hold every control string of the tokenizer and of the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NoReturn

from fastchat.conversation import Dialogue, Rendered, Template, Turn
from fastchat.data.binding import BoundEncoder, encode_prompt
from fastchat.data.prefix import TORN, leaves_prompt
from fastchat.data.probes import HARMLESS
from fastchat.data.proof import SecondOpinion
from fastchat.data.supervision import ALL, Encoded
from fastchat.data.tokenization import tokenize_dialogue
from fastchat.data.tokenizer_template import TokenizerTemplate
from fastchat.errors import DataError, SettingsError

_NAMES = (
    "the inference prompt's ids are how the training ids begin",
    "every learned answer ends in its stop, which is learned",
    "one BOS in front, never doubled and never learned",
    "no text becomes a control token",
    "the labels derived a second time agree",
)


def prove(bound: BoundEncoder) -> str:
    """Check all five; returns one line for the log.

    Raises:
        SettingsError: one does not hold; the message names it, with the tokens around the place.
    """
    harmless = bound.template.probes if isinstance(bound.template, TokenizerTemplate) else HARMLESS
    dialogues = [*harmless, *_hostile(bound, harmless)]
    for dialogue in dialogues:
        rendered = bound.template.render(dialogue)
        encoded = bound.encode(rendered)
        _prompts(bound, dialogue, encoded)
        _stops(bound, dialogue, rendered, encoded)
        _one_bos(bound, rendered, encoded)
        _no_control(bound, rendered, encoded)
    try:
        made = [(d, tokenize_dialogue(d, bound, max_length=1 << 30)) for d in harmless]
        SecondOpinion(bound).check((d, x.input_ids, x.labels) for d, x in made if x.dropped is None)
    except DataError as error:
        raise SettingsError(f"{_failed(bound, 5)}: {error}") from error
    return (
        f"proven on this tokenizer with template {bound.template.name}, on {len(dialogues)} dialogues: "
        "prompts are prefixes, stops are learned, one BOS, no text becomes control, labels agree"
    )


def _hostile(bound: BoundEncoder, harmless: Sequence[Dialogue]) -> Iterator[Dialogue]:
    """Every control string of the tokenizer, and what the template writes around messages, as text of every role."""
    encoder = bound.encoder
    known = [c for c in encoder.added if c.strip()] + [c.content for c in bound.controls.values() if c]
    written = [s for s in bound.template.literals() if s.strip()] if isinstance(bound.template, Template) else []
    text = "a " + " b".join(dict.fromkeys([*known[:64], *written])) + " c"
    turns = (Turn("user", text), Turn("assistant", text), Turn("user", "And now?"), Turn("assistant", f"x{text}"))
    yield Dialogue(turns)
    if any(dialogue.system for dialogue in harmless):
        yield Dialogue(turns, text)


def _prompts(bound: BoundEncoder, dialogue: Dialogue, encoded: Encoded) -> None:
    for turn in _answers(bound, dialogue):
        prompt = encode_prompt(Dialogue(dialogue.turns[:turn], dialogue.system), bound)
        _, at = leaves_prompt(encoded.input_ids, prompt)
        if at is not None:
            _fail(bound, 1, encoded, at)


def _stops(bound: BoundEncoder, dialogue: Dialogue, rendered: Rendered, encoded: Encoded) -> None:
    stop = bound.template.stop
    stop = bound.substitute(stop) if stop else bound.encoder.eos.content if bound.encoder.eos else ""
    wanted = _bare(stop) or stop  # rwkv stops at two line ends
    for turn in _answers(bound, dialogue):
        owners = [rendered.segments[segment] if segment >= 0 else None for segment in encoded.segment_of]
        own = [i for i, owner in enumerate(owners) if owner and owner.supervised and owner.turn == turn]
        learned = [i for i in own if encoded.supervised[i]]
        said = bound.encoder.decode([encoded.input_ids[i] for i in learned[-64:]])
        said = _bare(said) if _bare(stop) else said
        if wanted not in said[-len(wanted) - TORN :]:
            _fail(bound, 2, encoded, learned[-1] if learned else 0)


def _one_bos(bound: BoundEncoder, rendered: Rendered, encoded: Encoded) -> None:
    bos = bound.encoder.bos
    if bos is None or bos == bound.encoder.eos:
        return
    ids = encoded.input_ids
    doubled = next((i for i, (a, b) in enumerate(pairwise(ids)) if a == b == bos.id), None)
    learned = next((i for i, s in enumerate(encoded.supervised) if s and ids[i] == bos.id), None)
    if doubled is not None or learned is not None:
        _fail(bound, 3, encoded, doubled if doubled is not None else learned or 0)
    own = isinstance(bound.template, TokenizerTemplate)
    if bound.encoder.adds_bos and ids[0] != bos.id and not own:
        _fail(bound, 3, encoded, 0)
    written = sum(bound.substitute(s.text).count(bos.content) for s in rendered.segments if s.role == "template")
    if ids.count(bos.id) > written + (encoded.segment_of[0] == -1):
        _fail(bound, 3, encoded, len(ids) - 1 - ids[::-1].index(bos.id))


def _no_control(bound: BoundEncoder, rendered: Rendered, encoded: Encoded) -> None:
    encoder = bound.encoder
    unknown = encoder.spec["model"].get("unk_token")
    control = {c.id for c in bound.controls.values() if c}
    special = {t["id"] for c, t in encoder.added.items() if t["special"] and c != unknown} | control
    added = {t["id"] for c, t in encoder.added.items() if c != unknown and c.replace("▁", " ").strip()} | control
    for i, (token, segment) in enumerate(zip(encoded.input_ids, encoded.segment_of, strict=True)):
        role = rendered.segments[segment].role if segment >= 0 else "template"
        # A tokenizer's own template may have the model write control tokens that are not special.
        forbidden = set() if role == "template" else special - _spoken(bound) if role == "assistant" else added
        if token in forbidden:
            _fail(bound, 4, encoded, i)


def _spoken(bound: BoundEncoder) -> set[int]:
    """Added tokens that are not special: the model writes them itself (<think>)."""
    return {t["id"] for t in bound.encoder.added.values() if not t["special"]}


def _answers(bound: BoundEncoder, dialogue: Dialogue) -> list[int]:
    """The learned answers of a dialogue in which all are to be trained."""
    answers = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant" and turn.train]
    return answers[-1:] if bound.template.only_last or bound.train_on == "last" else answers


def _bare(text: str) -> str:
    return "".join(text.replace("▁", " ").split())


def _failed(bound: BoundEncoder, number: int) -> str:
    learned = " (--train_on all)" if bound.train_on == ALL else ""
    return (
        f"the tokenizer {bound.encoder.name} with template {bound.template.name!r}{learned}: property {number} of the "
        f"mask does not hold ({_NAMES[number - 1]})"
    )


def _fail(bound: BoundEncoder, number: int, encoded: Encoded, at: int) -> NoReturn:
    around = bound.encoder.decode(encoded.input_ids[max(at - 6, 0) : at + 6])
    raise SettingsError(f"{_failed(bound, number)}, at token {at}: {around!r}. Choose another template.")
