"""Keys that say what is trained on, and keys that are refused because ignoring them would train on something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.keys import TRAIN_KEYS, UNCLEAR_KEYS, is_about_learning, is_media
from fastchat.data.rows.values import THE_ROW, a_kind, is_given


def says_train(holder: dict[str, Any], where: str) -> bool | None:
    """What the TRAIN_KEYS of a row or turn say; None if it has none."""
    said: dict[str, bool] = {}
    for key, learned in TRAIN_KEYS.items():
        value = holder.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float):
            raise BadRow("wrong type", f"{key!r} of {where} is {a_kind(value)}, not true or false (or 1 or 0)")
        if value not in (0, 1):
            hint = "a turn is trained on as a whole or not at all; use true, false, 1 or 0"
            raise BadRow("fractional weight", f"{key!r} of {where} is {shown(value)}: {hint}")
        said[key] = bool(value) == learned
    if len(set(said.values())) > 1:
        yes, no = (", ".join(key for key, says in said.items() if says == wanted) for wanted in (True, False))
        raise BadRow("contradictory keys", f"{where} is trained on according to {yes}, but not according to {no}")
    return next(iter(said.values()), None)


def refuse_unsupported(holder: dict[str, Any], where: str) -> None:
    """Raise BadRow if a row or turn has media, or a key whose meaning for training is not clear."""
    for key, value in holder.items():
        if is_media(key) and is_given(value):
            hint = "only text is supported; remove the row, or remove the key and any reference to it in the text"
            raise BadRow("images, video or audio", f"{where} has {key!r}: {hint}")
    for key, why in UNCLEAR_KEYS.items():
        if is_given(value := holder.get(key)) or (value is False and key == "mask"):
            raise BadRow("unclear key", f'{where} has {key!r}: {why}; use "train": true or false instead')
    for key, value in holder.items():
        if key not in TRAIN_KEYS and is_about_learning(key) and _is_flag(value, of_row=where == THE_ROW):
            hint = 'it seems to say what is trained on; use "train": true or false instead, or rename it'
            raise BadRow("unclear key", f"{where} has {shown(key)}: {hint}")


def _is_flag(value: object, of_row: bool) -> bool:
    """Whether a value can say what is trained on: true or false, in a turn also a number, or a list of them."""
    values = value if isinstance(value, list) else [value]
    kinds = bool if of_row and values is not value else bool | int | float
    return bool(values) and all(isinstance(item, kinds) for item in values)


def unread_keys(holder: dict[str, Any], kind: str, known: Iterable[str]) -> Counter[tuple[str, str]]:
    """(`kind`, key) of every key with a value that is not among `known` and not refused elsewhere."""
    return Counter(
        (kind, key) for key, value in holder.items() if key not in known and value is not None and not is_media(key)
    )
