"""What counts as the same answer, and the intervals of the shares."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from fastchat.eval.matching import last_number, make_match, normalized
from fastchat.eval.statistics import proportion, ratio


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7 of 8: \\boxed{\\frac{7}{8}} of 16", Fraction(7, 8)),
        ("\\boxed{5} and \\boxed{\\$1{,}200", 5),
        ("from 10-4 to -3", -3),
        ("a-5", 5),
        ("$1,234.50 in all", Fraction("1234.5")),
        ("1e3", 1000),
        ("-\\dfrac{1}{2}", Fraction(-1, 2)),
        ("\N{MINUS SIGN}2", -2),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("x2", None),
        ("9" * 1000, None),
        ("", None),
    ],
)
def test_the_last_number(text: str, number: Fraction | None) -> None:
    assert last_number(text) == number


def test_how_answers_are_compared() -> None:
    exact, numeric = make_match(None, None), make_match("numeric", None)
    assert exact.score(" The\n answer ", "The answer") is True and exact.score("the answer", "The answer") is False
    assert normalized("<think>x</think>\n\ne\N{COMBINING ACUTE ACCENT}") == "é"
    assert numeric.score("0.3333333333", "1/3") is True and numeric.score("0.3333", "1/3") is False
    assert numeric.score("none", "4") is False and numeric.score("4", "none") is None
    group = make_match("regex", r"is (\w+)")
    assert group.score("It is 3, no, is 4.", "is 4") is True and group.score("nothing", "is 4") is False
    assert group.score("is 4", "4") is None
    assert make_match("regex", r"^\d+$").score("42", "whatever") is True


def test_intervals() -> None:
    assert proportion(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert proportion(0, 5)[0] == 0 and proportion(5, 5)[1] == 1 and proportion(0, 0) == (0, 1)
    assert ratio([(2.0, 2), (6.0, 2)]) == pytest.approx((2.0, 1.95996), abs=1e-4)
    assert ratio([(2.0, 2)]) == (1.0, math.inf) and ratio([]) is None
