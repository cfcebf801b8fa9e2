"""Whether a final answer is the reference: as text, else as numbers and expressions.

    same text             letter case, white space, \\text, dollar and degree signs aside
    numbers               1,234.50 and $1234.5; 1/2, \\frac12 and 0.5; 3\\frac{1}{2} and 3.5; 20\\% and 20, or 0.2
    rounded numbers       0.3333 and 1/3: a decimal number of four or more decimals stands for what rounds to it
    expressions           \\frac{\\sqrt{2}}{2} and 1/sqrt(2); (x+1)^2 and x^2 + 2x + 1
    several values        tuples and intervals in their order, with their brackets; sets and lists in any order
    equations             x = 5 and 5; y = 2x + 1 and 2x - y + 1 = 0; 3 > x and x < 3

Units after a number are not compared, as public graders do not either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastchat.eval.mathematics import symbolic
from fastchat.eval.mathematics.expressions import Node, read
from fastchat.eval.mathematics.tokens import Unreadable, plain, text_key
from fastchat.eval.mathematics.values import Undecided, names_in, ratio, same_value

_MAX_SYMBOLIC = 2  # per answer; each takes about a second
_MAX_VALUES = 64  # of a set or list
_UNIT = re.compile(r"(?<=[\d}])\s+[A-Za-z][A-Za-z ./^0-9{}]*$")
_COLLECTIONS = ("list", "set", "bracket", "union", "matrix")
_FLIPPED = {">": "<", ">=": "<="}


@dataclass(frozen=True)
class Verdict:
    """`right`, and `how` that was decided: "text", "value", "sympy", "different" or "undecided"."""

    right: bool
    how: str


def compare(answer: str, reference: str) -> Verdict:
    """Whether `answer` says the same as `reference`; neither is evaluated as Python.

    >>> compare("\\\\frac{1}{2}", "0.5"), compare("(1,2)", "(2,1)").right
    (Verdict(right=True, how='value'), False)
    """
    if text_key(answer) == text_key(reference):
        return Verdict(True, "text")
    comparison = _Comparison()
    pairs = [(a, b) for a in _readings(answer) for b in _readings(reference)]
    if any(comparison.same(a, b) for a, b in pairs) or comparison.same_without_units(answer, reference):
        return Verdict(True, "sympy" if comparison.by_sympy else "value")
    return Verdict(False, "undecided" if comparison.undecided or not pairs else "different")


def _readings(text: str) -> list[Node]:
    """The trees of a text, with 1,234 as one number and as two; none if it cannot be read."""
    found = []
    for thousands in (True, False):
        try:
            node = _without_pm(read(text, thousands))
        except (Unreadable, RecursionError):
            continue
        if node not in found:
            found.append(node)
    return found


def _without_pm(node: Node) -> Node:
    """1 \\pm \\sqrt{2} as the list of both values."""
    several = node.args if node.kind in ("list", "set") else (node,)
    values = [value for one in several for value in _signs(one)]
    if len(values) == len(several):
        return node
    return Node("set" if node.kind == "set" else "list", tuple(values))


def _signs(node: Node) -> list[Node]:
    if not any(part.kind == "pm" for part in _all(node)):
        return [node]
    return [_with_sign(node, "add"), _with_sign(node, "neg")]


def _with_sign(node: Node, sign: str) -> Node:
    args = tuple(_with_sign(part, sign) for part in node.args)
    if node.kind == "pm":
        return Node("add", (args[0], args[1] if sign == "add" else Node("neg", (args[1],))))
    return Node(node.kind, args, node.value, node.decimals)


def _all(node: Node) -> list[Node]:
    return [node, *(inner for part in node.args for inner in _all(part))]


class _Comparison:
    """One comparison. `undecided`: something in it could not be decided; `by_sympy`: sympy decided something."""

    def __init__(self) -> None:
        self.undecided = self.by_sympy = False
        self._left = _MAX_SYMBOLIC

    def same(self, a: Node, b: Node) -> bool:
        """Whether two answers mean the same, as far as it can be decided."""
        if a == b:
            return True
        if "relation" in (a.kind, b.kind):
            return self._same_relation(a, b)
        if a.kind in _COLLECTIONS or b.kind in _COLLECTIONS:
            return self._same_values(a, b)
        if a.kind == "percent" or b.kind == "percent":
            return self._same_percent(a, b)
        return self._same_expression(a, b)

    def same_without_units(self, answer: str, reference: str) -> bool:
        """Whether they are the same number once the words after it are left out, as in `18 dollars` or `60 km/h`."""
        try:
            texts = [_UNIT.sub("", plain(text)) for text in (answer, reference)]
        except Unreadable:
            return False
        if texts == [plain(answer), plain(reference)]:
            return False
        pairs = [(a, b) for a in _readings(texts[0]) for b in _readings(texts[1])]
        numbers = [(a, b) for a, b in pairs if not any(names_in(a)) and not any(names_in(b))]
        return any(self.same(a, b) for a, b in numbers)

    def _same_expression(self, a: Node, b: Node) -> bool:
        words = [{part.value for part in _all(node) if part.kind == "text"} for node in (a, b)]
        if any(words):
            return False  # a == b was tried
        try:
            return same_value(a, b)
        except (Undecided, RecursionError):
            pass
        if self._left:
            self._left -= 1
            decided = symbolic.same_value(a, b)
            if decided is not None:
                self.by_sympy = True
                return decided
        self.undecided = True
        return False

    def _same_percent(self, a: Node, b: Node) -> bool:
        """20% is 20 (a reference often leaves the sign out) and 0.2."""
        bare_a, bare_b = (node.args[0] if node.kind == "percent" else node for node in (a, b))
        if self.same(bare_a, bare_b):
            return True
        return a.kind != b.kind and self._same_expression(a, b)

    def _same_values(self, a: Node, b: Node) -> bool:
        kinds = {a.kind, b.kind}
        if len(a.args) > _MAX_VALUES or len(b.args) > _MAX_VALUES:
            return False
        if kinds == {"matrix"} or kinds == {"bracket"}:
            return a.value == b.value and self._in_order(a.args, b.args)
        if kinds <= {"list", "set"} or kinds == {"union"}:
            return self._in_any_order(a.args, b.args)
        if kinds == {"list", "bracket"}:  # 1, 2 for (1, 2), but not for the interval [1, 2]
            return "()" in (a.value, b.value) and self._in_order(a.args, b.args)
        single = [node.args[0] if node.kind == "set" and len(node.args) == 1 else node for node in (a, b)]
        return single != [a, b] and self.same(*single)

    def _in_order(self, left: Sequence[Node], right: Sequence[Node]) -> bool:
        return len(left) == len(right) and all(map(self.same, left, right))

    def _in_any_order(self, left: Sequence[Node], right: Sequence[Node]) -> bool:
        if len(left) != len(right):
            return False
        rest = list(right)
        for node in left:
            match = next((other for other in rest if self.same(node, other)), None)
            if match is None:
                return False
            rest.remove(match)
        return True

    def _same_relation(self, a: Node, b: Node) -> bool:
        if a.kind != b.kind:
            relation, other = (a, b) if a.kind == "relation" else (b, a)
            said = _said_of_a_name(relation)
            return said is not None and self.same(said, other)
        if "and" in (a.value, b.value):  # 1 < x < 3
            return a.value == b.value and self._in_any_order(a.args, b.args)
        (left, sign), (right, other_sign) = _turned(a), _turned(b)
        if sign != other_sign:
            return False
        if self._in_order(left, right) or sign in ("=", "!=") and self._in_order(left, right[::-1]):
            return True
        differences = [Node("add", (x, Node("neg", (y,)))) for x, y in (left, right)]
        try:
            factor = None if sign == "in" else ratio(*differences)
        except Undecided:
            self.undecided = True
            return False
        return factor is not None and (sign in ("=", "!=") or not isinstance(factor, complex) and factor > 0)


def _said_of_a_name(relation: Node) -> Node | None:
    """5 of `x = 5` or `5 = x`, 2x of `f(x) = 2x`, S of `x \\in S`; None for other relations."""
    if relation.value == "and" or relation.value not in ("=", "in"):
        return None
    left, right = relation.args
    if _is_name(left):
        return right
    return left if relation.value == "=" and _is_name(right) else None


def _is_name(node: Node) -> bool:
    return node.kind in ("name", "text") or node.kind == "mul" and all(map(_is_name, node.args))


def _turned(relation: Node) -> tuple[tuple[Node, ...], str]:
    """The sides of a relation and its sign, which is none of > and >=."""
    if relation.value in _FLIPPED:
        return relation.args[::-1], _FLIPPED[relation.value]
    return relation.args, relation.value
