"""One small run, made as a user makes it, that all tests of this folder look at; and a server with its result."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.data.pages import browser
from tests.export.conftest import close_merges, llama_cpp
from tests.serve.serving import Server

__all__ = ["browser", "llama_cpp"]  # fixtures
NAME = "sums"


@dataclass(frozen=True)
class Trained:
    """A finished run. `folder` has its adapter, `problems` the rows it was evaluated on, which it never learned."""

    base: Path
    folder: Path
    problems: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl"""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def record(self) -> dict[str, Any]:
        """training.json"""
        return json.loads((self.folder / "training.json").read_text())

    @property
    def questions(self) -> list[str]:
        """What is asked in `problems`."""
        return [json.loads(line)["messages"][0]["content"] for line in self.problems.read_text().splitlines()]


def sum_row(a: int, b: int) -> dict[str, Any]:
    """A dialogue about a sum that is computed with code."""
    turns = [("user", f"What is ({a}+{b})?"), ("assistant", f"```python\nprint({a}+{b})\n```")]
    turns += [("user", f"```output\n{a + b}\n```"), ("assistant", f"It is \\boxed{{{a + b}}}.")]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def lora_run(folder: Path, *flags: str) -> int:
    """Runs train_lora in this process; returns its exit code."""
    from fastchat.train import train_lora
    from fastchat.train.status import attempt

    words = ["--output_dir", str(folder), "--disable_tqdm", "True", *flags]
    return attempt(lambda status: train_lora.run(words, status), str(folder))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A blank Llama that has learned 80 sums of two digits by LoRA; the other 20 are for evaluation."""
    root = tmp_path_factory.mktemp("shows")
    base = builders.make_model(root / "base", hidden=64, max_positions=512)
    close_merges(base)
    pairs = list(itertools.product(range(10), repeat=2))
    random.Random(0).shuffle(pairs)
    data = builders.write_rows(root / "sums.jsonl", [sum_row(*pair) for pair in pairs[:80]])
    problems = builders.write_rows(root / "problems.jsonl", [sum_row(*pair) for pair in pairs[80:]])
    code = lora_run(
        root / NAME,
        *("--model_name_or_path", str(base), "--data_path", str(data), "--conv_template", "vicuna_v1.1"),
        *("--eval_data_path", str(problems), "--eval_strategy", "steps", "--eval_steps", "40"),
        *("--eval_on_start", "True", "--per_device_train_batch_size", "16", "--max_steps", "120"),
        *("--learning_rate", "1e-2", "--lr_scheduler_type", "cosine", "--logging_steps", "5"),
        *("--lora_r", "32", "--lora_alpha", "32", "--lora_dropout", "0", "--run_report", "html"),
        *("--lora_modules_to_save", "embed_tokens", "lm_head"),
    )
    assert code == 0, (root / NAME / "log.txt").read_text()
    return Trained(base, root / NAME, problems)


@pytest.fixture(scope="session")
def server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`fastchat serve` with the adapter; it must end well, whatever the tests have sent."""
    pytest.importorskip("fastapi")
    made = Server(trained.folder, tmp_path_factory.mktemp("server") / "log.txt")
    yield made
    assert made.stop() == 0
    assert "Traceback" not in made.log.read_text() and "error:" not in made.log.read_text()


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the run's folder that a test may damage."""
    return Path(shutil.copytree(trained.folder, tmp_path / "copy"))
