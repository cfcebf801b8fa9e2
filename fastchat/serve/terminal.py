"""The chat in a terminal: a greeting, a line editor with history, and answers in Markdown."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.shortcuts import CompleteStyle
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fastchat.conversation import Dialogue
from fastchat.errors import brief
from fastchat.serve.chat import Chat
from fastchat.serve.commands import (
    Exit,
    Front,
    answer,
    attempt,
    command_of,
    names_of_commands,
    run_command,
    system_text,
    takes_argument,
)
from fastchat.serve.input_history import InputHistory, history_file
from fastchat.serve.markdown_view import parts_of, printable, rendered, view_for
from fastchat.serve.session import Session

KEYS = "Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves; /help lists the commands"
_PROMPT, _NEXT_LINE = "> ", "  "


def talk(session: Session, console: Console | None = None) -> None:
    """Chat until the user leaves. `console`: where to write; by default stdout."""
    console = console or Console(highlight=False)
    view = view_for(console, list(session.chats))

    def tell(line: str) -> None:
        console.print(Text(printable(line), style="bold red" if line.startswith("error:") else "dim"))

    def tabulate(pairs: Sequence[tuple[str, str]]) -> None:
        console.print(_columns(pairs), style="dim")

    front = Front(view, tell, lambda dialogue: show_dialogue(console, dialogue), tabulate)
    greet(session, console)
    editor = line_editor()
    while True:
        try:
            line = editor.prompt(_PROMPT)
        except KeyboardInterrupt:
            tell("(Ctrl-D or /exit leaves)")
            continue
        except EOFError:
            return
        try:
            with keys_are_kept():
                attempt(lambda said=line: _handle(said, session, front), tell)
        except KeyboardInterrupt:  # in a command; an answer handles it
            tell("(stopped)")
        except Exit:
            return


def _handle(line: str, session: Session, front: Front) -> None:
    command = command_of(line)
    if command is not None:
        run_command(*command, session, front)
    elif line.strip():
        said = line.removeprefix(" ") if line.startswith((" /", " !!")) else line
        answer(session, said.encode("utf-8", "replace").decode("utf-8"), front)


def greet(session: Session, console: Console) -> None:
    """Say which model this is, what it is told, and which keys there are."""
    facts = _columns(list(_facts(session, session.chat)), style="bold")
    console.print(Group(facts, Text(KEYS, style="dim"), Text("")))


def _columns(pairs: Sequence[tuple[str, str]], style: str = "") -> Table:
    """Pairs in two columns, the first in `style`; only the second one is wrapped."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for name, value in pairs:
        table.add_row(Text(name, style=style), Text(printable(value)))
    return table


def _facts(session: Session, chat: Chat) -> Iterator[tuple[str, str]]:
    trained = chat.trained
    if trained is not None:
        yield "Model", f"{trained.path}, an adapter on {trained.base}" if trained.is_adapter else trained.path
    if len(session.chats) > 1:
        yield "Compared", " and ".join(session.chats)
    yield "Template", chat.chat_encoder.template.name
    yield "System", brief(system_text(session), 300)
    if chat.context is not None:
        yield "Context", f"{chat.context:,} tokens"


def show_dialogue(console: Console, dialogue: Dialogue) -> None:
    """Print a loaded dialogue."""
    for turn in dialogue.turns:
        if turn.role == "assistant":
            thought = f"<think>{turn.reasoning}</think>\n" if turn.reasoning else ""
            text = printable(thought + turn.text)
            console.print(*(rendered(text, part) for part in parts_of(text)), sep="\n")
            for call in turn.calls:
                console.print(Text(printable(f"{call.name}({call.arguments})"), style="cyan"))
        else:
            mark = _PROMPT if turn.role == "user" else f"{turn.role}: "
            console.print(Text(mark + printable(turn.text), style="bold"))
        console.print()


def line_editor(mouse: bool = False) -> PromptSession[str]:
    """The editor: Enter sends, Alt-Enter and a paste of several lines make a message of several lines. `mouse`: a click
    moves the cursor."""
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=InputHistory(history_file()),
        key_bindings=keys,
        multiline=True,
        prompt_continuation=_NEXT_LINE,
        completer=_Commands(),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_suspend=True,
        mouse_support=mouse,
    )


class _Commands(Completer):
    """Completes the name of a command at the start of a message."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text_before_cursor
        if typed.startswith(("/", "!!")):
            for name in names_of_commands():
                if name.startswith(typed):
                    yield Completion(f"{name} " if takes_argument(name) else name, -len(typed), display=name)


@contextmanager
def keys_are_kept() -> Iterator[None]:
    """What is typed during an answer is not echoed into it; the editor gets it afterwards. Ctrl-C still stops."""
    try:
        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
    except (OSError, ValueError, termios.error):  # not a terminal
        yield
        return
    quiet = termios.tcgetattr(handle)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(handle, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(handle, termios.TCSADRAIN, before)
