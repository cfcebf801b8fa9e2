"""Checks byte by byte whether checkpoints and results are as they were written:

    fastchat verify OUTPUT_DIR              every checkpoint in it, and its result
    fastchat verify OUTPUT_DIR/checkpoint-20

Prints the problems and exits with 5 if there are any, else with 0. Does not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fastchat.checkpoint.digests import result_problems
from fastchat.checkpoint.manifest import MANIFEST, find_problems, read_manifest
from fastchat.checkpoint.record import RECORD_NAME, read_training_record
from fastchat.checkpoint.staging import checkpoints_in, step_of
from fastchat.data.tools.command import Parser
from fastchat.errors import EXIT_CHECKPOINT, EXIT_DONE, CheckpointError, counted
from fastchat.paths import folders_instead
from fastchat.streams import kept_output


def verify(folder: Path) -> tuple[list[str], bool]:
    """(lines to print, whether all is valid) for one checkpoint, or for all of a run folder and its result.

    A folder in which nothing can be checked is not valid.
    """
    if folder.is_file():
        return [f"{folder} is a file: pass its folder"], False
    if not folder.is_dir():
        return [f"{folder}: there is no such folder.{folders_instead(folder)}"], False
    single = (folder / MANIFEST).exists() or step_of(folder) is not None
    found = [folder] if single else [path for _, path in checkpoints_in(folder)]
    lines, good = [], True
    for path in found:
        problems = find_problems(path)
        good = good and not problems
        lines += [f"{path}: {problem}" for problem in problems] or [_summary(path)]
    if not single:
        said, well = _verify_result(folder, alone=not found)
        lines, good = lines + said, good and well
    return lines, good


def _verify_result(folder: Path, alone: bool) -> tuple[list[str], bool]:
    """The same for the result of a run, a merge or `prepare_model`; `alone`: there is nothing else to verify."""
    try:
        record = read_training_record(folder)
        if record is None:
            return (
                [f"{folder}: no checkpoint-*, no {MANIFEST} and no {RECORD_NAME} in it"] if alone else []
            ), not alone
        problems = result_problems(folder, record)
    except CheckpointError as error:
        return [str(error)], False
    if problems:
        return [f"{folder}: {problem}" for problem in problems], False
    if not record.files:
        return [f"{folder}: not verified, its {RECORD_NAME} has no digests"], not alone
    size = sum(int(entry["size"]) for entry in record.files.values())
    return [f"{folder}: valid, result, {counted(len(record.files), 'file')}, {counted(size, 'byte')}"], True


def _summary(path: Path) -> str:
    manifest = read_manifest(path)
    return (
        f"{path}: valid, step {manifest.step}, {counted(len(manifest.files), 'file')}, "
        f"{counted(manifest.size, 'byte')}, {manifest.engine} on {counted(manifest.world_size, 'process')}"
    )


@kept_output()
def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command."""
    about = "Check byte by byte that checkpoints and results are as they were written. Exit code 5: they are not."
    examples = ["fastchat verify out", "fastchat verify out/checkpoint-20"]
    parser = Parser(examples, prog="fastchat verify", description=about)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a checkpoint, or an output folder")
    lines, good = verify(parser.parse_args(argv).folder.expanduser())
    print("\n".join(lines), file=sys.stdout if good else sys.stderr)
    sys.exit(EXIT_DONE if good else EXIT_CHECKPOINT)


if __name__ == "__main__":
    main()
