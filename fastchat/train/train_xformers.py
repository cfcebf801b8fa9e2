"""Upstream's full fine-tuning with xformers: `train.py`, whose attention is torch's own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = str(Path(__file__).resolve().parents[2])
if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = ROOT  # run by path: the package is importable, its modules are not importable as top-level ones

from fastchat.train import train as full  # noqa: E402


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Trains and ends the process: exit codes are those of `fastchat.errors`."""
    words = sys.argv[1:] if argv is None else argv
    full.main(words)


def train() -> NoReturn:
    """What upstream's programs call: `main` with the process's command line."""
    main()


if __name__ == "__main__":
    main()
