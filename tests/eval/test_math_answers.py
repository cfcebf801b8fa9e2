"""Final answers are found in a text and compared by what they say, whatever notation they are in."""

from __future__ import annotations

import pytest

from fastchat.data.tools.final_answer import boxed, final_answer
from fastchat.data.tools.sandbox import Outcome
from fastchat.eval.mathematics import comparing, expressions, symbolic, tokens, values
from fastchat.eval.mathematics.comparing import compare

SAME = [
    # numbers
    ("72", "72.0"), ("1,234", "1234"), ("1{,}234.50", "1234.5"), (r"12\,345", "12345"), (r"1,\!234", "1234"),
    ("1,000,000", "1e6"), (r"3 \times 10^5", "300000"), ("$5", "5"), (r"\$18", "18"), ("−5", "-5"), ("5.", "5"),
    ("0.30000000000000004", "0.3"), ("33.333333333333336", "100/3"), ("0.3333", r"\frac{1}{3}"),
    # fractions and mixed numbers
    (r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"), (r"\dfrac{3}{4}", "0.75"), (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"3\frac{1}{2}", "3.5"), ("3 1/2", "7/2"), ("-1 1/2", "-1.5"), ("2½", "2.5"), (r"\frac{\frac12}{3}", "1/6"),
    # percent, units, degrees
    (r"20\%", "20"), ("20%", "0.2"), (r"5\text{ cm}", "5"), (r"5\text{ cm}^2", "5"), ("18 dollars", "18"),
    ("60 km/h", "60"), (r"90^\circ", "90"), ("90°", r"90^{\circ}"), (r"11.5\mbox{ hours}", "11.5"),
    # roots and functions
    (r"\sqrt{2}/2", r"\frac{1}{\sqrt2}"), ("sqrt(2)/2", r"\frac{\sqrt{2}}{2}"), (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\sqrt[3]{-8}", "-2"), (r"\log_2 8", "3"), (r"\ln e^2", "2"), ("5!", r"\binom{10}{3}"), ("2*pi", r"2\pi"),
    (r"e^{i\pi}", r"e^{\pi i}"), (r"\lfloor 2.7 \rfloor", "2"), ("|-3|", "3"), (r"\sin 30 \cos 0", r"\sin{30}\cos(0)"),
    # expressions
    ("(x+1)^2", "x^2+2x+1"), ("x**2 + 2*x + 1", "(1+x)^{2}"), (r"\frac{x^2-1}{x-1}", "x+1"), ("2xy", "2yx"),
    (r"\ln(x^2)", r"2\ln x"), (r"\sin^2 x+\cos^2 x", "1"), ("2ab^2", "2*a*b**2"), (r"\alpha\beta", r"\beta\alpha"),
    # several values
    ("(1,2)", "(1, 2)"), (r"\left(3, \frac{\pi}{2}\right)", "(3, pi/2)"), ("(1/2, 2)", "(0.5,2.0)"),
    (r"\{1,2\}", r"\left\{2, 1\right\}"), ("1, -2", "-2,1"), ("5 or -5", "-5, 5"), (r"1\text{ and }2", "2,1"),
    (r"1\pm\sqrt2", r"1+\sqrt{2}, 1-\sqrt{2}"), (r"\pm 3", "3,-3"), (r"[0,\infty)", r"[0, +\infty)"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)"), ("100,200", "100, 200"), (r"\emptyset", r"\{\}"),
    (r"\begin{pmatrix}1/2&3\\2&1\end{pmatrix}", r"\begin{pmatrix} 0.5 & 3\\[2pt] 2&1\end{pmatrix}"),
    # equations
    ("x = 5", "5"), ("5 = x", "5"), ("f(x) = 2x", "2x"), (r"x \in [1,2]", "[1,2]"), ("y=2x+1", "2x-y+1=0"),
    ("3 > x", "x<3"), ("1<x<3", "3>x>1"), (r"x \geq 2", "2 <= x"), ("x=1, y=2", "y=2, x=1"),
    # words
    (r"\text{Evelyn}", "evelyn"), (r"\text{(B)}", "B"), (r"\textbf{North East}", "north  east"),
    # delimiters
    (r"$\frac{7}{2}$", "3.5"), (r"\(7\)", "7"), (r"\displaystyle 7", "7"),
]  # fmt: skip
DIFFERENT = [
    ("72", "73"), ("0.33", "1/3"), ("3.14", r"\pi"), ("0.0000", "0.00004"), ("12345678901.5", "12345678901.6"),
    ("20", "0.2"), ("2", r"20\%"), ("30%", "20%"), ("5x", "5"), ("x", "y"), (r"\sqrt{x^2}", "x"), ("listen", "silent"),
    ("Tuesday", "Monday"), ("(1,2)", "(2,1)"), ("(1,2)", "(1,2,3)"), ("[0,1)", "[0,1]"), ("[1,2]", "1,2"),
    (r"\{1,2\}", r"\{1,2,3\}"), ("1", "1,1"), ("1,1,2", "1,2,2"), ("x<3", "x>3"), ("x<3", "x<=3"), ("x=5", "y=6"),
    ("-5", "5"), ("1011_2", "1011_3"), ("5/0", "0"), ("", "5"), (r"\frac{", "5"), (r"\begin{cases}", "5"), ("((", "5"),
    (r"\int_0^1 x", "x"), (r"\infty", r"-\infty"), ("2.5", "2"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SAME)
def test_two_notations_of_one_answer(a: str, b: str) -> None:
    assert compare(a, b).right and compare(b, a).right


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_two_answers(a: str, b: str) -> None:
    assert not compare(a, b).right and not compare(b, a).right


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch hacked')",
        "open('hacked','w')",
        "9^9^9^9^9",
        "9**9**9**9",
        "(" * 500 + "1" + ")" * 500,
        "{" * 900,
        "-" * 999,
        r"\frac" * 150,
        r"\sqrt" * 150 + "2",
        "1," * 450 + "2",
        "a" * 100_000,
        "1e999999999",
        "0." + "0" * 900 + "1",
        "1000!!",
        r"\binom{1000}{500}!",
        "x^x^x^x",
        "\x00\ud800\u202e",
        r"\pm" * 300 + "1",
        "5" + "!" * 900,
        "2" + "^2" * 400,
        "1" + "+1" * 450,
    ],
)
def test_hostile_answers_are_wrong_answers(text: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(symbolic, "LIMITS", symbolic.Limits(timeout=0.5))
    assert not compare(text, "5").right and not compare("(1, 2)", text).right
    assert not list(tmp_path.iterdir())


def test_sympy_decides_what_floating_point_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sympy")
    assert compare("2^{100000}", "4^{50000}") == comparing.Verdict(True, "sympy")
    assert compare("2^{100000}", "4^{50000} + 1") == comparing.Verdict(False, "different")
    monkeypatch.setattr(symbolic, "installed", lambda: False)
    assert compare("2^{100000}", "4^{50000}") == comparing.Verdict(False, "undecided")


def test_no_text_of_an_answer_gets_into_the_program_for_sympy(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[str] = []

    def kept(program: str, limits: object) -> Outcome:
        programs.append(program)
        return Outcome("ok", "True")

    monkeypatch.setattr(symbolic, "run_python", kept)
    monkeypatch.setattr(symbolic, "installed", lambda: True)
    assert symbolic.same_value(expressions.read(r"\alpha_{evil}^2 + \sin q"), expressions.read("2")) is True
    assert "evil" not in programs[0] and "exec" not in programs[0] and "v1" in programs[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{5} and \boxed{", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, \}}", r"[0, \}"),
        (r"\boxed 7.", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed{ }", None),
        (r"\boxed{1} \boxed{}", "1"),
        ("no box", None),
        (r"\boxed", None),
    ],
)
def test_the_last_box_that_is_closed(text: str, found: str | None) -> None:
    assert boxed(text) == found


def test_hashes_are_read_where_there_is_no_box() -> None:
    assert final_answer("so\n#### 1,200\n") == "1,200"
    assert final_answer("\\boxed{3}\n#### 4") == "3"
    assert final_answer("####\n") is None and final_answer("the answer is 5") is None


def test_a_rounded_number_needs_enough_digits() -> None:
    for text, reference, right in [("0.3333", "1/3", True), ("0.333", "1/3", False), ("3.1416", r"\pi", True),
                                   ("0.0012", "0.00123", False), ("0.00123", "0.001234", True)]:  # fmt: skip
        assert compare(text, reference).right is right, text


def test_what_is_too_long_is_compared_as_text_only() -> None:
    long = "+".join(["1"] * tokens.MAX_LENGTH)
    assert compare(long, long).right and compare(long, long + " ").right
    assert compare(long, str(tokens.MAX_LENGTH)) == comparing.Verdict(False, "undecided")
    with pytest.raises(values.Undecided):
        values.value(expressions.read("9^{9^9}"), {})
