"""`fastchat eval math` on a model that was trained to solve problems with code, and on its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastchat.eval import command_line
from tests import builders
from tests.train.flags import Train, ok

ANSWER = [
    {"role": "assistant", "content": "```python\nprint(6*7)\n```"},
    {"role": "user", "content": "```output\n42\n```"},
    {"role": "assistant", "content": "\\boxed{42}"},
]


def results(model: Path, data: Path, folder: Path) -> dict[str, Any]:
    words = ["math", str(model), "--data_path", str(data), "--output_dir", str(folder), "--device", "cpu"]
    assert command_line.main([*words, "--conv_template", "vicuna_v1.1", "--max_new_tokens", "40"]) == 0
    lines = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()]
    return {**json.loads((folder / "results.json").read_text(encoding="utf-8")), "lines": lines}


@pytest.mark.slow
def test_a_model_that_learned_to_use_code_is_better_than_its_base(
    train: Train, model_dir: Path, tmp_path: Path
) -> None:
    questions = [f"What is {number} times {number + 1}?" for number in range(12)]
    rows = [{"messages": [{"role": "user", "content": question}, *ANSWER]} for question in questions]
    data = builders.write_rows(tmp_path / "train.jsonl", rows)
    flags = ["--data_path", data, "--conv_template", "vicuna_v1.1", "--learning_rate", "1e-2", "--max_steps", "40"]
    flags += ["--per_device_train_batch_size", "12", "--lr_scheduler_type", "constant"]
    run = ok(train(*flags, full=True))
    unseen = [{"question": f"What is {number} times {number}?", "answer": "#### 42"} for number in (3, 5, 8)]
    problems = builders.write_rows(tmp_path / "problems.jsonl", unseen)
    tuned = results(run.folder, problems, tmp_path / "tuned")
    base = results(model_dir, problems, tmp_path / "base")
    assert (tuned["accuracy"], tuned["code_runs"], base["accuracy"]) == (1, {"ran": 3}, 0)
    assert tuned["interval"] == pytest.approx([0.4385, 1.0], abs=1e-4)
    for line in tuned["lines"]:
        assert [turn["role"] for turn in line["turns"]] == ["user", "assistant", "user", "assistant"]
        assert line["turns"][1:] == ANSWER and line["code_runs"] == [{"status": "ok", "output": "42\n"}]
    assert {line["reason"] for line in base["lines"]} <= {"answer cut", "no boxed answer"}
