"""Names of FastChat 0.2.36 that do not exist here: importing one raises an error that says what to use instead.

`upstream_names.json` lists them: modules, and names of modules that do exist. Importing one raises ImportError with the
advice; `python -m` prints it and exits with 2. Standard library only, and read only when a name is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any


@cache
def table() -> dict[str, Any]:
    """{"ways": {key: what to use instead}, "modules": {name: key}, "names": {module: {name: key}}}"""
    from fastchat.files import read_json  # the package itself imports this module

    return read_json(Path(__file__).with_name("upstream_names.json"))


def what_instead(name: str, key: str) -> str:
    """The message about upstream's name `name`."""
    return f"{name} of FastChat 0.2.36 does not exist here: {table()['ways'][key]}"


def refuse(module: str, owner: str = "") -> Callable[[str], Any]:
    """A `__getattr__` for `module`, or for its class `owner`: ImportError (for a class, NotImplementedError) for names
    that upstream has, AttributeError for all others."""

    def missing(name: str) -> Any:
        full = f"{owner}.{name}" if owner else name
        key = None if name.startswith("__") else table()["names"].get(module, {}).get(full)
        if key is None:
            raise AttributeError(f"{module} has no attribute {full!r}")
        line = what_instead(f"{module}.{full}", key)
        raise NotImplementedError(line) if owner else ImportError(line, name=module)

    return missing


class MissingModules(MetaPathFinder):
    """The last finder: it knows upstream's modules that do not exist here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("fastchat.") or fullname not in table()["modules"]:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in table()["modules"])
        return ModuleSpec(fullname, _Missing(), is_package=is_package)


class _Missing(Loader):
    """A package of missing modules is empty, so that each module gives its own message; importing a module fails."""

    def exec_module(self, module: ModuleType) -> None:
        if not hasattr(module, "__path__"):
            raise ImportError(_line(module.__name__), name=module.__name__)

    def get_code(self, fullname: str) -> CodeType:
        """The code that `python -m` runs."""
        code = f"import sys\nprint({'error: ' + _line(fullname)!r}, file=sys.stderr)\nsys.exit(2)"
        return compile(code, fullname, "exec")

    def is_package(self, fullname: str) -> bool:
        return False


def _line(module: str) -> str:
    return what_instead(module, table()["modules"][module])


def install() -> None:
    """Add the finder, once."""
    if not any(isinstance(finder, MissingModules) for finder in sys.meta_path):
        sys.meta_path.append(MissingModules())
