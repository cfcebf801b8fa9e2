"""One answer while it is generated: ids become text, and text becomes reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastchat.conversation import ToolCall
from fastchat.data.encoding.learn import Thinking
from fastchat.serve.api.served import Prompt, ServedModel
from fastchat.serve.call_syntax import CallSyntax
from fastchat.serve.chat import Answer
from fastchat.serve.engines.base import Job, Token

REASONING, CONTENT = "reasoning_content", "content"


@dataclass
class Piece:
    """A piece of an answer.

    Attributes:
        texts: (REASONING or CONTENT, text).
        tokens: the tokens since the piece before, without the stop.
        finish: why the answer ends, in its last piece: "stop", "length" or "tool_calls".
    """

    texts: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    calls: tuple[ToolCall, ...] = ()
    finish: str | None = None


class Answering:
    """An answer that is generated for a prompt. `num_tokens`: how many were generated, the stop included."""

    def __init__(self, served: ServedModel, prompt: Prompt, job: Job, stops: tuple[str, ...]):
        self._engine, self._job = served.engine, job
        self._said: list[str] = []
        self._answer = Answer(served.chat_encoder, prompt.ids, self._said.append, stops, prompt.plain)
        self._answer.stop_ids = job.stop_ids
        thinking = Thinking() if prompt.plain else served.thinking
        self._parts = Parts(thinking, prompt.reasons, served.calls if prompt.tools else None, prompt.tools)
        self.num_tokens = 0

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces as they arrive; the last one has `finish`. Closing the iterator ends the generation.

        Raises EngineError.
        """
        piece = Piece()
        async with aclosing(self._engine.generate(self._job)) as tokens:  # type: ignore[type-var]
            async for token in tokens:
                self.num_tokens += 1
                self._answer.take([token.id])
                if token.id not in self._job.stop_ids:
                    piece.tokens.append(token)
                piece.texts += self._parts.feed(self._taken())
                if self._answer.stopped:
                    break
                if piece.texts:
                    yield piece
                    piece = Piece()
        self._answer.finish()
        piece.texts += self._parts.feed(self._taken())
        rest, piece.calls = self._parts.close()
        piece.texts += rest
        piece.finish = "tool_calls" if piece.calls else "stop" if self._answer.stopped else "length"
        yield piece

    def _taken(self) -> str:
        said = "".join(self._said)
        self._said.clear()
        return said


class Parts:
    """Divides the text of an answer, which arrives piece by piece.

    Args:
        reasons: the prompt opened the reasoning.
        syntax, tools: how calls are written, and which there are; None and () if none can be called.
    """

    def __init__(self, thinking: Thinking, reasons: bool, syntax: CallSyntax | None, tools: tuple[Any, ...]):
        self._opening, self._closing = thinking.tags
        self._syntax, self._tools = syntax, tools
        self._within = REASONING if reasons else "" if self._closing and self._opening else CONTENT
        self._held = ""  # of the reasoning, or of what may be its opening
        self._content, self._given = "", 0
        self._trims = False  # white space after the reasoning is the template's

    def feed(self, text: str) -> list[tuple[str, str]]:
        """The pieces that are certain after some more text."""
        if not text:
            return []
        if self._within == CONTENT:
            return self._said(text)
        self._held += text
        if not self._within:
            start = self._held.lstrip()
            if start.startswith(self._opening):
                self._within, self._held = REASONING, start[len(self._opening) :]
            elif self._opening.startswith(start):
                return []
            else:
                self._within, text, self._held = CONTENT, self._held, ""
                return self._said(text)
        return self._thought()

    def close(self) -> tuple[list[tuple[str, str]], tuple[ToolCall, ...]]:
        """The last pieces, and the calls."""
        held, self._held = self._held, ""
        if self._within == REASONING:
            return _piece(REASONING, held.rstrip()), ()
        rest = [] if self._within else self._said(held)
        text, calls = self._syntax.read(self._content, self._tools) if self._syntax else (self._content, ())
        return rest + _piece(CONTENT, text[self._given :]), calls

    def _thought(self) -> list[tuple[str, str]]:
        if not self._trims:
            self._held = self._held.lstrip()
            self._trims = bool(self._held)
        thought, found, rest = self._held.partition(self._closing)
        if found:
            self._within, self._held, self._trims = CONTENT, "", True
            return _piece(REASONING, thought.rstrip()) + self._said(rest)
        whole = self._held[: _certain(self._held, self._closing)].rstrip()
        self._held = self._held[len(whole) :]
        return _piece(REASONING, whole)

    def _said(self, text: str) -> list[tuple[str, str]]:
        if self._trims and not self._content:
            text = text.lstrip()
        self._content += text
        end = len(self._content)
        if self._syntax:
            end = len(self._content[: self._syntax.may_begin(self._content)].rstrip())
        given, self._given = self._given, max(end, self._given)
        return _piece(CONTENT, self._content[given : self._given])


def _piece(kind: str, text: str) -> list[tuple[str, str]]:
    return [(kind, text)] if text else []


def _certain(text: str, tag: str) -> int:
    """How much of a text cannot be the beginning of `tag`."""
    return len(text) - next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
