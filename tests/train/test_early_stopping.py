"""--early_stopping_patience: when it stops, what is saved then, and that a resumed run goes on counting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import builders
from tests.train.conftest import Outcome
from tests.train.flags import Train, adapter, covers, ok
from tests.train.test_resume import Interruption, same_run

pytestmark = pytest.mark.slow


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """An evaluation and a checkpoint at every step; the evaluation grows better for some steps and then worse.

    It must turn on every machine: all rows are one batch (no noise of small ones), and the answers of both files begin
    alike, which is learned first, and end otherwise, which is worse the surer the model is of its own. (Of 8 random
    models, 8 turned, after 6 to 14 steps.)
    """
    found = ["--data_path", always(tmp_path / "train.json", "Yellow fish"), "--per_device_train_batch_size", "20"]
    found += ["--eval_data_path", always(tmp_path / "eval.json", "Yellow birds"), "--eval_strategy", "steps"]
    found += ["--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1", "--load_best_model_at_end", "True"]
    found += ["--max_steps", "40", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant"]
    return [*found, "--lora_dropout", "0.1", "--early_stopping_patience", "2"]


def always(path: Path, answer: str) -> str:
    """A file of 20 dialogues that ask different things and get this one answer."""
    rows = builders.chat_rows(20, rounds=2)
    for turn in (turn for row in rows for turn in row["conversations"] if turn["from"] == "gpt"):
        turn["value"] = answer
    return str(builders.write_rows(path, rows))


def evaluated(outcome: Outcome) -> list[float]:
    """The evaluation losses, one per step."""
    rows = [row for row in outcome.metrics if "eval_loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "each once"
    return [row["eval_loss"] for row in rows]


def stops_after(losses: list[float], patience: int) -> int:
    """The first step behind which so many evaluations in a row were not the best so far."""
    best, worse = float("inf"), 0
    for step, loss in enumerate(losses, start=1):
        best, worse = (loss, 0) if loss < best else (best, worse + 1)
        if worse == patience:
            return step
    return 0


@covers("early_stopping_patience")
def test_it_stops_and_keeps_the_best(train: Train, flags: list[str]) -> None:
    outcome = ok(train(*flags))
    losses = evaluated(outcome)
    steps = outcome.record["metrics"]["steps"]
    assert steps == len(losses) == stops_after(losses, 2) < 40
    assert min(losses) < losses[0], "the best is neither the first nor the last"
    assert outcome.err.count(f"--early_stopping_patience 2: stopping after step {steps}") == 1
    assert outcome.record["metrics"]["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    best = adapter(outcome.folder / f"checkpoint-{losses.index(min(losses)) + 1}")
    assert all(torch.equal(tensor, best[name]) for name, tensor in adapter(outcome.folder).items())
    assert outcome.status["exit_code"] == 0
    again = train(*flags)
    assert again.code == 0 and "nothing to do" in again.err


def test_it_says_nothing_where_the_evaluation_grew_better_to_the_end(train: Train, flags: list[str]) -> None:
    outcome = ok(train(*flags, "--max_steps", "3", "--early_stopping_patience", "1"))
    losses = evaluated(outcome)
    assert losses == sorted(losses, reverse=True) and len(losses) == 3
    assert "stopping after step" not in outcome.err
    assert outcome.record["metrics"]["eval_loss"] == losses[-1]


def test_a_resumed_run_goes_on_counting(train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastchat.train.callbacks import MetricsFile

    plain = ok(train(*flags, name="plain"))
    last = plain.record["metrics"]["steps"]

    def dies_after(step: int) -> Callable[..., None]:
        def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise Interruption(f"after step {step}")

        return on_step_begin

    with monkeypatch.context() as patch:  # one evaluation that was not the best is counted by then
        patch.setattr(MetricsFile, "on_step_begin", dies_after(last - 1), raising=False)
        assert train(*flags, name="broken").code == 1
    same_run(plain, ok(train(*flags, name="broken")))


def test_a_run_killed_after_it_had_stopped_makes_no_further_step(
    train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastchat.train import result

    plain = ok(train(*flags, name="plain"))

    def killed(*args: Any) -> None:
        raise Interruption("while saving")

    with monkeypatch.context() as patch:
        patch.setattr(result, "measured", killed)
        assert train(*flags, name="broken").code == 1
    resumed = ok(train(*flags, name="broken"))
    assert resumed.record["metrics"]["steps"] == plain.record["metrics"]["steps"]
    assert evaluated(resumed) == evaluated(plain)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--early_stopping_patience keeps the best evaluation's weights: add --load_best_model_at_end True"),
        (["--load_best_model_at_end", "True"], "add --eval_strategy epoch"),
        (["--early_stopping_patience", "0"], "--early_stopping_patience is 0; it must be at least 1"),
    ],
)
def test_what_it_needs(train: Train, more: list[str], message: str) -> None:
    outcome = train("--early_stopping_patience", "2", *more)
    assert outcome.code == 2 and message in outcome.err
