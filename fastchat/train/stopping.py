"""How a run stops before its end: a signal, a launcher that died, a process of the run that died.

A signal only leaves a note; the processes compare notes after every optimizer step, save the same step, and exit with
75. Where there is no step to wait for (before training) the note ends the process at once. A thread watches what no
signal tells: a launcher that is gone (SIGTERM to `deepspeed` leaves its ranks running) and a rank that was killed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastchat.errors import EXIT_PREEMPTED

POLL_S = 0.5
GRACE_S = 6.0  # for a process that met an error to print it, before the others say that it is gone
_LAUNCHERS = ("deepspeed", "torchrun", "accelerate")
_LAUNCHER_MODULES = ("deepspeed.", "torch.distributed.")


class Preempted(KeyboardInterrupt):
    """The run was asked to stop; what it had done is saved where there was anything to save.

    No Exception, so that a library in the middle of something cannot take it for an error of its own.
    """

    exit_code = EXIT_PREEMPTED


class Stopping:
    """The note of this process, who left it, and the watch over launcher and peers. One per process: `STOPPING`.

    reason: None, or why the run should stop. can_wait: whether a note may wait for the next step; else the signal
    raises Preempted at once.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.can_wait = False
        self.failed_with: int | None = None  # set while this process lets others speak: a signal then ends it with that
        self.deaf = False  # it has failed and is about to say so: a launcher that clears up must not cut it short
        self.peers: dict[int, int] = {}  # rank -> process id, of the ranks on this machine
        self._owner = 0
        self._on_dead_peer: Callable[[str], None] | None = None
        self._watching: threading.Thread | None = None

    def install(self) -> None:
        """Takes over SIGTERM, SIGINT and SIGHUP, and watches the launcher. For a training process's main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._owner = os.getpid()
        self.reason = None
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asks to live on when the terminal goes
            signal.signal(signal.SIGHUP, self._on_signal)
        self._watch(_launchers())

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._owner:  # a process forked by a library: it keeps running until this one has stopped
            return
        if self.failed_with is not None:  # the launcher clears up after the rank that has said what was wrong
            os._exit(self.failed_with)
        if self.deaf:
            return
        first = self.reason is None
        self.reason = self.reason or f"received {signal.Signals(number).name}"
        if not self.can_wait and first:
            raise Preempted(f"{self.reason} before the first step: nothing was saved")

    def know_peers(self, everyone: list[tuple[str, int]], on_dead_peer: Callable[[str], None]) -> None:
        """Watches the other ranks from now on: (host, process id) of each. `on_dead_peer(line)` must end the process:
        the main thread may be waiting for the dead one inside a library."""
        here = (socket.gethostname(), os.getpid())
        self.peers = {r: pid for r, (host, pid) in enumerate(everyone) if host == here[0] and pid != here[1]}
        self._on_dead_peer = on_dead_peer

    def pass_on(self) -> None:
        """Stops the other ranks of this machine too: before the first step there is no moment at which all compare."""
        for pid in self.peers.values():
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)

    def close(self) -> None:
        """The work of all is done: the others may end now."""
        self.peers = {}
        self.can_wait, self.deaf = True, False

    def dead_peers(self, patience_s: float = 0.0) -> str:
        """Names the ranks of this machine that are gone, such as "rank 1 (process 4242)"; "" where none is.

        A connection breaks before its process is gone: with `patience_s` it gets that long to go.
        """
        until = time.monotonic() + patience_s
        while True:
            gone = [f"rank {rank} (process {pid})" for rank, pid in sorted(self.peers.items()) if not _alive(pid)]
            if gone or not self.peers or time.monotonic() >= until:
                return ", ".join(gone)
            time.sleep(0.1)

    def _watch(self, launchers: dict[int, str]) -> None:
        if self._watching is None:
            self._watching = threading.Thread(target=self._look, args=(launchers,), daemon=True, name="stopping")
            self._watching.start()

    def _look(self, launchers: dict[int, str]) -> None:
        owner, since = self._owner, 0.0
        while os.getpid() == owner:
            time.sleep(POLL_S)
            ended = next((pid for pid, born in launchers.items() if _born(pid) != born), None)
            if ended is not None:
                launchers = {}
                self.reason = self.reason or f"the launcher (process {ended}) ended"
                os.kill(owner, signal.SIGTERM)
            gone = self.dead_peers()
            since = (since or time.monotonic()) if gone else 0.0
            if gone and time.monotonic() - since > GRACE_S and self._on_dead_peer:
                self._on_dead_peer(gone)
                return


STOPPING = Stopping()


def _launchers() -> dict[int, str]:
    """{process id: when it was born} of the launchers above this process, nearest first; empty without a launcher."""
    found: dict[int, str] = {}
    if "RANK" not in os.environ or not sys.platform.startswith("linux"):
        return found
    pid = os.getppid()
    while pid > 1 and _is_launcher(pid):
        found[pid] = _born(pid)
        pid = int(_stat(pid)[1] or 0)
    return found


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    if any(os.path.basename(word) in _LAUNCHERS for word in words[:2]):
        return True
    return any(
        word == "-m" and after.startswith(_LAUNCHER_MODULES) for word, after in zip(words, words[1:], strict=False)
    )


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks: a number that is used again is another process. "" when gone."""
    fields = _stat(pid)
    return "" if not fields or fields[0] in "ZX" else fields[19]


def _alive(pid: int) -> bool:
    if sys.platform.startswith("linux"):
        return bool(_born(pid))
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (state, parent, ...); empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
