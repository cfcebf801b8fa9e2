"""Writing whole folders: either all of their files appear, or none."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fastchat.bars import each
from fastchat.errors import SettingsError, say
from fastchat.files import Lock, NoLocks, sync


@contextmanager
def staged(folder: str | Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yields an empty folder inside `folder`; what is written there moves into `folder` if the block succeeds.

    Every file is flushed to disk and gets the mode given by the umask before the first one moves (safetensors writes
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
        for name in last:  # without these an earlier result does not load, so it is never mixed with the new one
            (target / name).unlink(missing_ok=True)
        if last:
            sync(target)
        for name in [n for n in names if n not in last] + [n for n in last if n in names]:
            os.replace(stage / name, target / name)
        sync(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_new_folder(path: str, flag: str) -> Path:
    """The folder to create. Raises SettingsError if it already has contents, so that nothing is overwritten."""
    target = Path(path).expanduser()
    if target.is_file() or target.is_dir() and any(target.iterdir()):
        raise SettingsError(f"{flag} {path} exists and is not empty: choose a new folder.")
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise SettingsError(f"{flag} {path} cannot be written: {above} is a file.")
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder next to `target` that becomes `target` if the block succeeds and is removed if it does not.

    Remains of earlier attempts that were killed are removed first; folders of running ones stay. Raises SettingsError
    if `target` has been filled meanwhile.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        _remove_unless_held(left)
    stage = target.with_name(f".{target.name}.partial-{os.getpid()}")
    stage.mkdir()
    lock = Lock(stage)
    try:
        with suppress(NoLocks):  # so that no other process takes this one for a remnant
            lock.acquire()
        yield stage
        settle(stage)
        try:
            os.replace(stage, target)  # works if the folder is missing or empty, fails if it has contents
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise SettingsError(f"{target} was filled by another program meanwhile: choose a new folder.") from None
        sync(target.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        lock.release()


def _remove_unless_held(stage: Path) -> None:
    with Lock(stage) as lock:
        try:
            if not lock.acquire(wait=False):
                return
        except OSError:  # removed meanwhile, not readable, or there is no way to tell whether it is in use
            return
        shutil.rmtree(stage, ignore_errors=True)
    say(f"removed {stage.name}, left by a command that was killed while writing")


def settle(folder: Path) -> None:
    """Gives every file below `folder` the ordinary mode and flushes it, and the folders, to disk."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in each(sorted(folder.rglob("*")), "flushing to disk", "file"):
        if path.is_file():
            path.chmod(mode)
        sync(path)
    sync(folder)
