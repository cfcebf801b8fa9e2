"""The output of a command: a reader that goes away never ends the command, and a training run logs its lines to a file.

    with kept_output():                  # every command, around all of its work
        LOG.open(Path("out"))            # a training run, as soon as it has locked its folder
        say("...")                       # on the screen and in out/log.txt

`2>&1 | head`, a `tee` that died, a closed terminal, a full disk under a redirected log: the command continues.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastchat.errors import say, without_secrets

LOG_NAME = "log.txt"
_MOST_WAITING = 10_000  # lines
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ESTALE)


class Log:
    """The lines of a run, without secrets. Until `open` they are kept in memory; a failed write is tried again with the
    next line. Of a progress bar only its last state is logged. One per process: `LOG`."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._partial = ""
        self._path: Path | None = None
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._forked)

    def open(self, folder: Path) -> None:
        """Append all further lines to `folder`/log.txt, and the lines printed so far. A process other than rank 0 logs
        only the lines passed to `line`."""
        self._path = folder / LOG_NAME
        self._flush()

    def close(self) -> None:
        """Stop logging: the run has ended, or no longer owns the folder."""
        with self._lock:
            if self._partial:
                self.line(self._partial)
            self._path, self._partial = None, ""
            self._waiting.clear()

    def add(self, text: str) -> None:
        """Add printed text, in pieces of any size."""
        if os.environ.get("RANK", "0") != "0":
            return
        with self._lock:
            *lines, partial = (self._partial + text).split("\n")
            for line in lines:
                self.line(_last_drawn(line))
            self._partial = _last_drawn(partial) + "\r" * partial.endswith("\r")

    def line(self, text: str) -> None:
        """Add one line."""
        with self._lock:
            self._waiting.append(without_secrets(text.rstrip("\r\n") + "\n").encode("utf-8", "backslashreplace"))
            self._flush()

    def _flush(self) -> None:
        if self._path is None:
            return
        with self._lock, suppress(OSError):
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                while self._waiting:
                    written = os.write(handle, self._waiting[0])
                    left = self._waiting.popleft()[written:]
                    if left:
                        self._waiting.appendleft(left)
            finally:
                os.close(handle)

    def _forked(self) -> None:
        """In a child process, such as a data loader worker: the waiting lines are written by the parent."""
        self._lock = threading.RLock()
        self._waiting.clear()
        self._partial = ""


LOG = Log()


class Details:
    """Whether `detail` prints. One per process: `DETAILS`; `--log_level info` and `debug` switch it on."""

    shown = False


DETAILS = Details()


def detail(line: str) -> None:
    """A line for experts, such as a proof: in the log of a run; on the screen with `--log_level info` or `debug`."""
    if DETAILS.shown:
        say(line)
    elif os.environ.get("RANK", "0") == "0":
        LOG.line(line)


class _Kept:
    """A wrapped stream on which writes never fail and are copied to `LOG`."""

    def __init__(self, under: Any) -> None:
        self._under = under

    def __getattr__(self, name: str) -> Any:
        return getattr(self._under, name)

    def write(self, text: str) -> int:
        LOG.add(text)
        self._attempt(lambda: self._put(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._attempt(self._under.flush)

    def _put(self, text: str) -> None:
        try:
            self._under.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._under, "encoding", None) or "ascii"
            self._under.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _attempt(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except OSError as error:
            if error.errno in _GONE:
                self._forget()
        except ValueError:  # it was closed
            pass

    def _forget(self) -> None:
        """The reader is gone: libraries and child processes that write to the stream directly must not fail either."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._under.fileno())
            os.close(nowhere)
        with suppress(OSError, ValueError):
            self._under.flush()


@contextmanager
def kept_output() -> Iterator[None]:
    """Inside this block, printing never ends the process, not even from a library. May be nested; the log begins and
    ends with the outermost block, so that no line of what the process did before or does later is in it."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stderr, _Kept):
        yield
        return
    LOG.close()
    _fill_closed()
    sys.stdout, sys.stderr = (_Kept(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
        LOG.close()


def _fill_closed() -> None:
    """Open the standard streams that were closed at the start (`2>&-`): otherwise the next opened file, such as a
    checkpoint, would become stderr."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _last_drawn(line: str) -> str:
    """The visible part of a line that was overwritten with carriage returns."""
    return line if "\r" not in line else line.rstrip("\r").rpartition("\r")[2]


def quiet_libraries() -> None:
    """No usage statistics or crash reports leave the machine, unless the user's environment says otherwise; and no
    warnings about which a user can do nothing. Called before the libraries are imported."""
    for name, value in (
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("WANDB_ERROR_REPORTING", "false"),
        ("WANDB_SILENT", "true"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("GRADIO_ANALYTICS_ENABLED", "False"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ):
        os.environ.setdefault(name, value)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|peft|accelerate|torch|deepspeed)\b"
    )
    # It says at every start on a CPU that there is no GPU, which our own line says already.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to" not in record.getMessage())
    # It announces an optional CPU kernel that is not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
