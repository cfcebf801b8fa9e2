"""Writing a folder's files so that they are there completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(folder: str | Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yields an empty folder inside `folder`; what is written there moves into `folder` when the block ends well.

    Every file is flushed to disk and gets the mode the umask asks for before the first one moves (safetensors writes
    0600). Names in `last` move last, in that order: they are what makes the result loadable. After an error nothing
    has moved.

        with staged("out", last=["adapter_config.json"]) as folder:
            write_weights(folder / "adapter_model.safetensors")
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    stage = target / f".saving-{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        settle(stage)
        names = sorted(path.name for path in stage.iterdir())
        for name in last:  # without these an earlier result does not load: it is never mixed with the new one
            (target / name).unlink(missing_ok=True)
        if last:
            sync(target)
        for name in [n for n in names if n not in last] + [n for n in last if n in names]:
            os.replace(stage / name, target / name)
        sync(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def settle(folder: Path) -> None:
    """Gives every file below `folder` the ordinary mode and flushes it, and the folders, to disk."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(mode)
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Waits until a file or a folder's list of names is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
