"""A second opinion on the labels, by a method that shares nothing with the first.

The labels come from the renderer's spans and the token offsets. Here they are derived again from the outside, as other
software sees the model: the saved Jinja chat template renders the prompt of each answer, the tokenizer encodes that
text in one go, and where those ids end the supervised ids must begin; decoded, they must be the answer and its stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastchat.conversation import Dialogue
from fastchat.data.binding import BoundEncoder
from fastchat.data.loading import Record
from fastchat.data.saved_template import chat_template
from fastchat.data.store import TokenStore
from fastchat.data.tokenization import IGNORED
from fastchat.data.tokenizer_template import compile_template, to_messages
from fastchat.errors import DataError

# A token that holds characters of a prompt and of an answer moves their border by no more than this.
_TORN = 3


@dataclass
class Checked:
    """What a second opinion covered.

    Attributes:
        records, turns: how many were derived again and agreed.
        skipped: records with a control look-alike in a message: encoding them in one go makes a control token of it,
            which is exactly what training does not do.
        torn: turns whose first token also holds characters of the prompt.
    """

    records: int = 0
    turns: int = 0
    skipped: int = 0
    torn: int = 0

    @property
    def line(self) -> str:
        """One line for the log."""
        more = f", {self.skipped} with control look-alikes left out" if self.skipped else ""
        return f"labels derived a second time: {self.turns} answers in {self.records} records agree{more}"


class SecondOpinion:
    """Derives labels again, for one tokenizer and one template."""

    def __init__(self, bound: BoundEncoder):
        self.bound = bound
        encoder = bound.encoder
        names = {"bos_token": encoder.bos, "eos_token": encoder.eos}
        self._names = {key: control.content if control else "" for key, control in names.items()}
        self._template = compile_template(chat_template(bound))
        self._controls = [c for c in encoder.added if c.replace("▁", " ").strip()]
        self._controls += [c.content for c in bound.controls.values() if c]

    def check(self, samples: Iterable[tuple[Dialogue, Sequence[int], Sequence[int]]]) -> Checked:
        """Check (dialogue, input_ids, labels) triples, the ids [T] and labels [T] as they are trained on.

        Raises:
            DataError: a label that disagrees; the message names the record and prints the tokens around the place.
        """
        checked = Checked()
        for dialogue, input_ids, labels in samples:
            texts = [turn.text for turn in dialogue.turns] + [dialogue.system or ""]
            if any(control in text for text in texts for control in self._controls):
                checked.skipped += 1
                continue
            self._check_one(dialogue, list(input_ids), list(labels), checked)
            checked.records += 1
        return checked

    def _check_one(self, dialogue: Dialogue, ids: list[int], labels: list[int], checked: Checked) -> None:
        wrong = [i for i, (a, b) in enumerate(zip(ids, labels, strict=True)) if b not in (IGNORED, a)]
        if wrong:
            raise self._disagreement(dialogue, ids, labels, wrong[0], "a label is not its token's own id")
        claimed = 0
        messages = to_messages(dialogue)
        offset = len(messages) - len(dialogue.turns)
        answers = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
        for turn in answers[-1:] if self.bound.template.only_last else answers:
            if not dialogue.turns[turn].train:
                continue
            prompt = self._render(messages[: turn + offset], True)
            prompt_ids = self.bound.encoder.whole.encode(prompt, add_special_tokens=False).ids
            if len(prompt_ids) >= len(ids):
                break  # cut off
            begin = self._begin(dialogue, ids, labels, prompt_ids, checked)
            end = next((i for i in range(begin, len(ids)) if labels[i] == IGNORED), len(ids))
            rest = self._render(messages[: turn + offset + 1], False)[len(prompt) :]
            self._compare_text(dialogue, ids, labels, (begin, end), rest, dialogue.turns[turn].text)
            claimed += end - begin
            checked.turns += 1
        supervised = [i for i, label in enumerate(labels) if label != IGNORED]
        if claimed != len(supervised):
            reason = f"{len(supervised)} tokens are supervised and the answers account for {claimed}"
            raise self._disagreement(dialogue, ids, labels, supervised[-1] if supervised else 0, reason)

    def _begin(
        self, dialogue: Dialogue, ids: list[int], labels: list[int], prompt_ids: list[int], checked: Checked
    ) -> int:
        """Where the supervised ids of the answer behind a prompt begin."""
        size = len(prompt_ids)
        torn = ids[:size] != prompt_ids
        if torn and ids[: max(size - _TORN, 0)] != prompt_ids[: max(size - _TORN, 0)]:
            at = next(i for i, (a, b) in enumerate(zip(ids, prompt_ids, strict=False)) if a != b)
            raise self._disagreement(dialogue, ids, labels, at, "the inference prompt has other ids")
        checked.torn += torn
        near = range(max(size - _TORN, 0), min(size + 1, len(ids))) if torn else range(size, size + 1)
        begin = next((i for i in near if labels[i] != IGNORED), None)
        if begin is None or (not torn and labels[size - 1] != IGNORED):
            raise self._disagreement(
                dialogue, ids, labels, size, "the supervised tokens do not begin behind the prompt"
            )
        return begin

    def _compare_text(
        self, dialogue: Dialogue, ids: list[int], labels: list[int], span: tuple[int, int], rest: str, answer: str
    ) -> None:
        """The supervised ids must decode to the beginning of what follows the prompt, with answer and stop in it."""
        begin, end = span
        found, whole = _bare(self.bound.encoder.decode(ids[begin:end])), _bare(rest)
        stop = self.bound.template.stop
        needed = _bare(self.bound.template.normalise(answer)) + _bare(self.bound.substitute(stop) if stop else "")
        cut = end == len(ids)
        said = whole.startswith(found) or found in whole[: len(found) + _TORN] or whole in found[: len(whole) + _TORN]
        torn = found[_TORN:] in whole
        if not (said or torn):
            raise self._disagreement(dialogue, ids, labels, begin, f"the supervised tokens say {found[:60]!r}")
        if not cut and needed not in found and needed[_TORN:] not in found:
            raise self._disagreement(dialogue, ids, labels, end - 1, "the answer or its stop is not supervised")

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._names)

    def _disagreement(self, dialogue: Dialogue, ids: list[int], labels: list[int], at: int, reason: str) -> DataError:
        window = range(max(at - 6, 0), min(at + 6, len(ids)))
        name: Any = self.bound.encoder.whole.id_to_token
        shown = " ".join(f"[{name(ids[i])}]" if labels[i] != IGNORED else f"{name(ids[i])}" for i in window)
        return DataError(
            f"{dialogue.where}: two ways of finding what is supervised disagree at token {at}: {reason}. Around it, "
            f"supervised tokens in brackets: {shown}. Nothing was trained; please report this with the record."
        )


def _bare(text: str) -> str:
    """A text without white space, which decoding does not keep exactly."""
    return "".join(text.replace("▁", " ").split())


def check_store(records: Sequence[Record], store: TokenStore, bound: BoundEncoder, most: int = 64) -> Checked:
    """Check up to `most` examples of a store, spread evenly over it. Raises DataError as `SecondOpinion.check` does."""
    step = max(len(store) // most, 1)
    examples = [store[i] for i in range(0, len(store), step)][:most]
    dialogues = [records[example["index"]].dialogue for example in examples]
    pairs = zip(dialogues, examples, strict=True)
    return SecondOpinion(bound).check(
        (dialogue, example["input_ids"].tolist(), example["labels"].tolist())
        for dialogue, example in pairs
        if dialogue is not None
    )
