"""Merge several conversation files into one.

    python -m fastchat.data.merge --in-file a.json b.jsonl --out-file merged.json

Rows are kept unchanged, in the order of the files. Duplicate ids are counted, not changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from fastchat.data.rows.columns import Columns
from fastchat.data.rows.formats import row_id
from fastchat.data.tools.command import run
from fastchat.data.tools.row_tool import Tally, convert, tool_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    about, example = "Write the rows of several files into one.", "--in-file a.json b.jsonl --out-file both.jsonl"
    parser = tool_parser("merge", about, example, out="merged.json", several=True, columns=False)
    return run(merge, parser, argv)


def merge(args: argparse.Namespace) -> None:
    """Copy every row. Raises UserError."""
    seen: set[str] = set()

    def copy(_: int, row: dict[str, Any], tally: Tally, __: Columns) -> Iterable[dict[str, Any]]:
        name = row_id(row)
        tally.notes["rows with the id of an earlier row"] += name in seen
        if name is not None:
            seen.add(name)
        return [row]

    convert(args, copy)


if __name__ == "__main__":
    sys.exit(main())
