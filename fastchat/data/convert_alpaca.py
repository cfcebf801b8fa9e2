"""Convert Alpaca rows to the ShareGPT format.

    python -m fastchat.data.convert_alpaca --in-file alpaca_data.json --out-file sharegpt.json

    {"instruction": q, "input": x, "output": a}  ->  {"id": "alpaca_0", "conversations": [human: q and x, gpt: a]}

Question and input are joined with the same text as upstream; a one-character input, which upstream loses, is kept. A
"system" text, the earlier exchanges in "history", and the keys about training, reasoning and tools are kept too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.formats import (
    ASSISTANT,
    REASONING_KEYS,
    TOOL_LISTS,
    TRAIN_KEYS,
    format_of,
    parse_row,
)
from fastchat.data.tools.command import run
from fastchat.data.tools.row_tool import Tally, convert, tool_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = tool_parser("convert_alpaca", "Convert Alpaca rows to the ShareGPT format.")
    return run(lambda args: convert(args, to_sharegpt), parser, argv)


def to_sharegpt(index: int, row: dict[str, Any], tally: Tally) -> Iterable[dict[str, Any]]:
    """One Alpaca row as a ShareGPT row. Raises BadRow for any other row."""
    parsed = parse_row(row)
    dialogue = parsed.dialogue
    if format_of(row) != "instruction" or dialogue is None:
        raise BadRow("not an Alpaca row", f"keys: {', '.join(map(shown, list(row)[:6]))}")
    tally.notes["empty answers, which are not trained on"] += not dialogue.turns[-1].text.strip()
    turns = [{"from": "gpt" if t.role == ASSISTANT else "human", "value": t.text} for t in dialogue.turns]
    if (reasoning := dialogue.turns[-1].reasoning) is not None:
        turns[-1][REASONING_KEYS[0]] = reasoning
    system = {} if dialogue.system is None else {"system": dialogue.system}
    kept = {key: row[key] for key in (*TRAIN_KEYS, *TOOL_LISTS) if row.get(key) is not None}
    for _, key in parsed.unread:
        tally.notes[f"rows whose key {shown(key)} is dropped"] += 1
    return [{"id": f"alpaca_{index}", **system, **kept, "conversations": turns}]


if __name__ == "__main__":
    sys.exit(main())
