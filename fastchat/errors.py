"""Errors that are reported to the user with one message and one exit code, and without a traceback.

Every class here is for mistakes that a user can fix; a bug of ours stays an ordinary exception with its traceback.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

EXIT_DONE = 0
EXIT_SETTINGS = 2
EXIT_DATA = 3
EXIT_NUMERIC = 4
EXIT_CHECKPOINT = 5
EXIT_RESOURCE = 6
EXIT_PREEMPTED = 75


# A name and password (with any characters), or a token, before a host; a token in the query string.
# One slash is enough: `Path` turns the two slashes of a URL into one.
_IN_URL = re.compile(
    r"(?<=:/)(/?)(?:[^\s/@:]*:[^\s?#]*|[^\s/@]+)(?=@)"
    r"|(?<=[?&;])([\w.-]*(?:token|key|secret|password|passwd|pwd|signature|sig|credential)=)[^&;\s'\"]+",
    re.I,
)
_SECRET_NAME = re.compile(r"(TOKEN|_KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$")
_SHORTEST = 8  # characters; "true" in TOKEN=true is no secret
_hidden: set[str] = set()


def hide(secret: str | None) -> None:
    """Make `without_secrets` hide this value from now on, for example that of `--hub_token`."""
    if secret and len(secret) >= _SHORTEST:
        _hidden.add(secret)


def without_secrets(text: str) -> str:
    """Replace everything in `text` that must not get into a log or a file: the values of variables such as HF_TOKEN
    and WANDB_API_KEY, the values given to `hide`, and passwords or tokens in URLs.

    >>> without_secrets("https://me:hf_abc@host/x?token=abc")
    'https://***@host/x?token=***'
    """
    return _without(_secrets(), text)


def values_without_secrets(value: Any) -> Any:
    """The same for every string and key of a JSON-like value, at any depth.

    Code that writes settings to a file, or passes them to a library that does, must call this first.
    """
    return _values_without(_secrets(), value)


def is_secret(name: str) -> bool:
    """Whether the value of a variable or setting of that name must not be shown."""
    return _SECRET_NAME.search(name.upper()) is not None


def _secrets() -> list[str]:
    """Every value to hide, the longest first."""
    known = (v for name, v in os.environ.items() if len(v) >= _SHORTEST and is_secret(name))
    return sorted({*known, *_hidden}, key=len, reverse=True)


def _without(secrets: list[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return _IN_URL.sub(lambda found: f"{found[1] or found[2] or ''}***", text)


def _values_without(secrets: list[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {_values_without(secrets, name): _values_without(secrets, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_values_without(secrets, item) for item in value)
    return _without(secrets, value) if isinstance(value, str) else value


class UserError(ValueError):
    """A problem that the user can fix. The message gives the value, its location and the way out; never a secret."""

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
    """A non-finite loss or gradient."""

    exit_code = EXIT_NUMERIC


class CheckpointError(UserError):
    """A checkpoint or result that is missing, incomplete or not what was trained."""

    exit_code = EXIT_CHECKPOINT


class ResourceError(UserError):
    """Memory, disk space or a compiler that the run needs and the machine lacks."""

    exit_code = EXIT_RESOURCE


class NotUploaded(ResourceError):
    """The run is done and its result complete, but it could not be uploaded."""


class PeerFailed(RuntimeError):
    """Another process of the run failed in a step that all processes do; that process reports the error."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's and Python's own errors; torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in words)


def nearest(name: str, known: Iterable[str], n: int = 3, cutoff: float = 0.5) -> list[str]:
    """Up to `n` known names that are most similar to `name`, best first, with a similarity of at least `cutoff` (1:
    identical). Case is ignored."""
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=n, cutoff=cutoff)
    return [by_lower[k] for k in found]


def not_among(label: str, value: str, choices: Sequence[str]) -> SettingsError:
    """The error for a `value` that is not one of `choices`; it suggests the nearest choice if one is similar.

    >>> str(not_among("--optim", "sdg", ("adamw_torch", "sgd")))
    "--optim is 'sdg'; it can be adamw_torch, sgd; did you mean sgd?"
    """
    close = nearest(value, choices, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ""
    return SettingsError(f"{label} is {value!r}; it can be {', '.join(choices)}{hint}")


def brief(text: object, width: int = 200) -> str:
    """`text` on one line of at most `width` characters; … marks where it was cut.

    >>> brief("one\\n  two three", 9)
    'one two …'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= width else f"{line[: width - 2].rstrip()} …"


def counted(number: float, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "dialogue"), counted(1200, "dialogue"), counted(0, "process"), counted(2.5, "epoch")
    ('1 dialogue', '1,200 dialogues', '0 processes', '2.5 epochs')
    """
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "sh", "tch")) else "s"
    return f"{number:,}".removesuffix(".0") + f" {noun}{ending}"


def percent(share: float, digits: int = 1, sign: str = "") -> str:
    """A share of one as it is shown everywhere; `sign`: "+" shows a plus too.

    >>> percent(0.366), percent(0.5859, 2), percent(0.05, sign="+")
    ('36.6 %', '58.59 %', '+5.0 %')
    """
    return f"{100 * share:{sign}.{digits}f} %"


def show(text: str) -> None:
    """Print one line of a command's output on stdout. If the reader is gone (`| head`), the command continues
    silently, because the files that it writes are still wanted; see `streams.kept_output`."""
    print(text, flush=True)


def say(line: str) -> None:
    """Print one line for the user on stderr, once per run: only global rank 0 prints."""
    if os.environ.get("RANK", "0") == "0":
        with _above_bars():
            print(without_secrets(line), file=sys.stderr, flush=True)


def _above_bars() -> Any:
    """While a progress bar is drawn, a line is printed above it."""
    tqdm = sys.modules.get("tqdm")
    drawn = tqdm is not None and bool(getattr(tqdm.tqdm, "_instances", None))
    return tqdm.tqdm.external_write_mode(file=sys.stderr) if tqdm is not None and drawn else nullcontext()
