"""A cross-check of the labels by an independent second method.

The labels come from the renderer's spans and the token offsets. Here they are derived again in the way other software
uses the model: the saved Jinja chat template renders the prompt of each answer, the tokenizer encodes that text as a
whole, and the supervised ids must begin where those ids end; decoded, they must be the answer and its stop.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastchat.conversation import Dialogue
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import IGNORED
from fastchat.data.encoding.prefix import TORN, leaves_prompt
from fastchat.data.encoding.saved_template import MOST_COMPARED, chat_template
from fastchat.data.encoding.supervision import ALL, LAST
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate, compile_template, to_messages
from fastchat.errors import DataError

T = TypeVar("T")


@dataclass
class Checked:
    """What a cross-check covered.

    Attributes:
        records, turns: how many were derived again and agreed.
        skipped: dialogues with a special-token string in a message: encoding them as a whole makes a control token of
            it, which training avoids. (Also dialogues of more than MOST_COMPARED characters; and, under "all", those
            with an excluded prompt, or an answer whose template renders earlier answers differently.)
        torn: turns whose prompt, encoded alone, ends inside a token of the dialogue.
    """

    records: int = 0
    turns: int = 0
    skipped: int = 0
    torn: int = 0

    @property
    def line(self) -> str:
        """One line for the log."""
        more = f", {self.skipped} skipped: special-token strings, or too long" if self.skipped else ""
        more += f"; {self.torn} prompts end inside a token of the dialogue" if self.torn else ""
        return f"labels derived a second time: {self.turns} answers in {self.records} rows agree{more}"


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

    def check(self, samples: Iterable[tuple[Dialogue, Sequence[int], Sequence[int]]]) -> Checked:
        """Check (dialogue, input_ids, labels) triples, the ids [T] and labels [T] as they are trained on.

        Raises:
            DataError: a label disagrees; the message names the row and shows the tokens at that position.
        """
        checked = Checked()
        for dialogue, input_ids, labels in samples:
            if (
                self._is_untold(dialogue)
                or dialogue.num_characters > MOST_COMPARED
                or self._has_special_token_strings(dialogue)
            ):
                checked.skipped += 1
                continue
            self._check_one(_Sample(self.chat_encoder, dialogue, list(input_ids), list(labels)), checked)
            checked.records += 1
        return checked

    def _is_untold(self, dialogue: Dialogue) -> bool:
        """Whether "all" excludes more than answers, which are the only exclusions that can be located."""
        prompts = [turn.train for turn in dialogue.turns if turn.role != "assistant"] + [dialogue.system_train]
        untold = not all(prompts) or (self.chat_encoder.template.only_last and self._turns(dialogue))
        return self.chat_encoder.train_on == ALL and bool(untold)

    def _has_special_token_strings(self, dialogue: Dialogue) -> bool:
        texts = [(turn.text, turn.role == "assistant") for turn in dialogue.turns] + [(dialogue.system or "", False)]
        texts += [(turn.reasoning or "", True) for turn in dialogue.turns]
        return any(c in text for text, said in texts for c in (self._never_answered if said else self._controls))

    def _check_one(self, sample: _Sample, checked: Checked) -> None:
        """The answers must be exactly the supervised runs; under "all", excluded answers the unsupervised runs."""
        for i, (token, label) in enumerate(zip(sample.ids, sample.labels, strict=True)):
            if label not in (IGNORED, token):
                raise sample.disagreement(i, "a label is not its token's own id")
            if label != IGNORED and token == self._bos:
                raise sample.disagreement(i, "BOS is supervised")
        inverted = self.chat_encoder.train_on == ALL
        marked = [(label == IGNORED) == inverted and token != self._bos for token, label in sample.pairs]
        messages = to_messages(sample.dialogue, self.chat_encoder.template.reasoning_key)
        first = len(messages) - len(sample.dialogue.turns)
        self._more = {"tools": list(sample.dialogue.tools)} if sample.dialogue.tools else {}
        whole = self._render(messages, False)
        claimed = 0
        for turn in self._turns(sample.dialogue):
            prompt = self._render(messages[: first + turn], True)
            prompt_ids = self._ids(prompt)
            if len(prompt_ids) >= len(sample.ids):
                break  # cut off
            begin = self._begin(sample, marked, prompt_ids, checked)
            end = next((i for i in range(begin, len(marked)) if not marked[i]), len(marked))
            text = whole if self._own else self._render(messages[: first + turn + 1], False)
            if not text.startswith(prompt):
                raise sample.disagreement(begin, "the dialogue does not start with the inference prompt")
            stop = self._stop(text, len(prompt), sample.dialogue.turns[turn].text)
            if sample.dialogue.turns[turn].calls:
                text = self._render(messages[: first + turn + 1], False)
                stop = max(text.rfind(end) + len(end) for end in self._ends if end in text[len(prompt) :])
            self._compare_end(sample, (begin, end), prompt, text[len(prompt) : stop])
            claimed += end - begin
            checked.turns += 1
        rest = [i for i, mark in enumerate(marked) if mark]
        if claimed != len(rest):
            kind = "unsupervised" if inverted else "supervised"
            reason = f"{len(rest)} tokens are {kind} but the answers account for {claimed}"
            raise sample.disagreement(rest[-1] if rest else 0, reason)

    def _turns(self, dialogue: Dialogue) -> list[int]:
        """The answers whose tokens are to be located: the supervised ones, or under "all" the excluded ones."""
        answers = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
        if self.chat_encoder.train_on == ALL:
            return [k for k in answers if not dialogue.turns[k].train and dialogue.turns[k].text.strip()]
        if not isinstance(self.chat_encoder.template, TokenizerTemplate):
            answers = [k for k in answers if k >= self.chat_encoder.template.learned_from(dialogue)]
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
            raise sample.disagreement(size, "the supervised tokens do not begin after the prompt")
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
            raise sample.disagreement(end, "the supervised tokens do not end with the answer's stop")
        if not (self._says(sample, span, rest) or self._has_unknown(sample.ids[begin:end])):
            found = self._text(sample.ids[begin:end])
            reason = f"the supervised tokens decode to {found[:60]!r}, but the answer is {_bare(rest)[:60]!r}"
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

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        arguments = {"messages": messages, "add_generation_prompt": add_generation_prompt, **self._more, **self._names}
        return self._template.render(**arguments)


@dataclass
class _Sample:
    """One example to check; `disagreement` makes the error that shows the tokens around a position."""

    chat_encoder: ChatEncoder
    dialogue: Dialogue
    ids: list[int]
    labels: list[int]

    @property
    def pairs(self) -> Iterable[tuple[int, int]]:
        return zip(self.ids, self.labels, strict=True)

    def disagreement(self, at: int, reason: str) -> DataError:
        window = range(max(at - 6, 0), min(at + 6, len(self.ids)))
        name: Any = self.chat_encoder.encoder.whole.id_to_token
        shown = " ".join(f"[{name(self.ids[i])}]" if self.labels[i] != IGNORED else name(self.ids[i]) for i in window)
        return DataError(
            f"{self.dialogue.where}: two ways of deriving the supervised tokens disagree at token {at}: {reason}. "
            f"Around it, supervised tokens in brackets: {shown}. Nothing was trained; please report this with the row."
        )


def _bare(text: str) -> str:
    """A text without white space and in one Unicode form: tokenizers preserve neither exactly."""
    return "".join(unicodedata.normalize("NFKC", text.replace("▁", " ")).split())


def spread(values: Sequence[T], most: int) -> list[T]:
    """Up to `most` of them, spread evenly."""
    return list(values[:: max(len(values) // most, 1)][:most])
