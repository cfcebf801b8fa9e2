"""Finds control strings in texts, as a tokenizer finds its added tokens: the longest at the earliest position."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

_FEW = 4  # first characters that are searched for before the pattern is
_Control = TypeVar("_Control")


class Strings:
    """Some strings to find in texts."""

    def __init__(self, contents: Sequence[str]):
        longest_first = sorted(contents, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        first = "".join(dict.fromkeys(content[:1] for content in contents))
        self._first = first if len(first) <= _FEW else ""

    def find(self, text: str) -> Iterator[re.Match[str]]:
        """All matches; most texts do not even have the first character of one."""
        for character in self._first:
            if character in text:
                break
        else:
            if self._first:
                return iter(())
        return self._pattern.finditer(text)

    def cut(self, text: str, controls: Mapping[str, _Control | None]) -> Sequence[tuple[str, _Control | None]]:
        """Split a text at the strings: (plain text, None) and ("", control); a string mapped to None is removed."""
        found: list[tuple[str, _Control | None]] = []
        end = 0
        for match in self.find(text):
            if match.start() > end:
                found.append((text[end : match.start()], None))
            if (control := controls[match.group()]) is not None:
                found.append(("", control))
            end = match.end()
        if end < len(text):
            found.append((text[end:], None))
        return found


def strings(contents: Sequence[str]) -> Strings | None:
    """None if there are none to find."""
    return Strings(contents) if contents else None
