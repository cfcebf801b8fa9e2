"""Remove conversations with a numbered list in which every item has the number 1.

    python -m fastchat.data.filter_wrong_format --in-file in.json --out-file out.json

Such lists come from pages where a list continued after a paragraph ("1. ... text ... 1. ..."). A message contains one
if two lines begin with "1. " and no line between them begins with "2. ". Upstream misses a list at the very start of a
message, and one with any 2 between the items, as in "1. 12 eggs".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.tools.command import run
from fastchat.data.tools.row_tool import Dropped, Tally, convert, tool_parser, turn_list

_ITEM = re.compile(r"^([12])\. ", re.MULTILINE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    about = "Remove conversations with lists that are numbered 1. 1. 1."
    parser = tool_parser("filter", about, "--in-file chats.json --out-file good.json")
    return run(lambda args: convert(args, keep), parser, argv)


def keep(_: int, row: dict[str, Any], __: Tally, columns: Columns = AS_THEY_ARE) -> Iterable[dict[str, Any]]:
    """The row, unchanged. Raises Dropped for one with a wrongly numbered list."""
    if any(is_wrongly_numbered(text) for text in turn_list(row, columns).texts):
        raise Dropped("with a wrongly numbered list")
    return [row]


def is_wrongly_numbered(text: str) -> bool:
    """Whether two items have the number 1 with no item 2 between them."""
    return "11" in "".join(_ITEM.findall(text))


if __name__ == "__main__":
    sys.exit(main())
