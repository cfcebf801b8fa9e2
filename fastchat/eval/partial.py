"""What an evaluation has generated so far, so that one that was killed continues: a file next to its output.

A JSON object per line. The first says which evaluation the file is of; each other one has a "key" and the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastchat import files
from fastchat.errors import ResourceError, SettingsError, counted, say

ENDING = ".partial"


class Partial:
    """The results by key, in a file that grows with each; a context manager that keeps others from writing it.

    >>> with Partial("out.jsonl", {"model": ...}) as partial:                                     # doctest: +SKIP
    ...     partial.add("0 1", {"answer": "4"})
    """

    def __init__(self, output: str | None, identity: dict[str, Any]):
        """`output`: the file that the evaluation writes in the end; None to keep everything in memory. `identity`: all
        that the results depend on, JSON-able."""
        self.path = None if output is None else Path(f"{output}{ENDING}")
        self._header = {"evaluation": files.sha256_of_json(identity)}
        self._lock = None if self.path is None else files.Lock(self.path, create=True)
        self.found: dict[str, Any] = {}

    def __enter__(self) -> Partial:
        """Read what is there. Raises SettingsError if it is of another evaluation, or another one is writing it."""
        if self.path is None or self._lock is None:
            return self
        try:
            if not self._lock.acquire(wait=False):
                raise SettingsError(f"{self.path}: another evaluation is writing it; choose another --output.")
            self._read(self.path)
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]  # a run that was killed leaves half a line
        try:
            header, *rows = [files.parse_json(line) for line in whole] or [self._header]
            self.found = {row["key"]: row["result"] for row in rows}
        except (files.JsonError, KeyError, TypeError):
            header = None
        if header != self._header:
            raise SettingsError(
                f"{path} has the answers of another evaluation (other model, data or settings): remove it to start "
                "over, or choose another --output."
            )
        if self.found:
            say(f"continuing: {counted(len(self.found), 'answer')} already in {path}")
        with open(path, "r+b") as file:
            file.truncate(sum(map(len, whole)))
        if not whole:
            self._append(self._header)

    def add(self, key: str, result: Any) -> None:
        """Keep one result. Raises ResourceError if it cannot be written."""
        self.found[key] = result
        self._append({"key": key, "result": result})

    def _append(self, row: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise self._unwritable(error) from None

    def remove(self) -> None:
        """The evaluation is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.__exit__(*error)

    def _unwritable(self, error: OSError) -> ResourceError:
        return ResourceError(f"{self.path}: cannot be written ({error.strerror or error}).")
