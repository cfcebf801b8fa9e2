"""Upstream's training of T5 models, which does not exist here: one line says what to use instead."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = ROOT  # run by path

from fastchat.upstream_names import refuse, what_instead  # noqa: E402

__getattr__ = refuse("fastchat.train.train_flant5")

if __name__ == "__main__":
    print("error: " + what_instead("fastchat.train.train_flant5", "t5"), file=sys.stderr)
    sys.exit(2)
