"""Rendered dialogues -> token ids, with the mask of supervised tokens made at the same time.

Control strings of the template become ids; everything else is plain text for an encoder without added tokens, so that
no text of a user, a tool or a data file can become a control token. The text between two control tokens is encoded as
one piece (every tokenizer splits there anyway), so that `ASSISTANT:` + ` Hello` merge as at inference, and each token
gets its label from the segment it is in (for a token in two segments see supervision.py):

    segment   "... ASSISTANT:"   " "   "Hello."   "</s>"
    token                 ":"    "▁Hello"  "."     2
    label                -100     15043    29889    2

`ChatEncoder` combines one tokenizer with one template, verifies that its ids are those of the whole rendered text, and
raises an error if they are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from fastchat.conversation import Dialogue, Rendered, Segment, Template, suggest_templates
from fastchat.conversation.template import CONTROL_PATTERN
from fastchat.data.encoding.labels import Labelled, count, label
from fastchat.data.encoding.prefix import first_difference
from fastchat.data.encoding.probes import HARMLESS, probes_of
from fastchat.data.encoding.strings import strings
from fastchat.data.encoding.supervision import (
    ASSISTANT,
    SAID,
    TRAIN_ON,
    Encoded,
    Piece,
    PlainTokens,
    Tokens,
    learned_segments,
)
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate
from fastchat.errors import DataError, SettingsError, say

if TYPE_CHECKING:
    from fastchat.data.encoding.text_encoder import TextEncoder

# Templates write BOS and EOS as Llama does; with another tokenizer they mean that tokenizer's own.
BOS_ALIAS, EOS_ALIAS = "<s>", "</s>"
_MOST_LITERALS = 512  # texts whose control strings are remembered


@dataclass(frozen=True, slots=True)
class Control:
    """A token that a rendered dialogue contains as an id."""

    id: int
    content: str
    lstrip: bool = False  # removes white space before it, as its tokenizer does
    rstrip: bool = False  # removes white space after it


class ChatEncoder:
    """One tokenizer combined with one template.

    Attributes:
        controls: the template's control strings as tokens of this tokenizer; None for one that is omitted (`<s>` with a
            tokenizer without BOS).
        train_on: which ids are supervised: "assistant" (every trained answer), "last" (the last of them), "all" (see
            supervision.py).
        stop_ids: the ids that end a generation: the template's stop, if it is a token, and EOS.
    """

    def __init__(self, encoder: TextEncoder, template: Template | TokenizerTemplate, train_on: str = ASSISTANT):
        if train_on not in TRAIN_ON:
            raise SettingsError(f"--train_on {train_on}: must be one of {', '.join(TRAIN_ON)}.")
        self.encoder = encoder
        self.template = template
        self.train_on = train_on
        self._own = isinstance(template, TokenizerTemplate)
        # A tokenizer's own template writes BOS itself, so it is encoded without the BOS that the tokenizer would add.
        self._adds_bos = encoder.adds_bos and not self._own
        self.controls, missing = self._resolve()
        known = [c for c in self.controls if c]
        self._in_literals = strings(known)
        self._split_literal = lru_cache(_MOST_LITERALS)(self._split_literal_now)  # a template repeats its own text
        # Control strings of a table are never text of an answer; those of a Jinja template may be (<think>).
        reserved = set() if self._own else {c.content for c in self.controls.values() if c} | {BOS_ALIAS, EOS_ALIAS}
        spoken = [c for c, t in encoder.added.items() if not t["special"] and c not in reserved and _is_text(c)]
        self._in_answers = strings(spoken)
        self._answer_controls = {c: encoder.control(c) for c in spoken}
        self._forbidden = self._never_from_text()
        looks = [c for c, i in encoder.vocabulary.items() if i in self._forbidden]
        self._looks_like_control = strings(looks)
        self._looks_in_answers = strings([c for c in looks if c not in self._answer_controls])
        # If one token both begins and ends a sequence (GPT-2), it has to be supervised as the end.
        self._opens = encoder.bos if encoder.bos != encoder.eos else None
        self.stop_ids = self._stop_ids()
        if missing:
            self._warn(missing)
        if SAID[train_on]:
            say(SAID[train_on])
        if isinstance(template, TokenizerTemplate) and template.ending:
            say(f"the tokenizer's chat template writes {template.ending!r} after the last answer; it is not learned")
        self._prove()

    def described(self) -> dict[str, Any]:
        """What determines ids and labels, JSON-able; `TextEncoder.from_description` restores the same encoder from it.

        A digest of it is part of the token cache's key, and the tokenising processes receive it. So any further setting
        that changes an id or a label belongs here. `probes` are ids of simple dialogues: a template may write the date.
        """
        raw, own = self.encoder.raw, isinstance(self.template, TokenizerTemplate)
        probes = self.template.probes if isinstance(self.template, TokenizerTemplate) else HARMLESS
        return {
            "tokenizer": {"text": raw.text, "bos": raw.bos_token, "eos": raw.eos_token, "template": raw.chat_template},
            "template": None if own else self.template.to_dict(),
            "train_on": self.train_on,
            "probes": [self.encode(self.template.render(dialogue)).input_ids for dialogue in probes],
        }

    # -- the template's control strings on this tokenizer

    def _resolve(self) -> tuple[dict[str, Control | None], list[str]]:
        literals = "\n".join(self.template.literals())
        wanted = list(dict.fromkeys(CONTROL_PATTERN.findall(literals)))
        added = [c for c in self.encoder.added if (self._own or c in literals) and _is_text(c)]
        if self._own:
            return {c: self.encoder.control(c) for c in added}, []
        assert isinstance(self.template, Template)
        controls: dict[str, Control | None] = {}
        needed, missing = "\n".join(self.template.literals(tools=False)), []
        for content in dict.fromkeys(wanted + added + [EOS_ALIAS]):
            control = self._alias(content) if content in (BOS_ALIAS, EOS_ALIAS) else self.encoder.control(content)
            if control is not None or content == BOS_ALIAS:
                controls[content] = control
            elif content in needed:
                missing.append(content)
        if not self.template.stop and EOS_ALIAS not in controls:
            raise SettingsError(
                f"template {self.template.name!r} ends an answer with the model's EOS, and the tokenizer "
                f"{self.encoder.name} has none; choose a template with its own stop."
            )
        return controls, missing

    def _alias(self, content: str) -> Control | None:
        own = self.encoder.bos if content == BOS_ALIAS else self.encoder.eos
        if any(content in text for text in self.template.literals()):
            if own and own.content != content:
                say(f"template {self.template.name}: {content} means this tokenizer's {own.content}")
            elif own is None and content == BOS_ALIAS:
                say(f"template {self.template.name}: {content} is omitted, this tokenizer has no BOS")
        return own or (None if content == BOS_ALIAS else self.encoder.control(content))

    def _warn(self, missing: list[str]) -> None:
        fits = suggest_templates(set(self.encoder.vocabulary), self.encoder.raw.chat_template, self.encoder.name)
        fits = [name for name in fits if name != self.template.name][:4] or ["vicuna_v1.1 (no control tokens)"]
        say(
            f"warning: template {self.template.name} writes {', '.join(missing)}, not a single token on "
            f"{self.encoder.name or 'this tokenizer'}: encoded as plain text. Suitable templates: {', '.join(fits)}."
        )

    def _never_from_text(self) -> set[int]:
        """Ids that plain text must not become: special and control tokens, and added tokens other than white space.

        The unknown token is not among them: any text may be unknown.
        """
        encoder = self.encoder
        ids = {t["id"] for c, t in encoder.added.items() if c != encoder.unknown and _is_text(c)}
        ids |= {c.id for c in self.controls.values() if c}
        return ids | {c.id for c in (encoder.bos, encoder.eos) if c}

    def _stop_ids(self) -> tuple[int, ...]:
        if isinstance(self.template, TokenizerTemplate):
            found = [self.controls.get(stop) for stop in self.template.stops]
        else:
            written = CONTROL_PATTERN.findall(self.template.stop) + list(self.template.stop_strings)
            found = [self.controls.get(s) or self.encoder.control(s) for s in written if CONTROL_PATTERN.fullmatch(s)]
        return tuple(dict.fromkeys(c.id for c in [*found, self.encoder.eos] if c))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end a generation because they are not a single token here."""
        own = self.template.stops if isinstance(self.template, TokenizerTemplate) else (self.template.stop,)
        written = [*self.template.stop_strings, *(stop.strip() for stop in own)]
        return tuple(dict.fromkeys(s for s in written if s and not self.controls.get(s)))

    def substitute(self, literal: str) -> str:
        """A literal of the template for this tokenizer: `</s>` becomes its EOS, `<s>` its BOS or nothing."""
        return "".join(c.content if c else text for text, c in self._split_literal(literal))

    def special_token_strings(self, segments: Sequence[Segment]) -> int:
        """The number of special-token strings in messages, where they are plain text."""
        found = 0
        for segment in segments:
            if segment.role == "template":
                continue
            spoken = segment.role == "assistant" and not segment.plain
            pattern = self._looks_in_answers if spoken else self._looks_like_control
            if pattern is not None:
                found += sum(1 for _ in pattern.find(segment.text))
        return found

    # -- rendered dialogues -> ids

    def encode(self, rendered: Rendered) -> Encoded:
        """Encode one rendered dialogue. Raises DataError if a message cannot be kept plain text."""
        return self.encode_many([rendered])[0].encoded()

    def encode_many(self, rendered: Sequence[Rendered]) -> list[Labelled]:
        """Encode several at once, which is several times faster. Raises DataError as `encode` does."""
        pieces = [self._pieces(r.segments) for r in rendered]
        self._tokenise([piece for ps in pieces for piece in ps])
        placed, escaped = [], []
        for one, ps in zip(rendered, pieces, strict=True):
            kept, cuts = self._placed(ps)
            placed.append((one.segments, kept, learned_segments(one.segments, self.train_on)))
            escaped.append(cuts)
        found = label(placed, self._opens, self.encoder.fast.lengths)
        for one, made, cuts in zip(rendered, found, escaped, strict=True):
            made.special_token_strings, made.escaped = self.special_token_strings(one.segments), cuts
        return found

    def encode_text(self, text: str, position: str) -> tuple[list[int], int]:
        """The ids of a text that is in no dialogue, and the number of splits that kept it plain text.

        `position`: as in `TextEncoder.plain`. Raises DataError as `encode` does.
        """
        piece = Piece(parts=[(text, 0)], position=position)
        found, cuts = self._kept_plain(piece, self.encoder.fast.tokens([text], position)[0])
        return found.ids, cuts

    def count(self, rendered: Rendered) -> Counter[int]:
        """The number of tokens in each segment, by its index (-1: a BOS that the tokenizer adds), without labels.

        A token in several segments is counted where it starts. `count(r).total() == len(encode(r).input_ids)`.
        Raises DataError as `encode` does.
        """
        pieces = self._pieces(rendered.segments)
        self._tokenise(pieces)
        return count(self._placed(pieces)[0], len(rendered.segments), self.encoder.fast.lengths)

    def _tokenise(self, pieces: Sequence[Piece]) -> None:
        """Give every piece of text its tokens."""
        for position in ("first", "after"):
            group = [p for p in pieces if p.control is None and p.position == position]
            for piece, found in zip(group, self.encoder.fast.tokens([p.text for p in group], position), strict=True):
                piece.ids, piece.offsets, piece.added = found

    def _placed(self, pieces: list[Piece]) -> tuple[list[Piece], int]:
        """The pieces with their final tokens, and the number of splits that kept them plain text.

        BOS opens a sequence, is added where needed, and is never repeated.
        """
        opens, last, escaped = self._opens, None, 0
        if self._adds_bos and opens is not None and not (pieces and pieces[0].control == opens):
            pieces = [Piece(opens), *pieces]
        placed = []
        for piece in pieces:
            if piece.control is None:
                found, cuts = self._kept_plain(piece, Tokens(piece.ids, piece.offsets, piece.added))
                piece.ids, piece.offsets, piece.added = found
                escaped += cuts
                last = piece.ids[-1] if piece.ids else last
            elif piece.control == opens and last == piece.control.id:
                continue
            else:
                last = piece.control.id
            placed.append(piece)
        return placed, escaped

    def _pieces(self, segments: Sequence[Segment]) -> list[Piece]:
        pieces: list[Piece] = []
        swallow = False
        for index, segment in enumerate(segments):
            for text, control in self._split(segment):
                if control is not None:
                    if control.lstrip and pieces and pieces[-1].control is None:
                        _strip_end(pieces)
                    pieces.append(Piece(control, index))
                    swallow = control.rstrip
                    continue
                text = text.lstrip() if swallow else text
                if not text:
                    continue
                swallow = False
                if not pieces or pieces[-1].control is not None:
                    pieces.append(Piece(position="after" if pieces else "first"))
                pieces[-1].parts.append((text, index))
        return pieces

    def _split(self, segment: Segment) -> Sequence[tuple[str, Control | None]]:
        if segment.role == "template":
            return self._split_literal(segment.text)
        if segment.role == "assistant" and self._in_answers and not segment.plain:
            return self._in_answers.cut(segment.text, self._answer_controls)
        return ((segment.text, None),)

    def _split_literal_now(self, text: str) -> Sequence[tuple[str, Control | None]]:
        return self._in_literals.cut(text, self.controls) if self._in_literals else ((text, None),)

    def _kept_plain(self, piece: Piece, found: Tokens) -> tuple[Tokens, int]:
        """The tokens of a piece without control tokens, and the number of splits that this needed."""
        return (found, 0) if self._forbidden.isdisjoint(found.ids) else self._escape(piece)

    def _escape(self, piece: Piece) -> tuple[Tokens, int]:
        """Encode a text again with a split inside every substring that became a control token."""
        todo = [(piece.text, 0, piece.position)]
        done: PlainTokens = ([], [])
        cuts = 0
        while todo:
            text, start, position = todo.pop()
            ids, offsets = self.encoder.plain_tokens([text], position)[0]
            wrong = [span for token_id, span in zip(ids, offsets, strict=True) if token_id in self._forbidden]
            if not wrong:
                done[0].extend(ids)
                done[1].extend((s + start, e + start) for s, e in offsets)
                continue
            if any(e - s < 2 for s, e in wrong):
                raise DataError(
                    f"the tokenizer {self.encoder.name} turns the character {text[wrong[0][0]]!r} into a control "
                    "token; a message that contains it cannot be trained on safely."
                )
            cuts += len(wrong)
            edges = [0, *(s + 1 for s, _ in wrong), len(text)]
            parts = list(zip(edges, edges[1:], strict=False))
            todo += [(text[a:b], start + a, position if a == 0 else "inside") for a, b in reversed(parts)]
        return Tokens(*done), cuts

    # -- check

    def _prove(self) -> None:
        """Compare with the tokenizer's own ids of the whole rendered text, on texts without special-token strings."""
        vocabulary_only = [c.content for c in self.controls.values() if c and c.content not in self.encoder.added]
        self.encoder.whole.add_special_tokens([AddedToken(c, normalized=False, special=True) for c in vocabulary_only])
        for dialogue in probes_of(self.template):
            rendered = self.template.render(dialogue)
            ours, theirs = self.encode(rendered).input_ids, self.whole_ids(rendered)
            at = first_difference(ours, theirs)
            if at is not None:
                a, b = (self.encoder.decode(ids[at : at + 4]) for ids in (ours, theirs))
                raise SettingsError(
                    f"the tokenizer {self.encoder.name} with template {self.template.name!r}: encoding text and "
                    "control tokens separately gives other ids than encoding them together (first at position "
                    f"{at}: {a!r} instead of {b!r}), so the labels would not be reliable. Choose another template."
                )

    def whole_ids(self, rendered: Rendered) -> list[int]:
        """Ids of the rendered text, including its control strings, encoded as a whole by the tokenizer itself."""
        text = "".join(self.substitute(s.text) if s.role == "template" else s.text for s in rendered.segments)
        bos = self.encoder.bos
        has_bos = bos is not None and text.startswith(bos.content)
        add = self._adds_bos and not has_bos
        ids = self.encoder.whole.encode(text, add_special_tokens=False).ids
        if not add or bos is None:
            return ids
        with_special = self.encoder.whole.encode(text, add_special_tokens=True).ids
        return with_special[: 1 + len(ids)] if len(with_special) > len(ids) else with_special


def encode_prompt(dialogue: Dialogue, chat_encoder: ChatEncoder) -> list[int]:
    """The ids that inference sends for a dialogue whose next turn is the assistant's."""
    return chat_encoder.encode(chat_encoder.template.render(dialogue, add_generation_prompt=True)).input_ids


def _is_text(content: str) -> bool:
    """Whether an added token is more than white space."""
    return bool(content.replace("▁", " ").strip())


def _strip_end(pieces: list[Piece]) -> None:
    """Remove the white space at the end of the last text piece, and the piece if nothing else is left."""
    while parts := pieces[-1].parts:
        text, index = parts.pop()
        if text.rstrip():
            return parts.append((text.rstrip(), index))
    pieces.pop()
