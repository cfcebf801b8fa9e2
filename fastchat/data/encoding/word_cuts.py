"""Texts with a few characters that are not ASCII, cut so that the rest of them can be encoded quickly.

A text is cut before a space that follows a visible character. Its parts have the tokens of the whole text if the
tokenizer cuts there too, and splits both sides as if the other one were not there. That follows from its regular
expressions, of which `may_cut` requires that

1  no match goes on from a visible character to a space, and
2  there is one at every ASCII character, so that no text between matches does so either, and
3  none looks behind, or ahead for more than "white space or the end of the text", which a cut does not change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

_CUT = re.compile("(?<=[!-~])(?= )")
_AT_LEAST = 64  # characters of a part: with shorter ones the calls cost what they save
_AHEAD = r"(?!\S)"
_ATOM = r"\\[pP]\{\w+\}|\\.|\[\^?(?:\\[pP]\{\w+\}|\\.|[^\\\]])+\]|[^\\\[\](){}|?*+]"
_PART = re.compile(
    rf"(?P<open>\((?:\?i?:)?)|(?P<or>\|)|(?:(?P<close>\))|(?P<atom>{_ATOM}))(?P<times>[?*+]+|\{{[\d,]+\}}[?+]?)?", re.S
)
_VISIBLE = list(map(chr, range(0x21, 0x7F)))


def parts_of(text: str) -> list[str]:
    """A text in parts, by turns ASCII and not; short ASCII parts are left in their neighbours."""
    parts: list[str] = []
    quick = True
    for is_ascii, words in groupby(_CUT.split(text), str.isascii):
        part, before = "".join(words), quick
        quick = is_ascii and len(part) >= _AT_LEAST
        if parts and not quick and not before:
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def may_cut(patterns: Sequence[str]) -> bool:
    """Whether a tokenizer that splits a text by these expressions, one after the other, gives the same tokens for its
    parts."""
    return all(map(_never_goes_on_to_a_space, patterns)) and _matches_everywhere(patterns[-1])


def _never_goes_on_to_a_space(pattern: str) -> bool:
    """Whether surely no match has a space after a visible ASCII character. Each alternative is a sequence of atoms:
    one that matches a space may not come after one that matches a visible character, nor be repeated if it is both."""
    pattern = pattern.replace(_AHEAD, "")
    depth, seen, end = 0, False, 0
    for found in _PART.finditer(pattern):
        if found.start() != end or pattern.startswith(("(?=", "(?!", "(?<"), end):
            return False
        end = found.end()
        once = found["times"] in (None, "?")
        if found["open"]:
            depth += 1
        elif found["close"]:
            depth -= 1
            if not once:
                return False
        elif found["or"]:
            seen = seen and depth > 0  # in a group, what came before it may still be part of the match
        else:
            visible = any(_matches(found["atom"], character) for character in _VISIBLE)
            if _matches(found["atom"], " ") and (seen or (visible and not once)):
                return False
            seen = seen or visible
    return end == len(pattern)


@lru_cache(maxsize=4096)
def _matches(atom: str, character: str) -> bool:
    import regex

    return regex.fullmatch(atom, character, regex.VERSION0) is not None


def _matches_everywhere(pattern: str) -> bool:
    """Whether there is a match at every ASCII character, whether white space follows it or not."""
    import regex

    compiled = regex.compile(pattern, regex.VERSION0)
    texts = [f"{chr(code)}{after}" for code in range(128) for after in ("", "a")]
    return all(found is not None and found.end() > 0 for found in map(compiled.match, texts))
