"""`--data_columns` and `--data_roles`: files with other names for keys and roles than those of keys.py.

    --data_columns '{"messages": "chat", "role": "speaker", "content": "utterance"}'     our key -> the file's key
    --data_roles '{"customer": "user", "agent": "assistant"}'                            the file's role -> ours

A mapped column takes precedence over one that already has our name; where a row does not have the mapped column, it is
read as it is, so that files in both forms can be trained on together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastchat.data.rows.keys import CALL_ID, ROLES, ROW_COLUMNS, TOOL_NAME, TURN_KEYS, UNCLEAR_KEYS
from fastchat.errors import DataError, SettingsError, nearest, not_among

_OF_TURN = frozenset((*TURN_KEYS, CALL_ID, TOOL_NAME))
_MOST_KEYS = 12


@dataclass
class _Seen:
    """What a mapping was found in: our keys that were mapped, those that rows already had; the keys of the first row
    and turn; roles."""

    mapped: set[str] = field(default_factory=set)
    native: set[str] = field(default_factory=set)
    keys: list[str] = field(default_factory=list)
    roles: set[str] = field(default_factory=set)


class Columns:
    """Renames the keys of rows and turns, and knows the roles. Keeps which names were found: use one per reader.

    >>> Columns({"messages": "chat"}, {}).row({"chat": []}).value
    {'messages': []}
    """

    def __init__(self, names: Mapping[str, str] | None = None, roles: Mapping[str, str] | None = None):
        """`names`: our key -> the file's key; `roles`: the file's role -> ours. Raises SettingsError."""
        self.names, self.given_roles = dict(names or {}), dict(roles or {})
        _check_names(self.names)
        self._row = {ours: theirs for ours, theirs in self.names.items() if ours in ROW_COLUMNS}
        self._turn = {ours: theirs for ours, theirs in self.names.items() if ours in _OF_TURN}
        self._own_roles = _checked_roles(self.given_roles)
        self.roles = {**ROLES, **self._own_roles}
        self._seen = _Seen()

    def fresh(self) -> Columns:
        """The same mapping, with nothing found yet."""
        return Columns(self.names, self.given_roles)

    @property
    def described(self) -> dict[str, Any]:
        """JSON-able, for the key of the token cache."""
        return {"names": self.names, "roles": self._own_roles}

    @property
    def of_row(self) -> set[str]:
        """The file's names of the mapped columns."""
        return set(self._row.values())

    def row(self, row: dict[str, Any]) -> Renamed:
        """A row with our names."""
        return self._renamed(row, self._row) if self._row else Renamed(row)

    def turn(self, turn: Any) -> dict[str, Any]:
        """A turn with our names; anything but an object is returned as it is."""
        return self._renamed(turn, self._turn).value if self._turn and isinstance(turn, dict) else turn

    def role(self, name: str) -> str | None:
        """The role of that name, in any case."""
        name = name.lower()
        if name in self._own_roles:
            self._seen.roles.add(name)
        return self.roles.get(name)

    def in_file(self, key: str, holder: Mapping[str, Any]) -> str:
        """The name that our `key` has in this row or turn of the file."""
        theirs = self.names.get(key, key)
        return theirs if holder.get(theirs) is not None else key

    def _renamed(self, holder: dict[str, Any], names: dict[str, str]) -> Renamed:
        seen = self._seen
        if len(seen.keys) < _MOST_KEYS:
            seen.keys += [key for key in holder if key not in seen.keys]
        found = {ours: theirs for ours, theirs in names.items() if holder.get(theirs) is not None}
        seen.mapped |= found.keys()
        seen.native |= {ours for ours in names if ours not in found and holder.get(ours) is not None}
        if not found:
            return Renamed(holder)
        taken = set(found.values())
        made = {key: value for key, value in holder.items() if key not in taken and key not in found}
        made |= {ours: holder[theirs] for ours, theirs in found.items()}
        shadowed = tuple(ours for ours in found if ours not in taken and holder.get(ours) is not None)
        return Renamed(made, frozenset(found), shadowed)

    def check_found(self, flag: str = "--data_columns") -> list[str]:
        """After the last row: messages about names that were not found. Raises DataError if a mapped column is in no
        row, and nor is a column with our name."""
        seen = self._seen
        missing = [ours for ours in self.names if ours not in seen.mapped]
        wrong = [ours for ours in missing if ours not in seen.native]
        if wrong:
            theirs = self.names[wrong[0]]
            near = nearest(theirs, seen.keys, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            keys = ", ".join(map(repr, seen.keys[:_MOST_KEYS])) or "none"
            raise DataError(f"{flag}: no row or turn has {theirs!r} (for {wrong[0]!r}); {hint}The keys there: {keys}.")
        lines = [f"{flag}: no row has {self.names[ours]!r}; {ours!r} is read instead" for ours in missing]
        unused = [name for name in self.given_roles if name.lower() not in seen.roles]
        roles = flag.replace("columns", "roles")
        return lines + ([f"{roles}: no turn is from {', '.join(map(repr, unused))}"] if unused else [])


@dataclass(frozen=True)
class Renamed:
    """A row with our names. `mapped`: those that the mapping gave; `shadowed`: keys of the file that had our name and
    are not read, because another column is mapped to it."""

    value: dict[str, Any]
    mapped: frozenset[str] = frozenset()
    shadowed: tuple[str, ...] = ()


def _check_names(names: Mapping[str, Any]) -> None:
    known = sorted((ROW_COLUMNS | _OF_TURN) - UNCLEAR_KEYS.keys())
    for ours, theirs in names.items():
        if ours not in known:
            if theirs in known:
                swapped = json.dumps({theirs: ours})
                raise SettingsError(f"--data_columns: {ours!r} is not one of our keys; write it as {swapped}")
            raise not_among("a key of --data_columns", str(ours), known)
        if not isinstance(theirs, str) or not theirs:
            raise SettingsError(f"--data_columns: {ours!r} is mapped to {theirs!r}; the name of a column is expected")
    for known_keys in (ROW_COLUMNS, _OF_TURN):
        used: dict[str, str] = {}
        for ours, theirs in names.items():
            if ours in known_keys and used.setdefault(theirs, ours) != ours:
                raise SettingsError(f"--data_columns: {theirs!r} is given for both {used[theirs]!r} and {ours!r}")


def _checked_roles(roles: Mapping[str, Any]) -> dict[str, str]:
    made = {}
    for theirs, ours in roles.items():
        if not isinstance(ours, str) or ours.lower() not in ROLES:
            if theirs.lower() in ROLES:
                swapped = json.dumps({ours if isinstance(ours, str) else "NAME": theirs})
                raise SettingsError(f"--data_roles: write the file's name first: {swapped}")
            raise not_among(f"--data_roles {theirs!r}", str(ours), sorted(set(ROLES.values())))
        made[theirs.lower()] = ROLES[ours.lower()]
    return made


AS_THEY_ARE = Columns()
