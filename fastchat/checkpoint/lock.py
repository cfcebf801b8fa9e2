"""One run per output folder. The lock is the system's own and ends with the process, so that none is ever stale."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from fastchat.errors import SettingsError, say

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class FolderLock:
    """Holds a folder for one run until `release`, or until the process ends in whatever way. Leaves no file behind.

    SettingsError where another run holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            if error.errno in _BUSY:
                raise SettingsError(
                    f"--output_dir {folder} is in use by another run; wait for it, end it, or name another folder"
                ) from None
            say(f"{folder} is on a file system without locks: nothing keeps a second run from writing there")

    def release(self) -> None:
        """Lets the next run in."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
