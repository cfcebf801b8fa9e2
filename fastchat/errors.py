"""What a user is told when something is wrong: one message, one exit code, no traceback.

Every class here is for mistakes that a user can mend; a bug of ours stays an ordinary exception with its traceback.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

EXIT_DONE = 0
EXIT_SETTINGS = 2
EXIT_DATA = 3
EXIT_NUMERIC = 4
EXIT_CHECKPOINT = 5
EXIT_RESOURCE = 6
EXIT_PREEMPTED = 75


# A name and password (whatever characters are in it), or a token, in front of a host; a token after the question mark.
# One slash is enough: paths are written with one where an address had two.
_IN_URL = re.compile(
    r"(?<=:/)(/?)(?:[^\s/@:]*:[^\s?#]*|[^\s/@]+)(?=@)"
    r"|(?<=[?&;])([\w.-]*(?:token|key|secret|password|passwd|pwd|signature|sig|credential)=)[^&;\s'\"]+",
    re.I,
)
_SECRET_NAME = re.compile(r"(TOKEN|_KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$")
_SHORTEST = 8  # characters; "true" in TOKEN=true is no secret
_hidden: set[str] = set()


def hide(secret: str | None) -> None:
    """From now on `without_secrets` knows this value: that of a setting such as `--hub_token`."""
    if secret and len(secret) >= _SHORTEST:
        _hidden.add(secret)


def without_secrets(text: str) -> str:
    """`text` without what must not get into a log or a file: the values of variables such as HF_TOKEN and
    WANDB_API_KEY and of what was given to `hide`, and passwords or tokens in addresses.

    >>> without_secrets("https://me:hf_abc@host/x?token=abc")
    'https://***@host/x?token=***'
    """
    known = (v for name, v in os.environ.items() if len(v) >= _SHORTEST and _SECRET_NAME.search(name.upper()))
    for value in sorted({*known, *_hidden}, key=len, reverse=True):
        text = text.replace(value, "***")
    return _IN_URL.sub(lambda found: f"{found[1] or found[2] or ''}***", text)


def values_without_secrets(value: Any) -> Any:
    """The same for JSON-like values, however nested: in every text and every key.

    Whatever writes settings into a file, or hands them to a library that does, passes them through here.
    """
    if isinstance(value, dict):
        return {values_without_secrets(name): values_without_secrets(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(values_without_secrets(item) for item in value)
    return without_secrets(value) if isinstance(value, str) else value


class UserError(ValueError):
    """A problem the user can mend. The message names the value, where it stands, and the way out; never a secret."""

    exit_code = EXIT_SETTINGS

    def __init__(self, message: str = "") -> None:
        if message.startswith("Caught ") and "Original Traceback" in message:  # a loader's worker raised it
            message = message.rpartition(f"{type(self).__module__}.{type(self).__name__}: ")[2].strip()
        super().__init__(without_secrets(message))


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


def nearest(name: str, known: Iterable[str], n: int = 3, cutoff: float = 0.5) -> list[str]:
    """The up to `n` known names that look most like `name`, best first, and at least `cutoff` alike (1: the same); case
    does not count."""
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=n, cutoff=cutoff)
    return [by_lower[k] for k in found]


def not_among(label: str, value: str, choices: Sequence[str]) -> SettingsError:
    """What is raised for a `value` that is none of `choices`; names the nearest where one is near.

    >>> str(not_among("--optim", "sdg", ("adamw_torch", "sgd")))
    "--optim is 'sdg'; it can be adamw_torch, sgd; did you mean sgd?"
    """
    close = nearest(value, choices, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ""
    return SettingsError(f"{label} is {value!r}; it can be {', '.join(choices)}{hint}")


def brief(text: object, width: int = 200) -> str:
    """`text` in one line of at most `width` characters; what is cut off is marked with …

    >>> brief("one\\n  two three", 9)
    'one two …'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= width else f"{line[: width - 2].rstrip()} …"


def show(text: str) -> None:
    """One line of a command's answer, on stdout. Where the reader has gone (`| head`) the command goes on in silence,
    see `streams.kept_output`: files that it writes are still wanted."""
    print(text, flush=True)


def say(line: str) -> None:
    """Print one line for the user on stderr, once per run: only the process with global rank 0 speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(without_secrets(line), file=sys.stderr, flush=True)
