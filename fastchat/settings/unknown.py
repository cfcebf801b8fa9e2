"""Unknown settings: one message for all of them, each with its name here, or the reason why it is not supported."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from fastchat.errors import SettingsError, brief, is_secret, nearest
from fastchat.settings.fields import Translate
from fastchat.settings.foreign import FAMILIES, yaml_text

_LONGEST = 100  # characters of a value that a message repeats


class Named(Protocol):
    """The attributes of an option that this module needs."""

    @property
    def name(self) -> str: ...
    @property
    def also(self) -> tuple[str, ...]: ...
    @property
    def elsewhere(self) -> Mapping[str, Translate | None]: ...
    @property
    def refused(self) -> str: ...


@dataclass(frozen=True)
class Problem:
    """One name and the advice about it. `lead`: the text between them in a sentence; None if the name is a setting and
    the advice is a complete message."""

    name: str
    advice: str
    lead: str | None = ": "


class Unknown:
    """Makes the advice for unknown names."""

    def __init__(
        self, options: Sequence[Named], no_setting: Mapping[str, str | Translate], hidden: Iterable[str]
    ) -> None:
        """`hidden`: options that are never suggested, in addition to the refused ones."""
        away = set(hidden)
        shown = [o for o in options if not o.refused and o.name not in away]
        self._names = {o.name for o in options}
        self._suggestions = [name for o in shown for name in (o.name, *o.also)]
        self._elsewhere = {name: (o.name, how) for o in options for name, how in o.elsewhere.items() if name != o.name}
        self._no_setting = no_setting

    def knows(self, name: str) -> bool:
        """Whether the name is one of another program or of an older version."""
        return name in self._elsewhere or name in self._no_setting

    def problems(self, name: str, raw: Any) -> list[Problem]:
        """The problem with a key of a recipe, and with known names in the mappings that its value contains, such as
        the datasets of axolotl. Inside, the outer name's setting and advice are not repeated."""
        found = {name: self.problem(name, raw)}
        here = self._elsewhere.get(name, ("", None))[0]
        for inner, value in _inside(raw):
            if not (inner in self._names or self.knows(inner)) or self._elsewhere.get(inner, (" ",))[0] == here:
                continue
            if inner in self._names:
                shown = "..." if is_secret(inner) else brief(yaml_text(value), _LONGEST)
                advice = f"{inner}: {shown}"
            else:
                advice = self.problem(inner, value).advice
            evaluation = f"eval_{advice}"
            if here.startswith("eval_") and evaluation.partition(":")[0] in self._names:
                advice = evaluation
            if advice != found[name].advice:
                found[f"{name}.{inner}: {advice}"] = Problem(f"{name}.{inner}", advice, "; here it is ")
        return list(found.values())

    def problem(self, name: str, raw: Any, shown: str | None = None) -> Problem:
        """The problem with one name with the value `raw`; `shown`: the flag as typed, on a command line."""
        dashes = "" if shown is None else "--"
        lead = ": "
        family = next((reason for start, reason in FAMILIES.items() if name.startswith(start)), "")
        if raw is None and shown is None and (self.knows(name) or family):  # a key of a recipe without a value
            advice = "leave it out"
        elif name in self._no_setting:
            reason = self._no_setting[name]
            if not isinstance(reason, str):
                advice = reason(raw)
            else:
                advice = reason if raw not in (None, False, "") else "leave it out"
        elif name in self._elsewhere:
            here, how = self._elsewhere[name]
            lead = "; here it is "
            advice = f"{here}: {brief(yaml_text(raw), _LONGEST)}" if how is None else how(raw)
        elif family:
            advice = family if raw not in (None, False, "") else "leave it out"
        else:
            close = nearest(name, self._suggestions, cutoff=0.7)
            lead = "; "
            advice = f"did you mean {' or '.join(dashes + c for c in close)}?" if close else "--help lists all settings"
        return Problem(shown or name, self._as_flags(advice) if dashes else advice, lead)

    def _as_flags(self, advice: str) -> str:
        """Write `q_lora: true` as `--q_lora true`, `data_path: [a, b]` as `--data_path a b`."""

        def flag(found: re.Match[str]) -> str:
            if found[1] not in self._names:
                return found[0]
            if found[2].startswith("{"):
                return f"--{found[1]} {_as_json(found[2])}"
            return f"--{found[1]} {found[2].strip('[]').replace(', ', ' ')}"

        return re.sub(r"\b(\w+): (\{[^}]*\}|\[[^\]]*\]|\S+)", flag, advice)


def _inside(raw: Any) -> Iterator[tuple[str, Any]]:
    """Each key with its value in the mappings of a value, at any depth."""
    items = raw if isinstance(raw, list) else [raw]
    for item in items:
        if isinstance(item, dict):
            for name, value in item.items():
                yield str(name), value
                yield from _inside(value)


def _as_json(mapping: str) -> str:
    """A YAML mapping as a word of a command line.

    >>> _as_json("{messages: dialog}")
    '\'{"messages": "dialog"}\''
    """
    try:
        return shlex.quote(json.dumps(yaml.safe_load(mapping)))
    except yaml.YAMLError:
        return mapping


_COLUMNS = re.compile(r"(?:--)?data_columns:? '?(\{.*\})'?")


def _one_mapping(problems: Sequence[Problem]) -> list[Problem]:
    """Several names of columns are one mapping here, since a setting can be given only once."""
    parsed = [(p, yaml.safe_load(found[1])) for p in problems if (found := _COLUMNS.fullmatch(p.advice))]
    if len(parsed) < 2:
        return list(problems)
    values = {key: {str(names.get(key)) for _, names in parsed if key in names} for _, names in parsed for key in names}
    two = [f"{key} is {' and '.join(sorted(found))}" for key, found in values.items() if len(found) > 1]
    mapping = f"{{{', '.join(f'{key}: {min(found)}' for key, found in values.items())}}}"
    first = parsed[0][0]
    flags = first.advice.startswith("--")
    advice = f"--data_columns {_as_json(mapping)}" if flags else f"data_columns: {mapping}"
    if two:
        advice = f"data_columns holds for all files, but {'; '.join(two)}: rename columns in one of the files"
    names = ", ".join(dict.fromkeys(p.name for p, _ in parsed))
    taken = [p for p, _ in parsed]
    at = problems.index(first)
    rest = [p for p in problems if p not in taken]
    return [*rest[:at], Problem(names, advice, first.lead), *rest[at:]]


def refusal(problems: Sequence[Problem], source: str) -> SettingsError:
    """One message about all problems; `source`: the recipe, or "" for the command line.

    >>> print(refusal([Problem("lr", "learning_rate: 1e-4"), Problem("stage", "leave it out")], "r.yaml"))
    r.yaml: 2 settings cannot be used; what to write instead:
      lr     ->  learning_rate: 1e-4
      stage  ->  leave it out
    """
    problems = _one_mapping(problems)
    where = f"{source}: " if source else ""
    if len(problems) == 1:
        only = problems[0]
        said = only.advice if only.lead is None else f"unknown setting {only.name}{only.lead}{only.advice}"
        return SettingsError(where + said)
    width = max(len(p.name) for p in problems)
    lines = [f"  {p.name:<{width}}  ->  {p.advice}" for p in problems]
    return SettingsError("\n".join([f"{where}{len(problems)} settings cannot be used; what to write instead:", *lines]))
