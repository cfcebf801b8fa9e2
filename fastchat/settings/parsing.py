"""Conversion of a raw value, from YAML or the command line, to a bool, a number or a string; shared by all commands.

Each function takes the value and its `label` for messages, and raises SettingsError for a value of another type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError, not_among
from fastchat.files import JsonError, parse_json

TRUE, FALSE = {"true", "t", "yes", "y", "on", "1"}, {"false", "f", "no", "n", "off", "0"}


def to_bool(raw: Any, label: str) -> bool:
    """A bool; also accepts words such as `yes`."""
    word = str(raw).lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise SettingsError(f"{label} is {raw!r}, but True or False is expected")


def to_int(raw: Any, label: str) -> int:
    """An integer; 4.0 and True are refused."""
    if not isinstance(raw, (bool, float)):
        try:
            return int(raw)
        except ValueError:
            pass
    raise SettingsError(f"{label} is {raw!r}, but a whole number is expected")


def to_float(raw: Any, label: str) -> float:
    """A finite number.

    >>> to_float("1e-5", "--learning_rate")
    1e-05
    """
    if not isinstance(raw, bool):
        try:
            number = float(raw)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise SettingsError(f"{label} is {raw!r}, but a number is expected")


def to_text(raw: Any, label: str) -> str:
    """A string, unchanged; values that YAML reads as another type are refused."""
    if isinstance(raw, (bool, dict, list)):
        raise SettingsError(f"{label} is {raw!r}, but text is expected (put it in quotes)")
    return str(raw)


def to_choice(raw: Any, label: str, choices: Sequence[str]) -> str:
    """One of `choices`."""
    text = "no" if raw is False and "no" in choices else str(raw)  # YAML reads a bare `no` as false
    if text not in choices:
        raise not_among(label, text, choices)
    return text


def to_mapping(raw: Any, label: str) -> Any:
    """Parse a JSON object; any other string is returned unchanged (a file name)."""
    text = to_text(raw, label)
    if not text.startswith("{"):
        return text
    try:
        return check_mapping(parse_json(text, constants=True), label)
    except JsonError as error:
        raise SettingsError(f"{label}: {error}") from None


def check_mapping(mapping: Any, label: str) -> Any:
    """Check that a mapping can be written as JSON: training.json records it, and a date or an infinite number would
    otherwise make the run fail at its end."""
    try:
        json.dumps(mapping, allow_nan=False)
    except (TypeError, ValueError) as error:
        reason = str(error).replace("Out of range float values are not JSON compliant", "a number is not finite")
        raise SettingsError(f"{label} cannot be written as JSON: {reason}") from None
    return mapping


def check_home(path: str, label: str) -> str:
    """The path, unchanged. Raises SettingsError for a `~user` that does not exist."""
    if path.startswith("~"):
        try:
            Path(path).expanduser()
        except RuntimeError:
            raise SettingsError(f"{label} is {path!r}, but there is no user of that name") from None
    return path


def to_names(values: Sequence[str] | str, label: str) -> list[str]:
    """Split names separated by spaces or commas; stray quotes and brackets are ignored.

    >>> to_names(["q_proj,", "'k_proj','v_proj'"], "--lora_target_modules")
    ['q_proj', 'k_proj', 'v_proj']
    """
    text = values if isinstance(values, str) else " ".join(values)
    for mark in ",\"'[];":
        text = text.replace(mark, " ")
    names = list(dict.fromkeys(text.split()))
    if not names:
        raise SettingsError(f"{label} {values!r} names no module. Leave it out for the default seven.")
    return names


def to_shares(values: Sequence[Any], label: str = "--data_proportions") -> list[float]:
    """Numbers."""
    try:
        return [float(value) for value in values]
    except ValueError:
        raise SettingsError(f"{label} is {' '.join(map(str, values))}; numbers are expected") from None
