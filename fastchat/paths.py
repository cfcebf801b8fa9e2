"""Model names without a folder of that name: a mistyped local folder, or a name on the hub?"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from fastchat.errors import brief, nearest, say

_VERY_NEAR = 0.75  # the similarity of o11 and o1 is 0.8
_LISTED = 5
_HUB_TIMEOUT = 10  # seconds


def meant_here(name: str) -> bool:
    """Whether a model's name can only mean a local folder, not `org/name` or `name` on the hub.

    True if the name is written like a path, or begins with an existing folder: `out/checkpoint-15`.
    """
    first, slash, _ = name.partition("/")
    return _path_like(name) or bool(slash) and os.path.isdir(first)


def folders_instead(path: str | Path) -> str:
    """Suggestions for a folder that does not exist, as a sentence to append to a message.

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
    """`folders_instead` for a name for which `meant_here` is true; says how to get the hub model of that name."""
    hub = "" if _path_like(name) else " To use the hub model of this name, start in another folder."
    return folders_instead(name) + hub if name else ""


@cache
def say_hub_is_asked(name: str) -> None:
    """Print a message, once, if a hub name is very similar to a local folder, and if the hub cannot be reached."""
    first = name.partition("/")[0]
    if near := nearest(first, _folders(Path()), n=1, cutoff=_VERY_NEAR):
        say(f"{name}: no such folder (there is {near[0]}), so it is looked up on the hub")
    _use_cache_without_network()


@cache
def _use_cache_without_network() -> None:
    """Take the hub's cache alone if the hub does not answer: its library would retry each file for half a minute."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT)
    except Exception as error:  # noqa: BLE001 (the class depends on the version of the hub's library)
        say(f"{constants.ENDPOINT} cannot be reached ({brief(error, 80)}); only the models in its cache are used")
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that this one starts


def _path_like(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.endswith(os.sep) or name.count("/") > 1 or not name


def _folders(path: Path) -> list[str]:
    """The names of the folders in `path`; empty if it cannot be read."""
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    except OSError:
        return []
