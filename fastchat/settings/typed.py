"""A raw value, from YAML or the command line, as a switch, a number, a text: one reading for training and planning.

Each takes the value and the `label` that messages call it by, and raises SettingsError for a value of another kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from fastchat.errors import SettingsError, not_among

TRUE, FALSE = {"true", "t", "yes", "y", "on", "1"}, {"false", "f", "no", "n", "off", "0"}


def to_bool(raw: Any, label: str) -> bool:
    """True or False, also as a word such as `yes`."""
    word = str(raw).lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise SettingsError(f"{label} is {raw!r}, but True or False is expected")


def to_int(raw: Any, label: str) -> int:
    """A whole number; 4.0 and True are none."""
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
    """Text as it stands; what YAML reads as something else is refused."""
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
    """JSON in one word becomes a mapping; anything else stays text (the name of a file)."""
    text = to_text(raw, label)
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{label} is not valid JSON: {error}") from None
