"""What tells a training process to stop: signals, a launcher that is gone, a dead peer. Without any training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastchat.train.stopping import Preempted, Stopping

CHILD = """
import os, sys, time
sys.path.insert(0, {root!r})
from fastchat.train.stopping import STOPPING, Preempted
STOPPING.install()
STOPPING.can_wait = {can_wait}
open({folder!r} + "/ready", "w").write(str(os.getpid()))
try:
    while STOPPING.reason is None:
        time.sleep(0.05)
    said = STOPPING.reason
except Preempted as stop:
    said = "at once: " + str(stop)
open({folder!r} + "/said.part", "w").write(said)
os.rename({folder!r} + "/said.part", {folder!r} + "/said")
"""
LAUNCHER = """
import os, subprocess, sys
os.environ["RANK"] = "0"
subprocess.run([sys.executable, {child!r}])
"""


def _appears(path: Path) -> str:
    end = time.monotonic() + 300
    while not path.is_file() or not path.stat().st_size:
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.05)
    return path.read_text()


def _write_child(folder: Path, root: Path, can_wait: bool) -> Path:
    child = folder / "child.py"
    child.write_text(CHILD.format(root=str(root), folder=str(folder), can_wait=can_wait))
    return child


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_dies_is_noticed(tmp_path: Path, repository: Path, number: int) -> None:
    child = _write_child(tmp_path, repository, can_wait=True)
    launcher = tmp_path / "deepspeed"
    launcher.write_text(LAUNCHER.format(child=str(child)))
    process = subprocess.Popen([sys.executable, str(launcher)])
    try:
        _appears(tmp_path / "ready")
        process.send_signal(number)
        process.wait(timeout=300)
        assert _appears(tmp_path / "said") == f"the launcher (process {process.pid}) ended"
    finally:
        process.kill()


@pytest.mark.parametrize("can_wait", [True, False])
def test_a_signal_leaves_a_note_or_ends_at_once(tmp_path: Path, repository: Path, can_wait: bool) -> None:
    process = subprocess.Popen([sys.executable, str(_write_child(tmp_path, repository, can_wait))])
    try:
        _appears(tmp_path / "ready")
        process.send_signal(signal.SIGINT)
        said = _appears(tmp_path / "said")
    finally:
        process.kill()
    wanted = "received SIGINT" if can_wait else "at once: received SIGINT before the first step: nothing was saved"
    assert said == wanted


def test_a_second_signal_changes_nothing() -> None:
    stopping = Stopping()
    stopping._owner = os.getpid()
    with pytest.raises(Preempted):
        stopping._on_signal(signal.SIGTERM, None)
    stopping._on_signal(signal.SIGINT, None)
    assert stopping.reason == "received SIGTERM"
