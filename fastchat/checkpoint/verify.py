"""Says whether checkpoints are what was written, byte by byte:

    python -m fastchat.checkpoint.verify OUTPUT_DIR              every checkpoint in it
    python -m fastchat.checkpoint.verify OUTPUT_DIR/checkpoint-20

Prints what is wrong and exits with 5 where anything is, else with 0. Loads no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fastchat.checkpoint.manifest import MANIFEST, find_problems, read_manifest
from fastchat.checkpoint.staging import checkpoints_in, step_of
from fastchat.errors import EXIT_CHECKPOINT, EXIT_DONE


def verify(folder: Path) -> tuple[list[str], bool]:
    """(lines to print, whether all is well) for one checkpoint or for every checkpoint of a run folder."""
    if not folder.is_dir():
        return [f"{folder}: there is no such folder"], False
    single = (folder / MANIFEST).exists() or step_of(folder) is not None
    found = [folder] if single else [path for _, path in checkpoints_in(folder)]
    if not found:
        return [f"{folder}: no checkpoint-* and no {MANIFEST} in it"], False
    lines, good = [], True
    for path in found:
        problems = find_problems(path)
        good = good and not problems
        lines += [f"{path}: {problem}" for problem in problems] or [_summary(path)]
    return lines, good


def _summary(path: Path) -> str:
    manifest = read_manifest(path)
    return (
        f"{path}: valid, step {manifest.step}, {len(manifest.files)} files, {manifest.size:,} bytes, "
        f"{manifest.engine} on {manifest.world_size} process{'es' if manifest.world_size != 1 else ''}"
    )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m fastchat.checkpoint.verify")
    parser.add_argument("folder", type=Path, help="a checkpoint, or an output folder with checkpoints")
    lines, good = verify(parser.parse_args(argv).folder.expanduser())
    print("\n".join(lines), file=sys.stdout if good else sys.stderr)
    sys.exit(EXIT_DONE if good else EXIT_CHECKPOINT)


if __name__ == "__main__":
    main()
