"""How a run ends: exit codes, one message, and nothing written over."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import (
    CheckpointError,
    DataError,
    NumericError,
    PeerFailed,
    ResourceError,
    SettingsError,
    is_out_of_memory,
)
from fastchat.machines import Place, here
from fastchat.train.ending import lost_another_process
from fastchat.train.lifeline import LIFELINE, Lifeline
from fastchat.train.status import RunStatus, attempt, check_output_dir, clear_results
from fastchat.train.stopping import STOPPING, Preempted


def _raise(error: BaseException) -> Callable[[RunStatus], None]:
    def body(status: RunStatus) -> None:
        raise error

    return body


def _status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text(encoding="utf-8"))


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SettingsError("wrong flag"), 2, "error: wrong flag"),
        (DataError("bad row"), 3, "error: bad row"),
        (NumericError("NaN"), 4, "error: NaN"),
        (CheckpointError("torn"), 5, "error: torn"),
        (ResourceError("no compiler"), 6, "error: no compiler"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 6, "lower --per_device_train_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 6, "--gradient_checkpointing True"),
        (MemoryError(), 6, "lower --per_device_train_batch_size"),
        (OSError(28, "No space left on device", "/x/y"), 6, "the disk is full: /x/y"),
        (KeyboardInterrupt(), 75, "interrupted"),
        (RuntimeError("our own mistake"), 1, "our own mistake (this is a bug"),
    ],
)
def test_every_end_has_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert attempt(_raise(error), str(tmp_path / "out")) == code
    err = capsys.readouterr().err
    assert said in err
    assert ("Traceback" in err) == (code == 1), "tracebacks are for our own mistakes only"
    assert os.listdir(tmp_path) == [], "a refused start leaves no folder"

    def claimed(status: RunStatus) -> None:
        status.claim(tmp_path / "out")
        raise error

    assert attempt(claimed, str(tmp_path / "out")) == code
    status = _status(tmp_path / "out")
    assert status["exit_code"] == code and status["status"] == {1: "bug", 75: "preempted"}.get(code, "failed")
    assert said.removeprefix("error: ") in status["message"]


def test_a_good_run_is_done(tmp_path: Path) -> None:
    def body(status: RunStatus) -> None:
        status.claim(tmp_path / "out")
        assert _status(tmp_path / "out")["status"] == "running" and _status(tmp_path / "out")["exit_code"] is None

    assert attempt(body, None) == 0
    told = _status(tmp_path / "out")
    assert {told.pop(name) for name in ("started", "time", "run")}
    assert told == {"exit_code": 0, "status": "done", "message": ""}


def _snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.mark.parametrize(
    "files", [[], ["notes.txt"], ["status.json"], ["adapter_model.safetensors", "status.json", "log.txt"]]
)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_refused_start_touches_nothing_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], processes: str
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", processes)
    for name in files:
        (tmp_path / name).write_text('{"status": "failed", "exit_code": 3}')
    before = _snapshot(tmp_path)
    assert attempt(_raise(SettingsError("no")), str(tmp_path)) == 2
    assert _snapshot(tmp_path) == before and tmp_path.is_dir()


def test_folders_that_a_refused_start_has_made_go_and_others_stay(tmp_path: Path) -> None:
    """The Trainer makes the output folder before the last checks."""
    (tmp_path / "mine").mkdir()

    def body(status: RunStatus) -> None:
        (tmp_path / "mine" / "new" / "out").mkdir(parents=True)
        raise ResourceError("no compiler")

    assert attempt(body, str(tmp_path / "mine" / "new" / "out")) == 6
    assert (tmp_path / "mine").is_dir() and os.listdir(tmp_path / "mine") == []

    def filled(status: RunStatus) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").write_text("by somebody, meanwhile")
        raise ResourceError("no compiler")

    assert attempt(filled, str(tmp_path / "other")) == 6 and (tmp_path / "other" / "notes.txt").is_file()


def test_an_output_folder_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert attempt(_raise(SettingsError("no")), str(tmp_path / "out")) == 2
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model-00001-of-00002.safetensors", "training.json"])
def test_an_existing_result_is_refused_and_replaced_only_on_request(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(SettingsError, match="--overwrite_output_dir"):
        check_output_dir(tmp_path, overwrite=False)
    check_output_dir(tmp_path, overwrite=True)


def test_one_run_per_folder(tmp_path: Path) -> None:
    first, second = RunStatus(tmp_path), RunStatus(tmp_path)
    first.lock(tmp_path)
    with pytest.raises(SettingsError, match="in use by another run"):
        second.lock(tmp_path)
    assert second.folder is None, "not even a status is written there"
    first.release()
    second.lock(tmp_path)
    second.release()
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    status = RunStatus(tmp_path)
    status.lock(tmp_path)
    status.lock(tmp_path)
    assert capsys.readouterr().err.count("on a file system without locks") == 1 and status.folder == tmp_path
    status.release()


def test_clearing_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    clear_results(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    check_output_dir(tmp_path, overwrite=False)
    check_output_dir(tmp_path / "new", overwrite=False)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        RunStatus().claim(tmp_path / "file" / "out")


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_folder_without_the_right_to_use_it_is_named(tmp_path: Path, mode: int) -> None:
    """Played by another user where the tests run as root, whom no mode keeps out."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(mode)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                for folder in (tmp_path, *tmp_path.parents[:3]):
                    if folder != Path("/tmp"):
                        folder.chmod(0o711)
                os.seteuid(65534)
            status = RunStatus()
            try:
                status.lock(tmp_path / "out")
                status.claim(tmp_path / "out")
            except SettingsError as error:
                os._exit(0 if f"--output_dir {tmp_path / 'out'} cannot be" in str(error) else 3)
            os._exit(4)
        finally:
            os._exit(5)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (tmp_path / "out").chmod(0o700)
    assert code == 0 and os.listdir(tmp_path / "out") == []


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lifeline]:
    """This is rank 0 of a run of two processes; gives the end of the other one, rank 1 on the same machine."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("fastchat.train.status._OTHERS_SPEAK_FIRST_S", 1.0)
    monkeypatch.setattr("fastchat.train.status._LOST_S", 1.0)
    monkeypatch.setattr("fastchat.train.status._LAUNCHERS_SIGNAL_S", 60.0)
    other = Lifeline()
    port, secret = LIFELINE.listen(here())
    assert other.connect(replace(here(), rank=1, local_rank=1, pid=4242), ["127.0.0.1"], port, secret)
    yield other
    other.close()
    LIFELINE.close()
    LIFELINE._forget()


def _killed(other: Lifeline) -> None:
    """The kernel closes the connections of a process that is gone."""
    for line in list(other._lines):
        line.shutdown(socket.SHUT_RDWR)


def test_another_rank_speaks_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("fastchat.train.status._OTHERS_SPEAK_FIRST_S", 0.0)
    assert attempt(_raise(ResourceError("only here")), str(tmp_path / "out")) == 6
    assert "[rank 3] error: only here" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_lost_partner_leaves_the_word_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], launched: Lifeline
) -> None:
    """It has said it on this machine; the status says the same, and not that a partner was lost."""
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2411")

    def body(status: RunStatus) -> None:
        status.claim(tmp_path / "out")
        launched.tell(3, "failed", "the other one's words")
        raise lost

    assert attempt(body, str(tmp_path / "out")) == 3
    assert capsys.readouterr().err == "" and _status(tmp_path / "out")["message"] == "the other one's words"


def test_what_another_machine_has_said_is_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], launched: Lifeline
) -> None:
    launched._mine = Place(1, 0, 7, "node-b", "another boot")

    def body(status: RunStatus) -> None:
        launched.tell(3, "failed", "row 7 is wrong")
        raise PeerFailed("rank 1: row 7")

    assert attempt(body, str(tmp_path / "out")) == 3
    assert capsys.readouterr().err == "error: rank 1 on node-b (process 7): row 7 is wrong\n"


def test_a_partner_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str], launched: Lifeline) -> None:
    assert attempt(_raise(RuntimeError("Timed out waiting 5000ms")), str(tmp_path / "alone")) == 6
    assert "did not answer within --ddp_timeout, or ended without an error message" in capsys.readouterr().err
    assert launched.wait(60) and "did not answer" in launched.wait(0).message, "told to the other one"


def test_a_launcher_that_clears_up_does_not_cut_the_message_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, launched: Lifeline
) -> None:
    real = LIFELINE.wait

    def signalled(seconds: float) -> Any:
        STOPPING._on_signal(signal.SIGTERM, None)
        return real(0)

    monkeypatch.setattr(LIFELINE, "wait", signalled)
    monkeypatch.setattr(STOPPING, "_owner", os.getpid())
    monkeypatch.setattr(STOPPING, "can_wait", False)
    assert attempt(_raise(RuntimeError("Connection reset by peer")), str(tmp_path / "out")) == 6
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.parametrize("word", [False, True])
def test_a_signal_after_the_death_of_another_is_no_wish_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, word: bool, launched: Lifeline
) -> None:
    """A scheduler that starts a stopped run again (75) would do so for ever. Unless the other one has said 75."""
    monkeypatch.setattr(STOPPING, "can_wait", False)

    def body(status: RunStatus) -> None:
        if word:
            launched.tell(75, "preempted", "the other one's words")
        else:
            _killed(launched)
        raise Preempted("received SIGTERM before the first step: nothing was saved")

    assert attempt(body, str(tmp_path / "out")) == (75 if word else 6)
    said = "error: rank 1 (process 4242) ended without an error message"
    assert (said in capsys.readouterr().err) is not word


def test_a_signal_after_the_failure_of_another_leaves_its_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, launched: Lifeline
) -> None:
    """torchrun and deepspeed send the others a SIGTERM; it may come before the broken connection does."""
    monkeypatch.setattr(STOPPING, "can_wait", False)

    def body(status: RunStatus) -> None:
        launched.tell(2, "failed", "the other one's words")
        raise Preempted("received SIGTERM before the first step: nothing was saved")

    assert attempt(body, str(tmp_path / "out")) == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "said", ["Connection closed by peer", "Timed out waiting 5000ms", "Application timeout caused pair closure"]
)
def test_a_partner_that_is_gone_is_told_from_a_bug(said: str) -> None:
    assert lost_another_process(RuntimeError(f"[gloo/transport/tcp/pair.cc:547] {said}"))
    assert lost_another_process(PeerFailed("rank 1: no space")) and not lost_another_process(RuntimeError("shape"))


def test_an_ordinary_error_is_no_memory_error() -> None:
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
