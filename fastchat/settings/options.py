"""Reads settings from a recipe and from the command line into plain values, and records the origin of each.

The same converter is used for both, so `1e-5` is a number in YAML too, and a wrong type gives the same message in both.
All commands use it. Needs neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fastchat.errors import SettingsError
from fastchat.settings.fields import TOLD, Range, Translate
from fastchat.settings.parsing import (
    FALSE,
    TRUE,
    check_home,
    check_mapping,
    to_bool,
    to_choice,
    to_float,
    to_int,
    to_mapping,
    to_text,
)
from fastchat.settings.recipe_files import read_recipe
from fastchat.settings.unknown import Problem, Unknown, refusal

DEFAULT, RECIPE, COMMAND, DERIVED = "default", "yaml", "command line", "derived"


@dataclass(frozen=True)
class Option:
    """One setting: its name, its type as annotated (`int`, `list[str]`, `Literal[...]`, `X | None`), its default, and
    its metadata, see `fields.setting`."""

    name: str
    type: Any
    default: Any
    help: str = ""
    group: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()  # if the type does not list them
    also: tuple[str, ...] = ()
    elsewhere: Mapping[str, Translate | None] = field(default_factory=dict)
    resume: str = TOLD
    common: bool = False
    memory: bool = False
    path: bool = False
    refused: str = ""

    @property
    def parts(self) -> tuple[Any, ...]:
        """The members of a union, without None."""
        union = typing.get_origin(self.type) in (typing.Union, types.UnionType)
        alternatives = typing.get_args(self.type) if union else (self.type,)
        return tuple(a for a in alternatives if a is not type(None))

    @property
    def is_bool(self) -> bool:
        return bool in self.parts

    @property
    def is_list(self) -> bool:
        return any(p is list or typing.get_origin(p) is list for p in self.parts)

    @property
    def is_mapping(self) -> bool:
        return any(p is dict or typing.get_origin(p) is dict for p in self.parts)

    @property
    def may_be_none(self) -> bool:
        return type(None) in typing.get_args(self.type) or self.default is None

    @property
    def allowed(self) -> tuple[str, ...]:
        """The allowed values; empty if any value is allowed."""
        for part in self.parts:
            if typing.get_origin(part) is Literal:
                return tuple(str(a) for a in typing.get_args(part))
            if isinstance(part, type) and issubclass(part, Enum):
                return tuple(str(member.value) for member in part)
        return self.choices


_FACTS = tuple(one.name for one in dataclasses.fields(Option))[3:]


@lru_cache
def options_of(classes: tuple[type[Any], ...]) -> tuple[Option, ...]:
    """The options of the fields of dataclasses, in order."""
    options: list[Option] = []
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for one in dataclasses.fields(cls):
            if not one.init:
                continue
            default = one.default
            if one.default_factory is not dataclasses.MISSING:
                default = one.default_factory()
            facts = {key: one.metadata[key] for key in _FACTS if key in one.metadata}
            options.append(Option(one.name, hints[one.name], default, **facts))
    return tuple(options)


def split_recipe(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the recipe (a first word that is not a flag) from the flags.

    The deepspeed launcher prepends `--local_rank=N`; it is dropped, because the rank is read from the environment.
    """
    words: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--local_rank", "--local-rank"):
            skip = True
        elif not word.startswith(("--local_rank=", "--local-rank=")):
            words.append(word)
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    return None, words


class Reader:
    """Turns a command line or the values of a recipe into typed values of known options."""

    def __init__(
        self,
        options: Iterable[Option],
        no_setting: Mapping[str, str | Translate] | None = None,
        hidden: Iterable[str] = (),
        newer: Callable[[str], Option | None] | None = None,
    ) -> None:
        """`no_setting`: unsupported name -> what to do instead; `hidden`: never suggested (nor are refused options);
        `newer`: finds an option that is not in the table (it is then added to `options`)."""
        self.options = {option.name: option for option in options}
        self._renamed = {name: option.name for option in self.options.values() for name in option.also}
        self._newer = newer
        self._unknown = Unknown(list(self.options.values()), no_setting or {}, hidden)

    def from_yaml(self, path: str | Path) -> dict[str, Any]:
        """Typed values of a recipe file, by canonical name. Raises SettingsError that lists all problems."""
        content = read_recipe(path)
        values: dict[str, Any] = {}
        problems: list[Problem] = []
        for key, raw in content.items():
            option = self.find(key)
            if option is None:
                problems += self._unknown.problems(key, raw)
                continue
            if option.name != key and raw is None and option.name in content:
                continue  # as in training.json: no value for the alias
            try:
                if option.name in values:
                    raise SettingsError(f"{path}: {key} and another name for {option.name} are both given; keep one")
                values[option.name] = convert(option, raw, f"{path}: {key}")
            except SettingsError as error:
                problems.append(Problem(key, str(error).removeprefix(f"{path}: "), lead=None))
        if problems:
            raise refusal(problems + self._refused(values), str(path))
        return values

    def from_words(self, words: Sequence[str]) -> dict[str, Any]:
        """Typed values of a command line, by canonical name; if a flag is repeated, the last one counts."""
        values: dict[str, Any] = {}
        problems: list[Problem] = []
        at = 0
        while at < len(words):
            flag = words[at]
            if not flag.startswith("--") or len(flag) < 3:
                raise SettingsError(f"{flag!r} is not a --flag, but one is expected here (quote values with spaces)")
            at += 1
            name, has_value, glued = flag[2:].partition("=")
            option, negated = self._find_flag(name)
            many = option is None or option.is_list
            end = at
            while not has_value and end < len(words) and not is_flag(words[end]) and (many or end == at):
                end += 1
            given, at = [glued] if has_value else list(words[at:end]), end
            if option is None:
                raw: Any = given if len(given) > 1 else given[0] if given else True
                problems.append(self._unknown.problem(name.replace("-", "_"), raw, shown=f"--{name}"))
            else:
                values[option.name] = self._from_given(option, negated, given, f"--{name}")
        if problems:
            raise refusal(problems + self._refused(values, dashes="--"), "")
        return values

    def find(self, name: str) -> Option | None:
        """The option with that name or alias."""
        name = self._renamed.get(name, name)
        option = self.options.get(name)
        if option is None and self._newer is not None and not self._unknown.knows(name):
            option = self._newer(name)
            if option is not None:
                self.options[name] = option
        return option

    def _find_flag(self, name: str) -> tuple[Option | None, bool]:
        """(the option of a flag, whether it was given as --no_name)"""
        plain = name.replace("-", "_")
        option = self.find(plain)
        if option is None and plain.startswith("no_") and not self._unknown.knows(plain):
            positive = self.find(plain.removeprefix("no_"))
            if positive is not None and positive.is_bool:
                return positive, True
        return option, False

    def _from_given(self, option: Option, negated: bool, given: list[str], label: str) -> Any:
        if negated:
            if given:
                raise SettingsError(f"{label} takes no value, not {given[0]!r}")
            return False
        if option.is_bool and not given:
            return True
        if not given:
            raise SettingsError(f"{label} needs a value")
        return convert(option, given if option.is_list else given[0], label)

    def _refused(self, values: dict[str, Any], dashes: str = "") -> list[Problem]:
        """The refused settings among `values`, reported together with unknown names."""
        options = (self.options[name] for name in values)
        return [Problem(dashes + o.name, o.refused) for o in options if o.refused and is_refused(o, values[o.name])]


def is_refused(option: Option, value: Any) -> bool:
    """Whether the value given for a refused setting would change anything."""
    if option.default is True:
        return value is False
    return value != option.default and value not in ("", False, None)


def check_refused(options: Iterable[Option], given: Mapping[str, Any]) -> None:
    """Raises SettingsError that lists all given settings that are refused."""
    found = [o for o in options if o.refused and o.name in given and is_refused(o, given[o.name])]
    if found:
        raise SettingsError(
            "; ".join(
                f"--{o.name}{' False' if o.default is True else ''} is not available here: {o.refused}" for o in found
            )
        )


def check_ranges(options: Iterable[Option], values: Mapping[str, Any]) -> None:
    """Raises SettingsError if a number is outside its range."""
    for option in options:
        value = values.get(option.name)
        if option.range is not None and value is not None and not option.range.holds(value):
            text = f"{value:g}" if isinstance(value, float) else value
            raise SettingsError(f"--{option.name} is {text}; it must be {option.range.wanted}")


def is_flag(word: str) -> bool:
    """`--name` is a flag; `-1`, `-` and `--` are values."""
    return word.startswith("--") and len(word) > 2


def convert(option: Option, raw: Any, label: str) -> Any:
    """Convert one value to the option's type. Raises SettingsError with the setting, the value and the expected type.

    >>> convert(Option("learning_rate", float, 5e-5), "1e-5", "--learning_rate")
    1e-05
    """
    own = option.elsewhere.get(option.name)  # values that other programs have for the same name
    advice = own(raw[0] if isinstance(raw, list) and len(raw) == 1 else raw) if own is not None else ""
    if advice:
        raise SettingsError(f"{label} is {raw!r}: {advice}")
    if raw is None or (raw == "None" and type(None) in typing.get_args(option.type)):
        if option.may_be_none:
            return None
        raise SettingsError(f"{label} is empty; give a value or remove the line")
    if isinstance(raw, (str, list)) and raw == option.default:
        return raw  # the default is always valid, even if it does not match the type
    if isinstance(raw, dict):
        if option.is_mapping:
            return check_mapping(raw, label)
        raise SettingsError(f"{label} is a mapping, but one value is expected")
    if option.is_list:
        items = raw if isinstance(raw, (list, tuple)) else [raw]
        return [check_home(to_text(item, label), label) if option.path else to_text(item, label) for item in items]
    if isinstance(raw, (list, tuple)):
        raise SettingsError(f"{label} is a list, but one value is expected")
    return _scalar(option, raw, label)


def _scalar(option: Option, raw: Any, label: str) -> Any:
    if option.allowed:
        return to_choice(raw, label, option.allowed)
    if bool in option.parts and str in option.parts:  # transformers has one such option
        word = str(raw).lower()
        if int in option.parts and word.isdecimal():
            return int(word)  # a number, not the switch that 0 and 1 are elsewhere
        return word in TRUE if word in TRUE | FALSE else str(raw)
    for kind, function in _CONVERTERS:
        if kind in option.parts:
            return function(raw, label)
    if option.is_mapping:
        value = to_mapping(raw, label)
        if isinstance(value, str) and str not in option.parts:
            raise SettingsError(f"{label} is {raw!r}, but a mapping is expected (on the command line, a JSON object)")
        return value
    if option.path:
        if raw == "None":
            raise SettingsError(f"{label} is 'None'; give a path, or leave it out")
        return check_home(to_text(raw, label), label)
    return to_text(raw, label)


_CONVERTERS: tuple[tuple[type, Callable[[Any, str], Any]], ...] = ((bool, to_bool), (int, to_int), (float, to_float))
