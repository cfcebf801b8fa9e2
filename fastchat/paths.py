"""Names of model folders that are not there: a folder here that was mistyped, or a name on the hub?"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from fastchat.errors import nearest, say

_VERY_NEAR = 0.75  # o11 and o1 are 0.8 alike
_LISTED = 5


def meant_here(name: str) -> bool:
    """Whether a model's name can only be meant as a folder here, and not as `org/name` or `name` on the hub.

    It is so where the name is written like a path, or begins with a folder that exists: `out/checkpoint-15`.
    """
    first, slash, _ = name.partition("/")
    return _path_like(name) or bool(slash) and os.path.isdir(first)


def folders_instead(path: str | Path) -> str:
    """What a folder that is not there may have been, as a sentence that can follow another.

    >>> folders_instead("out/checkpoint-15")                    # doctest: +SKIP
    ' There is no checkpoint-15 in out; nearest: checkpoint-10, checkpoint-20.'
    """
    missing = Path(path).expanduser()
    while not missing.parent.is_dir():
        missing = missing.parent
    there = _folders(missing.parent)
    near = nearest(missing.name, there)
    named = f"nearest: {', '.join(near)}" if near else f"folders there: {', '.join(there[:_LISTED]) or 'none'}"
    more = ", …" if not near and len(there) > _LISTED else ""
    where = "here" if missing.parent == Path() else f"in {missing.parent}"
    return f" There is no {missing.name} {where}; {named}{more}."


def model_instead(name: str) -> str:
    """`folders_instead` for a name of which `meant_here` is true; with the way to a model of the hub called so."""
    hub = "" if _path_like(name) else " For a model of the hub with this name, start in another folder."
    return folders_instead(name) + hub if name else ""


@cache
def say_hub_is_asked(name: str) -> None:
    """One line, once, where a name for the hub looks much like a folder here; without a network the hub takes long."""
    first = name.partition("/")[0]
    if near := nearest(first, _folders(Path()), n=1, cutoff=_VERY_NEAR):
        say(f"{name}: there is no such folder here (there is {near[0]}), so the hub is asked for it")


def _path_like(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.endswith(os.sep) or name.count("/") > 1 or not name


def _folders(path: Path) -> list[str]:
    """The names of the folders in `path`; none where it may not be read."""
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    except OSError:
        return []
