"""Rows of the usual kind, read quickly: a list of turns with a role and a text each, from a question to an answer.

Most rows are of this kind. Whether a row is shows as it is read; any other row, and any that is wrong, is left to the
general way of formats.py, which gives the same for rows of this kind (a test compares them).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple

from fastchat.conversation import Turn
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.keys import (
    ASSISTANT,
    DEVELOPER,
    IDS,
    ORIGIN,
    ROW_COLUMNS,
    SYSTEM,
    TURN_LISTS,
    TURN_ROLE,
    TURN_TEXT,
    USER,
    is_about_learning,
    is_media,
)
from fastchat.data.rows.turns import CLOSING, TAG


class UsualRow(NamedTuple):
    """What such a row says; `form` is the key of its list, `unread` are its keys that are not read."""

    form: str
    turns: list[Turn]
    system: str | None
    system_role: str
    unread: list[str]


def usual_row(row: dict[str, Any], columns: Columns, thinks: bool) -> UsualRow | None:
    """Read a row, or return None if it is not of the usual kind. The arguments are those of `parse_row`."""
    form, unread = "", []
    for key, value in row.items():
        kind = None if value is None else _kind_of(key)
        if kind == "unread":
            unread.append(key)
        elif kind == "turns" and not form:
            form = key
        elif kind in ("turns", "other"):
            return None
    entries = row.get(form)
    if columns.names or type(entries) is not list or not entries or type(entries[0]) is not dict:
        return None
    system, system_role = _system(entries[0], columns)
    turns = _turns(entries if system is None else entries[1:], columns, thinks)
    return None if turns is None else UsualRow(form, turns, system, system_role, unread)


@lru_cache(maxsize=4096)
def _kind_of(key: str) -> Literal["turns", "about", "unread", "other"]:
    """What a key of a row is: of a list of turns, about the row, of no meaning here, or anything else."""
    if key in TURN_LISTS:
        return "turns"
    if key in (*IDS, ORIGIN):
        return "about"
    return "other" if key in ROW_COLUMNS or is_media(key) or is_about_learning(key) else "unread"


def _system(entry: dict[str, Any], columns: Columns) -> tuple[str | None, str]:
    """The text and the role of a system turn; (None, SYSTEM) if the turn is another."""
    name, text = _name_and_text(entry, *_names(entry))
    kind = columns.role(name)
    return (text, kind) if text and kind in (SYSTEM, DEVELOPER) else (None, SYSTEM)


def _names(entry: dict[str, Any]) -> tuple[str, str]:
    return next((names for names in zip(TURN_ROLE, TURN_TEXT, strict=True) if names[0] in entry), ("", ""))


def _name_and_text(entry: Any, role_key: str, text_key: str) -> tuple[str, str]:
    """What a turn has under these keys; ("", "") if they are no texts, or if it has anything else."""
    if type(entry) is not dict:
        return "", ""
    if len(entry) > 2:  # in a table every turn has every key
        entry = {key: value for key, value in entry.items() if value is not None}
    name, text = entry.get(role_key), entry.get(text_key)
    if len(entry) != 2 or not isinstance(name, str) or not isinstance(text, str):
        return "", ""
    return name, text


def _turns(entries: list[Any], columns: Columns, thinks: bool) -> list[Turn] | None:
    """The turns of a list that begins with a question and ends with an answer; None if it is another list."""
    role_key, text_key = _names(entries[0]) if entries and type(entries[0]) is dict else ("", "")
    made = []
    for entry in entries:
        name, text = _name_and_text(entry, role_key, text_key)
        kind = columns.role(name)
        if kind not in (USER, ASSISTANT) or not text or text.isspace():
            return None
        if kind == ASSISTANT and (TAG in text or (thinks and CLOSING in text)):
            return None
        made.append(Turn(kind, text))
    return made if made and made[0].role == USER and made[-1].role == ASSISTANT else None
