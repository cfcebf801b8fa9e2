"""Saving a checkpoint with all processes of a run: staged, flushed, described in a manifest, renamed, then rotated."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fastchat.checkpoint.manifest import Manifest, describe_files, files_in, write_manifest
from fastchat.checkpoint.space import disk_errors
from fastchat.checkpoint.staging import SAVING, checkpoint_path, new_stage, put_in_place, rotate, settle_files
from fastchat.errors import CheckpointError, PeerFailed, UserError
from fastchat.processes import everyone, on_main_process, rank, world_size

T = TypeVar("T")


def save_checkpoint(
    run: Path,
    manifest: Manifest,
    write: Callable[[Path], None],
    *,
    keep: int | None,
    protected: Collection[Path] = (),
    expected_bytes: int = 0,
) -> Path:
    """Creates `checkpoint-<manifest.step>` in the run folder; every process must call it. Returns its path.

    `write(stage)` runs in every process and writes its part into the staged folder; the files of `manifest`
    are filled in here. `keep` checkpoints stay, besides those in `protected`. `expected_bytes` is for messages.
    If `write` raises in one process, that error is raised in all; ResourceError if the disk is full or not writable.
    In both cases the staged folder is removed and every earlier checkpoint is unchanged.
    """
    stage = run / f"{SAVING}{checkpoint_path(run, manifest.step).name}"

    def guarded(work: Callable[[], T]) -> Callable[[], T]:
        def inner() -> T:
            with disk_errors(run, expected_bytes):
                return work()

        return inner

    def describe() -> dict[str, dict[str, object]]:
        mine = names[rank() :: world_size()]  # each process flushes and reads back its share of the files
        settle_files(stage, mine)
        return describe_files(stage, mine)

    def finish() -> None:
        if not files:
            raise CheckpointError(f"{stage} is empty: nothing was saved")
        write_manifest(stage, dataclasses.replace(manifest, files=files))
        put_in_place(stage, run, manifest.step)

    try:
        on_main_process(guarded(lambda: new_stage(run, manifest.step)))
        everyone(guarded(lambda: write(stage)))
        names = (
            on_main_process(lambda: files_in(stage)) or []
        )  # one list for all: processes may see a network folder differently
        files = {name: entry for part in everyone(guarded(describe)) for name, entry in part.items()}
        files = dict(sorted(files.items()))
        on_main_process(guarded(finish))
        on_main_process(guarded(lambda: rotate(run, keep, current=manifest.step, protected=protected)))
    except (UserError, PeerFailed, OSError):
        if rank() == 0:
            with suppress(OSError):
                shutil.rmtree(stage)
        raise
    return checkpoint_path(run, manifest.step)
