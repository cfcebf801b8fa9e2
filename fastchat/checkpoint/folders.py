"""Writing whole folders: all of their files are there, or none is."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fastchat.errors import SettingsError, say
from fastchat.files import Lock, NoLocks, sync


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


def check_new_folder(path: str, flag: str) -> Path:
    """The folder to create. Raises SettingsError when something is there already, so that nothing is written over."""
    target = Path(path).expanduser()
    if target.is_file() or target.is_dir() and any(target.iterdir()):
        raise SettingsError(f"{flag} {path} exists and is not empty: choose a new folder.")
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise SettingsError(f"{flag} {path} cannot be written: {above} is a file.")
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when the block ends well, and vanishes when it does not.

    What an attempt that was killed has left there goes first; a live one keeps its own. Raises SettingsError where
    something has come to stand in `target` meanwhile.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        _remove_unless_held(left)
    stage = target.with_name(f".{target.name}.partial-{os.getpid()}")
    stage.mkdir()
    lock = Lock(stage)
    try:
        with suppress(NoLocks):  # then nobody takes this one for left over either
            lock.acquire()
        yield stage
        settle(stage)
        try:
            os.replace(stage, target)  # works on a missing and on an empty folder, never on a filled one
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise SettingsError(f"{target} was filled by somebody else meanwhile: choose a new folder.") from None
        sync(target.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        lock.release()


def _remove_unless_held(stage: Path) -> None:
    with Lock(stage) as lock:
        try:
            if not lock.acquire(wait=False):
                return
        except OSError:  # gone meanwhile, not ours to open, or nothing says whether it is in use
            return
        shutil.rmtree(stage, ignore_errors=True)
    say(f"removed {stage.name}, left by a command that was ended while it wrote")


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
