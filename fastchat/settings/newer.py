"""Training arguments of an installed transformers that is newer than our table: they are passed through unchanged.

They are read from the source of its class: importing it takes seconds, and a misspelled flag should be refused at once.
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
    """The option for a field of transformers' TrainingArguments; None if it has no field of that name.

    The default is None here: if the option is not given, the default of transformers is used.
    """
    annotation = _annotations().get(name)
    if annotation is None:
        return None
    try:
        kind = eval(compile(annotation, "annotation", "eval"), {"__builtins__": {}}, dict(_KNOWN))
    except Exception:  # a class of transformers: passed as a string
        kind = str
    return Option(name, kind, None, "passed to transformers unchanged", group="transformers")


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
