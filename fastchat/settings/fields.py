"""What the field of a setting says about it: `setting(default, help, ...)` makes the dataclass field with its metadata.

The type is the field's annotation: `int`, `float`, `bool`, `str`, `list[str]`, `Literal[...]`, `X | None`, a mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# May a setting change when a run resumes from a checkpoint?
FIXED = "no"  # another value would train another model, or other dialogues in another order: the run is refused
TOLD = "yes, with a message"  # it changes what is computed from then on
FREE = "yes"  # nothing that is computed depends on it, or a fingerprint is compared instead


@dataclass(frozen=True)
class Range:
    """The numbers that a setting can be. `wanted` completes "it must be ..."."""

    wanted: str
    holds: Callable[[Any], bool]


AT_LEAST_ONE = Range("at least 1", lambda x: x >= 1)
ABOVE_ZERO = Range("above 0", lambda x: x > 0)
NOT_NEGATIVE = Range("0 or more", lambda x: x >= 0)
BELOW_ONE = Range("at least 0 and below 1", lambda x: 0 <= x < 1)
SHARE = Range("between 0 and 1", lambda x: 0 <= x <= 1)
NOT_ZERO = Range("a positive number (0 would train nothing), or left out", lambda x: x != 0)
STRETCH = Range("at least 1 (1 changes nothing, 2 doubles the context)", lambda x: x >= 1)
NUMBER_OR_SHARE = Range(
    "a whole number of dialogues, or a share of them below 1", lambda x: 0 <= x < 1 or (x >= 1 and x == int(x))
)

Translate = Callable[[Any], str]  # a value in another program -> what to write here


class _Metadata(dict[str, Any]):
    """transformers' HfArgumentParser hands every key of a field's metadata to argparse, which knows only `help`."""

    def keys(self) -> Any:
        return {"help": None}.keys()

    def copy(self) -> dict[str, Any]:
        return {"help": self["help"]}


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    range: Range | None = None,
    choices: tuple[str, ...] = (),
    also: str = "",
    elsewhere: str = "",
    translate: Mapping[str, Translate] | None = None,
    resume: str = TOLD,
    common: bool = False,
    memory: bool = False,
    path: bool = False,
    refused: str = "",
) -> Any:
    """The field of one setting.

    Args:
        default: a list is copied for every instance.
        group: heading in `--help` and in docs/settings.md.
        choices: the only values allowed, where the type is no Literal.
        also: other names that mean the same and are accepted, separated by spaces.
        elsewhere: names that other programs have for it, named in the error message for them.
        translate: the same for names whose values are written differently there. The setting's own name among them:
            its values there that are none here.
        resume: FIXED, TOLD or FREE.
        common: among the first that `--help` shows.
        memory: the planner counts with it.
        path: a file or folder, so that `~user` has to exist.
        refused: why it has no effect here, and what to do instead; only its default is accepted.
    """
    metadata = _Metadata(
        help=help,
        group=group,
        range=range,
        choices=choices,
        also=tuple(also.split()),
        elsewhere={**dict.fromkeys(elsewhere.split()), **(translate or {})},
        resume=resume,
        common=common,
        memory=memory,
        path=path,
        refused=refused,
    )
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
