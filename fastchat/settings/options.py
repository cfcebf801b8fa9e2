"""Reads settings from a recipe file and from the command line into plain values, and says where each came from.

One converter serves both, so `1e-5` is a number in YAML too, and a wrong type is the same message in either place.
Needs neither torch nor transformers.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from fastchat.errors import SettingsError, brief, nearest
from fastchat.security import load_yaml
from fastchat.settings.typed import FALSE, TRUE, to_bool, to_choice, to_float, to_int, to_mapping, to_text

DEFAULT, RECIPE, COMMAND, DERIVED = "default", "yaml", "command line", "derived"


@dataclass(frozen=True)
class Option:
    """One setting: its name, its type as annotated (`int`, `list[str]`, `Literal[...]`, `X | None`), its default."""

    name: str
    type: Any
    default: Any
    help: str = ""

    @property
    def parts(self) -> tuple[Any, ...]:
        """The alternatives of a union, without None."""
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
    def choices(self) -> tuple[str, ...]:
        """The only values allowed, empty when any is."""
        for part in self.parts:
            if typing.get_origin(part) is Literal:
                return tuple(str(a) for a in typing.get_args(part))
            if isinstance(part, type) and issubclass(part, Enum):
                return tuple(str(member.value) for member in part)
        return ()


def split_recipe(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separates the recipe (a first word that is no flag) from the flags.

    The deepspeed launcher puts `--local_rank=N` in front of everything; the rank is read from the environment, so it
    goes.
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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The flat mapping in a recipe file. SettingsError: missing, not YAML, not a mapping, or a key given twice."""
    content = load_yaml(path, "recipe")
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"recipe {path} must hold `name: value` lines, one per setting")
    return content


class Reader:
    """Knows every option and turns words or YAML values into typed ones."""

    def __init__(
        self, options: Sequence[Option], renamed: dict[str, str], removed: dict[str, str], hidden: Iterable[str] = ()
    ) -> None:
        """`renamed`: old name -> name; `removed`: old name -> what to do instead; `hidden`: options never suggested."""
        self.options = {option.name: option for option in options}
        self.renamed, self.removed = renamed, removed
        self.suggestions = [name for name in (*self.options, *renamed) if name not in set(hidden)]

    def from_yaml(self, path: str | Path) -> dict[str, Any]:
        """Typed values of a recipe file, by canonical name."""
        values: dict[str, Any] = {}
        for key, raw in read_yaml(path).items():
            option = self._find(key, f"{path}: {key}")
            if option.name in values:
                raise SettingsError(f"{path}: {key} and another name of {option.name} are both given; keep one")
            values[option.name] = convert(option, raw, f"{path}: {key}")
        return values

    def from_words(self, words: Sequence[str]) -> dict[str, Any]:
        """Typed values of a command line, by canonical name; of a flag given twice the last one counts."""
        values: dict[str, Any] = {}
        at = 0
        while at < len(words):
            flag = words[at]
            if not flag.startswith("--") or len(flag) < 3:
                raise SettingsError(f"{flag!r} stands where a --flag was expected (a value with spaces needs quotes)")
            at += 1
            name, has_value, glued = flag[2:].partition("=")
            option, negated = self._find_flag(name)
            if has_value:
                given = [glued]
            else:
                end = at
                limit = len(words) if option.is_list else at + 1
                while end < min(limit, len(words)) and not is_flag(words[end]):
                    end += 1
                given, at = list(words[at:end]), end
            values[option.name] = self._from_given(option, negated, given, f"--{name}")
        return values

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

    def _find_flag(self, name: str) -> tuple[Option, bool]:
        plain = name.replace("-", "_")
        positive = self.options.get(plain.removeprefix("no_"))
        known = plain in self.options or plain in self.renamed or plain in self.removed
        if plain.startswith("no_") and not known and positive is not None and positive.is_bool:
            return positive, True
        return self._find(plain, f"--{name}"), False

    def _find(self, name: str, label: str) -> Option:
        name = self.renamed.get(name, name)
        if name in self.options:
            return self.options[name]
        if name in self.removed:
            raise SettingsError(f"{label} is no setting of this command: {self.removed[name]}")
        close = nearest(name, self.suggestions)
        hint = f"did you mean {' or '.join(close)}?" if close else "--help lists them all"
        raise SettingsError(f"{label} is no setting of this command; {hint}")


def is_flag(word: str) -> bool:
    """`--name` is a flag; `-1`, `-` and `--` are values."""
    return word.startswith("--") and len(word) > 2


def convert(option: Option, raw: Any, label: str) -> Any:
    """One value in the option's type. SettingsError names the setting, the value and what was expected.

    >>> convert(Option("learning_rate", float, 5e-5), "1e-5", "--learning_rate")
    1e-05
    """
    if raw is None or (raw == "None" and type(None) in typing.get_args(option.type)):
        if type(None) in typing.get_args(option.type) or option.default is None:
            return None
        raise SettingsError(f"{label} is empty; give a value or leave the line out")
    if isinstance(raw, dict):
        if any(p is dict or typing.get_origin(p) is dict for p in option.parts):
            return raw
        raise SettingsError(f"{label} holds a mapping, but one value is expected")
    if option.is_list:
        items = raw if isinstance(raw, (list, tuple)) else [raw]
        return [to_text(item, label) for item in items]
    if isinstance(raw, (list, tuple)):
        raise SettingsError(f"{label} holds a list, but one value is expected")
    return _scalar(option, raw, label)


def _scalar(option: Option, raw: Any, label: str) -> Any:
    if option.choices:
        return to_choice(raw, label, option.choices)
    if bool in option.parts and str in option.parts:  # transformers has one of these
        return str(raw).lower() in TRUE if str(raw).lower() in TRUE | FALSE else str(raw)
    for kind, function in _CONVERTERS:
        if kind in option.parts:
            return function(raw, label)
    if any(p is dict or typing.get_origin(p) is dict for p in option.parts):
        return to_mapping(raw, label)
    return to_text(raw, label)


_CONVERTERS: tuple[tuple[type, Callable[[Any, str], Any]], ...] = ((bool, to_bool), (int, to_int), (float, to_float))


def help_text(options: Sequence[Option], command: str) -> str:
    """What `--help` prints: every setting with its default and one line."""
    lines = [f"usage: {command} [RECIPE.yaml] [--setting value ...]", ""]
    lines += [
        "  --plan",
        "        only say what memory these settings need (also of --gpus 8 --gpu_memory 24GiB; --json)",
    ]
    for option in options:
        lines.append(f"  --{option.name} (default {option.default!r})")
        if option.help:
            lines.append(f"        {brief(option.help, 160)}")
    return "\n".join(lines)
