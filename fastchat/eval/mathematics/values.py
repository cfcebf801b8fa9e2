"""Numbers of expressions: exact fractions as far as possible, else floating point; and whether two of them are equal.

Two expressions with variables are equal if they are at every one of several points. That decides more than rewriting
them would, in microseconds; what it cannot decide (numbers beyond floating point) is left to sympy, see symbolic.py.
"""

from __future__ import annotations

import cmath
import math
import random
from collections.abc import Iterator, Mapping
from fractions import Fraction

from fastchat.eval.mathematics.expressions import Node

Number = Fraction | float | complex
MIN_DECIMALS, MIN_DIGITS = 4, 3  # a decimal number with so many is the rounded form of any number that rounds to it
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12
_OF_PRINTED = 1e-13  # relative: 0.1 + 0.2 is printed as 0.30000000000000004
_MAX_BITS = 20_000  # of an exact power
_POINTS, _MAX_POINTS = 4, 24
_CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e, "oo": math.inf}


class Undecided(ArithmeticError):
    """The value is not known, or not as a number that can be computed here."""


def same_value(a: Node, b: Node) -> bool:
    """Whether two expressions have the same value, for every value of their variables.

    Raises Undecided.
    """
    if not _variables(a, b):
        return same_number(value(a, {}), value(b, {}), literal_decimals(a), literal_decimals(b))
    return all(same_number(left, right) for left, right in _at_points(a, b))


def ratio(a: Node, b: Node) -> Number | None:
    """The constant that `a` is of `b`, for every value of their variables; None if it is none, or 0.

    Raises Undecided.
    """
    found: list[Number] = []
    for left, right in _at_points(a, b):
        if not left or not right:
            return None
        found.append(left / right)
        if not same_number(found[0], found[-1]):
            return None
    return found[0]


def _variables(*nodes: Node) -> list[str]:
    return sorted({name for node in nodes for name in names_in(node)} - set(_CONSTANTS))


def _at_points(a: Node, b: Node) -> Iterator[tuple[Number, Number]]:
    """The values of both at several points, where both are real; raises Undecided if there are too few of them."""
    names, compared = _variables(a, b), 0
    for number in range(_MAX_POINTS):
        point = {name: _value_of_name(name, number) for name in names}
        try:
            left, right = value(a, point), value(b, point)
        except Undecided:
            continue
        if isinstance(left, complex) or isinstance(right, complex):
            continue  # outside the domain of one of them, as of the logarithm
        yield left, right
        compared += 1
        if compared == _POINTS:
            return
    raise Undecided


def same_number(a: Number, b: Number, decimals_a: int | None = None, decimals_b: int | None = None) -> bool:
    """Whether two numbers are equal, up to the rounding of floating point; or one is the rounded form of the other.

    `decimals_a`, `decimals_b`: how many decimals each was written with; None if it was not written as a decimal number.

    >>> same_number(Fraction("0.3333"), Fraction(1, 3), 4), same_number(Fraction("0.33"), Fraction(1, 3), 2)
    (True, False)
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction) and a == b:
        return True
    if isinstance(a, complex) or isinstance(b, complex):
        return cmath.isclose(_complex(a), _complex(b), rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    both_exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    if not (both_exact and decimals_a is None and decimals_b is None):
        near = _OF_PRINTED if both_exact else _RELATIVE
        if math.isclose(_float(a), _float(b), rel_tol=near, abs_tol=0 if a and b else _ABSOLUTE):
            return True
    return _rounds_to(a, b, decimals_a) or _rounds_to(b, a, decimals_b)


def _rounds_to(shorter: Number, other: Number, decimals: int | None) -> bool:
    if decimals is None or decimals < MIN_DECIMALS or abs(shorter) * 10**decimals < 10 ** (MIN_DIGITS - 1):
        return False
    assert not isinstance(shorter, complex) and not isinstance(other, complex)
    half = Fraction(1, 2 * 10**decimals)
    if not isinstance(other, Fraction):
        if not math.isfinite(other):
            return False
        other = Fraction(other)
    return abs(Fraction(shorter) - other) <= half


def literal_decimals(node: Node) -> int | None:
    """The number of decimals of an expression that is only a decimal number."""
    while node.kind == "neg":
        node = node.args[0]
    return node.decimals if node.kind == "number" else None


def names_in(node: Node) -> Iterator[str]:
    """The names in a tree, also more than once."""
    if node.kind == "name":
        yield node.value
    for part in node.args:
        yield from names_in(part)


def value(node: Node, point: Mapping[str, Number]) -> Number:
    """The number that an expression is at a point. Raises Undecided."""
    try:
        return _tidy(_value(node, point))
    except (ZeroDivisionError, OverflowError, ValueError, TypeError):
        raise Undecided from None


def _value(node: Node, point: Mapping[str, Number]) -> Number:
    kind = node.kind
    if kind == "number":
        return node.value
    if kind == "name":
        if node.value in point:
            return point[node.value]
        if node.value in _CONSTANTS:
            return _CONSTANTS[node.value]
        raise Undecided
    if kind not in ("neg", "percent", "add", "mul", "div", "pow", "call"):
        raise Undecided
    args = [_tidy(_value(part, point)) for part in node.args]
    if kind == "neg":
        return -args[0]
    if kind == "percent":
        return args[0] / 100
    if kind == "add":
        return args[0] + args[1]
    if kind == "mul":
        return args[0] * args[1]
    if kind == "div":
        return args[0] / args[1]
    return _power(*args) if kind == "pow" else _call(node.value, args)


def _power(base: Number, exponent: Number) -> Number:
    if not isinstance(base, Fraction) or not isinstance(exponent, Fraction):
        return _to_power(base, exponent)
    if exponent.denominator > 1:
        root = _root(base, exponent.denominator, principal=True)
        return _power(root, Fraction(exponent.numerator))
    size = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
    if size > _MAX_BITS:
        raise Undecided
    return base**exponent.numerator


def _to_power(base: Number, exponent: Number) -> Number:
    if isinstance(base, complex) or isinstance(exponent, complex) or base < 0:
        return _complex(base) ** _complex(exponent)
    return _float(base) ** _float(exponent)


def _root(inside: Number, degree: int, principal: bool = False) -> Number:
    """The real root if there is one, exact if it is rational. `principal`: complex for every negative number."""
    if isinstance(inside, complex):
        return inside ** (1 / degree)
    if inside < 0:
        if degree % 2 and not principal:
            return -_root(-inside, degree)
        return _complex(inside) ** (1 / degree)
    if isinstance(inside, Fraction):
        over, under = (_exact_root(part, degree) for part in (inside.numerator, inside.denominator))
        if over is not None and under is not None:
            return Fraction(over, under)
    return _float(inside) ** (1 / degree)


def _exact_root(number: int, degree: int) -> int | None:
    if number.bit_length() > _MAX_BITS:
        raise Undecided
    found = math.isqrt(number) if degree == 2 else round(number ** (1 / degree))
    return found if found**degree == number else None


def _call(name: str, args: list[Number]) -> Number:
    first = args[0]
    if name in ("sqrt", "cbrt") and len(args) == 1:
        return _root(first, 2 if name == "sqrt" else 3)
    if name == "root":
        degree = args[1]
        if not isinstance(degree, Fraction) or degree.denominator != 1 or not 1 <= degree <= 64:
            raise Undecided
        return _root(first, degree.numerator)
    if name == "abs":
        return abs(first)
    if name in ("floor", "ceiling") and not isinstance(first, complex):
        return Fraction(math.floor(first) if name == "floor" else math.ceil(first))
    if name in ("factorial", "binomial"):
        return _combinatorial(name, args)
    if name == "log" and len(args) == 2:
        return _logarithm(first) / _logarithm(args[1])
    if name == "ln" and len(args) in (1, 2):  # Python's log(x, base)
        return _logarithm(first) / (_logarithm(args[1]) if len(args) == 2 else 1)
    if len(args) != 1:
        raise Undecided
    return _elementary(name, _complex(first))


def _elementary(name: str, x: complex) -> complex:
    inverse = {"cot": "tan", "sec": "cos", "csc": "sin"}.get(name)
    if inverse:
        return 1 / getattr(cmath, inverse)(x)
    if name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan", "exp"):
        return getattr(cmath, name)(x)
    raise Undecided


def _logarithm(x: Number) -> Number:
    if isinstance(x, Fraction) and x > 0:
        return math.log(x.numerator) - math.log(x.denominator)  # also of integers beyond floating point
    return _tidy(cmath.log(_complex(x)))


def _combinatorial(name: str, args: list[Number]) -> Number:
    whole = [int(arg) for arg in args if isinstance(arg, Fraction) and arg.denominator == 1 and 0 <= arg <= 1000]
    if len(whole) != len(args):
        raise Undecided
    return Fraction(math.factorial(*whole) if name == "factorial" else math.comb(*whole))


def _tidy(number: Number) -> Number:
    """A complex number without imaginary part, up to rounding, as a real one."""
    if isinstance(number, complex):
        if cmath.isnan(number):
            raise Undecided
        if abs(number.imag) <= _ABSOLUTE * max(1.0, abs(number.real)):
            return number.real
    if isinstance(number, float) and math.isnan(number):
        raise Undecided
    return number


def _float(number: Number) -> float:
    assert not isinstance(number, complex)
    return float(number)


def _complex(number: Number) -> complex:
    return number if isinstance(number, complex) else complex(float(number))


def _value_of_name(name: str, number: int) -> Fraction:
    """The same in every process: at first above 1, then of either sign."""
    draw = random.Random(f"{name} {number}")
    size = Fraction(draw.randint(101, 499), 100)
    return size if number % 2 == 0 or draw.random() < 0.5 else -size
