"""Output files of the commands: written completely or not at all, and checked before the work starts."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from fastchat.errors import ResourceError, SettingsError
from fastchat.files import atomic

S = TypeVar("S", bound="StagedFile")
# Some readers treat these as line breaks (Python's splitlines among them), so JSON lines have them as escapes.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


def check_output(flag: str, path: str, inputs: Sequence[str]) -> None:
    """Check that `path` can be written and is not an input. Raises SettingsError."""
    output = Path(path)
    if output.exists() and not output.is_file():
        raise SettingsError(f"{flag} {output}: exists and is not a file; choose another name.")
    if not output.resolve().parent.is_dir():
        raise SettingsError(f"{flag} {output}: there is no folder {output.resolve().parent}; create it first.")
    if any(os.path.exists(given) and output.exists() and output.samefile(given) for given in inputs):
        raise SettingsError(f"{flag} {output}: is also an input and would be overwritten; choose another file.")


class StagedFile:
    """A text file that replaces `path` once the `with` block ends without an error; gzipped where `path` ends in .gz.

    Raises ResourceError, naming `flag`, if it cannot be written; an existing file at `path` is then left unchanged.
    """

    def __init__(self, path: str, flag: str):
        self.path, self.flag = path, flag
        self._zipped = Path(path).resolve().suffix == ".gz"
        self._open = ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self: S) -> S:
        try:
            file = self._open.enter_context(atomic(self.path, "wb" if self._zipped else "w", durable=False))
            self._file = self._open.enter_context(gzip.open(file, "wt", encoding="utf-8")) if self._zipped else file
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def write(self, text: str) -> None:
        """Add `text`."""
        assert self._file is not None
        try:
            self._file.write(text)
        except OSError as error:
            raise self._unwritable(error) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            with suppress(OSError):  # the file is discarded anyway
                self._open.__exit__(kind, error, trace)
            return
        try:
            self._open.close()  # writes what is still buffered
        except OSError as problem:
            raise self._unwritable(problem) from None

    def _unwritable(self, error: OSError) -> ResourceError:
        return ResourceError(f"{self.flag} {self.path}: cannot be written ({error.strerror or error}).")


class RowFile(StagedFile):
    """A StagedFile of JSON objects: one per line where `path` ends in .jsonl (or .jsonl.gz), else one indented array.

    The array is the text that `json.dump(rows, indent=2, ensure_ascii=False)` writes, without all rows in memory.
    """

    def __init__(self, path: str, flag: str = "--out-file"):
        super().__init__(path, flag)
        self.num_rows = 0
        self._lines = path.removesuffix(".gz").endswith(".jsonl")

    def add(self, row: dict[str, Any]) -> None:
        """Write one row."""
        if self._lines:
            text = json.dumps(row, ensure_ascii=False)
            self.write(_LINE_ENDS.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n")
        else:
            text = json.dumps(row, ensure_ascii=False, indent=2).replace("\n", "\n  ")
            self.write(("[\n  " if self.num_rows == 0 else ",\n  ") + text)
        self.num_rows += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None and not self._lines:
            try:
                self.write("\n]" if self.num_rows else "[]")
            except ResourceError as problem:
                super().__exit__(type(problem), problem, None)
                raise
        super().__exit__(kind, error, trace)
