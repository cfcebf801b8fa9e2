"""The plan against the measured peak of real training processes, through the script that does the same on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script(repository: Path) -> Any:
    """playground/benchmark/memory.py as a module."""
    path = repository / "playground" / "benchmark" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough  # what two processes hold is compared with the plan by default, in test_launched.py
@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.xdist_group("measured")  # one process at a time, and bytes are the same next to a neighbour
def test_peaks_of_real_processes(repository: Path, tmp_path: Path) -> None:
    """LoRA, QLoRA and full fine-tuning of a model with hundreds of MB of tensors, each in a process of its own: what
    the process grew by is within a tenth of what was planned."""
    out = tmp_path / "table.md"
    done = subprocess.run(
        [sys.executable, "playground/benchmark/memory.py", "--use_cpu", "True", "--out", str(out)],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    table = out.read_text(encoding="utf-8")
    assert done.returncode == 0, table + done.stderr[-2000:]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if " x 512 | " in line]
    assert rows == ["LoRA", "QLoRA", "full"], table


def test_the_table(script: Any) -> None:
    case = script.Case("LoRA", (), 4, 1024)
    good = {"memory_predicted": 210 * 2**20, "memory_measured": 200 * 2**20, "memory_off_by": 0.05}
    bad = good | {"memory_predicted": 300 * 2**20, "memory_off_by": 0.5}
    lines = script.table([(case, good), (case, bad), (case, "exit code 6: out of memory")])[2:]
    assert lines == [
        "| LoRA | 4 x 1024 | 210 | 200 | +5.0 % |",
        "| LoRA | 4 x 1024 | 300 | 200 | +50.0 % (!) |",
        "| LoRA | 4 x 1024 | failed: exit code 6: out of memory | | |",
    ]


def test_the_grid_for_a_gpu_is_accepted_by_training(script: Any) -> None:
    """What cannot run here: every row's flags are read, and its plan is made, with the planner's own numbers."""
    from fastchat.train.planning import answer

    sizes, dtype, cases = script.grid(use_cpu=False)
    assert sizes["hidden_size"] == 4096 and dtype == "bfloat16" and len(cases) >= 12
    assert len({(case.name, case.batch, case.length) for case in cases}) == len(cases)
    for case in cases:
        shape = ["--per_device_train_batch_size", str(case.batch), "--model_max_length", str(case.length)]
        words = ["--model_size", "7b", *case.flags, *shape, *script.COMMON, "--gpu_memory", "80GiB"]
        assert any("per GPU" in line for line in answer(words, lora=case.script == "train_lora"))


def test_without_a_gpu_it_says_so(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 6
    assert "no GPU here" in capsys.readouterr().out
