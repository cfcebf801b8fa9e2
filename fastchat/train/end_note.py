"""Why a process ended before its run has claimed the output folder, for the other processes of the run.

A process whose partner is gone, or that its launcher ends, looks for the note to tell a failure from a wish to stop.
It lies in the token cache, which the machines of a run often share, and never near the output folder: a refused start
leaves nothing there.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError
from fastchat.files import JsonError, read_object, sha256_of_json, write_json

FOLDER = "ended"  # in the token cache, which removes old notes
_ONE_RUN = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")  # the launcher gives all processes the same


class EndNote:
    """The note of the run that writes into `output_dir`. Only a run of several processes has one."""

    def __init__(self, output_dir: Path) -> None:
        self._key = [os.path.abspath(output_dir)]

    @property
    def has_readers(self) -> bool:
        """Whether the run has other processes."""
        return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"

    def leave(self, content: dict[str, Any]) -> None:
        """Writes the note, over an earlier one. Raises OSError."""
        if (path := self._path()) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content, durable=False)

    def read(self) -> dict[str, Any]:
        """The note; {} without one."""
        path = self._path()
        try:
            return {} if path is None else read_object(path)
        except (OSError, JsonError):
            return {}

    def forget(self) -> None:
        """Removes the note of an earlier start."""
        if (path := self._path()) is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _path(self) -> Path | None:
        if not self.has_readers:
            return None
        from fastchat.data.tokens.cache import cache_folder

        try:
            key = sha256_of_json([*self._key, *(os.environ.get(name) for name in _ONE_RUN)])
            return cache_folder() / FOLDER / f"{key[:32]}.json"
        except (SettingsError, RuntimeError):  # a cache that cannot be used, a user without a home
            return None
