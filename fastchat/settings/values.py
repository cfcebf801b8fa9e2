"""The settings of one run while they are being resolved: plain values, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastchat.errors import say
from fastchat.settings.options import COMMAND, DEFAULT, DERIVED, RECIPE, Option


class Values:
    """Name -> value for every option, and the origin of each value.

    >>> values = Values([Option("lora_r", int, 8)], {}, {"lora_r": 16})
    >>> values["lora_r"], values.origin["lora_r"], values.given("lora_r")
    (16, 'command line', True)
    """

    def __init__(self, options: Iterable[Option], recipe: dict[str, Any], command: dict[str, Any]) -> None:
        self.options = tuple(options)
        self._values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.defaults: dict[str, Any] = {}
        for option in self.options:
            name = option.name
            self.defaults[name] = option.default
            if name in command:
                self._values[name], self.origin[name] = command[name], COMMAND
            elif name in recipe:
                self._values[name], self.origin[name] = recipe[name], RECIPE
            else:
                self._values[name], self.origin[name] = option.default, DEFAULT

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def given(self, name: str) -> bool:
        """Whether the user set it, in the recipe or on the command line."""
        return self.origin.get(name) in (COMMAND, RECIPE)

    def derive(self, name: str, value: Any, why: str = "") -> None:
        """Replace a value by one that follows from other settings or from the machine; `why` is printed."""
        if why:
            say(why)
        self._values[name], self.origin[name] = value, DERIVED

    def restate(self, name: str, value: Any) -> None:
        """Replace a value by another form of it; the origin is unchanged."""
        self._values[name] = value

    def names(self) -> list[str]:
        return list(self._values)
