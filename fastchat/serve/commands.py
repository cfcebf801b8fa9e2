"""The commands of a chat: `/name argument`, and FastChat's `!!name`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fastchat.conversation import Dialogue
from fastchat.errors import SettingsError, UserError, brief, counted, nearest
from fastchat.serve.session import Session, View

Tell = Callable[[str], None]  # shows one line about the chat
Show = Callable[[Dialogue], None]  # shows a dialogue
Listing = Callable[[Sequence[tuple[str, str]]], None]  # shows pairs in two columns


@dataclass(frozen=True)
class Front:
    """How a chat is shown: its answers, lines about it, a loaded dialogue, and terms with their explanations."""

    view: View
    tell: Tell
    show: Show
    list: Listing


@dataclass(frozen=True)
class Command:
    """A command. `argument`: the name of its argument in the help; "" if it takes none, in [] if it is optional."""

    argument: str
    help: str
    run: Callable[[Session, str, Front], None]


class Exit(Exception):
    """The user ends the chat."""


def answer(session: Session, text: str, front: Front) -> None:
    """Answer a message and say what there is to say about the answers."""
    for note in session.ask(text, front.view):
        front.tell(f"({note})")


def command_of(line: str) -> tuple[str, str] | None:
    """The name, with its / or !!, and the argument if `line` is written like a command; None for a message.

    >>> command_of("/save a.json"), command_of("!!exit"), command_of("/home/me/x.py does not run")
    (('/save', 'a.json'), ('!!exit', ''), None)
    """
    found = re.match(r"(/|!!)(\w+)(?=\s|$)", line)
    if not found or "\n" in line and known(found[0]) is None:  # pasted text
        return None
    return found[0], line[found.end() :].strip()


def known(name: str) -> Command | None:
    """The command of that name, None if there is none."""
    return COMMANDS.get(name[1:]) if name.startswith("/") else COMMANDS.get(FORMER.get(name[2:], ""))


def run_command(name: str, argument: str, session: Session, front: Front) -> None:
    """Run a command. Raises Exit for the one that ends the chat, UserError for an unknown one, for a wrong argument, or
    if it cannot be done."""
    command = known(name)
    if command is None:
        names = names_of_commands()
        close = nearest(name, names, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else "/help lists the commands."
        mark = "/" if name.startswith("/") else "!!"
        raise SettingsError(
            f"unknown command {name}; {hint} (To send a message that begins with {mark}, type a space first.)"
        )
    if argument and not command.argument:
        raise SettingsError(f"{name} takes no argument, but {brief(argument, 40)!r} is given.")
    if not argument and command.argument and not command.argument.startswith("["):
        raise SettingsError(f"usage: {name} {command.argument}")
    command.run(session, argument, front)


def names_of_commands() -> list[str]:
    """All names as they are typed."""
    return [f"/{name}" for name in COMMANDS] + [f"!!{name}" for name in FORMER]


def takes_argument(name: str) -> bool:
    """Whether the command of that name has an argument."""
    command = known(name)
    return command is not None and bool(command.argument)


def _help(session: Session, argument: str, front: Front) -> None:
    front.list(list(listed_commands()))


def listed_commands() -> Iterator[tuple[str, str]]:
    """Each command as it is typed, and what it does."""
    for name, command in COMMANDS.items():
        former = ", ".join(f"!!{old}" for old, new in FORMER.items() if new == name)
        also = f" (also {former})" if former else ""
        yield f"/{name} {command.argument}".rstrip(), command.help + also


def _reset(session: Session, argument: str, front: Front) -> None:
    session.reset()
    front.tell("(new conversation)")


def _system(session: Session, argument: str, front: Front) -> None:
    if argument:
        session.set_system(argument)
        front.tell("(system message changed)")
    else:
        front.tell(system_text(session))


def system_text(session: Session) -> str:
    """The system message of the chat, and whether it is the template's own."""
    if session.dialogue.system is not None:
        return session.dialogue.system or "none"
    own = getattr(session.chat.chat_encoder.template, "system_message", None)
    if own is None:  # a Jinja template may write one
        return "the template's own, if it has one"
    return f"{own} (the template's own)" if own else "none"


def _undo(session: Session, argument: str, front: Front) -> None:
    front.tell(f"(taken back: {brief(session.undo(), 60)})")


def _retry(session: Session, argument: str, front: Front) -> None:
    for note in session.retry(front.view):
        front.tell(f"({note})")


def _save(session: Session, argument: str, front: Front) -> None:
    num = sum(turn.role == "assistant" for turn in session.dialogue.turns)
    unfinished = sum(turn.role == "assistant" and not turn.train for turn in session.dialogue.turns)
    path = session.save(argument)
    which = "unfinished" if num == 1 else f"{unfinished} of them unfinished"
    left = f', {which}: saved with "train": false' if unfinished else ""
    whose = " of the tuned model" if len(session.chats) > 1 else ""
    front.tell(f"(saved {path}: {counted(num, 'answer')}{whose}{left})")


def _load(session: Session, argument: str, front: Front) -> None:
    path, notes = session.load(argument)
    front.show(session.dialogue)
    for note in (f"loaded {path}", *notes):
        front.tell(f"({note})")


def _stats(session: Session, argument: str, front: Front) -> None:
    for line in session.stats() or ["There is no answer yet."]:
        front.tell(line)


def _exit(session: Session, argument: str, front: Front) -> None:
    raise Exit


COMMANDS = {
    "help": Command("", "list the commands", _help),
    "reset": Command("", "start over", _reset),
    "system": Command("[TEXT]", "show or change the system message", _system),
    "undo": Command("", "take back the last message and its answer", _undo),
    "retry": Command("", "answer the last message again", _retry),
    "save": Command("FILE", "save the chat as training data", _save),
    "load": Command("FILE", "continue a saved chat, or a dialogue of a data file", _load),
    "stats": Command("", "tokens, speed and context of the last answer", _stats),
    "exit": Command("", "leave, like Ctrl-D", _exit),
}
# FastChat's name -> ours.
FORMER = {"exit": "exit", "reset": "reset", "remove": "undo", "regen": "retry", "save": "save", "load": "load"}


def attempt(work: Callable[[], None], tell: Tell) -> None:
    """Run `work`; a UserError is told and the chat goes on."""
    try:
        work()
    except UserError as problem:
        tell(f"error: {problem}")
