"""The commands of upstream's `chat_loop` that change its conversation: `!!remove`, `!!regen`, `!!save` and `!!load`.

Files have upstream's form, that of `Conversation.dict`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastchat import files
from fastchat.conversation import Conversation, get_conv_template
from fastchat.errors import DataError, SettingsError, UserError
from fastchat.serve.saved_chat import load, named

if TYPE_CHECKING:
    from fastchat.serve.inference import ChatIO


def run_command(conv: Conversation, message: str, chatio: ChatIO) -> tuple[Conversation, str]:
    """The conversation after `message`, and the message to answer now: "" if it was a command that needs no answer."""
    name, _, argument = message.partition(" ")
    try:
        if name in ("!!remove", "!!regen"):
            taken = _take_back(conv)
            return conv, taken if name == "!!regen" else ""
        if name in ("!!save", "!!load"):
            if not argument.strip():
                raise SettingsError(f"usage: {name} FILE")
            return (_save if name == "!!save" else _load)(conv, argument.strip(), chatio), ""
    except UserError as problem:
        chatio.print_output(f"error: {problem}")
        return conv, ""
    return conv, message


def _take_back(conv: Conversation) -> str:
    """Remove the last message and its answer; returns the message."""
    if len(conv.messages) <= conv.offset:
        raise SettingsError("There is nothing to take back.")
    if conv.messages[-1][0] == conv.roles[1]:
        conv.messages.pop()
    return str(conv.messages.pop()[1]) if len(conv.messages) > conv.offset else ""


def _save(conv: Conversation, name: str, chatio: ChatIO) -> Conversation:
    path = named(name, existing=False)
    try:
        files.write_json(path, dict(conv.dict()))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    chatio.print_output(f"saved {path}")
    return conv


def _load(conv: Conversation, name: str, chatio: ChatIO) -> Conversation:
    """The saved conversation, with the template that it names; of another file, with that of `conv`."""
    path = named(name, existing=True)
    dialogue, notes = load(path)
    for note in notes:
        chatio.print_output(note)
    try:
        template = files.read_object(path).get("template_name")
    except files.JsonError:  # rows, not an object
        template = None
    made = get_conv_template(template or conv.name)
    made.messages = list(made.messages[: made.offset])
    if dialogue.system is not None:
        made.set_system_message(dialogue.system)
    for turn in dialogue.turns:
        role = made.roles[turn.role == "assistant"]
        made.append_message(role, turn.text)
        chatio.prompt_for_output(role)
        chatio.print_output(turn.text)
    return made
