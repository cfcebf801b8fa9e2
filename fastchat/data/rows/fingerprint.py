"""What the data is, in one number: a digest of the bytes of its files, wherever they lie and whatever their names."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from fastchat import files
from fastchat.data.rows.no_file import refuse_special, unreadable

# A file that was written to so shortly before it was read may be written to again without its times showing it.
_TOO_FRESH_S = 10.0


def combined(sums: Sequence[str]) -> str:
    """The fingerprint of files whose sums are known."""
    return sums[0] if len(sums) == 1 else files.sha256_of_text("\n".join(sums))


def sha256_of(path: str) -> str:
    """What `sha256sum` prints. Raises DataError where the file cannot be read."""
    refuse_special(path)
    try:
        return files.sha256_of(path)
    except OSError as error:
        raise unreadable(path, error) from None


class KnownSums:
    """The sums of files that were read before, kept in a folder, so that a second start does not read them again.

    A sum counts as long as the file is the same inode with the same size, modification and change time (the change time
    is the system's own: every write moves it, and nothing sets it back) and was not written to in the ten seconds
    before it was read.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, path: str) -> str:
        """The sum of a file. Raises DataError where it cannot be read."""
        note = self.folder / files.sha256_of_blocks([os.path.realpath(path).encode("utf-8", "surrogateescape")])
        before = state_of(path)
        try:
            known = files.read_object(note)
            if known["state"] == before:
                return str(known["sha256"])
        except (OSError, files.JsonError, KeyError):
            pass  # not there or not readable: the file is
        now = time.time_ns()
        found = sha256_of(path)
        if state_of(path) == before and now - max(before[2:4]) > _TOO_FRESH_S * 1e9:
            self._keep(note, {"path": os.path.realpath(path), "state": before, "sha256": found})
        return found

    def _keep(self, note: Path, content: dict[str, object]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_text(note, json.dumps(content), durable=False)  # in ASCII: a path may be no UTF-8
        except OSError:
            pass  # then it is read again next time


def state_of(path: str) -> list[int]:
    """What changes when a file is written to: inode, size, modification and change time, device. Raises DataError."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev]
