"""How a run ends: one message, one exit code, and `status.json` in the output folder saying the same.

What is printed goes into `log.txt` there as well, see `fastchat.streams`. A run that is refused before its first step
writes neither and leaves no folder. What its processes have to tell each other goes over the `LIFELINE`.

`status.json`: {"exit_code": 0 | 2 | 3 | 4 | 5 | 6 | 75 | 1 | null, "status": "running" | "done" | "failed" | "bug",
"message": ..., "started": ..., "time": ..., "run": a random word}. Launchers hide exit codes (torchrun turns every one
into 1), the file does not. "done" with exit code 6 is a failed upload; a later one that succeeds makes it 0
(`fastchat.checkpoint.hub`).
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
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
    ResourceError,
    SettingsError,
    UserError,
    say,
    values_without_secrets,
    without_secrets,
)
from fastchat.files import Lock, NoLocks, atomic, sync
from fastchat.machines import here
from fastchat.streams import LOG, kept_output
from fastchat.train.ending import EXIT_BUG, LESS_MEMORY, describe, lost_another_process, lost_line
from fastchat.train.joining import MEETING
from fastchat.train.lifeline import LIFELINE, Ended
from fastchat.train.stopping import STOPPING, Preempted

_OTHERS_SPEAK_FIRST_S = 4.0
_LOST_S = 3.0  # in addition, for a connection that breaks before its process has said why, or is gone
_LAUNCHERS_SIGNAL_S = 1.0  # may come before the word of the process that failed
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
        self.claimed = False
        self.advise: Callable[[], str] = lambda: LESS_MEMORY  # a run that was planned knows better
        self._lock: Lock | None = None
        self.started = time.strftime(_TIME)
        self.run = os.urandom(8).hex()  # by which other machines recognise the folder

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

    def end(self, exit_code: int, status: str, message: str) -> None:
        """Tells the other processes, and records the end in a claimed folder; a disk that refuses must not hide the
        message on the screen. The first end of a run that failed is the one that stays recorded."""
        if exit_code != EXIT_DONE:
            LIFELINE.tell(exit_code, status, message)
        if not self.claimed:
            self._undo()
            return
        with suppress(OSError):
            recorded = not is_first_process() and self.folder and read_status(self.folder).get("exit_code") is not None
            if self.folder is not None and not recorded and not self._is_anothers():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / STATUS, self._content(exit_code, status, message))

    def _undo(self) -> None:
        """Removes the folders that this start has made: the Trainer makes an empty one."""
        for folder in self._missing:
            with suppress(OSError, ValueError):
                folder.rmdir()

    def _content(self, exit_code: int | None, status: str, message: str) -> dict[str, Any]:
        now = time.strftime(_TIME)
        end = {"exit_code": exit_code, "status": status, "message": message}
        return {**end, "started": self.started, "time": now, "run": self.run}

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

    Mostly all ranks meet the same error, and the first of each machine prints it. An error that only another rank meets
    (out of memory, a file that is gone) is printed by that rank after a short wait for the first one.
    """
    status = RunStatus(output_dir)
    try:
        return _attempt(body, status)
    finally:
        BARS.wanted = True
        EARLY.stop()
        STOPPING.close()
        LIFELINE.close()
        status.release()
        LOG.close()


def _attempt(body: Callable[[RunStatus], None], status: RunStatus) -> int:
    try:
        body(status)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the process must end with a code and a message
        STOPPING.deaf = True
        if isinstance(error, Preempted):
            # A launcher that clears up after a process that failed asks the others to stop: nobody else did.
            ended = LIFELINE.wait(_LAUNCHERS_SIGNAL_S) if not STOPPING.can_wait else LIFELINE.ended
            if ended is not None and ended.exit_code != EXIT_PREEMPTED:
                return _end_as(status, ended)
        elif lost_another_process(error):
            if (ended := LIFELINE.wait(_OTHERS_SPEAK_FIRST_S + _LOST_S)) is not None:
                return _end_as(status, ended)
        elif here().local_rank > 0 and (ended := _first_to_speak(error, status)) is not None:
            return _end_as(status, ended, error)
        code, kind, message = describe(error, status.advise, status.folder)
        message = without_secrets(message)
        if code == EXIT_DONE:
            return code
        if isinstance(error, Preempted):
            return _stopped(status, code, message)
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


def _first_to_speak(error: BaseException, status: RunStatus) -> Ended | None:
    """Mostly the first process of this machine meets the same error and says it: how it, or another one before, ended;
    None where none does."""
    STOPPING.failed_with = describe(error, status.advise, status.folder)[0]
    ended = LIFELINE.wait(_OTHERS_SPEAK_FIRST_S)
    STOPPING.failed_with = None
    return ended


def _end_as(status: RunStatus, ended: Ended, own: BaseException | None = None) -> int:
    """Ends as another process did, whose exit code is returned. What it has said is repeated once on every other
    machine; of one that did not say anything, it is said once on every machine. `own`: the error of this process."""
    mine, there = here(), ended.place
    same = mine.machine == there.machine
    message = ended.message or lost_line(ended, status.advise)
    if mine.local_rank == int(same and there.local_rank == 0) and not (same and ended.message):
        start = "stopped" if ended.status == "preempted" else "error"
        said = f"{there}: {message}" if ended.message else message
        _speak(f"{start}: {without_secrets(str(own)) if isinstance(own, UserError) else said}")
    if is_first_process() or not ended.message:
        status.end(ended.exit_code, ended.status, message)
    return ended.exit_code


def end_now(status: RunStatus, ended: Ended) -> None:
    """Ends this process as another did; called from a thread, since the main one may hang in a library. If that was
    asked to stop, nothing is done here where all processes stop at the same step."""
    if ended.exit_code == EXIT_PREEMPTED and STOPPING.can_wait:
        return
    # The output folder may be on the host that is gone.
    hurry = threading.Timer(_OTHERS_SPEAK_FIRST_S, os._exit, [ended.exit_code])
    hurry.daemon = True
    hurry.start()
    os._exit(_end_as(status, ended))


def _stopped(status: RunStatus, code: int, message: str) -> int:
    """A run that was asked to stop: one line, from the first process."""
    if is_first_process():
        print(f"stopped: {message}", file=sys.stderr, flush=True)
    if is_first_process() or LIFELINE.ended is None:
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
    else:
        MEETING.linger()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
