"""Asks sympy, where it is installed, whether two expressions are equal that floating point cannot decide.

It runs in the sandbox that also runs a model's code, with its limits of time and memory, and gets a program that is
written from the tree of an answer: numbers, our own names of functions, and v0, v1 ... for the variables. No text of an
answer is in it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from fractions import Fraction

from fastchat.data.tools.sandbox import Limits, run_python
from fastchat.eval.mathematics.expressions import Node
from fastchat.eval.mathematics.values import names_in

LIMITS = Limits(timeout=10.0)
_NAMES: Mapping[str, str] = {"pi": "pi", "e": "E", "oo": "oo"}
_FUNCTIONS = {
    name: name for name in ("sqrt", "cbrt", "root", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh",
    "asin", "acos", "atan", "exp", "floor", "ceiling", "factorial", "binomial", "log")
} | {"ln": "log", "abs": "Abs"}  # fmt: skip
_OPERATIONS = {"add": "Add", "mul": "Mul", "pow": "Pow"}


def installed() -> bool:
    """Whether sympy can be imported here."""
    return importlib.util.find_spec("sympy") is not None


def same_value(a: Node, b: Node) -> bool | None:
    """Whether two expressions are equal; None if sympy is not installed, or does not know or takes too long.

    Raises as `run_python` does.
    """
    variables = {name: f"v{k}" for k, name in enumerate(sorted({*names_in(a), *names_in(b)} - set(_NAMES)))}
    try:
        left, right = (_written(node, {**variables, **_NAMES}) for node in (a, b))
    except KeyError:  # something that is not an expression
        return None
    if not installed():
        return None
    symbols = "".join(f"{name} = Symbol({name!r}, real=True)\n" for name in variables.values())
    program = f"from sympy import *\n{symbols}print((Add({left}, -({right}))).equals(0))"
    outcome = run_python(program, LIMITS)
    answers = {"True": True, "False": False}
    return answers.get(outcome.output.strip()) if outcome.status == "ok" else None


def _written(node: Node, names: Mapping[str, str]) -> str:
    """An expression as calls of sympy's constructors. Raises KeyError for what is not an expression."""
    if node.kind == "number":
        value: Fraction = node.value
        return f"Rational({value.numerator}, {value.denominator})"
    if node.kind == "name":
        return names[node.value]
    args = [_written(part, names) for part in node.args]
    if node.kind == "neg":
        return f"-({args[0]})"
    if node.kind == "percent":
        return f"({args[0]})/100"
    if node.kind == "div":
        return f"({args[0]})/({args[1]})"
    function = _FUNCTIONS[node.value] if node.kind == "call" else _OPERATIONS[node.kind]
    return f"{function}({', '.join(args)})"
