"""Training arguments of an installed transformers that is newer than our table: they are passed on as they are.

Read from the text of its class: importing it takes seconds, and a misspelt flag should be refused at once.
"""

from __future__ import annotations

import ast
import importlib.util
import typing
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastchat.settings.options import Option

_KNOWN = {"Any": Any, "Union": typing.Union, "Optional": typing.Optional, "Literal": typing.Literal}
_KNOWN |= {name: getattr(__import__("builtins"), name) for name in ("bool", "int", "float", "str", "list", "dict")}


def newer_option(name: str) -> Option | None:
    """The option for a field of transformers' TrainingArguments, None where it has none of that name.

    Its default is None here: where it is not given, transformers' own counts.
    """
    annotation = _annotations().get(name)
    if annotation is None:
        return None
    try:
        kind = eval(compile(annotation, "annotation", "eval"), {"__builtins__": {}}, dict(_KNOWN))
    except Exception:  # a class of transformers: it is given as text
        kind = str
    return Option(name, kind, None, "of transformers; passed on as it is", group="transformers")


@lru_cache
def _annotations() -> dict[str, ast.Expression]:
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    path = Path(next(iter(spec.submodule_search_locations))) / "training_args.py"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return {}
    return {
        line.target.id: ast.Expression(line.annotation)
        for part in tree.body
        if isinstance(part, ast.ClassDef) and part.name == "TrainingArguments"
        for line in part.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and _is_argument(line)
    }


def _is_argument(line: ast.AnnAssign) -> bool:
    """`x: int = field(...)`, but not a field that only the class itself sets."""
    value = line.value
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field"):
        return False
    return not any(
        word.arg == "init" and isinstance(word.value, ast.Constant) and word.value.value is False
        for word in value.keywords
    )
