"""A tiny model and tiny data, and `train`: one whole run in this process, in about a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import builders

# What only test_run_report.py and a few others look at takes longer than these runs. Flags of a test override it.
QUIET = ["--run_report", "none", "--sample_prompts", "0"]


def quiet(words: list[str]) -> list[str]:
    """The words of a training command, after an optional recipe, with QUIET in front."""
    at = int(bool(words) and not words[0].startswith("-"))
    return [*words[:at], *QUIET, *words[at:]]


@dataclass
class Outcome:
    """What a run left behind."""

    code: int
    folder: Path
    err: str
    trainer: Any = None  # the ChatTrainer, where the run got that far

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "training.json").read_text(encoding="utf-8"))

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.folder / "status.json").read_text(encoding="utf-8"))

    @property
    def log(self) -> str:
        """log.txt, which also has what is not printed."""
        return (self.folder / "log.txt").read_text(encoding="utf-8")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl"""
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The same without memory and speed, which are the machine's and differ between runs of one computation."""
        machines = ("memory_measured", "memory_predicted", "tokens_per_second")
        return [{k: v for k, v in row.items() if k not in machines} for row in self.rows]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.metrics if "loss" in row]


@pytest.fixture(scope="session")
def model_dir(tiny_model_dir: Callable[..., Path]) -> Path:
    """Llama architecture, random weights, no chat template."""
    return tiny_model_dir("llama", "metaspace_bos")


@pytest.fixture(scope="session")
def data_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """20 dialogues to train on, 7 others to evaluate on, of different lengths."""
    folder = tmp_path_factory.mktemp("data")
    rows = [row for rounds in (1, 2, 3) for row in builders.chat_rows(9, rounds)]
    return builders.write_rows(folder / "train.json", rows[:20]), builders.write_rows(folder / "eval.json", rows[20:])


@pytest.fixture
def base_flags(model_dir: Path, data_files: tuple[Path, Path]) -> list[str]:
    """The least a run needs, without the output folder; small and quiet."""
    flags = ["--model_name_or_path", str(model_dir), "--data_path", str(data_files[0])]
    return [*flags, "--per_device_train_batch_size", "4", "--max_steps", "2", "--disable_tqdm", "True"]


@pytest.fixture
def eval_flags(data_files: tuple[Path, Path]) -> list[str]:
    return ["--eval_data_path", str(data_files[1]), "--eval_strategy", "epoch"]


@pytest.fixture
def train(
    tmp_path: Path, base_flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """`train("--lora_r", "4")`: runs train_lora (or, with `full=True`, train) on top of the base flags."""
    from fastchat import streams
    from fastchat.train import recipe, train_lora
    from fastchat.train import train as full_module
    from fastchat.train.settings import find_output_dir
    from fastchat.train.status import attempt

    made: list[Any] = []
    build = recipe.make_trainer

    def kept(*args: Any, **kwargs: Any) -> Any:
        made.append(build(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(recipe, "make_trainer", kept)
    monkeypatch.setattr(streams.DETAILS, "shown", True)

    def go(*flags: str, full: bool = False, name: str = "out", base: list[str] | None = None) -> Outcome:
        run = full_module.run if full else train_lora.run
        words = quiet([*(base_flags if base is None else base), "--output_dir", str(tmp_path / name), *map(str, flags)])
        made.clear()
        capsys.readouterr()
        code = attempt(lambda status: run(words, status), find_output_dir(words))
        err = capsys.readouterr().err
        return Outcome(code, Path(find_output_dir(words) or tmp_path / name), err, made[-1] if made else None)

    return go
