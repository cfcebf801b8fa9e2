"""Reads a question/answer row: the question, the code, the expected output, and the final answer."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.strict_json import json_kind
from fastchat.data.tools.final_answer import after_hashes, boxed, has_box, without_hashes

INTRODUCTION = "Let's solve this problem using Python code."
QUESTION_KEYS, ANSWER_KEYS, _NAME = ("question", "problem"), ("answer", "solution"), ("idx", "id")
READ = (*QUESTION_KEYS, *ANSWER_KEYS, *_NAME, "code", "output")  # keys
_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_FENCE = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)\n?```$", re.DOTALL)
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod,
    ast.Pow, ast.UAdd, ast.USub,
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One row, parsed.

    Attributes:
        name: the "idx" of the result.
        code: without a fence around it.
        output: what the code prints according to the row, None if the row does not say.
        final: the final answer, None if the row has none.
        text: the answer turn without the final answer, "" if the row has none.
    """

    name: str
    question: str
    code: str
    output: str | None = None
    final: str | None = None
    text: str = ""


def read_problem(row: Mapping[str, Any], name: str) -> Problem:
    """Parse a row. `name` is used if the row has no "idx" or "id".

    Raises:
        BadRow: the question is missing, a value is not a string, or there is neither code nor an annotation.

    Example:
        >>> problem = read_problem({"question": "Half of 48?", "answer": "It is <<48/2=24>>24.\\n#### 24"}, "a-0")
        >>> problem.code, problem.final, problem.text
        ('step_1 = 48/2\\nprint(round(step_1, 4))', '24', 'It is 24.')
    """
    question, answer, code = _text(row, QUESTION_KEYS), _text(row, ANSWER_KEYS), _text(row, ("code",))
    own_name = next((row[key] for key in _NAME if isinstance(row.get(key), (str, int))), name)
    if not question or not question.strip():
        raise BadRow("no question", '"question" or "problem" is required')
    text, final = _answer(answer or "")
    if code is not None and code.strip():
        fenced = _FENCE.match(code.strip())
        code = fenced[1] if fenced else code.strip("\n")
        if "```" in code:
            raise BadRow("the code contains ```", "it would end the code block")
        return Problem(str(own_name), question, code, _output(row), final, text)
    if answer is None:
        raise BadRow("no answer and no code", '"answer" with annotations such as <<48/2=24>>, or "code", is required')
    steps = [_step(annotation) for annotation in _ANNOTATION.findall(answer)]
    if not steps:
        raise BadRow("no calculator annotation", "nothing like <<48/2=24>> in the answer, and no code")
    if final is None:
        raise BadRow("no final answer", "no line such as #### 72")
    if number(final) is None:
        raise BadRow("the final answer is not a number", shown(final))
    lines = [f"step_{i} = {step}" for i, step in enumerate(steps, start=1)]
    return Problem(
        str(own_name), question, "\n".join([*lines, f"print(round(step_{len(steps)}, 4))"]), None, final, text
    )


def dialogue(problem: Problem, output: str) -> dict[str, Any]:
    """The row in the messages format: question, code, output, answer. The output is a user turn, so not trained on."""
    answer = problem.text
    if not has_box(answer):
        final = problem.final or output.splitlines()[-1].strip()
        answer = f"{answer}\n" if answer else ""
        answer += f"The answer is \\boxed{{{final}}}."
    turns = (
        ("user", problem.question),
        ("assistant", f"{INTRODUCTION}\n```python\n{problem.code}\n```"),
        ("user", output_block(output)),
        ("assistant", answer),
    )
    return {"idx": problem.name, "messages": [{"role": role, "content": content} for role, content in turns]}


def output_block(output: str) -> str:
    """The text of the turn that tells the model what its code printed."""
    return f"```output\n{output}\n```"


def agree(printed: str, said: str) -> bool:
    """Whether two texts are equal: as numbers, to four decimal places, if both are numbers; else literally.

    >>> agree("72.0", "72"), agree("0.3333", "1/3"), agree("x = 2", "x  = 2"), agree("12", "12 apples")
    (True, True, True, False)
    """
    a, b = number(printed), number(said)
    if a is not None and b is not None:
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-4)
    return printed.split() == said.split()


def _text(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = row.get(key)
        if isinstance(value, str):
            return value
        if value is not None:
            raise BadRow("wrong type", f'"{key}" is a JSON {json_kind(value)}, not a string')
    return None


def _output(row: Mapping[str, Any]) -> str | None:
    value = row.get("output")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    output = _text(row, ("output",))
    return output if output and output.strip() else None


def _answer(answer: str) -> tuple[str, str | None]:
    """(the text without annotations and final line, the final answer)."""
    text = _ANNOTATION.sub("", answer)
    final = after_hashes(text)
    text = without_hashes(text).strip()
    if final is not None:
        return text, final.replace(",", "") or None
    if has_box(text):
        return text, boxed(text)
    if text and "\n" not in text and (number(text) is not None or len(text.split()) == 1):
        return "", text  # only the value
    return text, None


def _step(annotation: str) -> str:
    """The Python expression of an annotation: "48/2=24" -> "48/2"; a percentage becomes a fraction."""
    expression = annotation.rpartition("=")[0] or annotation
    cleaned = re.sub(r"(?<=\d),(?=\d{3}\b)|[$\s]", "", expression)
    cleaned = cleaned.replace("×", "*").replace("÷", "/").replace("−", "-")
    cleaned = re.sub(r"(\d+(?:\.\d+)?|\.\d+)%(?![\d.(])", r"(\1/100)", cleaned)
    cleaned = re.sub(r"(?<![\d.])0+(?=\d)", "", cleaned)  # 05 is not a Python number
    try:
        nodes = list(ast.walk(ast.parse(cleaned, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        nodes = []
    numbers = all(type(node.value) in (int, float) for node in nodes if isinstance(node, ast.Constant))
    if not nodes or not numbers or not all(isinstance(node, _ARITHMETIC) for node in nodes):
        raise BadRow("an annotation is not arithmetic", shown(annotation))
    return cleaned


def number(text: str) -> float | None:
    """The value of a text: "72", "-1,200.50", "$5", "20%" (20), "1/3", "\\frac{1}{3}"; None for anything else."""
    cleaned = re.sub(r"(?<=\d),(?=\d{3})|^\$|[%$]$", "", text.strip())
    parts = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}|(-?)(\d+)/(\d+)", cleaned)
    try:
        if parts:
            sign, above, below = (group for group in parts.groups() if group is not None)
            return float(f"{sign}{above}") / float(below)
        value = float(cleaned)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None
