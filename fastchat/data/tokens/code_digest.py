"""A digest of the code of some modules and of everything they import, to detect changes of behaviour.

Modules are found by their import statements, anywhere in the code, and hashed by their syntax trees: comments,
docstrings and formatting do not matter.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastchat.files import sha256_of_text


def import_closure(package: Path, roots: Iterable[str]) -> dict[str, Path]:
    """The files of `roots` and of every module of the same package that they import, directly or indirectly.

    Args:
        package: the package's folder; its name is that of the package.
        roots: names of modules.

    Returns: {name of a module: its file}, sorted. Imports for type checkers only are ignored.
    """
    return {name: file for name, (file, _) in _closure(package, roots).items()}


def _closure(package: Path, roots: Iterable[str]) -> dict[str, tuple[Path, ast.Module]]:
    """The same, each with its syntax tree."""
    found: dict[str, tuple[Path, ast.Module]] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        file = _file_of(package, name)
        if name in found or file is None:
            continue
        tree = ast.parse(file.read_bytes())
        found[name] = file, tree
        waiting += _parents(name)
        waiting += _imported(tree, name, is_package=file.name == "__init__.py")
    return dict(sorted(found.items()))


def code_digest(package: Path, roots: Iterable[str]) -> str:
    """A digest of the code of `import_closure(package, roots)`."""
    modules = _closure(package, roots)
    return sha256_of_text("\n".join(f"{name} {_tree_digest(tree)}" for name, (_, tree) in modules.items()))


def file_digest(file: Path) -> str:
    """A digest of the code of one module."""
    return _tree_digest(ast.parse(file.read_bytes()))


def _tree_digest(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[_has_docstring(node) :]
    return sha256_of_text(ast.dump(tree))


def _file_of(package: Path, name: str) -> Path | None:
    """The file of a module; None for a name that is not a module of the package."""
    first, *rest = name.split(".")
    if first != package.name:
        return None
    place = package.joinpath(*rest)
    for file in (place / "__init__.py", place.with_suffix(".py")) if rest else (place / "__init__.py",):
        if file.is_file():
            return file
    return None


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _imported(tree: ast.AST, name: str, is_package: bool) -> Iterator[str]:
    """Names that a module imports, at the top or in a function; for `from a import b` both a and a.b."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
