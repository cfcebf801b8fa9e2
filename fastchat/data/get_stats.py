"""Count the tokens of a conversation file, in total, per turn and per dialogue.

    python -m fastchat.data.get_stats --in-file sharegpt.json --model-name-or-path DIR

Only the tokens of the messages, of separate reasoning texts, and of tools and calls (as JSON) are counted, without a
template; for the counts of a whole run use the preview. A prompt is a user message, a response an assistant message,
and a turn is one prompt. Every row that a run would train on is counted (upstream goes by position: it loses the last
message of an odd number, and counts a leading system message as a prompt).
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from fastchat.conversation import Dialogue
from fastchat.data.rows.drop_reasons import listed
from fastchat.data.rows.formats import parse_row
from fastchat.data.tools.choosing import text_encoder
from fastchat.data.tools.command import run
from fastchat.data.tools.row_tool import Rows, tool_parser
from fastchat.data.view.histogram import percentile
from fastchat.errors import show

EDGES = (0, 1024, 2048, 4096, 8192, 16384, 32768)
_BATCH = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    about = "Count the dialogues, turns and tokens of a file. The preview counts what a run would learn."
    parser = tool_parser("stats", about, "--in-file chats.json --model-name-or-path M", out=None)
    parser.add_argument(
        "--model-name-or-path",
        required=True,
        metavar="DIR",
        help="folder (or hub name) of the model, for its tokenizer",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow tokenizer code that comes with the model"
    )
    return run(get_stats, parser, argv)


def get_stats(args: argparse.Namespace) -> None:
    """Print the counts. Raises UserError."""
    encoder = text_encoder(args.model_name_or_path, args.trust_remote_code)
    stats = Stats()
    rows = Rows(args)
    parsed = rows.each(lambda _, row: parse_row(row, columns=rows.columns))
    while batch := list(islice(parsed, _BATCH)):
        dialogues = [p.dialogue for p in batch if p.dialogue is not None]
        stats.dropped.update(str(p.dropped) for p in batch if p.dialogue is None)
        messages = [_messages(dialogue) for dialogue in dialogues]
        lengths = map(len, encoder.plain([text for dialogue in messages for _, text in dialogue], "first"))
        for dialogue in messages:
            stats.add([(role, next(lengths)) for role, _ in dialogue])
    show(str(stats))


def _messages(dialogue: Dialogue) -> list[tuple[str, str]]:
    """(role, text) of every message; tools and calls as JSON."""
    tools = [json.dumps(tool, ensure_ascii=False) for tool in dialogue.tools]
    made = [("system", "".join([dialogue.system or "", *tools]))]
    for turn in dialogue.turns:
        calls = [json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False) for c in turn.calls]
        made.append((turn.role, "".join([turn.reasoning or "", turn.text, *calls])))
    return made


class Stats:
    """Adds up the lengths of messages."""

    def __init__(self) -> None:
        self.lengths: list[int] = []  # of whole dialogues
        self.tokens: Counter[str] = Counter()  # by role
        self.messages: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def add(self, messages: Sequence[tuple[str, int]]) -> None:
        """Count one dialogue, given as (role, number of tokens) of each message."""
        self.lengths.append(sum(length for _, length in messages))
        for role, length in messages:
            self.tokens[role] += length
            self.messages[role] += 1

    def histogram(self) -> list[int]:
        """The number of dialogues in each bin, from one edge up to the next (exclusive); the last bin is open."""
        bins = Counter(bisect_right(EDGES, length) - 1 for length in self.lengths)
        return [bins[i] for i in range(len(EDGES))]

    def __str__(self) -> str:
        num, ordered = len(self.lengths), sorted(self.lengths)
        lines = [f"#sequence: {num:,}", f"#tokens: {sum(ordered):,}"]
        if self.dropped:
            lines.append(f"#dropped: {self.dropped.total():,} ({listed(self.dropped)})")
        if not num:
            return "\n".join(lines)
        lines.append(f"avg. turns: {self.messages['user'] / num:.2f}")
        for name, role in (("prompt", "user"), ("response", "assistant"), ("tool output", "tool")):
            if self.messages[role]:
                lines.append(f"avg. {name} length: {self.tokens[role] / self.messages[role]:.2f}")
        facts = f"median {ordered[num // 2]:,}, 95 % up to {percentile(ordered, 95):,}, longest {ordered[-1]:,}"
        lines.append(f"length of a sequence: {facts}")
        lines += ["", "- Histogram -"]
        for first, last, number in zip(EDGES, [*EDGES[1:], ""], self.histogram(), strict=True):
            lines.append(f"L{first} - {last}: {number:,}")
        return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
