"""Chats in files: written in the messages form, so that they are also training data; read in every form of a row.

    [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "train": false}]}]

An answer that was stopped or cut is saved with "train": false, because its end is not the model's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastchat import files
from fastchat.conversation import Dialogue, Turn
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.keys import TREATMENTS
from fastchat.errors import DataError

_FORMER = ("template_name", "roles", "messages")  # the keys of a conversation saved by FastChat's `!!save`


def named(name: str, *, existing: bool) -> Path:
    """The file that a user means: `.json` is appended to a name without an ending. `existing`: unless the file without
    it exists."""
    path = Path(name).expanduser()
    if path.suffix or existing and path.is_file():
        return path
    return path.with_name(f"{path.name}.json")


def save(dialogue: Dialogue, path: Path) -> None:
    """Write a chat to `path`: one line if it ends in .jsonl, else a list with one row. Raises DataError if that is
    impossible."""
    row = to_row(dialogue)
    try:
        if path.suffix == ".jsonl":
            files.write_text(path, json.dumps(row, ensure_ascii=False) + "\n")
        else:
            files.write_json(path, [row])
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None


def load(path: Path) -> tuple[Dialogue, list[str]]:
    """The one dialogue in a file, and what was changed in it or not read. Raises DataError if there is none, if there
    are several, or for a malformed row."""
    try:
        rows = _rows(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except files.JsonError as error:
        raise DataError(f"{path}: {error}") from None
    if len(rows) != 1:
        raise DataError(f"{path} has {len(rows):,} rows: put the one to load into a file of its own.")
    if not isinstance(rows[0], dict):
        raise DataError(f"{path}: the row is not a JSON object")
    return _parsed(rows[0], path)


def to_row(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue in the messages form; `parse_row` reads it as the same dialogue."""
    messages = [_message(turn) for turn in dialogue.turns]
    if dialogue.system is not None:
        trained = {} if dialogue.system_train else {"train": False}
        messages = [{"role": dialogue.system_role, "content": dialogue.system, **trained}, *messages]
    row: dict[str, Any] = {"messages": messages}
    if dialogue.tools:
        row["tools"] = list(dialogue.tools)
    if dialogue.template_arguments:
        row["chat_template_kwargs"] = dialogue.template_arguments
    return row


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.reasoning is not None:
        message["reasoning_content"] = turn.reasoning
    if turn.calls:
        message["tool_calls"] = [
            {
                **({} if call.id is None else {"id": call.id}),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in turn.calls
        ]
    if turn.name is not None:
        message["name"] = turn.name
    if turn.call_id is not None:
        message["tool_call_id"] = turn.call_id
    if not turn.train:
        message["train"] = False
    return message


def _rows(data: bytes) -> Sequence[Any]:
    """The rows of a file that is one object, a list of rows, or one row per line."""
    try:
        value = files.parse_json(data, unique=True)
    except files.JsonError:
        lines = [line for line in data.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [files.parse_json(line, unique=True) for line in lines]
    return value if isinstance(value, list) else [value]


def _parsed(row: dict[str, Any], path: Path) -> tuple[Dialogue, list[str]]:
    try:
        row = _former(row) if all(key in row for key in _FORMER) else row
        parsed = parse_row(row, str(path), 1)
    except BadRow as problem:
        raise DataError(f"{path}: {problem}") from None
    if parsed.dialogue is None or parsed.dialogue.plain:
        raise DataError(f"{path} has no dialogue with an answer.")
    notes = [f"{TREATMENTS[treatment]}: {num}" for treatment, num in parsed.treatments.items()]
    notes += [f"not read: the key {key!r} of the {holder}" for holder, key in parsed.unread]
    return replace(parsed.dialogue, source="", line=0), notes


def _former(row: dict[str, Any]) -> dict[str, Any]:
    """A conversation saved by FastChat's `!!save`: pairs of a role's label and a text, after `offset` examples."""
    pairs, labels, offset = row["messages"], row["roles"], row.get("offset", 0)
    try:
        roles = dict(zip(labels, ("user", "assistant"), strict=True))
        said = [(roles[label], text) for label, text in pairs[offset:] if text is not None]
    except (TypeError, ValueError, LookupError):
        raise BadRow("malformed conversation", "it is not as FastChat's !!save writes it") from None
    messages = [{"role": role, "content": text} for role, text in said]
    return {"system": row.get("system_message") or None, "messages": messages}
