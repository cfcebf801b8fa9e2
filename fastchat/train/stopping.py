"""How a run stops before its end: a signal, or a launcher that died. For other processes that end see `lifeline`.

A signal only leaves a note; the processes compare notes after every optimizer step, save the same step, and exit with
75. Where there is no step to wait for (before training) the note ends the process at once. A thread watches what no
signal tells: a launcher that is gone (SIGTERM to `deepspeed` leaves its ranks running). The only process that is ever
sent a signal is this one itself: another's number may be used again, or be that of another container.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fastchat.errors import EXIT_PREEMPTED

POLL_S = 0.5
_LAUNCHERS = ("deepspeed", "torchrun", "accelerate")
_LAUNCHER_MODULES = ("deepspeed.", "torch.distributed.")


class Preempted(KeyboardInterrupt):
    """The run was asked to stop; what it had done is saved where there was anything to save.

    No Exception, so that a library in the middle of something cannot take it for an error of its own.
    """

    exit_code = EXIT_PREEMPTED


class Stopping:
    """The note of this process, who left it, and the watch over the launcher. One per process: `STOPPING`.

    reason: None, or why the run should stop. can_wait: whether a note may wait for the next step; else the signal
    raises Preempted at once.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.can_wait = False
        self.failed_with: int | None = None  # set while this process lets others speak: a signal then ends it with that
        self.deaf = False  # it has failed and is about to say so: a launcher that clears up must not cut it short
        self._owner = 0
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

    def follow(self) -> None:
        """Another process of the run was asked to stop: so is this one, if there is no step at which all compare."""
        if not self.can_wait:
            os.kill(self._owner or os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """The work of all is done."""
        self.can_wait, self.deaf = True, False

    def _watch(self, launchers: dict[int, str]) -> None:
        if launchers and self._watching is None:
            self._watching = threading.Thread(target=self._look, args=(launchers,), daemon=True, name="stopping")
            self._watching.start()

    def _look(self, launchers: dict[int, str]) -> None:
        owner = self._owner
        while os.getpid() == owner:
            time.sleep(POLL_S)
            ended = next((pid for pid, born in launchers.items() if _born(pid) != born), None)
            if ended is not None:
                launchers = {}
                self.reason = self.reason or f"the launcher (process {ended}) ended"
                os.kill(owner, signal.SIGTERM)
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


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (state, parent, ...); empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
