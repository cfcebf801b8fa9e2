"""The Modelfile of Ollama: the chat template as a Go template, where one can express it, stops, context length.

A Jinja template is a program, so its Go form is learned by trying: it is rendered with marks for the messages, and the
texts between the marks, if they are always the same, are the Go template's. What it renders is then compared with the
prompts of training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Render = Callable[[list[dict[str, str]]], str]
_MARKS = ("Mq0Uz", "Mq1Az", "Mq2Uz", "Mq3Az", "Mq4Uz")  # user and assistant in turn
_SYSTEM = "MqSyz"


class NotExpressible(Exception):
    """The chat template does something that a Go template of this form cannot; the message says what."""


@dataclass(frozen=True)
class GoTemplate:
    """The texts of a prompt around its messages.

    Attributes:
        begin: before the first user message, without a system message.
        system: before and after the system message (the second includes what begins the first user message); None if
            the chat template refuses or drops one.
        answer: between a user message and the answer to it. next: between an answer and the next user message.
        prompt: after the last user message.
    """

    begin: str
    system: tuple[str, str] | None
    answer: str
    next: str
    prompt: str

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """What Ollama renders for `messages`: an optional system message, then user and assistant in turn."""
        system = next((m["content"] for m in messages if m["role"] == "system"), "")
        turns = [message for message in messages if message["role"] != "system"]
        before, after = self.system or ("", self.begin)
        parts = [before + system + after if system and self.system else self.begin]
        for number, turn in enumerate(turns):
            last = number == len(turns) - 1
            if turn["role"] == "user":
                parts += [turn["content"], self.prompt if last else self.answer]
            else:
                parts += [turn["content"], "" if last else self.next]
        return "".join(parts)

    @property
    def default_system(self) -> str:
        """The system message that the chat template writes if there is none; "" if it writes none."""
        if self.system is None:
            return ""
        before, after = self.system
        inner = len(self.begin) - len(before) - len(after)
        fits = inner > 0 and self.begin.startswith(before) and self.begin.endswith(after)
        return self.begin[len(before) : len(before) + inner] if fits else ""

    @property
    def text(self) -> str:
        """The Go template."""
        begin, prompt, answer, following = map(_literal, (self.begin, self.prompt, self.answer, self.next))
        if self.system is not None:
            before, after = map(_literal, self.system)
            begin = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{begin}{{{{ end }}}}"
        return "".join(
            [
                begin,
                "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
                '{{ if eq .Role "user" }}{{ .Content }}{{ if $last }}',
                f"{prompt}{{{{ else }}}}{answer}{{{{ end }}}}",
                '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}',
                f"{following}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}",
            ]
        )


def learn(render: Render, *, leading: str = "") -> GoTemplate:
    """The Go template of a chat template.

    `render(messages)` gives the prompt for the next answer, and raises ValueError if the chat template refuses the
    messages. `leading`: a text at the very beginning (the BOS that the tokenizer adds itself) that is left out.
    Raises NotExpressible.
    """
    prompts = [_pieces(render, _MARKS[:count], None, leading) for count in (1, 3, 5)]
    for pieces in prompts:
        _same("the beginning of a prompt", pieces[0], prompts[0][0])
        _same("the end of a prompt", pieces[-1], prompts[0][-1])
        for answer in pieces[1:-1:2]:
            _same("the text before an answer", answer, prompts[1][1])
        for following in pieces[2:-1:2]:
            _same("the text after an answer", following, prompts[1][2])
    system = None
    try:
        with_system = [_pieces(render, _MARKS[:count], _SYSTEM, leading) for count in (1, 3)]
    except NotExpressible:
        with_system = []
    if with_system:
        system = (with_system[0][0], with_system[0][1])
        for plain, pieces in zip(prompts, with_system, strict=False):
            _same("a prompt with a system message", tuple(pieces[:2]), system)
            _same("a prompt after a system message", pieces[2:], plain[1:])
    found = GoTemplate(prompts[0][0], system, prompts[1][1], prompts[1][2], prompts[0][-1])
    for part in (found.begin, *(found.system or ()), found.answer, found.next, found.prompt):
        _writable(part)
    return found


def _pieces(render: Render, marks: Sequence[str], system: str | None, leading: str) -> list[str]:
    """The texts before, between and after the marks of a rendered dialogue."""
    roles = ("user", "assistant")
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(marks)]
    try:
        text = render(messages)
    except ValueError as problem:
        raise NotExpressible(f"it refuses a plain dialogue ({problem})") from None
    wanted = [system, *marks] if system else list(marks)
    pieces = re.split("|".join(wanted), text)
    if re.findall("|".join(wanted), text) != wanted:
        raise NotExpressible("it does not show every message once, in their order")
    pieces[0] = pieces[0].removeprefix(leading) if leading else pieces[0]
    return pieces


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise NotExpressible(f"{what} depends on the number of turns or on what else is in the dialogue")


def _writable(text: str) -> None:
    """Ollama's parser drops characters that are not printable, and a text in triple quotes cannot contain these."""
    if '"""' in text or any(not char.isprintable() and char not in "\n\t" for char in text):
        raise NotExpressible(f"a Modelfile cannot hold its text {text!r}")


def _literal(text: str) -> str:
    """Text of a Go template; what opens an action is written by one."""
    return text.replace("{{", '{{ "{{" }}')


def modelfile(
    gguf_name: str, *, template: GoTemplate | None, notes: Sequence[str], stops: Sequence[str], num_ctx: int | None
) -> str:
    """The text of the Modelfile next to the file `gguf_name`. `notes` are written as comments."""
    lines = [
        "# ollama create NAME -f Modelfile     (in this folder), then: ollama run NAME",
        *(f"# {n}" for n in notes),
    ]
    lines += ["", f"FROM ./{gguf_name}"]
    if template is not None:
        lines += ["", f'TEMPLATE """{template.text}"""']
        if template.default_system and _quotable(template.default_system):
            lines += ["", f'SYSTEM """{template.default_system}"""']
    stops = [stop for stop in stops if _quotable(stop) and not stop.endswith('"')]
    lines += [""] if stops or num_ctx else []
    quotes = ['"""' if '"' in stop or "\n" in stop else '"' for stop in stops]
    lines += [f"PARAMETER stop {quote}{stop}{quote}" for quote, stop in zip(quotes, stops, strict=True)]
    lines += [f"PARAMETER num_ctx {num_ctx}"] if num_ctx else []
    return "\n".join(lines) + "\n"


def _quotable(text: str) -> bool:
    try:
        _writable(text)
    except NotExpressible:
        return False
    return True
