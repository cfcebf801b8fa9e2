"""The values of `--gradient_checkpointing`: a switch, a word, or a number of layers."""

from __future__ import annotations

from typing import Any

from fastchat.errors import not_among

AUTO = "auto"
_WORDS = {"off": False, "full": True, "true": True, "false": False}


def read_checkpointing(raw: Any) -> bool | int | str:
    """True (all decoder layers), False (none), the number of layers, or "auto". SettingsError for anything else.

    >>> read_checkpointing("full"), read_checkpointing("12"), read_checkpointing(0), read_checkpointing("auto")
    (True, 12, False, 'auto')
    """
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word.isdecimal():
        return int(word) or False
    if word == AUTO:
        return AUTO
    if word in _WORDS:
        return _WORDS[word]
    choices = ("True", "False", AUTO, "off", "full", "a number of decoder layers")
    raise not_among("--gradient_checkpointing", str(raw), choices)
