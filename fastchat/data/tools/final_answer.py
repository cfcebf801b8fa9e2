"""Finds the final answer in a text: `\\boxed{72}`, or GSM8K's last line `#### 72`."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<brace>\{)|(?P<bare>[^\s{}\\$.,;]+))")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(.*?)[ \t]*$", re.MULTILINE)


def boxed(text: str) -> str | None:
    """The contents of the last box that is closed and not empty, with the braces in it; None if there is none.

    >>> boxed("so \\\\boxed{1} or \\\\boxed{\\\\frac{1}{2}}, and \\\\boxed{"), boxed("no box")
    ('\\\\frac{1}{2}', None)
    """
    for found in reversed(list(_BOX.finditer(text))):
        inside = found["bare"] if found["bare"] else _until_closed(text, found.end())
        if inside and inside.strip():
            return inside.strip()
    return None


def has_box(text: str) -> bool:
    """Whether a box is at least opened."""
    return _BOX.search(text) is not None


def after_hashes(text: str) -> str | None:
    """The last `#### value`; None if there is none, "" if nothing follows the mark."""
    found = _HASHES.findall(text)
    return found[-1].rstrip(".") if found else None


def without_hashes(text: str) -> str:
    """The text without its lines `#### value`."""
    return _HASHES.sub("", text)


def final_answer(text: str) -> str | None:
    """What a text says as its final answer, boxed or else after `####`; None if it says none."""
    return boxed(text) or after_hashes(text) or None


def _until_closed(text: str, start: int) -> str | None:
    depth, place = 1, start
    while place < len(text):
        if text[place] == "\\":
            place += 2  # \{ is a sign of a set, not a brace
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[start:place]
        place += 1
    return None
