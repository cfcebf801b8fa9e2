"""What a run prints while it trains."""

from __future__ import annotations

import io
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fastchat import streams
from fastchat.errors import counted
from fastchat.train import progress
from fastchat.train.progress import ProgressLines, clock, memory, number, short

TRAINED = {"loss": 4.0831, "learning_rate": 9.3e-4, "grad_norm": 1.2, "num_tokens": 1840, "num_supervised_tokens": 640}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (number(4.08312), "4.083"),
        (number(0.0111), "0.01110"),
        (number(float("nan")), "nan"),
        (short(9.3e-4), "9.3e-4"),
        (short(3e-4), "3e-4"),
        (short(0), "0"),
        (memory(12 << 30, 13 << 30), "12.0/13.0 GiB"),
        (memory(180 << 20, None), "180 MiB"),
        (clock(751), "12:31"),
        (clock(90005), "25:00:05"),
        (counted(1, "turn"), "1 turn"),
        (counted(2000, "dialogue"), "2,000 dialogues"),
        (counted(2, "process"), "2 processes"),
        (counted(2, "batch"), "2 batches"),
        (counted(1.5, "epoch"), "1.5 epochs"),
        (counted(3.0, "epoch"), "3 epochs"),
    ],
)
def test_numbers_as_people_write_them(made: str, expected: str) -> None:
    assert made == expected


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def _state(step: int, of: int = 58, **more: Any) -> Any:
    return types.SimpleNamespace(global_step=step, max_steps=of, epoch=0.09, is_world_process_zero=True, **more)


def _steps(lines: ProgressLines, now: list[float], first: int, last: int, seconds: float) -> None:
    for step in range(first, last + 1):
        lines.on_step_begin(None, _state(step - 1), None)
        now[0] += seconds
        lines.on_step_end(None, _state(step), None)


def test_a_line_for_each_logged_step(now: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines(bar=False)
    lines.on_train_begin(None, _state(0), None)
    _steps(lines, now, 1, 1, 60.0)  # compiling
    lines.on_log(None, _state(1), None, logs=dict(TRAINED))
    _steps(lines, now, 2, 5, 2.0)
    logs = {**TRAINED, "memory_measured": 11 << 30, "memory_predicted": 13 << 30}
    lines.on_log(None, _state(5), None, logs=logs)
    first, second = capfd.readouterr().err.splitlines()
    assert first == "step 1/58  epoch 0.09  loss 4.083  lr 9.3e-4  grad 1.2  31 tok/s (11 learned)"
    assert second == (
        "step 5/58  epoch 0.09  loss 4.083  lr 9.3e-4  grad 1.2  230 tok/s (80 learned)  "
        "mem 11.0/13.0 GiB  ETA 1:46"  # 53 steps of 2 s: the first, which compiles, does not count
    )


def test_evaluations_are_compared_with_the_one_before(now: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines(bar=False)
    for step, loss in ((0, 4.12), (20, 3.9121)):
        lines.on_prediction_step(None, _state(step), None)
        now[0] += 1.4
        lines.on_log(None, _state(step), None, logs={"eval_loss": loss, "eval_num_supervised_tokens": 670})
    first, second = capfd.readouterr().err.splitlines()
    assert first == "step 0/58  evaluation  loss 4.120  670 learned tokens  1.4 s"
    assert second == "step 20/58  evaluation  loss 3.912 (was 4.120)  670 learned tokens  1.4 s"


def test_lines_are_printed_above_the_bar(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    lines = ProgressLines(bar=True)
    lines.on_train_begin(None, _state(0, 2), None)
    _steps(lines, now, 1, 1, 2.0)
    lines.on_log(None, _state(1, 2), None, logs=dict(TRAINED))
    lines.on_train_end(None, _state(2, 2), None)
    drawn = terminal.getvalue()
    assert re.search(r"training:.*1/2", drawn)
    line = next(part for part in re.split("[\r\n]", drawn) if part.startswith("step 1/2"))
    assert line.startswith("step 1/2  epoch 0.09  loss 4.083") and "|" not in line


def test_only_the_first_process_prints(now: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    lines, state = ProgressLines(bar=True), _state(1)
    state.is_world_process_zero = False
    lines.on_train_begin(None, state, None)
    lines.on_log(None, state, None, logs=dict(TRAINED))
    assert capfd.readouterr().err == ""


def test_proofs_are_in_the_log_and_printed_only_on_request(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams.DETAILS, "shown", False)
    streams.detail("of an earlier call of a library function, not of this run")
    with streams.kept_output():
        streams.LOG.open(tmp_path)
        streams.detail("proven")
        monkeypatch.setattr(streams.DETAILS, "shown", True)
        streams.detail("proven again")
    assert capfd.readouterr().err == "proven again\n"
    assert (tmp_path / "log.txt").read_text() == "proven\nproven again\n"
