"""Upstream's three classes of input and output for `chat_loop`: two for a terminal, one for another program."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.text import Text

from fastchat.serve.inference import ChatIO
from fastchat.serve.markdown_view import MarkdownView, markdown, on_terminal, printable

_END = " __END_OF_A_MESSAGE_47582648__\n"  # upstream's mark at the end of a program's message


class SimpleChatIO(ChatIO):
    """Lines of the terminal. `multiline`: a message ends at the end of input (Ctrl-D)."""

    def __init__(self, multiline: bool = False):
        self._multiline = multiline

    def prompt_for_input(self, role: str) -> str:
        """The next message. Raises EOFError at the end of input."""
        if not self._multiline:
            return input(f"{role}: ")
        lines = [input(f"{role} (Ctrl-D ends): ")]
        try:
            while True:
                lines.append(input())
        except EOFError:
            return "\n".join(lines)

    def prompt_for_output(self, role: str) -> None:
        print(f"{role}: ", end="", flush=True)

    def stream_output(self, output_stream: Iterable[dict[str, Any]]) -> str:
        text = ""
        for piece in output_stream:
            print(piece["text"][len(text) :], end="", flush=True)
            text = piece["text"]
        print(flush=True)
        return text

    def print_output(self, text: str) -> None:
        print(text)


class RichChatIO(SimpleChatIO):
    """An editor with history, and answers in Markdown. Without a terminal it is the same as SimpleChatIO.

    `multiline` has no effect in a terminal, where Alt-Enter begins a new line. `mouse`: a click moves the cursor.
    """

    def __init__(self, multiline: bool = False, mouse: bool = False):
        super().__init__(multiline)
        self._mouse = mouse

    @cached_property
    def _terminal(self) -> tuple[Any, Console] | None:
        """The editor and the screen, None without a terminal."""
        if not on_terminal():
            return None
        from fastchat.serve.terminal import line_editor

        return line_editor(self._mouse), Console(highlight=False)

    def prompt_for_input(self, role: str) -> str:
        """The next message. Raises EOFError at the end of input."""
        if self._terminal is None:
            return super().prompt_for_input(role)
        return self._terminal[0].prompt(f"{role}: ")

    def prompt_for_output(self, role: str) -> None:
        """Show whose answer follows."""
        if self._terminal is None:
            super().prompt_for_output(role)
        else:
            self._terminal[1].print(Text(f"{role}:", style="bold"))

    def stream_output(self, output_stream: Iterable[dict[str, Any]]) -> str:
        """Show an answer while it is generated, as Markdown in a terminal; returns its text."""
        if self._terminal is None:
            return super().stream_output(output_stream)
        view, text = MarkdownView(self._terminal[1]), ""
        view.begin("", None)
        try:
            for piece in output_stream:
                view.piece(piece["text"][len(text) :])
                text = piece["text"]
        finally:
            view.end()
            view.close()
        return text

    def print_output(self, text: str) -> None:
        if self._terminal is None:
            super().print_output(text)
        else:
            self._terminal[1].print(markdown(printable(text)))


class ProgrammaticChatIO(SimpleChatIO):
    """Messages from another program, each ended by upstream's mark."""

    def prompt_for_input(self, role: str) -> str:
        """The next message, without its mark. Raises EOFError at the end of input."""
        message = ""
        while not message.endswith(_END):
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            message += line
        message = message.removesuffix(_END)
        print(f"[!OP:{role}]: {message}", flush=True)
        return message

    def prompt_for_output(self, role: str) -> None:
        print(f"[!OP:{role}]: ", end="", flush=True)
