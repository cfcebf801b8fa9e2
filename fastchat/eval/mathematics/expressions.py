"""Tokens of a final answer -> a tree. A parser of its own: what a model writes is never evaluated as Python.

\\frac{1}{2}x   ->  mul(div(number 1, number 2), name x)
(1, \\infty)    ->  bracket "()" (number 1, name oo)
x = 3 or x = 4  ->  list(relation "=" (name x, number 3), relation "=" (name x, number 4))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fastchat.eval.mathematics.notation import CLOSERS, CONSTANTS, FUNCTIONS, GREEK, OVER, RELATIONS, TIMES
from fastchat.eval.mathematics.tokens import NEW_ROW, Token, Unreadable, height, tokens_of

MAX_DEPTH = 40  # of brackets, fractions and so on inside one another
MAX_HEIGHT = 120  # of a tree; a sum has one level for each term
_MAX_EXPONENT = 400  # of a decimal such as 1e30
_SHORT_WORD = 3  # letters; a longer word is a word, a shorter one is a product of variables


@dataclass(frozen=True)
class Node:
    """One node of a tree.

    Attributes:
        kind: number, name, text; add, mul, div, pow, neg, pm, call, percent; bracket, set, list, union, matrix,
            relation.
        value: a Fraction, a name, a text, the name of a function, the two brackets, the columns or the relation.
        decimals: how many decimals a number was written with; None if it was written without a point.
    """

    kind: str
    args: tuple[Node, ...] = ()
    value: Any = None
    decimals: int | None = None


def read(text: str, thousands: bool = True) -> Node:
    """The tree of an answer. Raises Unreadable if it is not in a notation that is known here.

    >>> read("50\\\\%").kind, read("3\\\\frac{1}{2}").kind, read("1, 2").kind
    ('percent', 'add', 'list')
    """
    tokens = tokens_of(text, thousands)
    if not tokens:
        raise Unreadable("empty")
    parser = _Parser(tokens)
    try:
        node = parser.items(())
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    if parser.next:
        raise Unreadable(f"unexpected {parser.next}")
    if height(node) > MAX_HEIGHT:
        raise Unreadable("too many operations")
    return node


class _Parser:
    def __init__(self, tokens: list[Token]):
        self._tokens, self._at, self._depth = tokens, 0, 0

    # ---- tokens

    @property
    def next(self) -> str:
        """The text of the next sign, command or word; "" at the end and for others."""
        token = self._token
        return token.text if token is not None and token.kind in ("sign", "command", "word") else ""

    @property
    def _token(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self) -> Token:
        token = self._token
        if token is None:
            raise Unreadable("ends too early")
        self._at += 1
        return token

    def _accept(self, *texts: str) -> str:
        if self.next and self.next in texts:
            return self._take().text
        return ""

    def _expect(self, *texts: str) -> str:
        found = self._accept(*texts)
        if not found:
            raise Unreadable(f"expected {' or '.join(texts)}")
        return found

    # ---- from lists down to single numbers

    def items(self, closers: tuple[str, ...]) -> Node:
        """One value, or several separated by commas: a "list"."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        found = [self._relation()]
        while self._accept(",", ";", ":"):
            if self._token is None or self.next and self.next in closers:
                break  # (1,)
            found.append(self._relation())
        self._depth -= 1
        return found[0] if len(found) == 1 else Node("list", tuple(found))

    def _relation(self) -> Node:
        first = self._union()
        sides, signs = [first], []
        while self.next in RELATIONS:
            signs.append(RELATIONS[self._take().text])
            sides.append(self._union())
        made = [Node("relation", (a, b), sign) for a, b, sign in zip(sides, sides[1:], signs, strict=False)]
        if not made:
            return first
        return made[0] if len(made) == 1 else Node("relation", tuple(made), "and")

    def _union(self) -> Node:
        parts = [self._sum()]
        while self._accept("\\cup"):
            parts.append(self._sum())
        return parts[0] if len(parts) == 1 else Node("union", tuple(parts))

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        node = self._product()
        while sign := self._accept("+", "-", "\\pm", "\\mp"):
            right = self._product()
            if sign in ("\\pm", "\\mp"):
                node = Node("pm", (node, right))
            else:
                node = Node("add", (node, Node("neg", (right,)) if sign == "-" else right))
        self._depth -= 1
        return node

    def _product(self) -> Node:
        if sign := self._accept("-", "+", "\\pm"):
            inner = self._product()
            return {"-": Node("neg", (inner,)), "+": inner}.get(sign) or Node(
                "pm", (Node("number", (), Fraction(0)), inner)
            )
        node = self._power()
        while True:
            if self._accept(*TIMES):
                node = Node("mul", (node, self._signed_power()))
            elif self._accept(*OVER):
                node = Node("div", (node, self._signed_power()))
            elif self._unit():
                continue
            elif self._opens_factor():
                node = self._beside(node, self._power())
            else:
                return node

    def _signed_power(self) -> Node:
        sign = self._accept("-", "+")
        node = self._power()
        return Node("neg", (node,)) if sign == "-" else node

    def _beside(self, left: Node, right: Node) -> Node:
        """Two factors without a sign: a product, or a mixed number such as 3\\frac{1}{2}."""
        whole = left.kind == "number" and left.decimals is None
        if (
            whole
            and right.kind == "div"
            and right.value == "frac"
            and all(part.kind == "number" for part in right.args)
        ):
            return Node("add", (left, right))
        if left.kind == "number" and right.kind == "number":
            raise Unreadable("two numbers without a sign between them")
        return Node("mul", (left, right))

    def _unit(self) -> bool:
        """Whether a unit follows a number, which is skipped: 5\\text{ cm}^2, 18 dollars."""
        token = self._token
        if token is None or not (token.kind == "text" or token.kind == "word" and _is_word(token.text)):
            return False
        self._at += 1
        if self._accept("^", "**"):
            self._group()
        if (
            self.next == "/"
            and self._at + 1 < len(self._tokens)
            and self._tokens[self._at + 1].kind in ("text", "word")
        ):
            self._at += 1
        return True

    def _opens_factor(self) -> bool:
        token = self._token
        if token is None:
            return False
        if token.kind in ("number", "word"):
            return True
        if token.kind == "sign":
            return token.text in ("(", "[", "{")
        return token.kind == "command" and (
            token.text
            in ("\\frac", "\\dfrac", "\\tfrac", "\\cfrac", "\\sqrt", "\\log", "\\binom", "\\dbinom", "\\begin")
            or token.text in CLOSERS
            or token.text[1:] in FUNCTIONS
            or token.text[1:] in GREEK
            or token.text[1:] in CONSTANTS
        )

    def _power(self) -> Node:
        base = self._postfix()
        if self._accept("^", "**"):
            sign = self._accept("-", "+")
            exponent = self._power()
            return Node("pow", (base, Node("neg", (exponent,)) if sign == "-" else exponent))
        return base

    def _postfix(self) -> Node:
        node = self._atom()
        while True:
            if self._accept("!"):
                node = Node("call", (node,), "factorial")
            elif self._accept("%", "\\%"):
                node = Node("percent", (node,))
            elif self.next == "_" and node.kind in ("name", "number"):
                self._take()
                shown = self._group()
                index = shown.value if shown.kind in ("name", "number", "text") else repr(shown)
                node = Node("name", (), f"{node.value}_{index}")
            else:
                return node

    # ---- what stands for itself

    def _atom(self) -> Node:
        token = self._take()
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "text":
            return Node("text", (), token.text.casefold())
        if token.kind == "word":
            return self._word(token.text)
        if token.text in CLOSERS:
            return self._bracket(token.text)
        if token.text in ("|", "\\lvert", "\\vert", "\\mid"):
            inner = self._sum()
            self._expect("|", "\\rvert", "\\vert", "\\mid")
            return Node("call", (inner,), "abs")
        if token.kind == "command":
            return self._command(token.text[1:])
        raise Unreadable(f"unexpected {token.text}")

    def _word(self, word: str) -> Node:
        if word in CONSTANTS:
            return Node("name", (), CONSTANTS[word])
        if word in FUNCTIONS or word == "log":
            return self._applied("ln" if word == "log" else FUNCTIONS[word])  # Python's log
        if word in GREEK:
            return Node("name", (), word)
        if _is_word(word):
            return Node("text", (), word.casefold())
        letters = [Node("name", (), letter) for letter in word]
        if len(letters) > 1:  # 2xy^3: the power is that of the last letter
            self._at -= 1
            self._tokens[self._at : self._at + 1] = [Token("word", letter) for letter in word]
            self._at += 1
        return letters[0]

    def _bracket(self, opener: str) -> Node:
        closers = CLOSERS[opener]
        if closer := self._accept(*closers):
            return Node("set") if opener in ("\\{", "{", "\\lbrace") else Node("bracket", (), opener + closer)
        inner = self.items(closers)
        closer = self._expect(*closers)
        if opener in ("\\lfloor", "\\lceil"):
            return Node("call", (inner,), {"\\lfloor": "floor"}.get(opener, "ceiling"))
        several = inner.args if inner.kind == "list" else (inner,)
        if opener in ("\\{", "\\lbrace") or opener == "{" and len(several) > 1:
            return Node("set", several)
        if len(several) == 1 and (opener, closer) != ("[", ")") and (opener, closer) != ("(", "]"):
            return inner
        return Node("bracket", several, "()" if opener == "\\langle" else opener + closer)

    def _command(self, name: str) -> Node:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return Node("div", (self._argument(), self._argument()), "frac")
        if name in ("binom", "dbinom"):
            return Node("call", (self._argument(), self._argument()), "binomial")
        if name == "sqrt":
            degree = self._optional_argument()
            if self.next == "(":
                return self._root(self._group(), degree)
            return self._root(self._argument(digit=False), degree)
        if name == "log":
            base = self._group() if self._accept("_") else _number("10")
            return self._applied("log", base)
        if name in ("overline", "bar"):
            raise Unreadable("\\overline")
        if name in ("emptyset", "varnothing"):
            return Node("set")
        if name == "begin":
            return self._matrix()
        if name == "mathbb":
            return Node("name", (), f"mathbb {self._group().value}")
        if name in FUNCTIONS:
            return self._applied(FUNCTIONS[name])
        if name in CONSTANTS:
            return Node("name", (), CONSTANTS[name])
        if name in GREEK:
            return Node("name", (), name.removeprefix("var"))
        raise Unreadable(f"\\{name}")

    @staticmethod
    def _root(inside: Node, degree: Node | None) -> Node:
        return Node("call", (inside,), "sqrt") if degree is None else Node("call", (inside, degree), "root")

    def _group(self) -> Node:
        """A bracket or one token, as an exponent or an index has."""
        if self.next == "{":
            self._take()
            inner = self.items(("}",))
            self._expect("}")
            return inner
        sign = self._accept("-")
        node = self._atom()
        return Node("neg", (node,)) if sign else node

    def _argument(self, digit: bool = True) -> Node:
        """The argument of a LaTeX command. `digit`: without braces it is a single digit, as in \\frac12."""
        token = self._token
        if digit and token is not None and token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            self._tokens[self._at] = Token("number", token.text[1:])
            return _number(token.text[0])
        return self._group()

    def _optional_argument(self) -> Node | None:
        if not self._accept("["):
            return None
        inner = self.items(("]",))
        self._expect("]")
        return inner

    def _applied(self, function: str, *more: Node) -> Node:
        """A function with what it is applied to: \\sin^2(x), \\sin 2x, sqrt(2)."""
        exponent = None
        if self._accept("^"):
            exponent = self._group()
        if self.next in ("(", "{", "["):
            inner = self._bracket(self._take().text)
        else:
            inner = self._power()
            while self._opens_factor() and self.next.removeprefix("\\") not in (*FUNCTIONS, "log", "("):
                inner = self._beside(inner, self._power())
        args = inner.args if inner.kind == "list" or inner.kind == "bracket" else (inner,)
        node = Node("call", (*args, *more), function)
        return node if exponent is None else Node("pow", (node, exponent))

    def _matrix(self) -> Node:
        kind = self._environment()
        if kind == "array":
            self._group()  # its columns
        rows: list[list[Node]] = [[]]
        while not self._accept("\\end"):
            if self._accept("&"):
                continue
            if self._accept(NEW_ROW):
                rows.append([])
            else:
                rows[-1].append(self._sum())
        self._environment()
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) > 1:
            raise Unreadable("rows of different lengths")
        return Node("matrix", tuple(cell for row in rows for cell in row), len(rows[0]))

    def _environment(self) -> str:
        self._expect("{")
        name = self._take().text
        self._expect("}")
        if not re.fullmatch(r"[pbvBV]?(matrix|smallmatrix)|array", name):
            raise Unreadable(f"environment {name}")
        return name


def _is_word(word: str) -> bool:
    return len(word) > _SHORT_WORD and word not in FUNCTIONS and word not in CONSTANTS and word not in GREEK


def _number(text: str) -> Node:
    mantissa, _, exponent = text.lower().partition("e")
    if abs(int(exponent or 0)) > _MAX_EXPONENT:
        raise Unreadable("a number that is too large")
    decimals = len(mantissa.partition(".")[2]) if "." in mantissa else None
    if exponent and decimals is not None:
        decimals = max(0, decimals - int(exponent))
    return Node("number", (), Fraction(text), decimals)
