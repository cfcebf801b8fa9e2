"""Convert Alpaca rows, and rows with a prompt and its completion, to the ShareGPT format.

    python -m fastchat.data.convert_alpaca --in-file alpaca_data.json --out-file sharegpt.json

    {"instruction": q, "input": x, "output": a}  ->  {"id": "alpaca_0", "conversations": [human: q and x, gpt: a]}

Question and input are joined with the same text as upstream; a one-character input, which upstream loses, is kept. A
"system" text, the earlier exchanges in "history", and everything about training, reasoning, tools and calls are kept
too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from fastchat.conversation import Turn
from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.keys import (
    ARGUMENTS,
    ASSISTANT,
    CALL_ID,
    CALLS,
    PAIRS,
    REASONING_KEYS,
    SYSTEM_KEY,
    THINKING_SWITCH,
    TOOL,
    TOOL_NAME,
    TOOLS,
    TRAIN_KEYS,
    USER,
)
from fastchat.data.rows.train_keys import says_train
from fastchat.data.rows.values import THE_ROW, keys_of
from fastchat.data.tools.command import run
from fastchat.data.tools.row_tool import Tally, convert, tool_parser

_NAMES = {USER: "human", ASSISTANT: "gpt", TOOL: "observation"}
_KEPT = (*TRAIN_KEYS, *TOOLS, ARGUMENTS, THINKING_SWITCH)  # keys of the row


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    about = (
        "Convert Alpaca and prompt/completion rows to the ShareGPT format. Training reads such rows as they are, too."
    )
    parser = tool_parser("from-alpaca", about, "--in-file alpaca.json --out-file chats.json")
    return run(lambda args: convert(args, to_sharegpt), parser, argv)


def to_sharegpt(
    index: int, row: dict[str, Any], tally: Tally, columns: Columns = AS_THEY_ARE
) -> Iterable[dict[str, Any]]:
    """One Alpaca or prompt/completion row as a ShareGPT row. Raises BadRow for any other row."""
    parsed = parse_row(row, columns=columns)
    dialogue = parsed.dialogue
    if parsed.form not in PAIRS or dialogue is None:
        raise BadRow("not an Alpaca row", f"keys: {keys_of(row)}")
    row = columns.row(row).value
    trained = says_train(row, THE_ROW) is not False
    tally.notes["empty answers, which are not learned"] += dialogue.turns[-1].is_empty
    turns = [_turn(turn, trained) for turn in dialogue.turns]
    system = {} if dialogue.system is None else {SYSTEM_KEY: dialogue.system}
    kept = {key: row[key] for key in _KEPT if row.get(key) is not None}
    for _, key in parsed.unread:
        tally.notes[f"rows whose key {shown(key)} is dropped"] += 1
    return [{"id": f"alpaca_{index}", **system, **kept, "conversations": turns}]


def _turn(turn: Turn, trained: bool) -> dict[str, Any]:
    """One turn; `trained`: whether the row's answers are."""
    made: dict[str, Any] = {"from": _NAMES[turn.role], "value": turn.text}
    if turn.role == ASSISTANT and turn.train != trained and not turn.is_empty:
        made["train"] = turn.train
    calls = [
        {**({"id": call.id} if call.id else {}), "function": {"name": call.name, "arguments": call.arguments}}
        for call in turn.calls
    ]
    more = {REASONING_KEYS[0]: turn.reasoning, CALLS[0]: calls or None, TOOL_NAME: turn.name, CALL_ID: turn.call_id}
    return made | {key: value for key, value in more.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
