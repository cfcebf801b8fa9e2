"""Output that nobody takes, disks that refuse, folders that go away: a run goes on, or ends with a code and a line."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastchat.errors import ResourceError, say
from fastchat.streams import LOG, kept_output
from fastchat.train.callbacks import MetricsFile
from tests.tiers import thorough
from tests.train.conftest import Outcome
from tests.train.flags import ok
from tests.train.warm import Warm

pytestmark = pytest.mark.slow
Train = Callable[..., Outcome]
DISK = (errno.EROFS, errno.ENOSPC, errno.EIO)
HEAD = "head -c 200 >/dev/null"


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, happens: Callable[[], None]) -> None:
    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            happens()

    monkeypatch.setattr(MetricsFile, "on_step_begin", on_step_begin, raising=False)


@pytest.mark.launch
def test_the_reader_of_the_log_goes_away(base_flags: list[str], tmp_path: Path) -> None:
    """As in `2>&1 | head`, with progress bars and tables on, in a process of its own."""
    folder = tmp_path / "out"
    words = [sys.executable, "-m", "fastchat.train.train_lora", *base_flags, "--disable_tqdm", "False"]
    command = " ".join([*words, "--max_steps", "6", "--output_dir", str(folder)])
    shell = f"set -o pipefail; {command} 2>&1 | {HEAD}"
    assert subprocess.run(["bash", "-c", shell], timeout=300, check=False).returncode == 0
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    log = (folder / "log.txt").read_text()
    assert "saved and verified" in log and "memory expected" in log and "\r" not in log
    closed = f"{command} --overwrite_output_dir >&- 2>&-"
    assert subprocess.run(["bash", "-c", closed], timeout=300, check=False).returncode == 0
    assert (folder / "log.txt").read_text().count("saved and verified") == 2, "it is never cut"


def test_the_log_of_several_processes(warm: Warm, base_flags: list[str], tmp_path: Path) -> None:
    """The first process' lines once; of the others what went wrong."""
    outcome = warm.run([*base_flags, "--ddp_timeout", "60"], tmp_path / "out", TROUBLE="bug:1:1")
    assert outcome.code != 0
    log = (outcome.folder / "log.txt").read_text()
    assert log.count("train data,") == 1 and "[rank 1] error: RuntimeError: planted" in log


def test_streams_that_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kept_output():
        print("of an earlier command of this process, which trained nothing")
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setenv("MY_TOKEN", "abcdefghij")
    with open(writer, "w", encoding="ascii") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "stdout", None)
        with kept_output():
            print("early abcdefghij", file=sys.stderr, flush=True)
            LOG.open(tmp_path)
            print("10%\r50%\r", end="", file=sys.stderr)
            print("100%\r\nä", file=sys.stderr, flush=True)
            print("to nobody", flush=True)
            os.write(stream.fileno(), b"libraries write here too: no error any more")
            LOG.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "early ***\n100%\nä\nto nobody\n"


def test_both_streams_break_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when Ctrl-C ends pdsh and ssh before the processes on the other hosts: whatever is printed, and by whom."""
    pipes = [os.pipe() for _ in range(2)]
    with open(pipes[0][1], "w") as out, open(pipes[1][1], "w") as err, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with kept_output():
            LOG.open(tmp_path)
            print("before", flush=True)
            for reader, _ in pipes:
                os.close(reader)
            logging.StreamHandler(sys.stderr).emit(logging.makeLogRecord({"msg": "logged"}))
            with contextlib.redirect_stdout(sys.stderr):
                print("redirected", flush=True)
            sys.stdout.writelines(["lines\n"] * 2)
            say("saving step 3, then stopping")
            print("after", flush=True)
    log = (tmp_path / "log.txt").read_text()
    assert log.split("\n")[-3:] == ["saving step 3, then stopping", "after", ""] and log.count("lines") == 2, log


@pytest.mark.parametrize("code", [thorough(code, in_default=code == errno.EIO) for code in DISK])
def test_metrics_that_cannot_be_written_wait(train: Train, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    from fastchat.train import callbacks

    real, calls = callbacks._append, []

    def refuse(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(code, os.strerror(code), str(path))
        real(path, data)

    monkeypatch.setattr(callbacks, "_append", refuse)
    outcome = ok(train())
    assert [row["step"] for row in outcome.rows] == [1, 2] and "training continues, its rows wait" in outcome.err


def test_a_disk_that_takes_half_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    path, before = tmp_path / "metrics.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text('{"step": 1}\n')
    file = MetricsFile(tmp_path)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with kept_output():  # pytest keeps what is said in a file too
            file.add([{"step": 2, "loss": 1.0}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, kept)
    assert path.read_text() == '{"step": 1}\n'
    file.add([{"step": 3}])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("step", [1, 2], ids=["before a checkpoint", "before the result"])
def test_a_deleted_folder_is_made_again(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step) -> None:
    before_step(monkeypatch, 1, lambda: (tmp_path / "out").rename(tmp_path / "moved"))
    saves = ["--save_strategy", "steps", "--save_steps", "2"] if step == 1 else []
    outcome = ok(train(*saves))
    assert "was deleted, emptied or moved away while the run used it" in outcome.err
    assert outcome.status["status"] == "done" and (outcome.folder / "adapter_model.safetensors").is_file()
    assert [row["step"] for row in outcome.rows] == [2] and "saved and verified" in (
        outcome.folder / "log.txt"
    ).read_text()


def test_another_runs_folder_is_not_written_into(train: Train, monkeypatch, tmp_path: Path) -> None:
    def replace() -> None:
        (tmp_path / "out").rename(tmp_path / "moved")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "status.json").write_text('{"started": "by another"}')

    before_step(monkeypatch, 1, replace)
    outcome = train("--save_strategy", "steps", "--save_steps", "2")
    assert outcome.code == 6 and "another run has started there" in outcome.err and "Traceback" not in outcome.err
    assert outcome.status == {"started": "by another"}


def test_what_is_deleted_while_it_is_written(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    from fastchat.checkpoint import save

    real = save.adapter_files.write_adapter

    def gone(folder: Path, *args: Any) -> None:
        shutil.rmtree(folder)
        real(folder, *args)

    monkeypatch.setattr(save.adapter_files, "write_adapter", gone)
    outcome = train("--save_strategy", "steps", "--save_steps", "1")
    assert outcome.code == 6 and "deleted meanwhile" in outcome.err and "Traceback" not in outcome.err
    assert outcome.status["exit_code"] == 6


@pytest.mark.parametrize(
    "code", [*(thorough(code, in_default=code == errno.ENOSPC) for code in DISK), errno.ESTALE, errno.EMFILE]
)
def test_a_disk_that_fails_anywhere_has_its_code(train: Train, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code), "/data/somewhere")

    before_step(monkeypatch, 1, fail)
    outcome = train()
    assert outcome.code == 6 and "/data/somewhere" in outcome.err and "bug" not in outcome.err
    assert outcome.status["exit_code"] == 6 and outcome.err.count("\nerror: ") == 1


def test_a_status_on_a_full_disk_is_written_over_the_old_one(tmp_path: Path, monkeypatch) -> None:
    from fastchat import files
    from fastchat.train import status

    path = tmp_path / "status.json"
    status.write_json(path, {"status": "running", "message": "x" * 99 + "\udcff"})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "open", full, raising=False)  # nothing new fits
    status.write_json(path, {"status": "failed"})
    assert json.loads(path.read_text()) == {"status": "failed"} and os.listdir(tmp_path) == ["status.json"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_tokens_that_another_process_cuts_off(train: Train, monkeypatch, tmp_path: Path, workers: str) -> None:
    """Reading there would be a bus error, also in a loader's worker. The same command makes them again and resumes."""
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "cache"))
    flags = ["--save_strategy", "steps", "--save_steps", "1", "--max_steps", "6", "--dataloader_num_workers", workers]

    def cut() -> None:
        for path in (tmp_path / "cache").glob("*/labels.bin"):
            os.truncate(path, 4)

    with monkeypatch.context() as patch:
        before_step(patch, 1, cut)
        outcome = train(*flags)
    assert outcome.code == 6 and "were truncated by another process" in outcome.err and "Traceback" not in outcome.err
    assert outcome.status["exit_code"] == 6
    assert not multiprocessing.active_children(), "they would hold the lock of the tokens"
    again = ok(train(*flags))
    assert "tokenising again" in again.err and "resuming from" in again.err


def test_a_store_notices(tmp_path: Path) -> None:
    from fastchat.data.tokens.store import StoreWriter, TokenShard, TokenStore

    arrays = {name: np.arange(8, dtype=np.int32) for name in ("ids", "labels")} | {"lengths": np.array([4, 4])}
    arrays |= {name: np.arange(2) for name in ("index", "part", "supervised", "digests")}
    writer = StoreWriter(tmp_path)
    writer.add(TokenShard(arrays))
    writer.close()
    store = TokenStore.load(tmp_path)
    assert len(store[1]["input_ids"]) == 4
    os.truncate(tmp_path / "ids.bin", 8)
    with pytest.raises(ResourceError, match="were truncated"):
        store[1]


HANGUP = """
import os, signal, sys
from fastchat.train.stopping import STOPPING
STOPPING.install()
STOPPING.can_wait = True
os.kill(os.getpid(), signal.SIGHUP)
print(STOPPING.reason)
"""


def test_a_hangup_stops_like_other_signals_unless_nohup_was_asked_for() -> None:
    def said(**more: Any) -> str:
        done = subprocess.run([sys.executable, "-c", HANGUP], capture_output=True, text=True, timeout=60, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert said() == "received SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert said(restore_signals=False) == "None"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_report_that_fails_ends_only_itself(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    class FailingCallback(integration_utils.TrainerCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("the server is gone")

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("asked again")

    FailingCallback.__module__ = "transformers.integrations.integration_utils"
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", FailingCallback)
    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = ok(train("--report_to", "wandb"))
    assert outcome.err.count("Failing: ConnectionError: the server is gone; nothing more is reported there") == 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_report_that_cannot_begin_refuses_the_run_and_leaves_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from transformers.integrations import integration_utils

    class RefusingCallback(integration_utils.TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("the key is not valid")

    RefusingCallback.__module__ = "transformers.integrations.integration_utils"
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, RefusingCallback)
    monkeypatch.setattr("fastchat.train.reporting._installed", lambda name: True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    ok(train("--report_to", "none"))
    refused = train("--report_to", name, "--overwrite_output_dir")
    assert refused.code == 2 and "Refusing: ConnectionError: the key is not valid; --report_to none" in refused.err
    assert (refused.folder / "adapter_model.safetensors").is_file(), "the earlier result is not cleared"
    new = train("--report_to", name, name="new")
    assert new.code == 2 and not new.folder.exists()


@pytest.mark.slow
def test_trackio_logs_to_this_machine_only(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real one: nothing is sent, every logged step is in its data base, and the log has no lines of its own."""
    import sqlite3

    trackio = pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    asked: list[Any] = []
    monkeypatch.setattr(trackio, "freeze", lambda *args, **kwargs: asked.append(args), raising=False)
    monkeypatch.setattr(trackio, "sync", lambda *args, **kwargs: asked.append(args), raising=False)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if recording and event in ("socket.connect", "socket.getaddrinfo") and "127.0.0.1" not in repr(arguments):
            asked.append((event, arguments))

    recording = [True]
    sys.addaudithook(watch)
    outcome = ok(train("--report_to", "trackio", "--run_name", "mine", "--logging_steps", "1"))
    recording.clear()
    assert asked == []
    (found,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(found) as base:
        rows = base.execute("select metrics from metrics").fetchall()
    assert sum("train/loss" in str(row) for row in rows) == len(outcome.losses) == 2
