"""Upstream's three classes of input and output for `chat_loop`: two for a terminal, one for another program."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from fastchat.serve.inference import ChatIO

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
    """Upstream's coloured terminal; here the plain one, and `mouse` has no effect."""

    def __init__(self, multiline: bool = False, mouse: bool = False):
        super().__init__(multiline)


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
