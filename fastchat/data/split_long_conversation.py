"""Split conversations between rounds into pieces that fit the model's context window.

    python -m fastchat.data.split_long_conversation --in-file a.json --out-file b.json --model-name-or-path DIR
        --max-length 2048 --conv-template vicuna_v1.1

A round is a user turn and everything up to the next user turn that follows an answer, including tool calls and their
outputs. Each piece has as many rounds as fit; its length is that of the training example, including the template and
the system text. Upstream adds six tokens per message instead, and loses the last round if that is the one that
overflows.

Every piece repeats the system text. The id of a piece is the row's id and the position of its first turn, as in
upstream. A round that is too long by itself is kept and counted: training cuts its answer.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastchat.conversation import Dialogue
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.keys import ASSISTANT, IDS, TREATMENTS, USER
from fastchat.data.rows.unshown import refuse_unshown
from fastchat.data.tools.choosing import add_model_flags, load_chat_encoder
from fastchat.data.tools.command import run
from fastchat.data.tools.row_tool import (
    Dropped,
    Tally,
    TurnList,
    add_slice,
    check_slice,
    convert,
    tool_parser,
    turn_list,
)
from fastchat.errors import SettingsError

_REMOVED = ("leading_assistant_turns", "leading_tool_turns", "trailing_user_turns")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    about = "Split conversations that are too long into pieces that fit, between rounds."
    example = "--in-file clean.json --out-file split.json --model-name-or-path M --max-length 2048"
    parser = tool_parser("split-long", about, example, out="sharegpt_split.json")
    add_slice(parser)
    add_model_flags(parser)
    length = "maximum number of tokens per piece"
    parser.add_argument("--max-length", type=int, default=2048, metavar="N", help=length)
    return run(split_long_conversation, parser, argv)


def split_long_conversation(args: argparse.Namespace) -> None:
    """Write the pieces. Raises UserError."""
    check_slice(args)
    if args.max_length < 1:
        raise SettingsError(f"--max-length {args.max_length}: must be at least 1.")
    chat_encoder = load_chat_encoder(args)
    convert(args, lambda _, row, tally, columns: split_row(row, chat_encoder, args.max_length, tally, columns))


def split_row(
    row: dict[str, Any],
    chat_encoder: ChatEncoder,
    max_length: int,
    tally: Tally,
    columns: Columns = AS_THEY_ARE,
) -> Iterable[dict[str, Any]]:
    """The pieces of one row, each a row. Raises Dropped for one without an answered user turn."""
    template = chat_encoder.template
    turns = turn_list(row, columns, template.shows_reasoning)
    dialogue, starts = turns.parsed.dialogue, turns.parsed.entries
    if dialogue is None:
        raise Dropped(str(turns.parsed.dropped))
    refuse_unshown(dialogue, reasoning=template.shows_reasoning, calls=template.shows_calls)
    for name in _REMOVED:
        tally.notes[TREATMENTS[name]] += turns.parsed.treatments[name]
    rounds = find_rounds([turn.role for turn in dialogue.turns])
    measure = _Measure(dialogue, rounds, chat_encoder)
    spans = list(fill(len(rounds), measure, max_length))
    tally.notes["conversations split"] += len(spans) > 1
    tally.notes["rounds that are too long by themselves, kept: training cuts the answer"] += sum(
        last == first + 1 and not measure.fits(first, last, max_length) for first, last in spans
    )
    return [_piece(row, turns, starts[rounds[first][0]], starts[rounds[last - 1][1]], columns) for first, last in spans]


def find_rounds(roles: Sequence[str]) -> list[tuple[int, int]]:
    """(first turn, one past the last) of every round, from the first user turn to the last answer."""
    first = roles.index(USER)
    end = len(roles) - roles[::-1].index(ASSISTANT)
    starts = [i for i in range(first, end) if roles[i] == USER and (i == first or roles[i - 1] == ASSISTANT)]
    return list(zip(starts, [*starts[1:], end], strict=True))


def fill(num_rounds: int, measure: _Measure, max_length: int) -> Iterator[tuple[int, int]]:
    """(first round, one past the last) of each piece: as many as fit, and at least one."""
    first = 0
    while first < num_rounds:
        last = measure.guess(first, max_length)
        if measure.fits(first, last, max_length):
            while last < num_rounds and measure.fits(first, last + 1, max_length):
                last += 1
        else:
            last = next((n for n in range(last - 1, first, -1) if measure.fits(first, n, max_length)), first + 1)
        yield first, last
        first = last


class _Measure:
    """Lengths of pieces of one conversation, in tokens. Nothing is encoded twice."""

    def __init__(self, dialogue: Dialogue, rounds: list[tuple[int, int]], chat_encoder: ChatEncoder):
        self._dialogue, self._rounds, self._bound = dialogue, rounds, chat_encoder
        self._lengths: dict[tuple[int, int], int] = {}
        self._guesses = self._apart()

    def _count(self, first: int, last: int) -> Counter[int]:
        """Tokens of each turn, by its position within these rounds; -1 for tokens that belong to no turn."""
        start, end = self._rounds[first][0], self._rounds[last - 1][1]
        # The example of the last answer is the longest; earlier answers may be shown without their reasoning in it.
        turns = (replace(turn, train=i == end - 1) for i, turn in enumerate(self._dialogue.turns[:end]) if i >= start)
        rendered = self._bound.template.render(replace(self._dialogue, turns=tuple(turns)))
        of_turn: Counter[int] = Counter()
        for segment, num in self._bound.count(rendered).items():
            of_turn[rendered.segments[segment].turn if segment >= 0 else -1] += num
        self._lengths[first, last] = of_turn.total()
        return of_turn

    def fits(self, first: int, last: int, max_length: int) -> bool:
        """Whether the rounds from `first` to before `last` fit, by rendering and encoding them."""
        if (first, last) not in self._lengths:
            self._count(first, last)
        return self._lengths[first, last] <= max_length

    def _apart(self) -> list[int]:
        """Roughly how many tokens each round adds; the last entry is what comes before the first round."""
        of_turn = self._count(0, len(self._rounds))
        per_round = [sum(of_turn.pop(i, 0) for i in range(*span)) for span in self._rounds]
        return [*per_round, of_turn.total()]

    def guess(self, first: int, max_length: int) -> int:
        """Roughly where a piece that begins with round `first` ends."""
        *per_round, total = self._guesses
        last = first
        while last < len(per_round) and total + per_round[last] <= max_length:
            total += per_round[last]
            last += 1
        return max(last, first + 1)


def _piece(row: dict[str, Any], turns: TurnList, start: int, end: int, columns: Columns) -> dict[str, Any]:
    """The row with the turns from `start` to before `end`, and its system turn."""
    system = turns.entries[: turns.num_system]
    piece = {**row, turns.key: [*system, *turns.entries[start:end]]}
    place = 0 if start == len(system) else start
    for key in (columns.in_file(key, row) for key in IDS):
        if type(row.get(key)) in (str, int):
            piece[key] = f"{row[key]}_{place}"
    return piece


if __name__ == "__main__":
    sys.exit(main())
