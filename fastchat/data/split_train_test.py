"""Split a file into a training and a test part, at random but reproducibly.

    python -m fastchat.data.split_train_test --in-file a.json --ratio 0.9       writes a_train.json and a_test.json

With the default seed the split is the same as upstream's. `--begin` and `--end` select the rows to split (upstream has
these flags but ignores them). Rows are kept unchanged, in the order in which they are drawn; until then they are in a
temporary file next to the input, so that only their offsets are in memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fastchat.bars import each
from fastchat.data.rows.writing import RowFile, check_output
from fastchat.data.tools.command import run
from fastchat.data.tools.row_tool import Rows, add_slice, check_slice, tool_parser
from fastchat.errors import ResourceError, SettingsError, show
from fastchat.files import parse_json

_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    about = "Split chats.json into chats_train.json and chats_test.json."
    parser = tool_parser("split", about, "--in-file chats.json --ratio 0.9", out=None, columns=False)
    add_slice(parser)
    parser.add_argument("--ratio", type=float, default=0.9, help="fraction of the rows in the training part")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the split")
    return run(split, parser, argv)


def split(args: argparse.Namespace) -> None:
    """Write both parts. Raises UserError; each file is written completely or left unchanged."""
    check_slice(args)
    if not 0 < args.ratio < 1:
        raise SettingsError(f"--ratio {args.ratio}: must be between 0 and 1 (both exclusive).")
    if not 0 <= args.seed < 2**32:
        raise SettingsError(f"--seed {args.seed}: must be an integer from 0 to {2**32 - 1}.")
    names = [part_name(args.in_file, part) for part in ("train", "test")]
    for name in names:
        check_output("output", name, [args.in_file])
    source = Rows(args)
    with ExitStack() as stack:
        waiting = stack.enter_context(_Waiting(names[0]))
        for row in source.each(lambda _, row: row):
            waiting.add(row)
        parts = divide(range(len(waiting.starts)), args.ratio, args.seed)
        if not all(parts):
            raise SettingsError(
                f"--ratio {args.ratio}: one part of {sum(map(len, parts))} rows would be empty; choose another ratio."
            )
        for name, part in zip(names, parts, strict=True):
            file = stack.enter_context(RowFile(name, "output"))
            for number in each(part, f"writing {name}", "row"):
                file.add(waiting.get(number))
    show(f"#train: {len(parts[0]):,} in {names[0]}, #test: {len(parts[1]):,} in {names[1]}")


class _Waiting:
    """Rows in an unnamed file next to `path`, read in any order. Raises ResourceError if the disk is full."""

    def __init__(self, path: str):
        self.starts: list[int] = []
        self._path = path

    def __enter__(self) -> _Waiting:
        self._file = tempfile.TemporaryFile(dir=Path(self._path).resolve().parent)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: Any) -> None:
        try:
            self.starts.append(self._file.tell())
            self._file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise ResourceError(f"{self._path}: no space for a temporary file next to it ({error.strerror}).") from None

    def get(self, number: int) -> Any:
        self._file.seek(self.starts[number])
        return parse_json(self._file.readline(), constants=True)


def divide(rows: Sequence[Any], ratio: float, seed: int) -> tuple[list[Any], list[Any]]:
    """The rows in random order, cut at `ratio`."""
    order = np.random.RandomState(seed).permutation(len(rows))  # numpy guarantees that this generator never changes
    num_train = int(round(ratio * len(rows), 6))  # 0.29 * 100 is 28.999999999999996
    return [rows[i] for i in order[:num_train]], [rows[i] for i in order[num_train:]]


def part_name(path: str, part: str) -> str:
    """`folder/a_train.json` for `folder/a.json`; a name with any other extension gets .json."""
    ending = max((e for e in _ENDINGS if path.endswith(e)), key=len, default="")
    return f"{path.removesuffix(ending)}_{part}{ending or '.json'}"


if __name__ == "__main__":
    sys.exit(main())
