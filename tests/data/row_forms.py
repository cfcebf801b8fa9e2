"""Rows in many forms, and files of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from fastchat.conversation import Dialogue, ToolCall, Turn
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.keys import TREATMENTS

Row = dict[str, Any]
ASK = {"role": "user", "content": "q"}
SAY = {"role": "assistant", "content": "a"}
QA = (Turn("user", "q"), Turn("assistant", "a"))
PARAMETERS = {"type": "object", "properties": {"x": {"type": "number"}}}
TOOL: Row = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
CALL = ToolCall("f", {"x": 1})


def read(row: Row, **how: Any) -> Dialogue:
    dialogue = parse_row(row, **how).dialogue
    assert dialogue is not None
    return dialogue


def treated(row: Row, **how: Any) -> dict[str, int]:
    found = dict(parse_row(row, **how).treatments)
    assert found.keys() <= TREATMENTS.keys()
    return found


def bad(row: Row, **how: Any) -> str:
    with pytest.raises(BadRow) as found:
        parse_row(row, **how)
    return str(found.value)


def call_turn(*calls: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


CALLS: dict[str, Row] = {
    "object": call_turn({"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}),
    "text": call_turn({"id": "c", "type": None, "function": {"name": "f", "arguments": '{"x": 1}'}}),
    "flat": call_turn({"id": "c", "name": "f", "arguments": {"x": 1}}),
    "parameters": call_turn({"id": "c", "name": "f", "parameters": {"x": 1}, "arguments": None}),
    "all text": call_turn(json.dumps({"id": "c", "name": "f", "arguments": {"x": 1}})),
    "list as text": {**call_turn(), "tool_calls": json.dumps([{"id": "c", "name": "f", "arguments": {"x": 1}}])},
    "with nulls": call_turn({"id": "c", "index": 0, "function": {"name": "f", "arguments": {"x": 1, "y": None}}}),
    "no content": {
        k: v for k, v in call_turn({"id": "c", "name": "f", "arguments": {"x": 1}}).items() if v is not None
    },
}


def write(path: Path, rows: list[Row]) -> str:
    text = "\n".join(map(json.dumps, rows))
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".jsonl":
        path.write_text(text, encoding="utf-8")
    else:
        keys = dict.fromkeys(key for row in rows for key in row)
        table = pyarrow.Table.from_pylist([dict.fromkeys(keys) | row for row in rows])
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            with pyarrow.ipc.new_file(str(path), table.schema) as file:
                file.write_table(table)
    return str(path)
