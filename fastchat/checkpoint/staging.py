"""Publishing a checkpoint: at every moment the run folder has at least as many valid checkpoints as before.

    .saving-checkpoint-20      being written; a search for `checkpoint-*` does not find this name
    checkpoint-20              complete: it appears by one rename, with its manifest and every byte already on disk
    .removing-checkpoint-10    being removed, after the new one is complete

A step that is saved again is swapped with the old folder in one system call if the file system supports it (Linux).
Otherwise the old one is `.replaced-checkpoint-20` for a moment, and `recover` restores it if the process dies then.
Needs only the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from fastchat.bars import each
from fastchat.checkpoint.manifest import MANIFEST, find_problems
from fastchat.files import sync

PREFIX = "checkpoint-"
SAVING, REPLACED, REMOVING = ".saving-", ".replaced-", ".removing-"
_NAME = re.compile(r"checkpoint-(\d+)")
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_AT_FDCWD = -100
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)


def checkpoint_path(run: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return run / f"{PREFIX}{step}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name; None for any other name.

    >>> step_of(Path("out/checkpoint-20")), step_of(Path("out/checkpoint-20.old"))
    (20, None)
    """
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def checkpoints_in(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything with a checkpoint's name, oldest first; contents are not checked.

    A link counts as its target, and a broken link as a checkpoint that is not usable, so that a checkpoint on another
    disk is not overlooked.
    """
    if not run.is_dir():
        return []
    found = [(step_of(path), path) for path in run.iterdir() if path.is_dir() or path.is_symlink()]
    return sorted((step, path) for step, path in found if step is not None)


def new_stage(run: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of `step` into; remains of an earlier attempt are removed."""
    stage = run / f"{SAVING}{PREFIX}{step}"
    if stage.exists():
        shutil.rmtree(stage)
    stage.mkdir(parents=True)
    return stage


def put_in_place(stage: Path, run: Path, step: int) -> Path:
    """Makes the finished stage the checkpoint of `step`. Its files must be flushed already; returns its path."""
    assert (stage / MANIFEST).is_file(), f"{stage} has no manifest"
    flush_folders(stage)
    target = checkpoint_path(run, step)
    if not target.exists() and not target.is_symlink():
        os.rename(stage, target)
    elif exchange(stage, target):
        os.rename(stage, _free_name(run, REMOVING, step))
    else:
        old = _free_name(run, REPLACED, step)
        os.rename(target, old)
        try:
            os.rename(stage, target)
        except OSError:
            os.rename(old, target)
            raise
    sync(run)
    _remove_all(run, (REMOVING, REPLACED))
    return target


def rotate(run: Path, keep: int | None, *, current: int, protected: Collection[Path] = ()) -> list[Path]:
    """Removes checkpoints until `keep` are left (None: all stay); returns the removed ones.

    `current`, the step that has just been saved, and `protected` (the best one) always stay. Checkpoints of later
    steps are removed first: they were damaged, and this run resumed from an earlier step.
    """
    if keep is None:
        return []
    safe = {path.resolve() for path in protected}
    others = [(s, p) for s, p in checkpoints_in(run) if s != current and p.resolve() not in safe]
    others.sort(key=lambda found: (found[0] < current, found[0]))
    has_protected = sum(1 for path in safe if path.is_dir() and step_of(path) != current)
    excess = len(others) + 1 + has_protected - keep
    gone = [path for _, path in others[: max(0, excess)]]
    for path in gone:
        remove_checkpoint(path)
    return gone


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint so that an incomplete one is never seen under its name."""
    away = path.with_name(f"{REMOVING}{path.name}")
    remove(away)
    os.rename(path, away)
    sync(path.parent)
    with suppress(OSError):
        remove(away)


def remove(path: Path) -> None:
    """Removes a folder, or only the link if it is one; does nothing if there is none."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def set_aside(path: Path) -> Path:
    """Renames a checkpoint of a later step than the run resumes from, so that no run uses it; nothing is deleted."""
    for number in range(1, 1000):
        away = path.with_name(f"set-aside-{number}-{path.name}")
        if not away.exists():
            os.rename(path, away)
            sync(path.parent)
            return away
    raise OSError(errno.EEXIST, "too many set-aside checkpoints", str(path))


def recover(run: Path) -> list[str]:
    """Cleans up after a process that died while saving; returns one line per change. Requires the run's lock.

    Incomplete stages and partly removed checkpoints are removed. A checkpoint that was being replaced is restored.
    """
    done = []
    if not run.is_dir():
        return done
    for path in sorted(run.glob(f"{REPLACED}{PREFIX}*")):
        target = run / path.name.removeprefix(REPLACED).partition(".")[0]
        if not target.exists() and not find_problems(path):
            os.rename(path, target)
            sync(run)
            done.append(f"{target.name} was being replaced when a run ended: the earlier one is restored")
    for path in _leftovers(run, (SAVING, REMOVING, REPLACED)):
        remove(path)
        done.append(f"removed {path.name}, left by a run that was killed while saving")
    return done


def settle_files(folder: Path, names: Collection[str], on_file: Callable[[str], None] | None = None) -> None:
    """Gives files the mode given by the umask (safetensors writes 0600) and flushes them to disk."""
    mode = 0o666 & ~_umask()
    for name in each(names, "flushing to disk", "file"):
        path = folder / name
        os.chmod(path, mode)
        sync(path)
        if on_file:
            on_file(name)


def flush_folders(folder: Path) -> None:
    """Flushes the directory entries of a folder and all folders in it."""
    for base, _, _ in os.walk(folder, topdown=False):
        sync(Path(base))


def exchange(one: Path, other: Path) -> bool:
    """Swaps two folders atomically. False if the system cannot; then nothing has changed."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(one))


def _free_name(run: Path, prefix: str, step: int) -> Path:
    path = run / f"{prefix}{PREFIX}{step}"
    remove(path)
    return path


def _leftovers(run: Path, prefixes: tuple[str, ...]) -> list[Path]:
    found = [path for path in run.iterdir() if path.name.startswith(tuple(p + PREFIX for p in prefixes))]
    if SAVING in prefixes:  # the result's own stage, see folders.staged
        found += [path for path in run.iterdir() if re.fullmatch(re.escape(SAVING) + r"\d+", path.name)]
    return sorted(found)


def _remove_all(run: Path, prefixes: tuple[str, ...]) -> None:
    for path in _leftovers(run, prefixes):
        with suppress(OSError):
            remove(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
