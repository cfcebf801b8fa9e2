"""Fingerprint of the data: a digest of the contents of its files, independent of their location and names."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from fastchat import files
from fastchat.bars import bar
from fastchat.data.rows.no_file import refuse_special, unreadable

# A file modified this shortly before it was read may be modified again without a change of its timestamps.
_TOO_FRESH_S = 10.0


def combined(sums: Sequence[str]) -> str:
    """The fingerprint of files whose sums are known."""
    return sums[0] if len(sums) == 1 else files.sha256_of_text("\n".join(sums))


def sha256_of(path: str) -> str:
    """What `sha256sum` prints. Raises DataError if the file cannot be read."""
    refuse_special(path)
    try:
        with bar(f"reading {os.path.basename(path)}", os.path.getsize(path)) as progress:
            return files.sha256_of(path, progress.advance)
    except OSError as error:
        raise unreadable(path, error) from None


class KnownSums:
    """The SHA-256 sums of files read earlier, kept in a folder so that the next start does not read the files again.

    A sum is valid as long as the file has the same inode, size, modification time and change time (which the system
    updates on every write, and which cannot be set back) and was not modified in the ten seconds before it was read.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, path: str) -> str:
        """The sum of a file. Raises DataError if it cannot be read."""
        note = self.folder / files.sha256_of_blocks([os.path.realpath(path).encode("utf-8", "surrogateescape")])
        before = state_of(path)
        try:
            known = files.read_object(note)
            if known["state"] == before:
                return str(known["sha256"])
        except (OSError, files.JsonError, KeyError):
            pass  # missing or unreadable: read the file
        now = time.time_ns()
        found = sha256_of(path)
        if state_of(path) == before and now - max(before[2:4]) > _TOO_FRESH_S * 1e9:
            self._keep(note, {"path": os.path.realpath(path), "state": before, "sha256": found})
        return found

    def _keep(self, note: Path, content: dict[str, object]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_text(note, json.dumps(content), durable=False)  # as ASCII: a path may not be valid UTF-8
        except OSError:
            pass  # then it is read again next time


def state_of(path: str) -> list[int]:
    """What changes when a file is written to: inode, size, modification and change time, device. Raises DataError."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev]
