"""What an earlier start has found out, and a further one need not: results that follow from bytes and versions alone.

    remembered(folder, "saved tokenizer", [digests of its files, ...], lambda: compared(...))

They are small files in the token cache, named by a digest of all that the result depends on: what is given, every
module of this program, and the versions of the libraries that read tokenizers and templates. An error is not kept: it
is found, and reported, by every start.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import fastchat
from fastchat import files

T = TypeVar("T")
FOLDER = "starts"
_LIBRARIES = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "protobuf", "jinja2")


def remembered(cache_folder: Path, what: str, given: Any, find: Callable[[], T]) -> T:
    """`find()`, or its result of an earlier start. `given`: all that it depends on besides the program, JSON-able, as
    the result must be. Raises what `find` raises."""
    note = cache_folder / FOLDER / files.sha256_of_json([what, given, _program()])[:32]
    with suppress(OSError, files.JsonError, KeyError):
        return files.read_object(note)["found"]
    found = find()
    with suppress(OSError):  # then the next start finds it out again
        note.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(note, {"found": found}, durable=False)
    return found


@cache
def _program() -> list[Any]:
    """The modules of this program and the libraries, as they are."""
    package = Path(fastchat.__file__).parent
    modules = [(path.relative_to(package).as_posix(), files.sha256_of(path)) for path in sorted(package.rglob("*.py"))]
    return [files.sha256_of_json(modules), sys.version_info[:2], [_version(name) for name in _LIBRARIES]]


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
