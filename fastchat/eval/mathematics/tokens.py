"""Text of a final answer -> tokens: LaTeX, plain mathematics, and what Python and sympy print."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastchat.eval.mathematics.notation import CHARACTERS

NEW_ROW = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"  # of a matrix; the two backslashes of LaTeX
MAX_LENGTH = 1000  # characters; a longer answer is compared as text only

_INVISIBLE = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|dfrac(?=\\)|limits|nolimits|hfill)(?![A-Za-z])\.?"
    r"|\\[()\[\]]|\^\s*\\circ(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\\degrees?(?![A-Za-z])|\\?\$|\\phantom\{[^{}]*\}"
)
_NEW_ROW = re.compile(r"\\\\(?:\[[\d.]+(?:pt|em|ex|mm|cm)\])?")
_SPACES = re.compile(r"\\(?:[,;:!> ]|quad(?![A-Za-z])|qquad(?![A-Za-z])|hspace\*?\{[^{}]*\})|~")
_DIGIT_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|(?:\\[,!;: ]|\{\})+,?(?:\\!)?|,\\!|(?<=\d) (?=\d{3}(?:\D|$)))(?=\d{3})")
_MIXED = re.compile(r"(?<![\d./^_{])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_TEXT = r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|m?box|mathrm|mathbf|mathit|mathsf|operatorname\*?)\s*\{"
_TOKEN = re.compile(
    rf"(?P<text>{_TEXT})|(?P<command>\\[A-Za-z]+\*?|\\.)|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<word>[A-Za-z]+)|(?P<sign>\*\*|<=|>=|!=|==|\S)"
)
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d])")
_SEPARATORS = ("or", "and")


class Unreadable(ValueError):
    """The text is not in the notation that is read here."""


@dataclass(frozen=True)
class Token:
    """`kind`: "number", "word" (letters), "text" (of \\text{...}), "command" (with its backslash) or "sign"."""

    kind: str
    text: str


def tokens_of(text: str, thousands: bool) -> list[Token]:
    """The tokens of an answer. `thousands`: read 1,234 as one number, not as two.

    Raises Unreadable for a text that is too long, or whose braces do not match.

    >>> [token.text for token in tokens_of("\\\\frac{1}{2}x", True)]
    ['\\\\frac', '{', '1', '}', '{', '2', '}', 'x']
    """
    text = plain(text)
    if thousands:
        text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    tokens: list[Token] = []
    position = 0
    while found := _TOKEN.search(text, position):
        kind = found.lastgroup
        assert kind is not None
        position = found.end()
        said = found[0]
        if kind == "text":
            position = _closing(text, position)
            said = text[found.end() : position - 1].strip()
        if kind in ("text", "word") and said.casefold() in _SEPARATORS:
            kind, said = "sign", ","
        if said:
            tokens.append(Token(kind, said))
    return tokens


def plain(text: str) -> str:
    """The text without currency and degree signs, sizes of brackets, math delimiters, and LaTeX's spaces."""
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"more than {MAX_LENGTH} characters")
    text = "".join(CHARACTERS.get(letter, letter) for letter in text)
    text = _NEW_ROW.sub(NEW_ROW, text)  # otherwise the second backslash would begin a command
    text = _DIGIT_GROUPS.sub("", text)
    text = _INVISIBLE.sub("", text)
    text = _SPACES.sub(" ", text).strip()
    text = _MIXED.sub(r"(\1+\2/\3)", text)
    return text.rstrip(" .;,") if not text.endswith(("\\.", "\\,", "\\;")) else text


def text_key(text: str) -> str:
    """The text for a comparison letter by letter: without LaTeX's text commands, braces, case and white space.

    >>> text_key("\\\\text{(B)}"), text_key(" b "), text_key("\\\\mathrm{North  East}.")
    ('b', 'b', 'northeast')
    """
    with suppress(Unreadable):
        text = plain(text)
    text = re.sub(_TEXT, "{", text)
    key = re.sub(r"(?<!\\)[{}]|\s", "", text).rstrip(".").casefold()
    choice = re.fullmatch(r"\(([a-z])\)", key)
    return choice[1] if choice else key


def _closing(text: str, start: int) -> int:
    """The position after the brace that closes the one before `start`."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise Unreadable("a brace is not closed")


def height(node: Any) -> int:
    """The levels of a tree whose nodes have `args`, counted without recursion."""
    level, number = [node], 0
    while level:
        level, number = [part for one in level for part in one.args], number + 1
    return number
