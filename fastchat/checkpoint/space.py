"""Disk space: what a checkpoint will need, what there is, and what to say when it was not enough."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fastchat.errors import ResourceError

_MARGIN = 1 << 20  # tokenizer-sized files and the file system's own
FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write where `folder` is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def check_space(folder: Path, checkpoint: int, copies: int, result: int) -> None:
    """ResourceError unless `copies` checkpoints of `checkpoint` bytes and a result of `result` bytes fit."""
    needed, free = checkpoint * copies + result + _MARGIN, free_bytes(folder)
    if needed > free:
        raise ResourceError(
            f"--output_dir {folder}: {copies} checkpoint{'s' if copies != 1 else ''} of about {checkpoint:,} bytes and "
            f"a result of {result:,} need {needed:,} bytes, {free:,} are free; lower --save_total_limit, save less "
            "often, free some space or name another --output_dir"
        )


def copies_at_once(saves: int, limit: int | None) -> int:
    """How many checkpoints stand on the disk at the same time: the old ones go when the new one is there.

    >>> copies_at_once(saves=10, limit=2), copies_at_once(saves=1, limit=2), copies_at_once(saves=4, limit=None)
    (3, 1, 4)
    """
    return saves if limit is None else min(saves, limit + 1)


def disk_error(error: BaseException, folder: Path, needed: int) -> ResourceError | None:
    """The message for a disk that is full or cannot be written; None where `error` is something else.

    torch and safetensors wrap the system's error in their own, so the text and the free space decide there.
    """
    code = error.errno if isinstance(error, OSError) else None
    text = str(error).lower()
    free = free_bytes(folder)
    if code in READ_ONLY or "read-only file system" in text or "permission denied" in text:
        return ResourceError(
            f"the checkpoint could not be written into {folder} ({error}); what was saved before is kept. Make the "
            "folder writable, then start the same command again: it goes on from the last checkpoint"
        )
    writing = any(word in text for word in ("no space left", "os error 28", "file write failed", "failed writing"))
    writing = writing or "disk quota" in text or ("unexpected pos" in text and free < max(needed, _MARGIN))
    if code not in FULL and not writing:
        return None
    return ResourceError(
        f"the disk is full: a checkpoint of about {needed:,} bytes did not fit into {folder}, {free:,} bytes are free. "
        "The half-written one was removed, what was saved before is kept. Free some space (or lower "
        "--save_total_limit), then start the same command again: it goes on from the last checkpoint"
    )
