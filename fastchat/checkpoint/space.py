"""Disk space: how much a checkpoint needs, how much is free, and the messages when it is not enough."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastchat.errors import ResourceError, UserError, brief, counted

_MARGIN = 1 << 20  # the tokenizer's files and the file system's overhead
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last one: a limit on the size of files (ulimit -f)
_GONE = ("no such file or directory", "parent directory")
# torch's messages when a write failed; they do not include the system's reason.
_TORCH_WRITING = ("iostream error", "file write failed", "failed writing", "unexpected pos")
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# A failing disk or network file system, or a machine that has run out of file handles.
FAILING = (
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.EREMOTEIO),
)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write to the file system of `folder`, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def bytes_in(path: Path) -> int:
    """Bytes that removing a file or a folder frees; a link frees none, nor does what cannot be read."""
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.lstat().st_size
    return total


def check_space(folder: Path, checkpoint: int, copies: int, result: int, freed: int = 0) -> None:
    """ResourceError unless `copies` checkpoints of `checkpoint` bytes and a result of `result` bytes fit. `freed`:
    bytes in the folder that are removed before anything is saved."""
    needed, free = checkpoint * copies + result + _MARGIN, free_bytes(folder) + freed
    if needed > free:
        raise ResourceError(
            f"--output_dir {folder}: {counted(copies, 'checkpoint')} of about {checkpoint:,} bytes and "
            f"a result of {result:,} need {needed:,} bytes, {free:,} are free; lower --save_total_limit, save less "
            "often, free some space or name another --output_dir"
        )


def copies_at_once(saves: int, limit: int | None) -> int:
    """How many checkpoints are on the disk at the same time: old ones are removed after the new one is complete.

    >>> copies_at_once(saves=10, limit=2), copies_at_once(saves=1, limit=2), copies_at_once(saves=4, limit=None)
    (3, 1, 4)
    """
    return saves if limit is None else min(saves, limit + 1)


@contextmanager
def disk_errors(folder: Path, needed: int, what: str = "checkpoint") -> Iterator[None]:
    """Turns errors of a full or read-only disk into ResourceError. `needed`: approximate number of bytes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = disk_error(error, folder, needed, what)
        if known is None:
            raise
        raise known from None


def is_environment(error: BaseException) -> bool:
    """Whether an error comes from the disk or the machine rather than from the program."""
    return isinstance(error, OSError) and error.errno in (*FULL, *READ_ONLY, *FAILING)


def disk_error(error: BaseException, folder: Path, needed: int, what: str = "checkpoint") -> ResourceError | None:
    """The message for a disk that is full or not writable; None if `error` is something else."""
    code, text = getattr(error, "errno", None), str(error).lower()
    if isinstance(error, FileNotFoundError) or any(word in text for word in _GONE):
        return ResourceError(
            f"the {what} could not be written to {folder}: files or folders in it were deleted meanwhile "
            f"({brief(error)}). The other files are kept; start the same command again"
        )
    if (
        code in READ_ONLY
        or code in FAILING
        or "input/output error" in text
        or "read-only file system" in text
        or "permission denied" in text
    ):
        return ResourceError(
            f"the {what} could not be written to {folder} ({error}); existing files are kept. Make the "
            "folder writable, then start the same command again"
        )
    free = free_bytes(folder)
    kept = "The incomplete one was removed, existing files are kept"
    if is_full(error):
        return ResourceError(
            f"the disk is full: a {what} of about {needed:,} bytes did not fit into {folder}, {free:,} bytes are "
            f"free. {kept}. Free some space, then start the same command again"
        )
    if any(word in text for word in _TORCH_WRITING):
        return ResourceError(
            f"a {what} of about {needed:,} bytes could not be written to {folder}, {free:,} bytes are free: the disk "
            f"is full, a quota or a limit on file sizes (ulimit -f) is reached, or the disk is failing. {kept}"
        )
    return None


def is_full(error: BaseException) -> bool:
    """Whether `error` means a full disk, an exceeded quota or a limit on the size of files."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    words = ("no space left", "os error 28", "os error 27", "disk quota")  # safetensors wraps the system's error
    return any(word in str(error).lower() for word in words)
