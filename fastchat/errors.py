"""What a user is told when something is wrong: one message, one exit code, no traceback.

Every class here is for mistakes that a user can mend; a bug of ours stays an ordinary exception with its traceback.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_SETTINGS = 2
EXIT_DATA = 3
EXIT_NUMERIC = 4
EXIT_CHECKPOINT = 5
EXIT_RESOURCE = 6
EXIT_PREEMPTED = 75


class UserError(ValueError):
    """A problem the user can mend. The message names the value, where it stands, and the way out."""

    exit_code = EXIT_SETTINGS


class SettingsError(UserError):
    """A flag, a recipe key, a template or a model directory that cannot be used."""

    exit_code = EXIT_SETTINGS


class DataError(UserError):
    """A row or a file that cannot be trained on."""

    exit_code = EXIT_DATA


class NumericError(UserError):
    """A loss or a gradient that is not finite."""

    exit_code = EXIT_NUMERIC


class CheckpointError(UserError):
    """A saved result that is missing, incomplete or not what was trained."""

    exit_code = EXIT_CHECKPOINT


class ResourceError(UserError):
    """Memory, disk or a compiler that the run needs and the machine lacks."""

    exit_code = EXIT_RESOURCE


class PeerFailed(RuntimeError):
    """Another process of the run met an error of its own in something that all do; that process has its message."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` known names that look most like `name`, best first; case does not count."""
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=n, cutoff=0.5)
    return [by_lower[k] for k in found]


def say(line: str) -> None:
    """Print one line for the user on stderr, once per run: only the process with global rank 0 speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
