"""Files: atomic writes, strict JSON, digests, locks. Standard library only.

All packages read and write files through this module, so that a crash, a full disk or a second process is handled in
one place. Functions raise OSError and `JsonError`; the caller knows the purpose of the file and tells the user.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_BLOCK = 1 << 20  # bytes read at a time
_LARGE = 1 << 20  # characters of JSON
_BEFORE_NAME, _COLON = re.compile(r'\s*[{,]\s*(?=")'), re.compile(r"\s*:\s*")  # in a JSON object
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class JsonError(ValueError):
    """Invalid JSON; the message is the reason, without the file's name."""


class NoLocks(OSError):
    """The file system does not support locks."""


# --- reading


def read_json(path: str | Path, *, constants: bool = False, unique: bool = False) -> Any:
    """Read the value in a UTF-8 JSON file (a byte order mark is skipped).

    Args:
        constants: accept NaN and Infinity, which JSON does not allow but libraries write into their configurations.
        unique: refuse an object with a repeated key.

    Raises:
        OSError: the file cannot be read.
        JsonError: it is not UTF-8, not JSON, nested too deeply, or contains NaN or Infinity.
    """
    return parse_json(Path(path).read_bytes(), constants=constants, unique=unique)


def read_object(path: str | Path, *, constants: bool = False) -> dict[str, Any]:
    """`read_json` for a file that contains an object; raises JsonError for any other value."""
    value = read_json(path, constants=constants)
    if not isinstance(value, dict):
        raise JsonError("it is not a JSON object")
    return value


def parse_json(text: str | bytes, *, constants: bool = False, unique: bool = False) -> Any:
    """Parse JSON text, or its UTF-8 bytes. Raises JsonError as `read_json` does."""
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        hook = _without_repeats if unique else None
        with _uncollected(len(decoded)):
            return json.loads(decoded, parse_constant=None if constants else _refuse, object_pairs_hook=hook)
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise JsonError("it is nested too deeply") from None
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(f"it is not valid JSON: {error}") from None


def read_members(path: str | Path, *names: str) -> dict[str, Any]:
    """Some members of the JSON object in a file, those that it has; what follows the last of them is not parsed.

    >>> read_members("tokenizer.json", "normalizer", "pre_tokenizer")  # doctest: +SKIP
    {'normalizer': None, 'pre_tokenizer': {'type': 'ByteLevel', ...}}

    Raises OSError, and JsonError for what is no JSON up to there.
    """
    decoder, found, at = json.JSONDecoder(), {}, 0
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        while not found.keys() >= set(names) and (before := _BEFORE_NAME.match(text, at)):
            name, at = decoder.raw_decode(text, before.end())
            colon = _COLON.match(text, at)
            found[name], at = decoder.raw_decode(text, colon.end() if colon else at)
    except (ValueError, RecursionError) as error:
        raise JsonError(f"it is not valid JSON: {error}") from None
    return {name: found[name] for name in names if name in found}


@contextmanager
def _uncollected(size: int) -> Iterator[None]:
    """Parsing a large text makes no garbage; looking for it takes as long again."""
    if size < _LARGE or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _refuse(constant: str) -> Any:
    raise JsonError(f"it contains {constant}, which is not valid JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise JsonError(f"{key} is given twice; keep one")
        found[key] = value
    return found


# --- writing


@contextmanager
def atomic(path: str | Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends without an error; until then `path` is unchanged.

    If `path` is a symbolic link, its target is replaced.

    Args:
        mode: "w" (UTF-8 text, newlines not translated) or "wb".
        durable: wait until the data is on disk, so that it survives a power failure. A cache does not need it.

    Raises OSError if the file cannot be written; the partial file is removed.
    """
    target = Path(os.path.realpath(path))
    stage = target.with_name(f".{target.name}.{os.getpid()}")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    file = open(stage, mode, **text)  # noqa: SIM115 (closed below, before the file moves)
    try:
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())
        file.close()
        os.replace(stage, target)
    finally:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            stage.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, durable: bool = True) -> None:
    """Write a text file atomically, see `atomic`."""
    with atomic(path, durable=durable) as file:
        file.write(text)


def write_json(
    path: str | Path, value: Any, *, indent: int | None = 1, constants: bool = False, durable: bool = True
) -> None:
    """Write JSON and a final newline, atomically.

    Raises ValueError for NaN and infinity, before anything is written, unless `constants` is True.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=constants)
    write_text(path, text + "\n", durable=durable)


def sync(path: str | Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- digests


def sha256_of(path: str | Path, on_read: Callable[[int], None] = lambda num_bytes: None) -> str:
    """The sha256 of a file in hex, as `sha256sum` prints it. `on_read` is told the size of each block. Raises
    OSError."""

    def blocks(file: IO[bytes]) -> Iterator[bytes]:
        while block := file.read(_BLOCK):
            yield block
            on_read(len(block))

    with open(path, "rb") as file:
        return sha256_of_blocks(blocks(file))


def sha256_of_blocks(blocks: Iterable[bytes]) -> str:
    """The sha256 in hex of the concatenated blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def sha256_of_text(text: str) -> str:
    """The sha256 of a text's UTF-8 bytes in hex; lone surrogates are encoded too."""
    return sha256_of_blocks([text.encode("utf-8", "surrogatepass")])


def sha256_of_json(value: Any) -> str:
    """The sha256 of a JSON value in hex, independent of layout and key order."""
    return sha256_of_text(json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False))


# --- locks


class Lock:
    """An operating system lock on a file or folder; it ends with the process, so it is never stale.

    `acquire` returns whether the lock is held. Use the lock as a context manager to release it at the end of a block:

        with Lock(path) as lock:
            if lock.acquire(wait=False):
                ...
    """

    def __init__(self, path: str | Path, *, create: bool = False):
        """`create`: create the file if it does not exist; otherwise `path` must be an existing file or folder."""
        self.path, self._create = Path(path), create
        self._handle: int | None = None

    def acquire(self, *, shared: bool = False, wait: bool = True) -> bool:
        """Take the lock; returns False if another process holds it and `wait` is False.

        If the previous holder removed the file while this process waited, it is created and locked again.

        Raises NoLocks if the file system does not support locks, OSError if `path` cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT if self._create else os.O_RDONLY
        mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            handle = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, mode)
                if os.fstat(handle).st_ino == os.stat(self.path).st_ino:
                    self._handle = handle
                    return True
            except FileNotFoundError:
                if not self._create:
                    os.close(handle)
                    raise
            except OSError as error:
                os.close(handle)
                if error.errno in _BUSY:
                    return False
                raise NoLocks(error.errno, error.strerror, str(self.path)) from None
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
