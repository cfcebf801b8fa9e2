"""Clean conversations copied from chat pages: convert HTML to Markdown and remove duplicates.

    python -m fastchat.data.clean_sharegpt --in-file sharegpt_html.json --out-file sharegpt_clean.json

The steps for each conversation, in order, with the reasons under which dropped ones are counted:
    turns before the first question and after the last answer are removed, as training would do
    "too short"          fewer than two turns are left, or fewer than 16 characters
    "with turns in a wrong order": user and assistant turns do not alternate, a tool output does not follow a call, or
                         an answer directly follows a call
    "with blocked words" a message names the company or its product
    HTML is converted to Markdown, and text of the page itself ("Copy code", "1 / 2") is removed
    if a message is empty after that, the conversation is cut before its round (a tool output may be empty)
    "with plugins"       the page used plugins
    "with the id of another", "with the first round of another"

Only HTML is converted: a user's text about <div> is kept unchanged (upstream converts everything, which loses such
text and puts backslashes before _ and *). Tool calls and their outputs are kept unchanged; upstream drops every
conversation that contains them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.keys import ASSISTANT, CALL, TOOL, USER
from fastchat.data.tools.command import run
from fastchat.data.tools.html_markdown import html_to_markdown
from fastchat.data.tools.row_tool import Dropped, Tally, add_slice, check_slice, convert, tool_parser, turn_list
from fastchat.data.view.terminal import safe
from fastchat.errors import say

BLOCKED_WORDS = ("openai", "chatgpt")
MIN_CHARACTERS = 16
# Which kind of turn may follow which. A call may follow text of the same answer ("Let me see.") or another call, and
# in data where calls are not run a question follows. An answer directly after a call has lost the output it refers to.
_MAY_FOLLOW = {
    USER: (ASSISTANT, CALL), ASSISTANT: (USER, CALL, TOOL), CALL: (USER, CALL, TOOL), TOOL: (ASSISTANT, CALL, TOOL),
}  # fmt: skip
# An answer is one or more HTML elements; a user's message counts as HTML only inside the page's own wrapper.
_ANSWER_HTML = re.compile(
    r"\s*<(?:div|p|pre|ul|ol|h[1-6]|table|blockquote)\b[^>]*>.*</\w+>\s*", re.DOTALL | re.IGNORECASE
)
_QUESTION_HTML = re.compile(r"\s*<div\s+class=[^>]*>.*</div>\s*", re.DOTALL | re.IGNORECASE)
_PAGE_OF = re.compile(r"\s*\d+ / \d+\s*(?=<)")
_PAGE_OF_LINE = re.compile(r"\s*\d+ / \d+[ \t]*(?:\n|$)")
_COPY_CHARACTERS = re.compile(r"Copy\d+ chars / \d+ words")
_EMPTY_CODE = re.compile(r"```\s*[\w+#.-]{0,40}?(?:Copy code)+\s*```")
_CODE_HEADER = re.compile(r"```\s*([\w+#.-]{0,40}?)(?:Copy code)+\n?")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    about = (
        "Clean conversations copied from chat pages: HTML becomes Markdown; malformed and repeated ones are left out."
    )
    example = "--in-file sharegpt_html.json --out-file clean.json"
    parser = tool_parser("clean", about, example, out="sharegpt_clean.json")
    add_slice(parser)
    parser.add_argument("--debug", action="store_true", help="report every dropped conversation")
    return run(clean_sharegpt, parser, argv)


def clean_sharegpt(args: argparse.Namespace) -> None:
    """Write the cleaned conversations. Raises UserError."""
    check_slice(args)
    cleaner = Cleaner()

    def clean(index: int, row: dict[str, Any], tally: Tally, columns: Columns) -> Iterable[dict[str, Any]]:
        try:
            return [cleaner.clean(row, tally, columns)]
        except Dropped as dropped:
            if args.debug:
                say(safe(f"row {index} (id {row.get('id')!r}): {dropped.reason}"))
            raise

    convert(args, clean)


class Cleaner:
    """Cleans rows one by one, and remembers those it kept to find duplicates."""

    def __init__(self) -> None:
        self._ids: set[Any] = set()
        self._first_rounds: set[tuple[str, ...]] = set()

    def clean(self, row: dict[str, Any], tally: Tally, columns: Columns = AS_THEY_ARE) -> dict[str, Any]:
        """The cleaned row. Raises Dropped, or BadRow if the row is not a list of turns."""
        turns = turn_list(row, columns)
        start, end = _span(turns.roles)
        roles, texts, kinds = turns.roles[start:end], turns.texts[start:end], turns.kinds[start:end]
        if len(roles) < 2:
            raise Dropped("too short")
        if any(after not in _MAY_FOLLOW[before] for before, after in pairwise(kinds)):
            raise Dropped("with turns in a wrong order")
        if any(word in text.lower() for text in texts for word in BLOCKED_WORDS):
            raise Dropped("with blocked words")
        clean = [clean_text(kind, text) for kind, text in zip(kinds, texts, strict=True)]
        num_kept = _before_empty(kinds, clean, turns.calls[start:end])
        if sum(map(len, clean[:num_kept])) < MIN_CHARACTERS:
            raise Dropped("too short")
        if row.get("plugins") is not None:
            raise Dropped("with plugins")
        self._check_new(columns.row(row).value, _first_round(roles, clean))
        tally.notes["turns before the first question or after the last answer, removed"] += (
            len(turns.roles) - turns.num_system - len(roles)
        )
        tally.notes["turns from the first empty message onward, removed"] += len(clean) - num_kept
        kept = [turns.with_text(entry, text) for entry, text in enumerate(clean[:num_kept], start=start)]
        return {**row, turns.key: [*turns.entries[: turns.num_system], *kept]}

    def _check_new(self, row: dict[str, Any], first: tuple[str, ...]) -> None:
        name = row.get("id")
        if isinstance(name, str | int) and name in self._ids:
            raise Dropped("with the id of another")
        if first in self._first_rounds:
            raise Dropped("with the first round of another")
        self._first_rounds.add(first)
        if isinstance(name, str | int):
            self._ids.add(name)


def _span(roles: Sequence[str]) -> tuple[int, int]:
    """The range from the first question to just after the last answer; (0, 0) if either is missing."""
    start = roles.index(USER) if USER in roles else len(roles)
    end = next((i + 1 for i in range(len(roles) - 1, start, -1) if roles[i] == ASSISTANT), 0)
    return (start, end) if end else (0, 0)


def _before_empty(kinds: Sequence[str], texts: Sequence[str], calls: Sequence[bool]) -> int:
    """The number of turns before the first round with an empty message; all of them if there is none."""
    empty = next((i for i, text in enumerate(texts) if not text.strip() and kinds[i] != TOOL and not calls[i]), None)
    return len(texts) if empty is None else max(i for i in range(empty + 1) if kinds[i] == USER)


def _first_round(roles: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """The messages before the second question."""
    return tuple(texts[: roles.index(USER, 1)] if USER in roles[1:] else texts)


def clean_text(kind: str, text: str) -> str:
    """A message without the page's markup; `kind` is one of `TurnList.kinds`.

    >>> clean_text("assistant", '1 / 2<div class="markdown"><p>Use <code>a_b</code>.</p></div>')
    'Use `a_b`.'
    """
    if kind in (CALL, TOOL):
        return text
    text = _PAGE_OF.sub("", text, count=1) if _PAGE_OF.match(text) else text
    is_html = _ANSWER_HTML if kind == ASSISTANT else _QUESTION_HTML
    if is_html.fullmatch(text):
        text = html_to_markdown(text)
    elif kind == ASSISTANT:
        text = _PAGE_OF_LINE.sub("", text, count=1) if _PAGE_OF_LINE.match(text) else text
    text = _COPY_CHARACTERS.sub("", text)
    return _CODE_HEADER.sub(r"```\1\n", _EMPTY_CODE.sub("", text)).strip()


if __name__ == "__main__":
    sys.exit(main())
