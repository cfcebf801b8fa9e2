"""The schema of a template table: every key is checked before a template is made from it.

A `Form` is a table of keys; the kind of each is a function that takes the value and its `Place`, and returns the value
for the template or raises SettingsError with file, template, key, value and the expected value. The two forms are next
to the classes that are made from them: `Template` in template.py, `Conversation` in upstream.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastchat.errors import SettingsError, brief, nearest

_SHOWN = 80  # characters of a wrong value


@dataclass(frozen=True, slots=True)
class Place:
    """The location of a value: `owner` is the file and the template, `key` the path to it, such as `user.before`."""

    owner: str
    key: str = ""

    @classmethod
    def of(cls, table: Any, source: str) -> Place:
        """The place of a whole table; `source` is its file, for messages."""
        name = table.get("name") if isinstance(table, dict) else None
        return cls(f"{source}template {name!r}" if name else f"{source}a template")

    def under(self, key: object) -> Place:
        """The place of an entry: a key of a mapping, or a number in a list, counted from 1."""
        if isinstance(key, int):
            return Place(self.owner, f"entry {key} of {self.key}")
        return Place(self.owner, f"{self.key}.{key}" if self.key else str(key))

    def wrong(self, value: object, expected: str) -> SettingsError:
        """
        >>> str(Place("k.yaml: template 'k'").under("user").under("after").wrong(3, "a string"))
        "k.yaml: template 'k': user.after is 3; expected a string."
        """
        return SettingsError(f"{self.owner}: {self.key} is {_shown(value)}; expected {expected}.")


Kind = Callable[[Any, Place], Any]


@dataclass(frozen=True, slots=True)
class Form:
    """The keys of a mapping with their kinds, its required keys, and its name in messages."""

    title: str
    kinds: Mapping[str, Kind]
    needed: tuple[str, ...]
    example: str

    def read(self, table: Any, place: Place) -> dict[str, Any]:
        """The values of `table` by key, each converted by its kind. Raises SettingsError for the first wrong one."""
        if not isinstance(table, dict):
            raise place.wrong(table, f"keys with values, such as {self.example}")
        for key in table:
            if key not in self.kinds:
                near = nearest(str(key), self.kinds)
                known = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(self.kinds)}"
                there = place.under(key if isinstance(key, str) else _shown(key))
                raise SettingsError(
                    f"{place.owner}: {there.key} ({_shown(table[key])}) is not a key of {self.title}; {known}."
                )
        for key in self.needed:
            if key not in table:
                has = f"{place.key} is {_shown(table)}" if place.key else f"the keys are {', '.join(table) or 'none'}"
                raise SettingsError(
                    f"{place.owner}: {place.under(key).key} is missing ({has}); expected as in {self.example}."
                )
        return {key: self.kinds[key](value, place.under(key)) for key, value in table.items()}


# --- kinds


def text(value: Any, place: Place) -> str:
    """A string. Nothing is converted: YAML reads `no`, `5` and an empty value as other types."""
    if not isinstance(value, str):
        raise place.wrong(value, "a string" if isinstance(value, list | dict) else "a string, in quotes")
    return value


def some_text(value: Any, place: Place) -> str:
    """A non-empty string."""
    if text(value, place) == "":
        raise place.wrong(value, "a non-empty string")
    return value


def whole(value: Any, place: Place) -> int:
    """A non-negative integer."""
    if type(value) is not int or value < 0:
        raise place.wrong(value, "a whole number of at least 0")
    return value


def flag(value: Any, place: Place) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise place.wrong(value, "true or false")
    return value


def or_null(kind: Kind) -> Kind:
    """`kind` or None."""
    return lambda value, place: None if value is None else kind(value, place)


def several(kind: Kind, expected: str) -> Kind:
    """One value of a kind, or a list of them; returns a tuple in either case.

    >>> several(text, "a string or a list of strings")("am", Place("k.yaml"))
    ('am',)
    """

    def read(value: Any, place: Place) -> tuple[Any, ...]:
        """The value, or the values of the list, as a tuple."""
        if isinstance(value, list | tuple):
            return tuple(kind(entry, place.under(number)) for number, entry in enumerate(value, start=1))
        if value is None or isinstance(value, dict):
            raise place.wrong(value, expected)
        return (kind(value, place),)

    return read


stop_texts = several(some_text, "a string or a list of strings")
token_ids = several(whole, "a token id or a list of them")


def one_of(names: Iterable[str]) -> Kind:
    """One of the given names."""
    known = list(names)

    def read(value: Any, place: Place) -> str:
        """The value, if it is one of `names`."""
        if value not in known:
            near = nearest(str(value), known)
            raise place.wrong(value, " or ".join(near) if near else f"one of {', '.join(known)}")
        return value

    return read


def pairs(roles: Iterable[str] | None, example: str) -> Kind:
    """A list of [role, text] pairs, as a tuple of (role, text); with `roles`, only these."""
    role = one_of(roles) if roles is not None else text

    def read(value: Any, place: Place) -> tuple[tuple[str, str], ...]:
        """The pairs of the list, as tuples."""
        if not isinstance(value, list | tuple):
            raise place.wrong(value, f"a list such as {example}")
        for number, entry in enumerate(value, start=1):
            if not isinstance(entry, list | tuple) or len(entry) != 2:
                raise place.under(number).wrong(entry, f"a role and a message, as in {example}")
        return tuple(
            (role(entry[0], place.under(number)), text(entry[1], place.under(number)))
            for number, entry in enumerate(value, start=1)
        )

    return read


def _shown(value: object) -> str:
    """A value as YAML could write it, on one line."""
    return brief(json.dumps(value, ensure_ascii=False, default=str, skipkeys=True), _SHOWN)
