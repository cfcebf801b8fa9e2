"""A digest of the code of some modules and of everything they import, to detect changes of behaviour.

Modules are found by the text of their import statements and hashed by their bytes, in a few milliseconds: parsing them
would take a second of every first start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastchat.files import sha256_of_text

# `from a.b import c, d`, in brackets over several lines or not, and `import a.b, c as d`
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]*(\([^)]*\)|[^\n]*)|import[ \t]+([^\n]*))", re.MULTILINE
)
_FOR_TYPES = re.compile(r"^([ \t]*)if (?:\w+\.)?TYPE_CHECKING:.*\n(?:\1[ \t]+.*\n|[ \t]*\n)*", re.MULTILINE)
_COMMENT = re.compile(r"#.*")
_NAME = re.compile(r"([\w.]+)(?:\s+as\s+\w+)?")


def import_closure(package: Path, roots: Iterable[str]) -> dict[str, Path]:
    """The files of `roots` and of every module of the same package that they import, directly or indirectly.

    Args:
        package: the package's folder; its name is that of the package.
        roots: names of modules.

    Returns: {name of a module: its file}, sorted. Imports for type checkers only are ignored.
    """
    return {name: file for name, (file, _) in _closure(package, roots).items()}


def code_digest(package: Path, roots: Iterable[str]) -> str:
    """A digest of the code of `import_closure(package, roots)`."""
    modules = _closure(package, roots)
    return sha256_of_text("\n".join(f"{name} {sha256_of_text(text)}" for name, (_, text) in modules.items()))


def _closure(package: Path, roots: Iterable[str]) -> dict[str, tuple[Path, str]]:
    """The same, each with its text."""
    found: dict[str, tuple[Path, str]] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        file = _file_of(package, name)
        if name in found or file is None:
            continue
        text = file.read_text(encoding="utf-8")
        found[name] = file, text
        waiting += _parents(name)
        waiting += _imported(text, name, is_package=file.name == "__init__.py")
    return dict(sorted(found.items()))


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


def _imported(text: str, name: str, is_package: bool) -> Iterator[str]:
    """Names that a module imports, at the top or in a function; for `from a import b` both a and a.b. What only looks
    like an import, in a string, may be among them."""
    for source, what, modules in _IMPORT.findall(_FOR_TYPES.sub("", text).replace("\\\n", " ")):
        names = _NAME.findall(_COMMENT.sub("", what or modules))
        if not source:
            yield from names
            continue
        level = len(source) - len(source.lstrip("."))
        parts = name.split(".")
        above = parts[: len(parts) - level + is_package] if level else []
        module = ".".join([*above, *([source[level:]] if source[level:] else [])])
        yield module
        yield from (f"{module}.{imported}" for imported in names)
