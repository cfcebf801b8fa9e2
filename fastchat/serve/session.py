"""A chat without its terminal: the dialogue so far, the answers, and the commands that change it.

With two models (`--compare`) each has a dialogue of its own, since it reads its own earlier answers.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastchat.conversation import Dialogue, Turn
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.unshown import refuse_unshown
from fastchat.errors import ResourceError, SettingsError, counted
from fastchat.serve import saved_chat

if TYPE_CHECKING:
    from fastchat.serve.chat import Answer, Chat


class View(Protocol):
    """What shows answers while they are generated."""

    def begin(self, label: str, chat: Chat) -> None:
        """The model named `label` starts to answer."""

    def piece(self, text: str) -> None:
        """The next piece of its answer."""

    def end(self) -> None:
        """The answer is complete, or was stopped."""

    def close(self) -> None:
        """Every model has answered."""


class Session:
    """The state of a chat.

    Attributes:
        chats: the models by label, in the order in which they answer; the last one is the tuned model.
        dialogues: the dialogue of each.
    """

    def __init__(self, chats: dict[str, Chat]):
        self.chats = chats
        self._saved: set[Path] = set()
        self.dialogues: dict[str, Dialogue] = {}
        self.reset()

    @property
    def chat(self) -> Chat:
        """The tuned model, or the only one."""
        return list(self.chats.values())[-1]

    @property
    def dialogue(self) -> Dialogue:
        """Its dialogue."""
        return list(self.dialogues.values())[-1]

    def reset(self) -> None:
        """Start over, with the system message of the start."""
        self.dialogues = {label: Dialogue((), chat.system) for label, chat in self.chats.items()}

    def set_system(self, text: str) -> None:
        """Use another system message from the next answer on. Raises UserError if the template refuses it."""
        changed = {label: replace(dialogue, system=text) for label, dialogue in self.dialogues.items()}
        self._check(changed)
        self.dialogues = changed

    def ask(self, text: str, view: View) -> list[str]:
        """Answer a new message; see `answer`."""
        return self._answer({label: _plus(d, Turn("user", text)) for label, d in self.dialogues.items()}, view)

    def retry(self, view: View) -> list[str]:
        """Answer the last message again."""
        if not self.dialogue.turns:
            raise SettingsError("There is no answer to repeat.")
        asked = {label: _until(dialogue, "assistant") for label, dialogue in self.dialogues.items()}
        return self._answer(asked, view)

    def undo(self) -> str:
        """Take back the last message and its answer; returns the message."""
        if not self.dialogue.turns:
            raise SettingsError("There is nothing to take back.")
        before = {label: _until(dialogue, "user") for label, dialogue in self.dialogues.items()}
        taken = self.dialogue.turns[len(list(before.values())[-1].turns)]
        self.dialogues = before
        return taken.text

    def save(self, name: str) -> Path:
        """Write the chat with the tuned model to a file. A file of something else is not replaced."""
        if not self.dialogue.turns:
            raise SettingsError("There is nothing to save.")
        path = saved_chat.named(name, existing=False)
        if path.exists() and path.resolve() not in self._saved:
            raise SettingsError(f"{path} exists: choose another name.")
        saved_chat.save(self.dialogue, path)
        self._saved.add(path.resolve())
        return path

    def load(self, name: str) -> tuple[Path, list[str]]:
        """Continue the dialogue in a file, for every model; returns also what was changed in it or not read."""
        path = saved_chat.named(name, existing=True)
        dialogue, notes = saved_chat.load(path)
        loaded = dict.fromkeys(self.chats, dialogue)
        self._check(loaded)
        self.dialogues = loaded
        self._saved.add(path.resolve())
        return path, notes

    def stats(self) -> list[str]:
        """Tokens, speed and used context of each model's last answer, one line each."""
        several = len(self.chats) > 1
        known = [(label, chat) for label, chat in self.chats.items() if chat.last is not None]
        return [(f"{label}: " if several else "") + _stats(chat, chat.last) for label, chat in known if chat.last]

    def _check(self, dialogues: dict[str, Dialogue]) -> None:
        """Raise UserError if a template cannot render a prompt that continues these dialogues, with all that they say
        (reasoning before earlier answers is left out of prompts by most templates)."""
        for label, dialogue in dialogues.items():
            template = self.chats[label].chat_encoder.template
            try:
                refuse_unshown(dialogue, reasoning=True, calls=template.shows_calls)
            except BadRow as problem:
                raise SettingsError(f"{problem}. {problem.way_out}") from None
            template.render(_plus(dialogue, Turn("user", "Hello")), add_generation_prompt=True)

    def _answer(self, asked: dict[str, Dialogue], view: View) -> list[str]:
        """Let every model answer its dialogue and keep the answers; returns what the user should know about them.

        Ctrl-C stops the answer of one model, of which the part that was shown is kept. If nothing was shown, or for any
        error, the dialogues stay as they were. Raises UserError if a model cannot answer.
        """
        answered, notes = {}, []
        try:
            for label, dialogue in asked.items():
                chat = self.chats[label]
                text = _generate(chat, dialogue, label, view)
                note = _unfinished(chat)
                answered[label] = _plus(dialogue, Turn("assistant", text, train=not note))
                notes += [note if len(asked) == 1 else f"{label}: {note}"] if note else []
        finally:
            view.close()
        if not any(dialogue.turns[-1].text for dialogue in answered.values()) and any("stopped" in n for n in notes):
            return ["stopped before the first word; the message is taken back"]
        self.dialogues = answered
        return notes


def _generate(chat: Chat, dialogue: Dialogue, label: str, view: View) -> str:
    """The answer, or as much of it as was shown before Ctrl-C."""
    from torch import OutOfMemoryError

    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        view.piece(piece)

    chat.last = None
    view.begin(label, chat)
    try:
        with _stopped_by_ctrl_c(chat):
            return chat.reply(dialogue, on_text=show)
    except KeyboardInterrupt:
        if chat.last is not None:
            chat.last.cancelled = True
        return "".join(shown)
    except OutOfMemoryError as error:
        raise ResourceError(
            f"The GPU has too little memory for this conversation ({str(error).partition('.')[0]}): take messages "
            "back or start over."
        ) from None
    finally:
        view.end()


@contextmanager
def _stopped_by_ctrl_c(chat: Chat) -> Iterator[None]:
    """The first Ctrl-C ends the answer after its next token, so that nothing is interrupted halfway; a second one, or
    one before the model has started, raises KeyboardInterrupt."""

    def stop(number: int, frame: Any) -> None:
        if chat.last is None or chat.last.cancelled:
            raise KeyboardInterrupt
        chat.last.cancelled = True

    if threading.current_thread() is not threading.main_thread():  # signals are handled in the main thread only
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _unfinished(chat: Chat) -> str:
    """Why the answer ends where the model did not end it; "" if it did."""
    last = chat.last
    if last is None or last.cancelled and not last.stopped:
        return "stopped"
    if last.stopped:
        return ""
    if chat.context is not None and last.num_prompt + len(last.ids) >= chat.context:
        return f"cut: the context of {chat.context:,} tokens is full"
    return f"cut at --max-new-tokens {chat.max_new_tokens}"


def _stats(chat: Chat, last: Answer) -> str:
    num = len(last.ids)
    seconds = last.newest - last.first
    speed = f" at {(num - 1) / seconds:,.1f} tokens/s" if num > 1 and seconds > 0 else ""
    used = last.num_prompt + num
    if chat.context is None:
        context = f"{used:,} tokens"
    else:
        context = f"{used:,} of {chat.context:,} tokens ({100 * used / chat.context:.0f} %)"
    wait = f"first token after {last.first - last.began:.1f} s"
    prompt, answer = counted(last.num_prompt, "token"), counted(num, "token")
    return f"prompt {prompt}, answer {answer}{speed}, {wait}; context used: {context}"


def _plus(dialogue: Dialogue, turn: Turn) -> Dialogue:
    return replace(dialogue, turns=(*dialogue.turns, turn))


def _until(dialogue: Dialogue, role: str) -> Dialogue:
    """The dialogue before its last turn of `role`."""
    place = max((k for k, turn in enumerate(dialogue.turns) if turn.role == role), default=0)
    return replace(dialogue, turns=dialogue.turns[:place])
