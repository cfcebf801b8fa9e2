"""Convert question/answer rows to multi-round dialogues: code written by the model, its output, then the answer.

    python -m fastchat.data.convert_math --in rows.jsonl --out out.jsonl [--max-rows N] [--timeout S] [--workers N]

Two kinds of rows (.json or .jsonl, also gzipped) are read, one at a time:

    {"question": ..., "answer": "... 48/2 = <<48/2=24>>24 clips ...\\n#### 72"}      calculator annotations, as in GSM8K
    {"question": ..., "code": "...", "output": "...", "answer": "..."}             output and answer are optional

The code, taken from the row or built from the annotations, is run in `sandbox.py`, and its output becomes a user turn.
A row is skipped, counted and reported if the code fails or prints nothing, if its output differs from "output", or if
it ends in a number other than the final answer.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastchat.data.rows.bad_rows import BadRow, BadRowReport, UnreadKeys, shown
from fastchat.data.rows.keys import TRAIN_KEYS
from fastchat.data.rows.reading import Row
from fastchat.data.rows.train_keys import refuse_unsupported
from fastchat.data.rows.writing import RowFile, check_output
from fastchat.data.tools.command import Parser, run
from fastchat.data.tools.math_rows import READ, Problem, agree, dialogue, number, read_problem
from fastchat.data.tools.reading import read_with_bar
from fastchat.data.tools.sandbox import Limits, guarantee, run_python
from fastchat.data.view.terminal import safe
from fastchat.errors import DataError, SettingsError, counted, say

_FAILURES = {
    "error": "the code fails",
    "timeout": "the code takes too long",
    "output": "the code prints too much",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_command, _parser(), argv)


def _command(args: argparse.Namespace) -> None:
    _check(args)
    convert(args.input, args.output, max_rows=args.max_rows, timeout=args.timeout, workers=args.workers)


def convert(
    source: str, target: str, *, max_rows: int | None = None, timeout: float = 5.0, workers: int = 1
) -> tuple[int, BadRowReport]:
    """Convert a file of rows, in order; the target file appears only once it is complete.

    Returns the number of converted rows and a report of the others; both are also logged.

    Raises:
        DataError: the file cannot be read, or none of its rows could be converted.
        ResourceError: the target cannot be written, or no process can be started.
    """
    say(guarantee())
    limits, report, unread, num_rows = Limits(timeout=timeout), BadRowReport(), UnreadKeys(), 0
    rows = itertools.islice(read_with_bar([source], "converting"), max_rows)
    stem = Path(source).name.split(".")[0]
    jobs = ((row, f"{stem}-{number}") for number, row in enumerate(rows))
    with RowFile(target, "--out") as file:
        for (row, _), result in _in_order(lambda job: _convert(job, limits), jobs, workers):
            num_rows += 1
            if isinstance(result, BadRow):
                report.add(row.source, row.line, result)
            else:
                file.add(result)
                keys = (row.value or {}).keys() - {*READ, *TRAIN_KEYS}
                unread.add({("row", key): 1 for key in sorted(keys) if (row.value or {})[key] is not None})
        if not file.num_rows:
            raise DataError(f"{source}: none of {counted(num_rows, 'row')} could be converted.{_listed(report)}")
    say(f"{file.num_rows:,} of {counted(num_rows, 'row')} converted to {target}.{_listed(report)}")
    for line in unread.lines:
        say(line)
    return file.num_rows, report


# ---- one row ----


def _convert(job: tuple[Row, str], limits: Limits) -> dict[str, Any] | BadRow:
    """The converted row, or the reason why it was skipped. `job`: the row, and a name for it."""
    row, name = job
    try:
        if row.problem is not None:
            return row.problem
        assert row.value is not None
        refuse_unsupported(row.value, "the row")
        problem = read_problem(row.value, name)
        made = dialogue(problem, _output_of(problem, limits))
        return made | {key: row.value[key] for key in TRAIN_KEYS if row.value.get(key) is not None}
    except BadRow as bad:
        return bad


def _output_of(problem: Problem, limits: Limits) -> str:
    """What the code prints, checked against the row's output and final answer."""
    outcome = run_python(problem.code, limits)
    if outcome.status != "ok":
        raise BadRow(_FAILURES[outcome.status], safe(outcome.error))
    output = outcome.output.strip("\n")
    if not output.strip():
        raise BadRow("the code prints nothing")
    if "```" in output:
        raise BadRow("the output contains ```", "it would end the output turn's block")
    if problem.output is not None and not agree(output, problem.output):
        raise BadRow("the output differs from the row's", f"{shown(output)} instead of {shown(problem.output)}")
    last = output.splitlines()[-1]
    both_numbers = problem.final is not None and None not in (number(last), number(problem.final))
    if both_numbers and not agree(last, problem.final or ""):
        raise BadRow("the output differs from the final answer", f"{shown(output)} instead of {shown(problem.final)}")
    return output


# ---- many rows ----


def _in_order(work: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """(item, work(item)) in the order of the items, `workers` at a time and only a few read ahead."""
    waiting: deque[tuple[Any, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > 4 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _listed(report: BadRowReport) -> str:
    """The skipped rows: the number for each reason, and the first ones with their location."""
    if not report.total:
        return ""
    more = report.total - len(report.listed)
    lines = [f" Skipped: {report.reasons()}.", *(f"  {entry}" for entry in report.listed)]
    return "\n".join([*lines, f"  ... and {more:,} more"] if more else lines)


# ---- the command line ----


def _parser() -> Parser:
    parser = Parser(
        ["fastchat data from-math --in rows.jsonl --out math.jsonl"],
        prog="fastchat data from-math",
        description="Make multi-round math dialogues (code, its output, answer) from question/answer rows.",
    )
    add = parser.add_argument
    add("--in", required=True, dest="input", metavar="ROWS", help=".json or .jsonl, also with .gz")
    add(
        "--out",
        required=True,
        dest="output",
        metavar="OUT.jsonl",
        help="where to write the dialogues, in the messages format (.json: one array)",
    )
    add("--max-rows", type=int, metavar="N", help="read only the first N rows")
    add("--timeout", type=float, default=5.0, metavar="S", help="time limit for each program, in seconds")
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="programs to run in parallel",
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    for flag, value, least in (("--max-rows", args.max_rows, 1), ("--workers", args.workers, 1)):
        if value is not None and value < least:
            raise SettingsError(f"{flag} {value}: must be at least {least}.")
    if not 0 < args.timeout < 3600:
        raise SettingsError(f"--timeout {args.timeout:g}: must be above 0 and below 3600 seconds.")
    check_output("--out", args.output, [args.input])


if __name__ == "__main__":
    sys.exit(main())
