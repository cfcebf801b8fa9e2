"""The text around a message, and the pieces of a rendered dialogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastchat.conversation.schema import Form, Kind, Place, text
from fastchat.errors import SettingsError


@dataclass(frozen=True, slots=True)
class RoleFormat:
    """The text around a message of one role.

    `open` is the text that inference sends to have the message written; it is a prefix of `before`, and the model
    generates the rest of `before` (vicuna's space after `ASSISTANT:`).
    """

    before: str
    after: str
    open: str = ""

    def __post_init__(self) -> None:
        if not self.before.startswith(self.open):
            raise SettingsError(f"template: the open prompt {self.open!r} is not a prefix of {self.before!r}.")


@dataclass(slots=True)  # not frozen, which takes three times as long to make; there are several for every turn
class Segment:
    """A piece of a rendered dialogue; never changed.

    `role` is "template" for the template's own text, otherwise the role of the message; the schemas of the tools have
    the role "system", or that of the message that shows them, and calls have the role "assistant". `virtual` marks an
    end-of-sequence token that the template's text does not contain: it becomes an id and is not in `Rendered.text`.
    `excluded` marks the text of a turn with "train": false: it is not supervised even if prompts are.
    `plain` marks text in which no token is anything but text, not even one that the model writes in its answers: the
    arguments of a tool call. `kind` tells texts of one role apart: "reasoning", "call" or "tools"; "" for the others.
    """

    text: str
    role: str = "template"
    supervised: bool = False
    turn: int = -1
    virtual: bool = False
    excluded: bool = False
    plain: bool = False
    kind: str = ""


_Format = TypeVar("_Format", bound=RoleFormat)


def read_format(value: Any, place: Place, made: type[_Format], more: Mapping[str, Kind]) -> _Format:
    """Read a role's format of the class `made`, whose further keys have the kinds `more`."""
    form = Form("a role's format", {**_KINDS, **more}, needed=("before", "after"), example=_EXAMPLE)
    keys = form.read(value, place)
    if not keys["before"].startswith(keys.get("open", "")):
        raise place.under("open").wrong(keys["open"], f"the prompt of inference, a prefix of {keys['before']!r}")
    return made(**keys)


def role_format(value: Any, place: Place) -> RoleFormat:
    """Read a role's format in a table."""
    return read_format(value, place, RoleFormat, {})


_KINDS: dict[str, Kind] = {"before": text, "after": text, "open": text}
_EXAMPLE = '{before: "Q: ", after: "\\n"}'
