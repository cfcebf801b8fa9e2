"""Unknown settings: one message for all of them, each with its name here, or the reason why it is not supported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastchat.errors import SettingsError, brief, nearest
from fastchat.settings.fields import Translate
from fastchat.settings.foreign import yaml_text

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

    def problem(self, name: str, raw: Any, shown: str | None = None) -> Problem:
        """The problem with one name with the value `raw`; `shown`: the flag as typed, on a command line."""
        dashes = "" if shown is None else "--"
        lead = ": "
        if raw is None and shown is None and self.knows(name):  # a key of a recipe without a value
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
            return f"--{found[1]} {found[2].strip('[]').replace(', ', ' ')}"

        return re.sub(r"\b(\w+): (\[[^\]]*\]|\S+)", flag, advice)


def refusal(problems: Sequence[Problem], source: str) -> SettingsError:
    """One message about all problems; `source`: the recipe, or "" for the command line.

    >>> print(refusal([Problem("lr", "learning_rate: 1e-4"), Problem("stage", "leave it out")], "r.yaml"))
    r.yaml: 2 settings cannot be used; what to write instead:
      lr     ->  learning_rate: 1e-4
      stage  ->  leave it out
    """
    where = f"{source}: " if source else ""
    if len(problems) == 1:
        only = problems[0]
        said = only.advice if only.lead is None else f"unknown setting {only.name}{only.lead}{only.advice}"
        return SettingsError(where + said)
    width = max(len(p.name) for p in problems)
    lines = [f"  {p.name:<{width}}  ->  {p.advice}" for p in problems]
    return SettingsError("\n".join([f"{where}{len(problems)} settings cannot be used; what to write instead:", *lines]))
