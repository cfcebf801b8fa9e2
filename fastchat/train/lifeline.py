"""A connection from every process of a run to rank 0: what ends one process is known to all, on whatever machine.

    a process fails         it sends why; rank 0 passes that on; every other process ends with the same exit code
    a process is killed     its connection closes without a word
    a machine goes silent   the kernel of the other end finds no answer to its probes (TCP keepalive) for SILENT_S

The kernel answers the probes: a process that computes, or waits in a library, is never taken for a silent one. All
processes are connected to rank 0 only, so the network may be of any shape in which rank 0 can be reached.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastchat.errors import EXIT_PREEMPTED, EXIT_RESOURCE
from fastchat.files import parse_json
from fastchat.machines import Place

SILENT_S = 60  # without any answer of a machine: long enough for a switch to start again, well below two minutes
GRACE_S = 6.0  # for a process that learns of another's end to end by itself, before it is ended
_CONNECT_S = 20.0
_LONGEST = 1 << 20  # bytes of a line
_SILENT = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)


@dataclass(frozen=True)
class Ended:
    """How a process of the run ended. `message` is empty if it did not say why; `silent`: its machine does not answer.

    exit_code: its own; that of lost resources if it did not say it.
    """

    place: Place
    exit_code: int = EXIT_RESOURCE
    status: str = "failed"
    message: str = ""
    silent: bool = False

    @property
    def told(self) -> bool:
        return bool(self.message)


class Lifeline:
    """The connection of this process, or at rank 0 those of all. One per process: `LIFELINE`.

    ended: the first process that is known to have ended before the work was done, None as long as there is none; it
    is never replaced. Before `open`, and in a run of one process, nothing is known and nothing is sent.
    """

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forked)

    def _forget(self) -> None:
        self.ended: Ended | None = None
        self._mine: Place | None = None  # known from `listen` or `connect` on
        self._lock = threading.RLock()
        self._lines: dict[socket.socket, Place] = {}
        self._server: socket.socket | None = None
        self._secret = ""
        self._done: set[int] = set()  # ranks whose end was announced
        self._closed = False
        self._react: Callable[[Ended], None] | None = None
        self._stop: Callable[[], None] | None = None

    # ---- opening ----

    def listen(self, mine: Place) -> tuple[int, str]:
        """At rank 0: returns (port, secret) for the others, who may connect from now on."""
        self._forget()
        self._mine, self._secret = mine, os.urandom(16).hex()
        self._server = socket.create_server(("", 0), backlog=4096)
        _in_thread(self._accept, self._server)
        return self._server.getsockname()[1], self._secret

    def connect(self, mine: Place, addresses: Iterable[str], port: int, secret: str) -> bool:
        """In every other process; False if rank 0 cannot be reached under any of these addresses."""
        self._forget()
        for address in addresses:
            with suppress(OSError, ValueError, KeyError, TypeError, StopIteration):
                line = socket.create_connection((address, port), timeout=_CONNECT_S)
                line.sendall(_packed({"secret": secret, "place": mine.to_dict()}))
                texts = _lines_of(line)
                first = Place(**parse_json(next(texts))["place"])
                _probe(line)
                self._mine, self._lines = mine, {line: first}
                _in_thread(self._listen, line, texts)
                return True
        return False

    def watch(self, react: Callable[[Ended], None], stop: Callable[[], None]) -> None:
        """What happens when another process has ended before its work was done. Both are called in a thread.

        `react(ended)`, after GRACE_S, must end this process: its main thread may wait in a library for the one that is
        gone. `stop()`, at once, if the other one was asked to stop.
        """
        self._react, self._stop = react, stop

    # ---- what this process says ----

    def tell(self, exit_code: int, status: str, message: str) -> None:
        """Why this process ends, to all others; unless an earlier end is known."""
        if self._mine is not None and not self._closed and self.ended is None:
            self._send(_described(Ended(self._mine, exit_code, status, message or status)))

    def close(self) -> None:
        """The work of this process is done: its end is of no interest to the others, nor theirs to it."""
        if self._mine is not None and not self._closed:
            self._send({"place": self._mine.to_dict(), "done": True})
        self._closed = True

    def wait(self, seconds: float) -> Ended | None:
        """The first end that is known, waiting for so long for one to be known."""
        until = time.monotonic() + seconds
        while self.ended is None and time.monotonic() < until:
            time.sleep(0.05)
        return self.ended

    def _send(self, content: dict[str, Any]) -> None:
        """To rank 0; at rank 0, to all."""
        with self._lock:
            for line in self._lines:
                with suppress(OSError):
                    line.sendall(_packed(content))

    # ---- what it hears ----

    def _accept(self, server: socket.socket) -> None:
        """At rank 0: a thread for each of the others."""
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            _in_thread(self._admit, line)

    def _admit(self, line: socket.socket) -> None:
        try:
            line.settimeout(_CONNECT_S)
            texts = _lines_of(line)
            hello = parse_json(next(texts))
            place = Place(**hello["place"])
            if hello["secret"] != self._secret or self._mine is None:
                raise ValueError("not of this run")
            _probe(line)
            with self._lock:
                line.sendall(_packed({"place": self._mine.to_dict()}))
                self._lines[line] = place
                if self.ended is not None:
                    line.sendall(_packed(_described(self.ended)))
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            line.close()
            return
        self._listen(line, texts)

    def _listen(self, line: socket.socket, texts: Iterator[bytes]) -> None:
        """Until the process at the other end is gone."""
        silent = False
        try:
            for text in texts:
                if line in self._lines:  # else it is of an earlier run of this process
                    self._hear(parse_json(text))
        except OSError as error:
            silent = error.errno in _SILENT
        except (ValueError, KeyError, TypeError):
            pass
        with self._lock:
            place = self._lines.pop(line, None)
        line.close()
        if place is not None and place.rank not in self._done and not self._closed:
            self._first(Ended(place, silent=silent))

    def _hear(self, content: dict[str, Any]) -> None:
        place = Place(**content["place"])
        self._done.add(place.rank)
        if "ended" in content:
            self._first(Ended(place, **content["ended"]))

    def _first(self, ended: Ended) -> None:
        """Keeps the first end; rank 0 passes it on."""
        self._done.add(ended.place.rank)
        with self._lock:
            if self.ended is not None or ended.place == self._mine:  # rank 0 passes it on to all
                return
            self.ended = ended
            if self._server is not None:
                self._send(_described(ended))
        if ended.exit_code == EXIT_PREEMPTED and self._stop is not None:
            self._stop()
        _in_thread(self._let_react, ended)

    def _let_react(self, ended: Ended) -> None:
        time.sleep(GRACE_S)
        while self._react is None and self.ended is ended:
            time.sleep(0.5)
        if self._react is not None and self.ended is ended and not self._closed:  # a later run of this process goes on
            self._react(ended)

    def _forked(self) -> None:
        """In a child process, such as a data loader's worker: it must not keep the connections of its parent open."""
        for line in (*self._lines, *filter(None, [self._server])):
            with suppress(OSError):
                os.close(line.detach())
        self._forget()


LIFELINE = Lifeline()


def _described(ended: Ended) -> dict[str, Any]:
    more = {"exit_code": ended.exit_code, "status": ended.status, "message": ended.message, "silent": ended.silent}
    return {"place": ended.place.to_dict(), "ended": more}


def _packed(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _lines_of(line: socket.socket) -> Iterator[bytes]:
    """What arrives, until the other end closes. Raises OSError, and ValueError for a line that does not end."""
    rest = b""
    while data := line.recv(1 << 16):
        *texts, rest = (rest + data).split(b"\n")
        if len(rest) > _LONGEST:
            raise ValueError("a line without an end")
        yield from texts


def _in_thread(work: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=work, args=args, daemon=True, name="lifeline").start()


def _probe(line: socket.socket) -> None:
    """Lets the kernel find out when the other machine does not answer any more; reading has no limit of its own."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    third = SILENT_S // 3
    for name, value in (
        ("TCP_KEEPIDLE", third),
        ("TCP_KEEPINTVL", third // 4),
        ("TCP_KEEPCNT", 8),
        ("TCP_USER_TIMEOUT", SILENT_S * 1000),
    ):
        with suppress(OSError, AttributeError):  # systems other than Linux have some of them
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
