"""Paths of data that cannot be read: what a user is told of each."""

from __future__ import annotations

import os

from fastchat.errors import DataError, nearest
from fastchat.security import special_kind


def refuse_special(path: str) -> None:
    """DataError for what would be waited for or read without end: a pipe, a socket, a device."""
    if kind := special_kind(path):
        raise DataError(f"{path}: is {kind}; write what it gives into a file, and give that file.")


def unreadable(path: str, error: OSError) -> DataError:
    """What to tell the user about a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file.{_neighbours(path)}")
    if isinstance(error, IsADirectoryError):
        return DataError(
            f"{path}: is a folder; give the file in it (.json, .jsonl, either with .gz, .parquet or .arrow)."
        )
    return DataError(f"{path}: cannot be read ({error.strerror or error}).")


def _neighbours(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f" There is no folder {folder} either."
    close = nearest(os.path.basename(path), os.listdir(folder))
    return f" In the same folder: {', '.join(close)}." if close else ""
