"""`--conv_template tokenizer`: the tokenizer's own chat template, with exact spans.

A Jinja template is a program, so its spans are found by running it: with the dialogue, with marks around every text of
it (marks.py), and for the prompt of each answer as at inference. What the model has to generate is what follows that
prompt where the answer is the last turn, up to and including its stop:

    marked    <|im_start|>user\\n[0:Hi]<|im_end|>\\n<|im_start|>assistant\\n[1:Yo]<|im_end|>\\n
    real      <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nYo<|im_end|>\\n
    prompt    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    learned                                                          Yo<|im_end|>

Each answer is an example of its own, unless the prompt and answer are the beginning of the example of a later answer:
then they share it, and with most templates one example holds all answers of a dialogue.

    jinja_environment.py   the sandboxed environment
    messages.py            a dialogue as the messages that a template reads
    marks.py               where the texts of a dialogue are in what was rendered
    learn.py, stops.py     what a template does, by trying
    generation.py          what the model has to generate for one answer
    answers.py             which answers share an example

If an answer has no exact span, an error names the row, the turn and the reason.
"""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from fastchat.conversation import Dialogue, RefusedByTemplate, Rendered, Segment
from fastchat.data.encoding.answers import Answer, Answers
from fastchat.data.encoding.generation import Traits
from fastchat.data.encoding.jinja_environment import compile_template, failures, variables
from fastchat.data.encoding.learn import WEATHER, Thinking, Try, learn_form, learn_reasoning, learn_thinking, plain
from fastchat.data.encoding.marks import Marked, Marks, Text
from fastchat.data.encoding.messages import MessageForm, to_messages, to_tools
from fastchat.data.encoding.probes import HARMLESS
from fastchat.data.encoding.raw_tokenizer import RawTokenizer
from fastchat.data.encoding.refused import Rejected, no_span
from fastchat.errors import DataError

__all__ = ["RefusedByTemplate", "TokenizerTemplate", "compile_template", "failures", "to_messages"]
_MOST_TRAITS = 64
_KINDS = {"reasoning": "reasoning", "name": "call", "call": "call", "setting": "tools"}  # of a text -> of its segment


class TokenizerTemplate:
    """A tokenizer's own chat template, with the interface of `Template`."""

    name = "tokenizer"
    only_last = False

    def __init__(self, source: str, raw: RawTokenizer):
        self.source = source
        added = [t for t in raw.spec["added_tokens"] if t["content"].replace("▁", " ").strip()]
        self.special = frozenset(t["content"] for t in added if t["special"])
        self._added = sorted((t["content"] for t in added), key=len, reverse=True)
        self.controls = re.compile("|".join(map(re.escape, self._added))) if self._added else None
        self.bos = raw.bos_token or ""
        self._names = {"bos_token": self.bos, "eos_token": raw.eos_token or ""}
        self._compiled = compile_template(source)
        self._traits: dict[str, Traits] = {}
        self.where = raw.name

    # -- what the template does

    @cached_property
    def _learned(self) -> tuple[MessageForm, bool, Thinking]:
        form, calls = learn_form(self._attempt({}))
        attempts = [self._attempt(arguments) for arguments in ({}, *self.switches)]
        known = "\n".join((self.source, *self._added))
        tried = (learn_reasoning(attempt, form, calls, known) for attempt in attempts)
        form = next((found for found in tried if found.reasoning or found.call_reasoning), form)
        thinking = learn_thinking(attempts, form, self.source)
        if thinking.closing:
            form = replace(form, opening=thinking.opening, closing=thinking.closing)
        return form, calls, thinking

    @property
    def form(self) -> MessageForm:
        """The form in which the template reads its messages."""
        return self._learned[0]

    @property
    def thinking(self) -> Thinking:
        """How the template writes reasoning."""
        return self._learned[2]

    @property
    def shows_calls(self) -> bool:
        """Whether tools, and tool calls that are objects and not text, can be rendered."""
        return self._learned[1]

    def reads_argument(self, name: str) -> bool:
        """Whether the template reads an argument of this name."""
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the schemas of tools are shown."""
        made = self._attempt({})(replace(plain(), tools=(WEATHER,)), self.form, False)
        return made is not None and WEATHER["function"]["name"] in made

    @property
    def shows_reasoning(self) -> bool:
        """Whether reasoning in a field of its own is part of a rendered answer."""
        return bool(self.thinking.closing)

    @property
    def reasoning_key(self) -> str:
        """The key under which the template reads the reasoning before an answer; "" if it does not read any."""
        return self.form.reasoning

    @cached_property
    def switches(self) -> tuple[dict[str, Any], ...]:
        """Template arguments that may turn reasoning on, of those that the template reads."""
        names = sorted(name for name in variables(self.source) if re.search("think|reason", name))
        return tuple({name: value} for value in (True, False) for name in names)

    def traits(self, arguments: dict[str, Any]) -> Traits:
        """What the template does under these arguments."""
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._traits:
            if len(self._traits) >= _MOST_TRAITS:
                self._traits.clear()
            self._traits[key] = Traits.learn(self, self._attempt(arguments), arguments)
        return self._traits[key]

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer: a plain one, then one with tool calls."""
        return tuple(dict.fromkeys(ending.stop for ending in self.traits({}).endings.values()))

    @property
    def stop(self) -> str:
        """The string that ends a plain answer; "" if the template renders none of the simplest dialogues."""
        return next(iter(self.stops), "")

    @cached_property
    def ending(self) -> str:
        """The text after the stop of the last answer, stripped of white space. Some templates open the next answer
        even if they are not asked to."""
        plain = self.traits({}).endings.get("plain")
        return plain.cut.strip() if plain else ""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ()

    @cached_property
    def probes(self) -> tuple[Dialogue, ...]:
        """The harmless dialogues that this template accepts (many reject a system message or a tool)."""
        return tuple(d for d in HARMLESS if self._accepts(d))

    def literals(self) -> tuple[str, ...]:
        """The texts in which control strings are searched."""
        return (self.source, *sorted(self.special))

    def normalise(self, text: str) -> str:
        """A message for comparison, without white space around it: templates may trim it."""
        return text.strip()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, for the training record."""
        return {"name": self.name, "chat_template": self.source}

    # -- rendering

    def render(self, dialogue: Dialogue, add_generation_prompt: bool = False) -> Rendered:
        """Apply the template and find the spans. Of several `renderings`, this is the last.

        Raises:
            RefusedByTemplate: the template rejects the dialogue, or gives no exact span for one of its answers; the
                message names the row and the reason.
        """
        if not add_generation_prompt:
            return self.renderings(dialogue)[-1]
        return _rendered(dialogue, self.marked(dialogue, True), [])

    def renderings(self, dialogue: Dialogue) -> list[Rendered]:
        """The dialogue as the examples to train on, like `Template.renderings`.

        Raises: RefusedByTemplate, see `render`.
        """
        try:
            examples = Answers(self, dialogue).examples()
        except Rejected as rejected:
            raise rejected.at(self._first_rejected(dialogue), self._needs_tools(dialogue)) from rejected
        return [
            replace(_rendered(one.dialogue, one.marked, one.answers), dialogue=one.dialogue, notes=tuple(one.notes))
            for one in examples
        ]

    def _first_rejected(self, dialogue: Dialogue) -> int | None:
        """The turn with which a dialogue is rejected; None if it is rejected whatever its turns are."""
        for turn in range(len(dialogue.turns)):
            try:
                self.text(replace(dialogue, turns=dialogue.turns[: turn + 1]), dialogue.turns[turn].role != "assistant")
            except RefusedByTemplate:
                return turn if turn else None
        return None

    def _needs_tools(self, dialogue: Dialogue) -> bool:
        """Whether a dialogue is rejected only because it has no tools."""
        try:
            self.text(replace(dialogue, tools=(WEATHER,)), False)
        except RefusedByTemplate:
            return False
        return not dialogue.tools

    def arguments(self, dialogue: Dialogue, marks: Marks | None = None) -> dict[str, Any]:
        """The arguments of the chat template for a dialogue: its messages, its tools, its template arguments."""
        more = dialogue.template_arguments
        if marks is not None and more:
            more = marks.settings(more)
        messages = to_messages(dialogue, self.form, marks)
        return {**more, "messages": messages, "tools": to_tools(dialogue, marks), "documents": None}

    def text(self, dialogue: Dialogue, add_generation_prompt: bool) -> str:
        """What the template writes. Raises RefusedByTemplate."""
        return self._run(self.arguments(dialogue), add_generation_prompt, dialogue)

    def marked(self, dialogue: Dialogue, add_generation_prompt: bool) -> Marked:
        """The same, and where the texts of the dialogue are in it. Raises RefusedByTemplate."""
        real = self.text(dialogue, add_generation_prompt)
        why = ""
        for calls in (True, False):
            marks = Marks(dialogue, self.controls, calls)
            try:
                made = marks.read(self._run(self.arguments(dialogue, marks), add_generation_prompt, dialogue))
            except RefusedByTemplate:
                made = None
            if made is not None and made.text == real:
                return made
            why = "the template changes a message, so it cannot be located"
        raise no_span(dialogue, _changed(dialogue, real), why)

    def _run(self, arguments: dict[str, Any], add_generation_prompt: bool, dialogue: Dialogue) -> str:
        try:
            return self._compiled.render(**{**self._names, **arguments, "add_generation_prompt": add_generation_prompt})
        except failures() as error:
            raise Rejected(dialogue, str(error)) from error

    def _attempt(self, arguments: Mapping[str, Any]) -> Try:
        def attempt(dialogue: Dialogue, form: MessageForm, add_generation_prompt: bool) -> str | None:
            names = {"messages": to_messages(dialogue, form), "tools": to_tools(dialogue), "documents": None}
            try:
                return self._run({**arguments, **names}, add_generation_prompt, dialogue)
            except RefusedByTemplate:
                return None

        return attempt

    def _accepts(self, dialogue: Dialogue) -> bool:
        try:
            self.renderings(dialogue)
        except DataError:
            return False
        return True


def _changed(dialogue: Dialogue, real: str) -> int:
    """The first turn whose text is not in what was rendered, for messages; 0 if there is none."""
    return next((k for k, turn in enumerate(dialogue.turns) if turn.text.strip() not in real), 0)


def _rendered(dialogue: Dialogue, marked: Marked, answers: list[Answer]) -> Rendered:
    """Segments from where the texts are, and from the spans of the answers, which are ascending."""
    pieces, at = [], 0
    for found in marked.found:
        pieces += [(at, found.start, None), (found.start, found.end, found.text)]
        at = found.end
    pieces.append((at, len(marked.text), None))
    edges = [edge for span in answers for edge in (span.begin, span.end)]
    segments, spans = [], deque(answers)
    for start, end, text in pieces:
        inside = edges[bisect_right(edges, start) : bisect_left(edges, end)]
        for left, right in itertools.pairwise([start, *inside, end]):
            while spans and spans[0].end <= left:
                spans.popleft()
            span = spans[0] if spans and spans[0].begin <= left else None
            if left < right:
                segments.append(_segment(dialogue, marked.text[left:right], text, span))
    return Rendered(tuple(segments))


def _segment(dialogue: Dialogue, said: str, text: Text | None, span: Answer | None) -> Segment:
    turn = span.turn if span else text.turn if text else -1
    learned = span is not None and dialogue.turns[turn].train
    out = not learned if span else text is not None and not _is_trained(dialogue, text.turn)
    if text is None:
        return Segment(said, "template", learned, turn, excluded=out)
    plain, kind = text.kind in ("name", "call", "setting"), _KINDS.get(text.kind, "")
    return Segment(said, text.role, learned, turn, excluded=out, plain=plain, kind=kind)


def _is_trained(dialogue: Dialogue, turn: int) -> bool:
    """Whether a message may be supervised; the system message is turn -1. Answers are handled as whole spans."""
    if turn < 0:
        return dialogue.system_train
    return dialogue.turns[turn].role == "assistant" or dialogue.turns[turn].train
