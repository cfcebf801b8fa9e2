"""`--conv_template tokenizer`: the tokenizer's own chat template, with exact spans.

A Jinja template is a program, so its spans are found by running it: once with the dialogue, and once with every message
replaced by a unique mark. The marked rendering shows which text is the template's and where each message is; with the
messages in place of the marks it must equal the real one (a template may trim them). The prompt of each answer is
rendered as at inference, and must be a prefix of the dialogue that ends where the answer begins:

    marked    <|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n{1}<|im_end|>\n
    real      <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n
    prompt    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n
    learned                                                          Yo<|im_end|>

If any of this does not hold, an error names the row and the property that failed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from fastchat.conversation import Dialogue, Rendered, Segment
from fastchat.data.encoding.probes import HARMLESS
from fastchat.data.encoding.raw_tokenizer import RawTokenizer
from fastchat.data.encoding.template_limits import check_operands, joined, try_out
from fastchat.data.rows.keys import REASONING_KEYS
from fastchat.errors import DataError, SettingsError

# Private-use characters, which templates do not use and texts hardly ever.
_MARK = re.compile("\ue000(\\d+)\ue001")
_THINKING = ("<think>", "</think>")


def to_messages(dialogue: Dialogue, reasoning_key: str = "") -> list[dict[str, str]]:
    """A dialogue as messages for a Jinja chat template; reasoning is under `reasoning_key`, if that is given."""
    messages = [] if dialogue.system is None else [{"role": "system", "content": dialogue.system}]
    for turn in dialogue.turns:
        messages.append({"role": turn.role, "content": turn.text})
        if reasoning_key and turn.reasoning is not None:
            messages[-1][reasoning_key] = turn.reasoning
    return messages


class RefusedByTemplate(DataError):
    """A dialogue that the chat template rejects, or renders in a way that gives no exact spans for its answers."""


class TokenizerTemplate:
    """A tokenizer's own chat template, with the interface of `Template`."""

    name = "tokenizer"
    only_last = False

    def __init__(self, source: str, raw: RawTokenizer):
        self.source = source
        self.controls = tuple(t["content"] for t in raw.spec["added_tokens"] if t["special"])
        self._names = {"bos_token": raw.bos_token or "", "eos_token": raw.eos_token or ""}
        self._compiled = compile_template(source)
        self.where = raw.name

    @cached_property
    def reasoning_key(self) -> str:
        """The key under which the template reads the reasoning before an answer; "" if it does not read any."""
        reads = (key for key in REASONING_KEYS if re.search(rf"(?:\.|\[['\"]|get\(['\"]){key}\b", self.source))
        return next(reads, "")

    @property
    def shows_reasoning(self) -> bool:
        """Whether reasoning in a field of its own is part of a rendered answer."""
        return bool(self.reasoning_key)

    @property
    def shows_calls(self) -> bool:
        """Whether tools, and tool calls that are objects and not text, can be rendered."""
        return "tool_calls" in self.source

    def reads_argument(self, name: str) -> bool:
        """Whether the template reads an argument of this name."""
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    @cached_property
    def stop(self) -> str:
        """The control string that ends an answer. Raises SettingsError if there is none."""
        for dialogue in self.probes:
            for segment in reversed(self.render(dialogue).segments):
                if segment.supervised and segment.role == "template":
                    return segment.text
        try:
            self.render(HARMLESS[0])
            reason = "no control token ends an answer"
        except DataError as error:
            reason = str(error).removeprefix(f"{HARMLESS[0].where}: ")
        raise SettingsError(f"the chat template of {self.where} cannot render even the simplest dialogues: {reason}")

    @cached_property
    def ending(self) -> str:
        """The text after the stop of the last answer, stripped of white space. Some templates open the next answer
        even if they are not asked to."""
        segments = self.render(self.probes[0]).segments if self.probes else ()
        learned = [k for k, segment in enumerate(segments) if segment.supervised]
        return "".join(s.text for s in segments[learned[-1] + 1 :]).strip() if learned else ""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ()

    @cached_property
    def probes(self) -> tuple[Dialogue, ...]:
        """The harmless dialogues that this template accepts (many reject a system message or a tool)."""
        return tuple(d for d in HARMLESS if self._accepts(d))

    def literals(self) -> tuple[str, ...]:
        """The texts in which control strings are searched."""
        return (self.source, *self.controls)

    def normalise(self, text: str) -> str:
        """A message for comparison, without white space around it: templates may trim it."""
        return text.strip()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, for the training record."""
        return {"name": self.name, "chat_template": self.source}

    def render(self, dialogue: Dialogue, add_generation_prompt: bool = False) -> Rendered:
        """Apply the template and find the spans.

        Raises:
            RefusedByTemplate: the template rejects the dialogue, or gives no exact span for one of its answers; the
                message names the row and the property.
        """
        messages = to_messages(dialogue, self.reasoning_key)
        offset = len(messages) - len(dialogue.turns)
        real = self._run(messages, add_generation_prompt, dialogue)
        pieces = self._pieces(messages, add_generation_prompt, real, dialogue)
        spans = [] if add_generation_prompt else self._spans(messages, pieces, real, dialogue)
        segments = []
        for start, end, message in pieces:
            role = (
                "template" if message < 0 else "system" if message < offset else dialogue.turns[message - offset].role
            )
            edges = {start, end, *(edge for span in spans for edge in span[:2] if start < edge < end)}
            for left, right in itertools.pairwise(sorted(edges)):
                turn = next((turn for begin, stop, turn in spans if begin <= left and right <= stop), -1)
                owner = turn if turn >= 0 else max(message - offset, -1)
                learned = turn >= 0 and dialogue.turns[turn].train
                kept_out = not learned if turn >= 0 else message >= 0 and not _is_trained(dialogue, message - offset)
                segments.append(Segment(real[left:right], role, learned, owner, excluded=kept_out))
        return Rendered(tuple(segments))

    def renderings(self, dialogue: Dialogue) -> list[Rendered]:
        """The dialogue as the examples to train on, like `Template.renderings`."""
        return [self.render(dialogue)]

    # -- finding the spans

    def _spans(
        self, messages: list[dict[str, str]], pieces: list[tuple[int, int, int]], real: str, dialogue: Dialogue
    ) -> list[tuple[int, int, int]]:
        """(start, end, turn) of what the model generates, for each answer with a text."""
        spans = []
        for turn, said in enumerate(dialogue.turns):
            if said.role != "assistant" or not (said.train or said.text.strip()):
                continue
            try:
                spans.append(self._span(messages, turn, pieces, real, dialogue))
            except DataError:
                if said.train:
                    raise
        return spans

    def _span(
        self,
        messages: list[dict[str, str]],
        turn: int,
        pieces: list[tuple[int, int, int]],
        real: str,
        dialogue: Dialogue,
    ) -> tuple[int, int, int]:
        offset = len(messages) - len(dialogue.turns)
        prompt = self._run(messages[: turn + offset], True, dialogue)
        if not real.startswith(prompt):
            raise self._no_span(dialogue, turn, "the inference prompt is not a prefix of the rendered dialogue")
        own = [k for k, (_, _, message) in enumerate(pieces) if message == turn + offset]
        if not own or pieces[own[0]][0] < len(prompt):
            raise self._no_span(dialogue, turn, "the rendered dialogue does not show the answer after its prompt")
        begin = pieces[own[-1]][1]
        limit = pieces[own[-1] + 1][1] if own[-1] + 1 < len(pieces) else begin
        ends = [at + len(c) for c in self.controls if (at := real.find(c, begin, limit)) >= 0]
        if not ends:
            raise self._no_span(dialogue, turn, "no control token ends the answer")
        return len(prompt), min(ends), turn

    def _pieces(
        self, messages: list[dict[str, str]], add_generation_prompt: bool, real: str, dialogue: Dialogue
    ) -> list[tuple[int, int, int]]:
        """(start, end, message) of the rendered text, message -1 for the template's own; without empty pieces."""
        marked, texts, thoughts = _mark(messages, self.reasoning_key)
        skeleton = _MARK.split(self._run(marked, add_generation_prompt, dialogue))
        pieces, position = [], 0
        for k, part in enumerate(skeleton):
            if k % 2 == 0:
                found, message = part, -1
            else:
                message, text = texts[int(part)]
                following = skeleton[k + 1]
                found = next((t for t in _trimmed(text) if real.startswith(t + following, position)), None)
            if found is None or not real.startswith(found, position):
                turn = max(message, 0) - (len(messages) - len(dialogue.turns))
                raise self._no_span(dialogue, turn, "the template changes a message, so it cannot be located")
            if found:
                pieces.append((position, position + len(found), message))
            position += len(found)
        if position != len(real):
            raise self._no_span(dialogue, 0, "the template renders other text than its own and the messages")
        shown = {message for _, _, message in pieces}
        lost = [k for k, said in enumerate(messages) if said["content"].strip() and k not in shown]
        if lost:
            raise self._no_span(dialogue, lost[0], f"the {messages[lost[0]]['role']} message is not shown at all")
        if not add_generation_prompt:
            self._check_thoughts(thoughts - {int(mark) for mark in skeleton[1::2]}, texts, messages, dialogue)
        return pieces

    def _check_thoughts(
        self, lost: set[int], texts: list[tuple[int, str]], messages: list[dict[str, str]], dialogue: Dialogue
    ) -> None:
        """A supervised answer must be shown with its reasoning, or the model would learn to answer without it."""
        turns = sorted(texts[mark][0] - (len(messages) - len(dialogue.turns)) for mark in lost)
        for turn in turns:
            if dialogue.turns[turn].train:
                hint = 'set "train": false for it, or split the dialogue after it'
                raise self._no_span(dialogue, turn, f"its {self.reasoning_key} is not shown ({hint})")

    def _run(self, messages: list[dict[str, str]], add_generation_prompt: bool, dialogue: Dialogue) -> str:
        try:
            return self._compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._names)
        except failures() as error:
            reason = f"{dialogue.where}: the tokenizer's chat template rejects the row: {error}"
            raise RefusedByTemplate(reason) from error

    def _accepts(self, dialogue: Dialogue) -> bool:
        try:
            self.render(dialogue)
        except DataError:
            return False
        return True

    def _no_span(self, dialogue: Dialogue, turn: int, why: str) -> DataError:
        return RefusedByTemplate(
            f"{dialogue.where}: the tokenizer's chat template gives no exact span for turn {turn + 1}: {why}. "
            "Choose a built-in template with --conv_template, or remove the row."
        )


def _is_trained(dialogue: Dialogue, turn: int) -> bool:
    """Whether a message may be supervised; the system message is turn -1. Answers are handled as whole spans."""
    if turn < 0:
        return dialogue.system_train
    return dialogue.turns[turn].role == "assistant" or dialogue.turns[turn].train


def _mark(
    messages: Sequence[dict[str, str]], reasoning_key: str
) -> tuple[list[dict[str, str]], list[tuple[int, str]], set[int]]:
    """Messages with marks in place of their texts; the message and text of each mark; the marks of reasoning.

    The text inside and after `<think>…</think>` gets separate marks: templates treat the two differently.
    """
    marked: list[dict[str, str]] = []
    texts: list[tuple[int, str]] = []
    thoughts: set[int] = set()

    def mark(message: int, text: str) -> str:
        texts.append((message, text))
        return f"\ue000{len(texts) - 1}\ue001"

    for k, said in enumerate(messages):
        opening, closing = _THINKING
        is_answer = said["role"] == "assistant"
        parts = re.split(f"({opening}|{closing})", said["content"]) if is_answer else [said["content"]]
        content = "".join(part if part in _THINKING or not part.strip() else mark(k, part) for part in parts)
        marked.append({**said, "content": content})
        if reasoning_key and reasoning_key in said:
            thoughts.add(len(texts))
            marked[-1][reasoning_key] = mark(k, said[reasoning_key])
    return marked, texts, thoughts


def _trimmed(text: str) -> Iterator[str]:
    """A message as it is, and as templates trim it."""
    yield from dict.fromkeys((text, text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"), text.lstrip("\n")))


class CompiledTemplate:
    """A Jinja template whose rendering is bounded (see template_limits.py)."""

    def __init__(self, source: str):
        self._template = _environment().from_string(source)

    def render(self, **names: Any) -> str:
        """The text. Raises what the template raises, and TooMuch (an ArithmeticError) if a limit is exceeded."""
        return joined(self._template.generate(**names))


@functools.cache
def compile_template(source: str) -> CompiledTemplate:
    """The template in the environment that transformers documents: sandboxed, with its helpers and tags.

    Raises SettingsError for invalid Jinja, or for a template that needs too much memory or time for simple dialogues.
    """
    import jinja2

    def simplest() -> None:
        template = CompiledTemplate(source)  # constants are computed here
        for dialogue, prompt in itertools.product(HARMLESS, (False, True)):
            with contextlib.suppress(*failures()):
                messages = to_messages(dialogue)
                template.render(messages=messages, add_generation_prompt=prompt, bos_token="", eos_token="")

    try_out(simplest, "the tokenizer's chat template")
    try:
        return CompiledTemplate(source)
    except jinja2.TemplateSyntaxError as error:
        raise SettingsError(f"the tokenizer's chat template is not valid Jinja: {error}") from error


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that a template may raise: it is a program that divides, indexes, compares, and reaches limits."""
    from jinja2 import TemplateError

    return (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


@functools.cache
def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks an answer for other tools; here the mark is ignored and its body rendered."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            check_operands(operator, left, right)
            return super().call_binop(context, operator, left, right)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
