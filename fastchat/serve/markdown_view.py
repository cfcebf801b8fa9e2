"""Answers in a terminal: Markdown rendered while it is generated.

A block (paragraph, list, code, table) is final once the next one has begun; it is then printed for good and scrolls up
like any other output. Only the last block changes, and of its lines only those that differ are written again. If it is
taller than the terminal, its end is shown until it is final.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from rich.console import Console, Group, RenderableType
from rich.markdown import Markdown
from rich.style import Style
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fastchat.serve.chat import Chat

_MIN_WIDTH = 80  # columns of a terminal for two answers next to each other
_INTERVAL = 0.08  # seconds between two drawings, at least
_SHARE = 5  # and this many times as long as one takes
# Reasoning before an answer, and calls of tools: opening, closing.
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
CALLS = (
    ("<tool_call>", "</tool_call>"),
    ("<function_call>", "</function_call>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<|tool_call>", "<tool_call|>"),
    ("<|tool_call_begin|>", "<|tool_call_end|>"),
)
_CALL = re.compile(rf"^[ ]*({'|'.join(re.escape(opening) for opening, _ in CALLS)})", re.M)
# What would move the cursor, change colours or reverse the order of characters, if a model writes it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Part:
    """text[start:end] of an answer: "thought", "call" or "text"; `closed`: whether its end is known."""

    kind: str
    start: int
    end: int
    closed: bool


def parts_of(text: str, thinking: str = "") -> Iterator[Part]:
    """An answer in parts. `thinking`: the opening of the reasoning, if the prompt ends with it.

    Reasoning begins an answer or follows reasoning; a call begins a line.

    >>> [(part.kind, part.start, part.end) for part in parts_of("<think>Hm.</think>Hi")]
    [('thought', 0, 18), ('text', 18, 20)]
    """
    at = 0
    if thinking:
        at = yield from _enclosed("thought", text, 0, 0, dict(THOUGHTS)[thinking])
    while opening := _thought_at(text, at):
        at = yield from _enclosed("thought", text, at, text.index(opening, at) + len(opening), dict(THOUGHTS)[opening])
    while at < len(text):
        found = _CALL.search(text, at)
        if found is None:
            yield Part("text", at, len(text), False)
            return
        if text[at : found.start()].strip():
            yield Part("text", at, found.start(), True)
        at = yield from _enclosed("call", text, found.start(), found.end(), dict(CALLS)[found[1]])


def _thought_at(text: str, at: int) -> str:
    """The opening of reasoning that begins there, after white space; "" if none does."""
    begins = text[at:].lstrip()
    return next((opening for opening, _ in THOUGHTS if begins.startswith(opening)), "")


def _enclosed(kind: str, text: str, start: int, inside: int, closing: str) -> Generator[Part, None, int]:
    """The part from `start` to the `closing` after `inside`, or to the end; returns where it ends."""
    found = text.find(closing, inside)
    end = len(text) if found < 0 else found + len(closing)
    if end > start:
        yield Part(kind, start, end, found >= 0)
    return end


def on_terminal() -> bool:
    """Whether input and output are a terminal that can move its cursor."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def printable(text: str) -> str:
    r"""`text` with control characters as escapes, except line ends and tabs."""
    text = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# --- Markdown as rich renders it, without what would hide something that the model wrote


def _parser() -> MarkdownIt:
    # HTML would be left out (<vector>), backslashes removed (\(x\) in mathematics), link definitions too.
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return parser.disable(["escape", "reference", "html_block", "html_inline"])


_PARSER = _parser()


def markdown(text: str) -> Markdown:
    """Markdown with its line breaks and link addresses."""
    made = Markdown("", hyperlinks=False)
    made.parsed = _PARSER.parse(text)
    for token in made.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return made


def block_starts(text: str) -> list[int]:
    """Where the blocks of a Markdown text start; the first one always at 0."""
    tokens = _PARSER.parse(text)
    rows = [token.map[0] for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
    lines = text.split("\n")
    return [0, *(sum(len(line) + 1 for line in lines[:row]) for row in rows[1:])]


def final_length(text: str) -> int:
    """How much of a growing Markdown text is final: all blocks but the last one of its complete lines."""
    return block_starts(text[: text.rfind("\n") + 1])[-1]


def rendered(text: str, part: Part) -> RenderableType:
    """One part of an answer."""
    said = text[part.start : part.end]
    if part.kind == "text":
        return markdown(said)
    if part.kind == "call":
        return Text(said.strip(), style="cyan")
    for opening, closing in THOUGHTS:
        said = said.strip().removeprefix(opening).removesuffix(closing)
    return Text(said.strip() or "…", style="dim italic")


# --- the part of the screen that changes


class Region:
    """Lines at the end of the output that are written again when they change."""

    def __init__(self, console: Console):
        self._console = console
        self._drawn: list[str] = []
        self._width = console.width

    def update(self, content: RenderableType, gap: bool = False) -> None:
        """Show `content`, after an empty line if `gap`; of more lines than the terminal has, the last ones."""
        self._draw(self._lines(content, gap)[-max(self._console.height - 1, 1) :])

    def finish(self, content: RenderableType, gap: bool = False) -> None:
        """Show `content` for good; what comes next is below it."""
        self._draw(self._lines(content, gap))
        self._write("\n")
        self._drawn = []

    def clear(self) -> None:
        """Remove what is shown."""
        self._draw([])

    def _lines(self, content: RenderableType, gap: bool) -> list[str]:
        with self._console.capture() as captured:
            self._console.print(content)
        lines = [line.rstrip(" ") for line in captured.get().removesuffix("\n").split("\n")]
        seen = [k for k, line in enumerate(lines) if _is_visible(line)] or [0]
        return [""] * gap + lines[seen[0] : seen[-1] + 1]

    def _draw(self, lines: list[str]) -> None:
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(self._drawn, lines, strict=False))))
        if self._console.width != self._width:
            same = 0
        if same == len(lines) == len(self._drawn):
            return
        same = min(same, max(len(self._drawn) - 1, 0), max(len(lines) - 1, 0))
        up = self._rows(same) - 1
        move = (f"\x1b[{up}A" if up > 0 else "") + "\r\x1b[J" if self._drawn else ""
        self._write(move + "\n".join(lines[same:]))
        self._drawn, self._width = lines, self._console.width

    def _rows(self, first: int) -> int:
        """Rows of the terminal from the drawn line `first` on; a terminal that became narrower has wrapped them."""
        if self._console.width >= self._width:
            return len(self._drawn) - first
        cells = (Text.from_ansi(line).cell_len for line in self._drawn[first:])
        return sum(max(1, -(-cell // self._console.width)) for cell in cells)

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def _is_visible(line: str) -> bool:
    """Whether a line has characters or a background."""
    text = Text.from_ansi(line)
    return bool(text.plain.strip()) or any(isinstance(s.style, Style) and s.style.bgcolor for s in text.spans)


class MarkdownView:
    """Shows one answer after the other, each block for good as soon as it is final."""

    def __init__(self, console: Console, several: bool = False):
        self._console, self._several = console, several
        self._region = Region(console)

    def begin(self, label: str, chat: Chat | None) -> None:
        if self._several:
            self._console.print(Text(label, style="bold magenta"))
        self._chat, self._raw, self._done, self._gap = chat, "", 0, False
        self._clock = _Clock()

    def piece(self, text: str) -> None:
        self._raw += text
        if self._clock.due():
            with self._clock:
                self._show(final=False)

    def end(self) -> None:
        self._show(final=True)

    def close(self) -> None:
        self._console.print()

    def _show(self, final: bool) -> None:
        text = printable(self._raw)
        waiting: list[RenderableType] = []
        parts = list(parts_of(text, thinking_of(self._chat)))
        for k, part in enumerate(parts):
            if part.end <= self._done:
                continue
            part = Part(part.kind, max(part.start, self._done), part.end, part.closed)
            if final or part.closed and k + 1 < len(parts):
                self._print(text, part)
                continue
            if part.kind == "text" and (length := final_length(text[part.start : part.end])):
                self._print(text, Part("text", part.start, part.start + length, True))
                part = Part("text", part.start + length, part.end, False)
            waiting.append(rendered(text, part))
        if final:
            self._region.clear()
        elif waiting:
            self._region.update(Group(*waiting), self._gap)

    def _print(self, text: str, part: Part) -> None:
        self._done = part.end
        said = text[part.start : part.end]
        starts = block_starts(said) if part.kind == "text" else [0]
        for start, end in zip(starts, [*starts[1:], len(said)], strict=True):
            if said[start:end].strip():
                self._region.finish(rendered(said[start:end], Part(part.kind, 0, end - start, True)), self._gap)
                self._gap = True


class CompareView:
    """Shows the answers of two models next to each other; for good once both are complete."""

    def __init__(self, console: Console):
        self._console = console
        self._region = Region(console)
        self._answers: dict[str, tuple[Chat, list[str]]] = {}

    def begin(self, label: str, chat: Chat) -> None:
        self._label = label
        self._answers[label] = chat, []
        self._clock = _Clock()

    def piece(self, text: str) -> None:
        self._answers[self._label][1].append(text)
        if self._clock.due():
            with self._clock:
                self._region.update(self._table())

    def end(self) -> None:
        self._region.update(self._table())

    def close(self) -> None:
        self._region.finish(self._table())
        self._answers = {}
        self._console.print()

    def _table(self) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1), header_style="bold magenta")
        cells = []
        for label, (chat, pieces) in self._answers.items():
            table.add_column(label, ratio=1)
            text = printable("".join(pieces))
            parts = [rendered(text, part) for part in parts_of(text, thinking_of(chat))]
            cells.append(Group(*(line for part in parts for line in (part, Text("")))))
        table.add_row(*cells)
        return table


def view_for(console: Console, labels: list[str]) -> MarkdownView | CompareView:
    """The view for models with these labels."""
    if len(labels) > 1 and console.width >= _MIN_WIDTH:
        return CompareView(console)
    return MarkdownView(console, several=len(labels) > 1)


def thinking_of(chat: Chat | None) -> str:
    """The opening of the reasoning if the prompt of the newest answer ends with it, else ""."""
    prompt = chat.last.lead_text.rstrip() if chat and chat.last else ""
    return next((opening for opening, _ in THOUGHTS if prompt.endswith(opening)), "")


class _Clock:
    """When to draw again: not so often that drawing takes more time than a fraction of the generation."""

    def __init__(self) -> None:
        self._next = self._began = 0.0

    def due(self) -> bool:
        return time.perf_counter() >= self._next

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        now = time.perf_counter()
        self._next = now + max(_INTERVAL, _SHARE * (now - self._began))
