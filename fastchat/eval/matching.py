"""Whether a generated answer is that of the data: word for word, what a pattern finds in it, or its number.

Before anything is compared, reasoning before the answer (up to the last `</think>`) is left out, Unicode is composed
(NFC), runs of white space become one space, and those at both ends go. Case and punctuation count.

    exact     the two texts are equal
    regex     a pattern with a group: what the group of its last match holds is equal in both texts
              a pattern without a group: it is found in the answer; the data's own answer does not matter
    numeric   the last numbers of both are equal, up to a millionth: of `\\boxed{...}`, if there is one.
              1,234.50 and 1234.5 are equal, 1/2 and \\frac{1}{2} and 0.5 as well; $ and % are ignored

Needs only the standard library.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from fastchat.data.tools.final_answer import boxed
from fastchat.errors import SettingsError

EXACT, REGEX, NUMERIC = "exact", "regex", "numeric"
EVAL_FLAGS = ("--eval_match", "--eval_pattern")  # the settings of training
PRECISION = Fraction(1, 1_000_000)
_CLOSING = "</think>"
_LATEX_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{\s*([-+]?\d+)\s*\}\{\s*(\d+)\s*\}")
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# Not within a word; a hyphen after a digit or a letter is no sign. Exponents of two digits keep the numbers small.
_NUMBER = re.compile(rf"(?<![\w.])([-+]?)\$?({_DECIMAL})(?:[eE]([-+]?\d{{1,2}})(?!\d)|/(\d+)(?![\d.]))?")
_LONGEST = 300  # digits; more are no number that anybody answers


@dataclass(frozen=True)
class Match:
    """How answers are compared.

    Attributes:
        kind: "exact", "regex" or "numeric".
        pattern: of "regex".
    """

    kind: str = EXACT
    pattern: re.Pattern[str] | None = None

    @property
    def metric(self) -> str:
        """The name of the share of right answers, such as "exact_match"."""
        return f"{self.kind}_match"

    def found_in(self, text: str) -> str | Fraction | None:
        """What is compared of a text; None if it has nothing of the kind."""
        text = normalized(text)
        if self.kind == NUMERIC:
            return last_number(text)
        if self.pattern is None or not self.pattern.groups:
            return text
        matches = list(self.pattern.finditer(text))
        groups = [group for group in matches[-1].groups() if group is not None] if matches else []
        return normalized(groups[0]) if groups else None

    def score(self, answer: str, reference: str) -> bool | None:
        """Whether `answer` is right; None if `reference` has nothing to compare it with.

        >>> Match("numeric").score("So it is $1,200.", "#### 1200"), Match("numeric").score("It is 3.", "I do not know")
        (True, None)
        """
        if self.pattern is not None and not self.pattern.groups:
            return self.pattern.search(normalized(answer)) is not None
        expected = self.found_in(reference)
        if expected is None:
            return None
        found = self.found_in(answer)
        if isinstance(expected, Fraction):
            return isinstance(found, Fraction) and abs(found - expected) <= PRECISION * max(abs(found), abs(expected))
        return found == expected


def make_match(kind: str | None, pattern: str | None, flags: tuple[str, str] = ("--match", "--pattern")) -> Match:
    """The comparison of these settings, whose names are `flags`. Raises SettingsError."""
    named, given = flags
    kind = kind or EXACT
    if (kind == REGEX) != (pattern is not None):
        missing = f"{named} regex needs {given}" if pattern is None else f"{given} needs {named} regex"
        raise SettingsError(f"{missing}, such as {given} 'answer is (\\d+)'")
    if pattern is None:
        return Match(kind)
    try:
        return Match(kind, re.compile(pattern))
    except re.error as error:
        raise SettingsError(f"{given} {pattern!r} is not a regular expression: {error}") from None


def metrics_of(match: Match) -> tuple[str, str]:
    """What an evaluation during training measures of generated answers, without `eval_`: the share of right ones, and
    the share that the model ended itself."""
    return match.metric, "stopped"


def normalized(text: str) -> str:
    """A text as it is compared.

    >>> normalized("<think>2 + 2</think>\\n\\n The  answer\\n")
    'The answer'
    """
    return " ".join(unicodedata.normalize("NFC", text.rpartition(_CLOSING)[2]).split())


def last_number(text: str) -> Fraction | None:
    """The last number in a text; None if there is none.

    >>> last_number("\\\\boxed{\\\\frac{7}{8}} of 16"), last_number("from 10-4 to -3"), last_number("x2")
    (Fraction(7, 8), Fraction(-3, 1), None)
    """
    inside = boxed(text)
    text = (text if inside is None else inside).replace("\N{MINUS SIGN}", "-").replace("\\$", "$")
    text = _LATEX_FRACTION.sub(lambda found: f" {found[1]}{found[2]}/{found[3]}", text)
    numbers = [number for found in _NUMBER.finditer(text) if (number := _value(found)) is not None]
    return numbers[-1] if numbers else None


def _value(found: re.Match[str]) -> Fraction | None:
    sign, digits, exponent, denominator = found.groups()
    if len(digits) + len(denominator or "") > _LONGEST:
        return None
    value = Fraction(digits.replace(",", ""))
    if denominator is not None:
        if not int(denominator):
            return None
        value /= int(denominator)
    value *= Fraction(10) ** int(exponent or 0)
    return -value if sign == "-" else value
