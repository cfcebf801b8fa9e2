"""The chat in a real pseudo-terminal: greeting, editing, history, pastes, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import stat
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fastchat.serve import terminal
from fastchat.serve.chat import Chat, load_chat
from fastchat.serve.session import Session
from tests.model.adapters import save_random_adapter

_RIGHT = re.compile(r"\x1b\[(\d*)C")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\r\b]")
_PATIENCE = 20  # seconds
UP, PASTE, CTRL_C, CTRL_D, ALT_ENTER, TAB = "\x1b[A", "\x1b[200~{}\x1b[201~", "\x03", "\x04", "\x1b\r", "\t"


class Terminal:
    """A chat in a child process, on a pseudo-terminal."""

    def __init__(self, chat: Chat, state: Path):
        sys.stdout.flush()
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            self._chat(chat, state)
        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 250, 0, 0))
        self.seen = ""

    def _chat(self, chat: Chat, state: Path) -> None:
        code = 1
        try:
            os.environ.update(XDG_STATE_HOME=str(state), TERM="xterm", COLUMNS="250", LINES="30")
            os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"  # nobody answers where the cursor is
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
            terminal.talk(Session({"": chat}))
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)

    def type(self, keys: str) -> None:
        os.write(self.handle, keys.encode())

    def wait_for(self, text: str) -> str:
        """What came up to and with `text`, without escape sequences."""
        until = time.monotonic() + _PATIENCE
        while text not in self.seen:
            ready, _, _ = select.select([self.handle], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{text!r} did not come; there was {self.seen!r}"
            try:
                data = os.read(self.handle, 65536)
            except OSError:  # the child has ended
                data = b""
            assert data, f"the chat ended without {text!r}; there was {self.seen!r}"
            text_of = _RIGHT.sub(lambda found: " " * int(found[1] or 1), data.decode("utf-8", "replace"))
            self.seen += _ESCAPES.sub("", text_of)
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def ask(self, keys: str, then: str) -> str:
        """Type and wait for what comes; then for the next prompt."""
        self.type(keys)
        seen = self.wait_for(then)
        return seen + self.wait_for("\n> ")

    def end(self) -> int:
        """The exit code of the chat after it has been left."""
        while True:
            try:
                if not os.read(self.handle, 65536):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Callable[..., Path]) -> Chat:
    base = tiny_model_dir("llama", "byte_nobos", max_positions=8192)
    folder, _ = save_random_adapter(tmp_path_factory.mktemp("chat") / "a", base, template="chatml", spread=0.3)
    return load_chat(str(folder), device="cpu", temperature=0.0, max_new_tokens=8)


@pytest.fixture
def shell(chat: Chat, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """A chat whose answers have so many tokens, 8 by default."""
    made = Terminal(replace(chat, max_new_tokens=getattr(request, "param", 8)), tmp_path)
    yield made
    try:
        os.kill(made.pid, signal.SIGKILL)
        os.waitpid(made.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
    os.close(made.handle)


def messages(path: Path) -> list[dict]:
    return json.loads(path.read_text())[0]["messages"]


def test_a_chat_from_the_greeting_to_the_end(shell: Terminal, chat: Chat, tmp_path: Path) -> None:
    assert chat.trained is not None
    greeting = shell.wait_for("> ")
    for fact in (chat.trained.path, chat.trained.base, "chatml", "none", "8,192 tokens", "Ctrl-C stops", "/help"):
        assert fact in greeting.replace("\n", "")

    # A paste of several lines is one message, and so are lines after Alt-Enter.
    shell.ask(PASTE.format("first line\nsecond line\n\n/exit") + "\r", "(cut at --max-new-tokens 8)")
    shell.ask(f"one{ALT_ENTER}two\r", "(cut at")
    # The arrow keys bring back what was typed, also in a new chat.
    shell.ask(f"{UP}{UP}{UP}{UP}\x01X\r", "(cut at")
    saved = tmp_path / "chat.json"
    shell.ask(f"/sa{TAB}{saved}\r", f"(saved {saved}: 3 answers")
    asked = [m["content"] for m in messages(saved) if m["role"] == "user"]
    assert asked[:2] == ["first line\nsecond line\n\n/exit", "one\ntwo"] and "X" in asked[2]

    assert "did you mean /retry?" in shell.ask("/rety\r", "error: unknown command /rety;")
    shell.ask(" /etc is a folder\r", "(cut at")
    shell.ask("/stats\r", "context used: ")
    assert "\n/load FILE" in shell.ask(f"/h{TAB}\r", "leave, like Ctrl-D")
    # Ctrl-C at the prompt drops the line.
    shell.ask(f"half a line{CTRL_C}", "(Ctrl-D or /exit leaves)")
    shell.ask(f"/save {tmp_path / 'b.json'}\r", "4 answers")
    assert messages(tmp_path / "b.json")[-2]["content"] == "/etc is a folder"
    shell.type(CTRL_D)
    assert shell.end() == 0

    history = tmp_path / "fschat" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    assert entries[:2] == ["first line\nsecond line\n\n/exit", "one\ntwo"] and "half a line" not in entries


@pytest.mark.parametrize("shell", [8000], indirect=True)
def test_what_was_said_before_ctrl_c_is_kept(shell: Terminal, tmp_path: Path) -> None:
    shell.wait_for("> ")
    shell.type("Hello\r")
    shell.wait_for("Hello\n")
    shell.wait_for("\n")  # some of the answer
    shell.type("typed ahead, not shown in the answer")
    shell.type(CTRL_C)
    said = shell.wait_for("(stopped)")
    assert "typed ahead" not in said
    shell.wait_for("> ")
    saved = tmp_path / "chat.json"
    shell.ask(f"\x15/save {saved}\r", "1 answer, unfinished")
    question, answer = messages(saved)
    assert question["content"] == "Hello" and answer["content"] and answer["train"] is False
    shell.ask("/undo\r", "(taken back: Hello)")
    shell.type("/exit\r")
    assert shell.end() == 0
