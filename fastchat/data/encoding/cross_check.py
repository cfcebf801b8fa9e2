"""A cross-check of the labels by an independent second method.

The labels come from the renderer's spans and the token offsets. Here they are derived again in the way other software
uses the model: the saved Jinja chat template renders the prompt of each answer, the tokenizer encodes that text as a
whole, and the supervised ids must begin where those ids end; decoded, they must be the answer and its stop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastchat.conversation import Dialogue, Turn
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import IGNORED
from fastchat.data.encoding.plain_text import AT_ONCE, text_of
from fastchat.data.encoding.prefix import TORN, leaves_prompt
from fastchat.data.encoding.renderings import answers_of, renderings_of
from fastchat.data.encoding.saved_template import MOST_COMPARED, chat_template, jinja_arguments
from fastchat.data.encoding.supervision import ALL, LAST
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate, compile_template
from fastchat.errors import DataError, counted

T = TypeVar("T")


@dataclass
class Checked:
    """What a cross-check covered.

    Attributes:
        records, turns: how many were derived again and agreed.
        skipped: dialogues with a special-token string in a message: encoding them as a whole makes a control token of
            it, which training avoids. (Also dialogues of more than MOST_COMPARED characters.)
        unlocated: under "all", dialogues that are several examples, or that exclude a prompt: no prompt of inference
            says where the text begins that is supervised. Of these only the labels themselves are checked.
        torn: turns whose prompt, encoded alone, ends inside a token of the dialogue.
    """

    records: int = 0
    turns: int = 0
    skipped: int = 0
    unlocated: int = 0
    torn: int = 0

    @property
    def line(self) -> str:
        """One line for the log."""
        more = f", {self.skipped} skipped: special-token strings, or too long" if self.skipped else ""
        if self.unlocated:
            more += f", {self.unlocated} only in part: several examples, or excluded prompts, under --train_on all"
        more += f"; {self.torn} prompts end inside a token of the dialogue" if self.torn else ""
        agree = f"{counted(self.turns, 'answer')} in {counted(self.records, 'row')} agree"
        return f"labels derived a second time: {agree}{more}"


class LabelCrossCheck:
    """Derives labels again, for one tokenizer and one template."""

    def __init__(self, chat_encoder: ChatEncoder):
        self.chat_encoder = chat_encoder
        encoder = chat_encoder.encoder
        names = {"bos_token": encoder.bos, "eos_token": encoder.eos}
        self._names = {key: control.content if control else "" for key, control in names.items()}
        self._template = compile_template(chat_template(chat_encoder))
        self._own = isinstance(chat_encoder.template, TokenizerTemplate)
        self._bos = encoder.bos.id if encoder.bos and encoder.bos != encoder.eos else None
        # A tokenizer's own template also has tokens that the model writes in its answers (<think>).
        known = [] if self._own else [c.content for c in chat_encoder.controls.values() if c]
        special = [c for c, token in encoder.added.items() if token["special"]] + known
        self._controls = [c for c in encoder.added if c.replace("▁", " ").strip()] + known
        self._never_answered = special
        # Whether the template writes anything between a question and its answer.
        table = None if isinstance(chat_encoder.template, TokenizerTemplate) else chat_encoder.template
        self._separates = table is None or bool(table.assistant.before.strip())
        self._ends = [*special, *chat_encoder.template.stop_strings]

    def check(self, samples: Iterable[tuple[Any, ...]]) -> Checked:
        """Check (dialogue, input_ids, labels) triples, the ids [T] and labels [T] as they are trained on; of a dialogue
        that is several examples (dialogue, input_ids, labels, number of the example).

        Raises:
            DataError: a label disagrees; the message names the row and shows the tokens at that position.
        """
        checked = Checked()
        for dialogue, input_ids, labels, *part in samples:
            if dialogue.num_characters > MOST_COMPARED or self._has_special_token_strings(dialogue):
                checked.skipped += 1
                continue
            sample = _Sample(self.chat_encoder, dialogue, list(input_ids), list(labels))
            self._check_labels(sample)
            if dialogue.plain:
                self._check_text(sample, first=not any(part))
            elif not self._choose(sample, *part):
                checked.unlocated += 1
                continue
            else:
                self._check_one(sample, checked)
            checked.records += 1
        return checked

    def _choose(self, sample: _Sample, part: int = 0) -> bool:
        """Set the answers of a sample, and the dialogue that it shows; False if what it excludes cannot be located.

        Of several examples each must have answers of its own, and together they must have all.
        """
        rendered, dialogue = renderings_of(sample.dialogue, self.chat_encoder), sample.dialogue
        if self.chat_encoder.train_on == ALL:
            prompts = [turn.train for turn in dialogue.turns if turn.role != "assistant"] + [dialogue.system_train]
            if not all(prompts) or len(rendered) > 1:
                return False
        sample.turns = self._turns(dialogue)
        if len(rendered) > 1:
            shares = [answers_of(one) for one in rendered]
            if sorted(turn for share in shares for turn in share) != sample.turns:
                raise sample.disagreement(0, f"the examples have the answers {shares}, not {sample.turns} once each")
            sample.turns = shares[part]
        sample.shown = rendered[part].dialogue or dialogue
        return True

    def _has_special_token_strings(self, dialogue: Dialogue) -> bool:
        texts = [(turn.text, turn.role == "assistant") for turn in dialogue.turns] + [(dialogue.system or "", False)]
        texts += [(turn.reasoning or "", True) for turn in dialogue.turns]
        texts += [(str(call), False) for turn in dialogue.turns for call in turn.calls]
        texts += [(str(tool), False) for tool in dialogue.tools]
        return any(c in text for text, said in texts for c in (self._never_answered if said else self._controls))

    def _check_labels(self, sample: _Sample) -> None:
        for i, (token, label) in enumerate(zip(sample.ids, sample.labels, strict=True)):
            if label not in (IGNORED, token):
                raise sample.disagreement(i, "a label is not its token's own id")
            if label != IGNORED and token == self._bos:
                raise sample.disagreement(i, "BOS is learned")

    def _check_text(self, sample: _Sample, first: bool) -> None:
        """A piece of a plain text: consecutive tokens of the text encoded as a whole, all supervised but the lead."""
        encoder, text = self.chat_encoder.encoder, text_of(sample.dialogue)
        lead = [encoder.bos.id] if encoder.adds_bos and encoder.bos else []
        whole = [*self._ids(text), *([encoder.eos.id] if encoder.eos else [])]
        own, num_lead = sample.ids[len(lead) :], len(lead) + (not first)
        if sample.ids[: len(lead)] != lead or any(label != IGNORED for label in sample.labels[:num_lead]):
            raise sample.disagreement(0, "the piece of a text does not begin with what is before it, not learned")
        if IGNORED in sample.labels[num_lead:]:
            raise sample.disagreement(sample.labels.index(IGNORED, num_lead), "a token of a text is not learned")
        starts = [0] if first else range(len(whole) - len(own) + 1)
        if len(text) <= AT_ONCE and not any(whole[start : start + len(own)] == own for start in starts):
            raise sample.disagreement(len(lead), "the text encoded as a whole does not have these tokens")

    def _check_one(self, sample: _Sample, checked: Checked) -> None:
        """The answers must be exactly the supervised runs; under "all", excluded answers the unsupervised runs."""
        inverted = self.chat_encoder.train_on == ALL
        marked = [(label == IGNORED) == inverted and token != self._bos for token, label in sample.pairs]
        claimed = 0
        for turn in sample.turns:
            prompt = self._render(sample.shown.before(turn), True)
            prompt_ids = self._ids(prompt)
            if len(prompt_ids) >= len(sample.ids):
                break  # cut off
            begin = self._begin(sample, marked, prompt_ids, checked)
            end = next((i for i in range(begin, len(marked)) if not marked[i]), len(marked))
            text = self._render(sample.shown.before(turn + 1), False)
            self._compare_answer(sample, (begin, end), turn, prompt, text)
            claimed += end - begin
            checked.turns += 1
        rest = [i for i, mark in enumerate(marked) if mark]
        if claimed != len(rest):
            kind = "not learned" if inverted else "learned"
            reason = f"{len(rest)} tokens are {kind} but the answers account for {claimed}"
            raise sample.disagreement(rest[-1] if rest else 0, reason)

    def _compare_answer(self, sample: _Sample, span: tuple[int, int], turn: int, prompt: str, text: str) -> None:
        """The ids of a span must be the answer of this turn and its stop. `text`: of the dialogue with the answer."""
        said = sample.shown.turns[turn]
        if self._own:
            rest = text.removeprefix(prompt)
            # The template may never show the answer as it is generated (the prompt ends with <think>, say).
            if not text.startswith(prompt) or _bare(said.reasoning or "") not in _bare(rest):
                self._compare_parts(sample, span, said)
            else:
                self._compare_end(sample, span, prompt, self._generated(rest, sample.ids[span[0] : span[1]]))
            return
        if not text.startswith(prompt):
            raise sample.disagreement(span[0], "the dialogue does not start with the inference prompt")
        if said.calls:
            stop = max((text.rfind(end) + len(end) for end in self._ends if end in text[len(prompt) :]), default=0)
        else:
            stop = self._stop(text, len(prompt), said.text)
        self._compare_end(sample, span, prompt, text[len(prompt) : stop or len(text.rstrip())])

    def _generated(self, rest: str, ids: Sequence[int]) -> str:
        """What is generated of the text after a prompt: up to the stop, which the template may not write after the last
        answer. Of several stops, the one that the ids end with."""
        template = self.chat_encoder.template
        stops = template.stops if isinstance(template, TokenizerTemplate) else (template.stop,)
        ends = [rest[: match.end()] for stop in stops for match in re.finditer(re.escape(stop), rest)]
        ends += [rest.rstrip() + stop for stop in stops if stop not in rest] or [rest.rstrip()]
        found = self._text(ids)
        return next((end for end in ends if _bare(end) == found), ends[0])

    def _compare_parts(self, sample: _Sample, span: tuple[int, int], said: Turn) -> None:
        """The ids of a span must decode to the reasoning, text and calls of an answer, in this order, and its stop."""
        begin, end = span
        found, at = self._text(sample.ids[begin:end]), 0
        parts = [said.reasoning or "", *re.split("</?think>", said.text), *(call.name for call in said.calls)]
        for part in map(_bare, parts):
            place = found.find(part, at)
            if place < 0 and end < len(sample.ids):
                reason = f"the learned tokens decode to {found[:60]!r}, without {part[:60]!r}"
                raise sample.disagreement(begin, reason)
            at = max(place, at)
        if end < len(sample.ids) and not any(stop and found.endswith(_bare(stop)) for stop in self._ends):
            raise sample.disagreement(end, "the learned tokens do not end with a stop")

    def _turns(self, dialogue: Dialogue) -> list[int]:
        """The answers whose tokens are to be located: the supervised ones, or under "all" the excluded ones."""
        answers = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
        if self.chat_encoder.train_on == ALL:
            return [k for k in answers if not dialogue.turns[k].train and not dialogue.turns[k].is_empty]
        trained = [k for k in answers if dialogue.turns[k].train]
        return trained[-1:] if self.chat_encoder.train_on == LAST else trained

    def _begin(self, sample: _Sample, marked: list[bool], prompt_ids: list[int], checked: Checked) -> int:
        """Where the ids of the answer after a prompt begin."""
        size, ids = len(prompt_ids), sample.ids
        torn, at = leaves_prompt(ids, prompt_ids)
        if at is not None:
            raise sample.disagreement(at, "the inference prompt has other ids")
        checked.torn += torn
        near = range(max(size - TORN, 0), min(size + 1, len(ids))) if torn else range(size, size + 1)
        begin = next((i for i in near if marked[i]), None)
        if begin is None or (not torn and size and marked[size - 1]):
            raise sample.disagreement(size, "the learned tokens do not begin after the prompt")
        return begin

    def _stop(self, text: str, start: int, answer: str) -> int:
        """Where the model's output ends in `text`: after the first string after the answer that can end a turn."""
        shown = (
            answer,
            answer.strip(),
            self.chat_encoder.template.normalise(answer),
            answer.split("</think>")[-1].strip(),
        )
        at = next((place + len(said) for said in shown if (place := text.find(said, start)) >= 0), start)
        ends = [place + len(end) for end in self._ends if end and (place := text.find(end, at)) >= 0]
        return min(ends, default=len(text.rstrip()))

    def _compare_end(self, sample: _Sample, span: tuple[int, int], prompt: str, rest: str) -> None:
        """The ids of a span must be those of `rest`, the answer and its stop, up to a cut, and decode to it."""
        begin, end = span
        wanted = self._ids(prompt + rest)
        aligned = sample.ids[: len(wanted)] == wanted[: len(sample.ids)]
        if aligned and end != min(len(wanted), len(sample.ids)):
            raise sample.disagreement(end, "the learned tokens do not end with the answer's stop")
        if not (self._says(sample, span, rest) or self._has_unknown(sample.ids[begin:end])):
            found = self._text(sample.ids[begin:end])
            reason = f"the learned tokens decode to {found[:60]!r}, but the answer is {_bare(rest)[:60]!r}"
            raise sample.disagreement(begin, reason)

    def _says(self, sample: _Sample, span: tuple[int, int], rest: str) -> bool:
        """Whether the tokens of a span decode to `rest`: exactly or, if a token spans a boundary, with no token more
        than needed; if that token also has text of a message (after a prompt that ends with one), without its part.
        """
        (begin, end), ids = span, sample.ids
        found, whole = self._text(ids[begin:end]), _bare(rest)
        if end == len(ids):
            return whole.startswith(found) or found[TORN:] in whole
        if whole in found:
            last_needed = whole not in self._text(ids[begin : end - 1])
            first_needed = rest[:1].isspace() or whole not in self._text(ids[begin + 1 : end])
            return found == whole or (first_needed and last_needed)
        return not self._separates and begin > 0 and whole.endswith(found) and whole in self._text(ids[begin - 1 : end])

    def _text(self, ids: Sequence[int]) -> str:
        return _bare(self.chat_encoder.encoder.decode(ids))

    def _has_unknown(self, ids: Sequence[int]) -> bool:
        encoder = self.chat_encoder.encoder
        return encoder.unknown is not None and encoder.vocabulary.get(encoder.unknown) in ids

    def _ids(self, text: str) -> list[int]:
        return self.chat_encoder.encoder.whole.encode(text, add_special_tokens=False).ids

    def _render(self, dialogue: Dialogue, add_generation_prompt: bool) -> str:
        arguments = jinja_arguments(dialogue, self.chat_encoder.template)
        return self._template.render(**arguments, add_generation_prompt=add_generation_prompt, **self._names)


@dataclass
class _Sample:
    """One example to check; `disagreement` makes the error that shows the tokens around a position.

    `turns`: the answers to locate in it. `shown`: the dialogue that it shows, `dialogue` up to its last answer.
    """

    chat_encoder: ChatEncoder
    dialogue: Dialogue
    ids: list[int]
    labels: list[int]
    turns: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shown = self.dialogue

    @property
    def pairs(self) -> Iterable[tuple[int, int]]:
        return zip(self.ids, self.labels, strict=True)

    def disagreement(self, at: int, reason: str) -> DataError:
        window = range(max(at - 6, 0), min(at + 6, len(self.ids)))
        name: Any = self.chat_encoder.encoder.whole.id_to_token
        shown = " ".join(f"[{name(self.ids[i])}]" if self.labels[i] != IGNORED else name(self.ids[i]) for i in window)
        return DataError(
            f"{self.dialogue.where}: two ways of deriving the learned tokens disagree at token {at}: {reason}. "
            f"Around it, learned tokens in brackets: {shown}. Nothing was trained; please report this with the row."
        )


def _bare(text: str) -> str:
    """A text without white space and in one Unicode form: tokenizers preserve neither exactly."""
    return "".join(unicodedata.normalize("NFKC", text.replace("▁", " ")).split())


def spread(values: Sequence[T], most: int) -> list[T]:
    """Up to `most` of them, spread evenly."""
    return list(values[:: max(len(values) // most, 1)][:most])
