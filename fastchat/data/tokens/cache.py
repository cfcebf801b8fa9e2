"""The token cache: tokenised data in a folder of the user, under a key made of everything it depends on.

    $FSCHAT_CACHE, else $XDG_CACHE_HOME/fschat/tokens, else ~/.cache/fschat/tokens
      0f3a…/        the arrays of a store, and entry.json: present only when complete
      0f3a….making  locked by the process that makes it: others wait and then read it
      0f3a….using   locked (shared) by every run that reads it: it is not removed meanwhile
      sums/         sha256 of data files, see fingerprint.py
      starts/       what earlier starts have found out, see known.py and early.py

Entries unused for 30 days are removed and, above 20 GiB in total, the least recently used ones; this is checked, and
logged, after a new entry has been made. A lock ends with its process, so no lock is ever stale.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import fastchat
from fastchat.data.encoding import text_encoder as encoder
from fastchat.data.rows import records as loading
from fastchat.data.tokens import workers
from fastchat.data.tokens.code_digest import code_digest
from fastchat.data.tokens.known import FOLDER as KNOWN
from fastchat.data.tokens.store import TokenStore, damage
from fastchat.errors import DataError, ResourceError, SettingsError, say
from fastchat.files import Lock, parse_json, sha256_of_json, write_text

VARIABLE = "FSCHAT_CACHE"
ENTRY = "entry.json"
MAX_AGE_S = 30 * 24 * 3600
MAX_BYTES = 20 << 30
# These modules, what they import, and these libraries turn files into rows, rows into dialogues, and dialogues into
# ids, labels and counts. (The effect of transformers on a tokenizer is in the description of the encoder.)
_MODULES = (loading.__name__, workers.__name__, encoder.__name__)
_LIBRARIES = ("tokenizers", "tiktoken", "regex", "jinja2", "pyarrow")


@dataclass
class Entry:
    """A store, and what else was recorded when it was made (`about`, JSON-able).

    `temporary`: it is in a folder that is deleted at the end of the run.
    """

    folder: Path
    about: dict[str, Any] = field(default_factory=dict)
    temporary: bool = False

    def store(self) -> TokenStore:
        """Map the store. Raises DataError if it is damaged."""
        return TokenStore.load(self.folder)


def cache_folder(output_dir: str | None = None) -> Path:
    """The folder of the cache. Raises SettingsError if $FSCHAT_CACHE is in the output folder or in the program's."""
    named = os.environ.get(VARIABLE)
    if not named:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "fschat" / "tokens"
    folder = Path(named).expanduser().resolve()
    for forbidden, what in ((output_dir, "--output_dir"), (Path(fastchat.__file__).parents[1], "the program's folder")):
        if forbidden is not None and folder.is_relative_to(Path(forbidden).expanduser().resolve()):
            raise SettingsError(f"{VARIABLE}={named} is in {what} ({forbidden}): choose a folder elsewhere")
    return folder


def key_of(**parts: Any) -> str:
    """The name of an entry: a digest of everything that its ids depend on, including the program itself."""
    return sha256_of_json({**parts, "code": code_version()})[:32]


@lru_cache(maxsize=1)
def code_version() -> str:
    """Digest of the code that makes ids, and the versions of Python and of the libraries that do."""
    versions = {name: _version(name) for name in _LIBRARIES}
    versions["python"] = ".".join(map(str, sys.version_info[:2]))  # its Unicode tables
    return sha256_of_json([code_digest(Path(fastchat.__file__).parent, _MODULES), versions])


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # tiktoken, without which tokenising only takes longer
        return ""


def obtain(
    folder: Path, key: str, make: Callable[[Path], dict[str, Any]], *, overwrite: bool = False
) -> tuple[Entry, bool]:
    """Get the entry `key`, or make it; returns (entry, whether it was cached).

    Args:
        make: writes the arrays into a folder and returns `about`, in which "files" is the result of StoreWriter.close.
        overwrite: make it again even if it is cached.

    If the folder is not writable or the disk is full, that is logged and a temporary folder is used. Raises what `make`
    raises, and ResourceError if the temporary folder cannot be written to either.
    """
    try:
        return _obtain(folder, key, make, overwrite)
    except OSError as error:
        reason = error.strerror or str(error)
    say(f"the token cache {folder} cannot be used ({reason}): tokenising for this run only")
    scratch = Path(tempfile.mkdtemp(prefix="fschat-tokens-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    try:
        return Entry(scratch, make(scratch), temporary=True), False
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise ResourceError(
            f"there is no space for the tokens in {scratch.parent} either ({error.strerror or error}); free some, or "
            f"set {VARIABLE} to a folder on another disk"
        ) from None
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def make_early(folder: Path, key: str, make: Callable[[Path], dict[str, Any]], *, overwrite: bool) -> bool:
    """Make the entry `key` for the process that will `obtain` it; returns whether it was made here.

    Raises what `make` raises, and OSError if the folder cannot be used or another process is making the same entry.
    """
    return not _obtain(folder, key, make, overwrite, waits=False)[1]


def _obtain(
    folder: Path, key: str, make: Callable[[Path], dict[str, Any]], overwrite: bool, *, waits: bool = True
) -> tuple[Entry, bool]:
    folder.mkdir(parents=True, exist_ok=True)
    if key not in _USING:
        using = Lock(folder / f"{key}.using", create=True)
        using.acquire(shared=True)
        _USING[key] = using
    place = folder / key
    if not overwrite and (entry := _whole(place)):
        return entry, True
    making = Lock(folder / f"{key}.making", create=True)
    if not making.acquire(wait=False):
        if not waits:
            raise BlockingIOError(f"another process is making {place}")
        say(f"another run is tokenising the same data: waiting for it ({place})")
        making.acquire()
        overwrite = False
    try:
        if not overwrite and (entry := _whole(place, tell=True)):
            return entry, True
        for left in folder.glob(f".{key}.*"):  # left by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder))
        try:
            about = make(staged)
            _write_about(staged / ENTRY, about)
            if place.exists():
                os.replace(place, staged.with_suffix(".old"))
            os.replace(staged, place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            shutil.rmtree(staged.with_suffix(".old"), ignore_errors=True)
    finally:
        making.path.unlink(missing_ok=True)
        making.release()
    with contextlib.suppress(OSError):  # another run may be removing entries as well
        evict(folder, keep=key)
    return Entry(place, about), False


def _whole(place: Path, tell: bool = False) -> Entry | None:
    """The entry, if every byte of it is as it was written. With `tell`, damage is logged."""
    if not place.is_dir():
        return None
    try:
        about = _read_about(place / ENTRY)
        wrong = damage(place, about["files"])
        if not wrong:
            TokenStore.load(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # DataError is a ValueError
        wrong = f"{ENTRY}: {error}" if not isinstance(error, DataError) else str(error)
    if wrong:
        if tell:
            say(f"the cached tokens in {place} are damaged ({wrong}): tokenising again")
        return None
    with contextlib.suppress(OSError):
        os.utime(place)  # the last use
    return Entry(place, about)


def _write_about(path: Path, about: dict[str, Any]) -> None:
    text = json.dumps(about)
    write_text(path, f"{zlib.crc32(text.encode())}\n{text}", durable=False)


def _read_about(path: Path) -> dict[str, Any]:
    """Raises OSError or ValueError if the file is not what was written."""
    wanted, _, text = path.read_text(encoding="utf-8").partition("\n")
    if zlib.crc32(text.encode()) != int(wanted):
        raise ValueError("is not what was written")
    return parse_json(text, constants=True)


# --- removing entries


def evict(folder: Path, keep: str = "") -> None:
    """Remove entries by the rule at the top of this file, logging each; never `keep`, nor one that a run is using."""
    entries = [(p.stat().st_mtime, _bytes_in(p), p) for p in folder.iterdir() if (p / ENTRY).is_file()]
    total, now = sum(size for _, size, _ in entries), time.time()
    for used, size, place in sorted(entries):
        old = now - used > MAX_AGE_S
        if (old or total > MAX_BYTES) and place.name != keep and _removed(place):
            total -= size
            why = "unused for 30 days" if old else f"the cache is larger than {MAX_BYTES >> 30} GiB"
            say(f"token cache: {place} removed ({size / 2**20:,.0f} MiB, {why})")
    for note in (note for name in ("sums", KNOWN) for note in (folder / name).glob("*")):
        if now - note.stat().st_mtime > MAX_AGE_S:
            note.unlink(missing_ok=True)
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left: incomplete folders, and locks of entries that do not exist."""
    for staged in folder.glob(".*.*"):
        making = folder / f"{staged.name.split('.')[1]}.making"
        with Lock(making, create=True) as lock:
            if lock.acquire(wait=False):
                shutil.rmtree(staged, ignore_errors=True)
                making.unlink(missing_ok=True)
    for using in folder.glob("*.using"):
        with Lock(using, create=True) as lock:
            if not using.with_suffix("").exists() and lock.acquire(wait=False):
                using.unlink(missing_ok=True)


def _bytes_in(place: Path) -> int:
    return sum(file.stat().st_size for file in place.iterdir())


def _removed(place: Path) -> bool:
    using = place.with_name(f"{place.name}.using")
    with Lock(using, create=True) as lock:
        if not lock.acquire(wait=False):
            return False
        shutil.rmtree(place)
        using.unlink(missing_ok=True)
    return True


_USING: dict[str, Lock] = {}  # key -> the lock of an entry in use, held until this process ends
