"""How a run ends: one message, one exit code, and `status.json` in the output folder saying the same.

What is printed goes into `log.txt` there as well, see `fastchat.streams`. A run that is refused before its first step
writes neither and leaves no folder; what its processes have to tell each other then is in an `EndNote`.

`status.json`: {"exit_code": 0 | 2 | 3 | 4 | 5 | 6 | 75 | 1 | null, "status": "running" | "done" | "failed" | "bug",
"message": ..., "started": ..., "time": ...}. Launchers hide exit codes (torchrun turns every one into 1), the file
does not. "done" with exit code 6 is a failed upload; a later one that succeeds makes it 0 (`fastchat.checkpoint.hub`).
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fastchat.bars import BARS
from fastchat.checkpoint.record import STATUS_NAME as STATUS
from fastchat.checkpoint.record import read_status
from fastchat.checkpoint.space import FULL
from fastchat.checkpoint.staging import remove
from fastchat.data.tokens.early import EARLY
from fastchat.errors import (
    EXIT_DONE,
    EXIT_PREEMPTED,
    EXIT_RESOURCE,
    ResourceError,
    SettingsError,
    UserError,
    say,
    values_without_secrets,
    without_secrets,
)
from fastchat.files import Lock, NoLocks, atomic, sync
from fastchat.streams import LOG, kept_output
from fastchat.train.end_note import EndNote
from fastchat.train.ending import EXIT_BUG, LESS_MEMORY, describe, lost_another_process, lost_line
from fastchat.train.stopping import STOPPING, Preempted

_OTHERS_SPEAK_FIRST_S = 4.0
_TIME = "%Y-%m-%dT%H:%M:%S%z"
_RESULTS = ("adapter_model.safetensors", "adapter_config.json", "training.json", "model.safetensors.index.json")
_RESULT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "checkpoint-*")


class RunStatus:
    """Keeps `status.json` of one run, and the rule that a refused start leaves everything as it was.

    `claim` is called once every check has passed; from then on the folder is this run's. Before it, nothing is written
    there, and folders that the start has made are removed again.
    """

    def __init__(self, output_dir: str | Path | None = None) -> None:
        known = output_dir and not os.path.expanduser(output_dir).startswith("~")  # else the settings are refused
        self.folder = Path(output_dir).expanduser() if output_dir and known else None
        self._missing = _missing_folders(self.folder) if self.folder is not None else []
        self._note = EndNote(self.folder) if self.folder is not None else None
        self.claimed = False
        self.advise: Callable[[], str] = lambda: LESS_MEMORY  # a run that was planned knows better
        self._lock: Lock | None = None
        self.started = time.strftime(_TIME)

    def lock(self, output_dir: str | Path) -> None:
        """Keeps other runs out of an existing folder, until the end. SettingsError where one is in there."""
        folder = Path(output_dir).expanduser()
        if is_first_process() and self._lock is None and folder.is_dir():
            lock = Lock(folder)
            try:
                free = lock.acquire(wait=False)
            except NoLocks:
                free = True
                say(f"{folder} is on a file system without locks: nothing keeps a second run from writing there")
            except OSError as error:
                raise SettingsError(f"--output_dir {folder} cannot be read: {error.strerror}") from None
            if not free:
                self.folder = None  # another run's: not even a status is written there
                raise SettingsError(
                    f"--output_dir {folder} is in use by another run; wait for it, end it, or name another folder"
                )
            self._lock = lock

    def release(self) -> None:
        """Lets other runs into the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def claim(self, output_dir: str | Path) -> None:
        """Makes the folder and marks it as running. SettingsError where it cannot be written."""
        self.folder = Path(output_dir).expanduser()
        try:
            if is_first_process():
                self.folder.mkdir(parents=True, exist_ok=True)
                self.lock(self.folder)
                write_json(self.folder / STATUS, self._content(None, "running", ""))
        except OSError as error:
            if error.errno in FULL:
                raise ResourceError(f"--output_dir {self.folder}: the disk is full") from None
            raise SettingsError(f"--output_dir {self.folder} cannot be written: {error.strerror}") from None
        self.claimed = True
        if self._note is not None and is_first_process():
            self._note.forget()
        LOG.open(self.folder)

    def hold(self) -> None:
        """Before something is saved: the folder is there and still this run's. For the first process.

        One that was deleted or moved away is made again, and that is said: what was trained is worth more.
        ResourceError where it cannot be, or where another run has put its own in its place.
        """
        if not self.claimed or self.folder is None:
            return
        folder = self.folder
        if self._is_anothers():
            self.folder = None
            LOG.close()
            raise ResourceError(
                f"--output_dir {folder} was deleted or moved away, and another run has started there: nothing more is "
                "written into it. Give each run a folder of its own"
            )
        if (folder / STATUS).exists():
            return
        self.release()
        try:
            self.claim(folder)
        except UserError as error:
            raise ResourceError(f"--output_dir {folder} was deleted while the run used it ({error})") from None
        say(
            f"WARNING: --output_dir {folder} was deleted, emptied or moved away while the run used it: it is made "
            "again, and what is saved from now on goes there"
        )

    def _is_anothers(self) -> bool:
        """Whether another run has claimed the folder since."""
        started = read_status(self.folder_or_fail).get("started", self.started)
        return self.claimed and is_first_process() and started != self.started

    def may_record(self) -> bool:
        """Whether a process of this run that ends now can tell the others why."""
        return self.folder is not None and (self.claimed or self._note is not None and self._note.has_readers)

    def end(self, exit_code: int, status: str, message: str) -> None:
        """Records the end where that is allowed; a disk that refuses must not hide the message on the screen."""
        if not self.claimed:
            self._undo()
        with suppress(OSError):
            if not self.may_record() or self._is_anothers():
                return
            content = self._content(exit_code, status, message)
            if self.claimed:
                self.folder_or_fail.mkdir(parents=True, exist_ok=True)
                write_json(self.folder_or_fail / STATUS, content)
            elif self._note is not None and exit_code != EXIT_DONE:
                self._note.leave(content)

    def _undo(self) -> None:
        """Removes the folders that this start has made: the Trainer makes an empty one."""
        for folder in self._missing:
            with suppress(OSError, ValueError):
                folder.rmdir()

    def ended_by_another(self) -> int | None:
        """The exit code that another process of this run has recorded already."""
        if self.folder is None:
            return None
        found = read_status(self.folder) if self.claimed else self._note.read() if self._note is not None else {}
        return found["exit_code"] if found.get("exit_code") and found.get("time", "") >= self.started else None

    def _content(self, exit_code: int | None, status: str, message: str) -> dict[str, Any]:
        now = time.strftime(_TIME)
        return {"exit_code": exit_code, "status": status, "message": message, "started": self.started, "time": now}

    @property
    def folder_or_fail(self) -> Path:
        assert self.folder is not None, "no output folder yet"
        return self.folder


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, without secrets, so that a reader sees the old one or the new one, never half of it.

    On a full disk it is written over the old one, whose place on the disk it has already.
    """
    text = json.dumps(values_without_secrets(content), indent=1, ensure_ascii=False) + "\n"
    data = text.encode("utf-8", "backslashreplace")  # half a surrogate pair, of a path that is not UTF-8
    try:
        with atomic(path, "wb") as file:
            file.write(data)
    except OSError as error:
        if error.errno not in FULL or not path.is_file():
            raise
        with open(path, "r+b") as file:
            file.write(data)
            file.truncate()
        sync(path)


def _missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]


def check_output_dir(output_dir: str | Path, *, overwrite: bool) -> None:
    """SettingsError where the folder holds a result or checkpoints and replacing them was not asked for."""
    found = existing_results(Path(output_dir).expanduser())
    if found and not overwrite:
        checkpoints = [path.name for path in found if path.name.startswith("checkpoint-")]
        what = f"checkpoints ({', '.join(checkpoints[:3])})" if checkpoints else f"a result ({found[0].name})"
        way_out = "" if checkpoints else ", or pass --overwrite_output_dir to replace it"
        raise SettingsError(f"--output_dir {output_dir} already holds {what}; name another folder{way_out}")


def existing_results(folder: Path) -> list[Path]:
    """Files and checkpoint folders of a finished or interrupted run, sorted by name."""
    if not folder.is_dir():
        return []
    found = {folder / name for name in _RESULTS if (folder / name).exists()}
    for pattern in _RESULT_PATTERNS:
        found.update(folder.glob(pattern))
    return sorted(found)


def clear_results(folder: Path) -> None:
    """Removes an earlier run's result and checkpoints, so that what lies there later is this run's alone."""
    for path in existing_results(folder):
        if path.is_dir():
            remove(path)
        else:
            path.unlink()


def is_first_process() -> bool:
    """Whether this is global rank 0 (also true without a launcher)."""
    return os.environ.get("RANK", "0") == "0"


def run_main(body: Callable[[RunStatus], None], output_dir: str | None) -> NoReturn:
    """Runs `body` and ends the process with the right code. Every rank exits with the code; one of them speaks."""
    sys.argv[1:] = [without_secrets(word) for word in sys.argv[1:]]  # wandb writes them into a file
    with kept_output():
        STOPPING.install()
        _leave(attempt(body, output_dir))


@kept_output()
def attempt(body: Callable[[RunStatus], None], output_dir: str | None) -> int:
    """Runs `body`, says how it ended on stderr and in `status.json`, and returns the exit code.

    Mostly all ranks meet the same error, rank 0 prints it, and the launcher ends the others while they wait. An error
    that only another rank meets (out of memory, a file missing on its machine) is printed by that rank after the wait.
    """
    status = RunStatus(output_dir)
    try:
        return _attempt(body, status)
    finally:
        BARS.wanted = True
        EARLY.stop()
        STOPPING.close()
        status.release()
        LOG.close()


def _attempt(body: Callable[[RunStatus], None], status: RunStatus) -> int:
    try:
        body(status)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the process must end with a code and a message
        STOPPING.deaf = True
        code, kind, message = describe(error, status.advise, status.folder)
        message = without_secrets(message)
        if code == EXIT_DONE:
            return code
        if isinstance(error, Preempted):
            theirs = status.ended_by_another()
            if theirs is not None and theirs != EXIT_PREEMPTED:
                return theirs  # the launcher clears up after the process that failed and has said why
            dead = _killed(status)
            if not dead:
                return _stopped(status, code, message)
            # The launcher clears up after one that was killed: nobody asked this run to stop.
            code, kind, message = EXIT_RESOURCE, "failed", lost_line(dead, status.advise)
        elif lost_another_process(error):
            if (theirs := _wait_for_word(status)) is not None:
                return theirs
        elif not is_first_process():
            STOPPING.failed_with = code
            time.sleep(_OTHERS_SPEAK_FIRST_S)
            STOPPING.failed_with = None
        if code == EXIT_BUG:
            _speak(without_secrets("".join(traceback.format_exception(error))).rstrip("\n"))
        rank = "" if is_first_process() else f"[rank {os.environ['RANK']}] "
        _speak(f"{rank}error: {message}")
        status.end(code, kind, message)
        return code
    if is_first_process():
        status.end(EXIT_DONE, "done", "")
    return EXIT_DONE


def _speak(text: str) -> None:
    """What any process may have to say: on stderr and in the log, into which all else comes from the first alone."""
    print(text, file=sys.stderr, flush=True)
    if not is_first_process():
        LOG.line(text)


def _killed(status: RunStatus) -> str:
    """Names the processes that are gone without having said that they were asked to stop; "" where none is known."""
    if STOPPING.can_wait or not status.may_record() or status.ended_by_another() is not None:
        return ""
    return STOPPING.dead_peers()


def _wait_for_word(status: RunStatus) -> int | None:
    """The exit code that the process which failed has recorded, as soon as it has; None where it does not."""
    until = time.monotonic() + _OTHERS_SPEAK_FIRST_S
    while (theirs := status.ended_by_another()) is None and time.monotonic() < until:
        time.sleep(0.1)
    return theirs


def end_with_dead_peer(status: RunStatus, dead: str) -> NoReturn:
    """Ends this process because another is gone; called from a thread, while the main one may hang in a library."""
    code = status.ended_by_another()
    if code is None:
        code = EXIT_RESOURCE
        line = lost_line(dead, status.advise)
        _speak(f"error: {line}")
        status.end(code, "failed", line)
    os._exit(code)


def _stopped(status: RunStatus, code: int, message: str) -> int:
    """A run that was asked to stop: one line, from the first process."""
    if not STOPPING.can_wait:
        STOPPING.pass_on()
    if is_first_process():
        print(f"stopped: {message}", file=sys.stderr, flush=True)
        status.end(code, "preempted", message)
    elif status.ended_by_another() is None:
        status.end(code, "preempted", message)
    return code


def _leave(code: int) -> NoReturn:
    """Ends the process at once, after what libraries registered for the end of a good run.

    An orderly exit tears down the threads of the process group and of DeepSpeed's optimizer in no fixed order, and was
    seen to abort although the result was complete; after an error it would wait for the other processes.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader would make an error of a worker's death
    for worker in multiprocessing.active_children():  # a loader's; those do not mind other signals
        worker.kill()
    if code == EXIT_DONE:
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
