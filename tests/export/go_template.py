"""The part of Go's text/template that a Modelfile of ours uses, for tests: `render(text, system, messages)`.

Written from the language's description, independently of what writes the templates: if, else if, else, range,
variables, and the functions eq, not, len and slice.
"""

from __future__ import annotations

import re
from typing import Any

_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()"]+')
_FUNCTIONS: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "not": lambda a: not a,
    "len": len,
    "slice": lambda a, start: a[start:],
}


def render(text: str, system: str, messages: list[dict[str, str]]) -> str:
    """What Ollama renders: the system message is in `.System`, and among the messages."""
    parser = _Parser(re.split(r"\{\{(.*?)\}\}", text, flags=re.S))
    nodes, ended = parser.block()
    assert ended == [], f"{ended} without a beginning"
    root = {"System": system, "Messages": messages}
    return _run(nodes, root, {"$": root})


class _Parser:
    def __init__(self, parts: list[str]) -> None:
        self.parts, self.at = parts, 0

    def block(self) -> tuple[list[Any], list[str]]:
        """(nodes up to the action that ends the block, that action; [] at the end of the text)"""
        nodes: list[Any] = []
        while self.at < len(self.parts):
            part, is_action = self.parts[self.at], self.at % 2
            self.at += 1
            words = _WORD.findall(part)
            if not is_action:
                nodes.append(("text", part))
            elif words[0] in ("end", "else"):
                return nodes, words
            elif words[0] in ("if", "range"):
                nodes.append(self.branch(words))
            else:
                nodes.append(("action", words))
        return nodes, []

    def branch(self, words: list[str]) -> Any:
        """An if or range with everything to the end that it shares with its else-ifs."""
        inner, ended = self.block()
        otherwise: list[Any] = []
        if ended[:2] == ["else", "if"]:
            otherwise = [self.branch(ended[1:])]
        elif ended == ["else"]:
            otherwise, ended = self.block()
            assert ended == ["end"], ended
        return words[0], words[1:], inner, otherwise


def _run(nodes: list[Any], dot: Any, variables: dict[str, Any]) -> str:
    out = []
    for kind, value, *branches in nodes:
        if kind == "text":
            out.append(value)
        elif kind == "if":
            out.append(_run(branches[not _value(value, dot, variables)], dot, variables))
        elif kind == "range":
            index, element, assigned, *what = value
            assert assigned == ":=", value
            for number, item in enumerate(_value(what, dot, variables)):
                out.append(_run(branches[0], item, {**variables, index.rstrip(","): number, element: item}))
        elif value[1:2] == [":="]:
            variables[value[0]] = _value(value[2:], dot, variables)
        else:
            out.append(str(_value(value, dot, variables)))
    return "".join(out)


def _value(words: list[str], dot: Any, variables: dict[str, Any]) -> Any:
    values, at = [], 0
    while at < len(words):
        end = at + 1
        if words[at] == "(":
            depth = 1
            while depth:
                depth += {"(": 1, ")": -1}.get(words[end], 0)
                end += 1
            values.append(_value(words[at + 1 : end - 1], dot, variables))
        elif at or words[0] not in _FUNCTIONS:
            values.append(_term(words[at], dot, variables))
        at = end
    if words[0] in _FUNCTIONS:
        return _FUNCTIONS[words[0]](*values)
    assert len(values) == 1, words
    return values[0]


def _term(word: str, dot: Any, variables: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return word[1:-1]
    if word.isdigit():
        return int(word)
    base, _, key = word.partition(".")
    value = variables[base] if base else dot
    return value if not key else value[key if key in value else key.lower()]
