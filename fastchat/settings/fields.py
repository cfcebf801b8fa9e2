"""The metadata of a setting: `setting(default, help, ...)` makes the dataclass field with its metadata.

The type is the field's annotation: `int`, `float`, `bool`, `str`, `list[str]`, `Literal[...]`, `X | None`, a mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Whether a setting may change when a run resumes from a checkpoint.
FIXED = "no"  # another value would train another model, or other dialogues, or in another order: the run is refused
TOLD = "yes, with a message"  # it changes the computation from then on
FREE = "yes"  # it does not affect the computation, or a fingerprint is compared instead


@dataclass(frozen=True)
class Range:
    """The allowed numbers of a setting. `wanted` completes "it must be ..."."""

    wanted: str
    holds: Callable[[Any], bool]


AT_LEAST_ONE = Range("at least 1", lambda x: x >= 1)
ABOVE_ZERO = Range("above 0", lambda x: x > 0)
NOT_NEGATIVE = Range("0 or more", lambda x: x >= 0)
BELOW_ONE = Range("at least 0 and below 1", lambda x: 0 <= x < 1)
SHARE = Range("between 0 and 1", lambda x: 0 <= x <= 1)
NOT_ZERO = Range("above 0, or left out", lambda x: x != 0)
STRETCH = Range("at least 1 (1 changes nothing, 2 doubles the context)", lambda x: x >= 1)
NUMBER_OR_SHARE = Range(
    "a whole number of dialogues, or a share of them below 1", lambda x: 0 <= x < 1 or (x >= 1 and x == int(x))
)

Translate = Callable[[Any], str]  # a value of another program -> what to write here


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
        choices: the allowed values, if the type is not a Literal.
        also: accepted aliases, separated by spaces.
        elsewhere: its names in other programs; the error message for them gives the name here.
        translate: the same for names with values that other programs write differently. The setting's own name may be
            one of them: for values of other programs that are not valid here.
        resume: FIXED, TOLD or FREE.
        common: plain `--help` shows it.
        memory: it affects the planner.
        path: a file or folder; the user of a `~user` must exist.
        refused: why it is not supported, and what to do instead; only its default is accepted.
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
