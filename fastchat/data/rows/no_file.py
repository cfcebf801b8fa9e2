"""Error messages for data paths that cannot be read."""

from __future__ import annotations

import os

from fastchat.errors import DataError, nearest
from fastchat.security import special_kind

# First bytes of files that are not data files.
_OTHER_KINDS = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PK": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd (unpack it with `zstd -d`)",
    b"\xfd7zXZ\0": "compressed with xz (unpack it with `xz -d`)",
    b"BZh": "compressed with bzip2 (unpack it with `bzip2 -d`)",
    b"\x04\x22\x4d\x18": "compressed with lz4 (unpack it with `lz4 -d`)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"FEA1": "Feather version 1",
    b"ORC": "ORC",
    b"SQLite format 3\0": "an SQLite database",
    b"\x80": "a Python pickle",
    b"version https://git-lfs": "a pointer of Git LFS (fetch the file with `git lfs pull`)",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"---\n": "YAML or Markdown",
}


def refuse_other_kinds(begin: bytes, path: str) -> None:
    """Raise DataError for a file that, by its first bytes `begin`, is of a kind that is not read."""
    for magic, kind in _OTHER_KINDS.items():
        if begin.startswith(magic):
            raise DataError(
                f"{path}: is {kind}; it must be UTF-8 JSON (.json or .jsonl, either with .gz), parquet or Arrow."
            )
    if begin[257:262] == b"ustar":
        raise DataError(f"{path}: is a tar archive; unpack it and pass the file in it.")


def refuse_special(path: str) -> None:
    """Raise DataError for a path that would block or never end: a pipe, a socket, a device."""
    if kind := special_kind(path):
        raise DataError(f"{path}: is {kind}; write its contents to a file and pass that file.")


def unreadable(path: str, error: OSError) -> DataError:
    """What to tell the user about a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file.{_neighbours(path)}")
    if isinstance(error, IsADirectoryError):
        return DataError(
            f"{path}: is a folder; pass the file in it (.json, .jsonl, either with .gz, .parquet or .arrow)."
        )
    return DataError(f"{path}: cannot be read ({error.strerror or error}).")


def _neighbours(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f" There is no folder {folder} either."
    close = nearest(os.path.basename(path), os.listdir(folder))
    return f" In the same folder: {', '.join(close)}." if close else ""
