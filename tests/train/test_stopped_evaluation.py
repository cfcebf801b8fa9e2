"""A stop in the middle of an evaluation: the step is saved, and the next start makes that evaluation first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.train.stopping import STOPPING
from tests.train.conftest import Outcome
from tests.train.test_resume import RUN, same_run

pytestmark = pytest.mark.slow

Train = Callable[..., Outcome]
PLATEAU = ["--lr_scheduler_type", "reduce_lr_on_plateau", "--warmup_ratio", "0"]
SMALL = ["--per_device_eval_batch_size", "2"]  # 7 dialogues: 4 batches


@pytest.fixture
def stop_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop_in_evaluation(6)`: the next run is asked to stop during the sixth batch that it evaluates."""
    import torch

    from fastchat.train import trainer

    real = trainer.loss_sum

    def go(batch: int) -> None:
        seen = [0]

        def loss_sum(*args: Any, **kwargs: Any) -> Any:
            seen[0] += not torch.is_grad_enabled()
            if seen[0] == batch:
                monkeypatch.setattr(STOPPING, "reason", "received SIGTERM")
            return real(*args, **kwargs)

        monkeypatch.setattr(trainer, "loss_sum", loss_sum)

    def done() -> None:
        monkeypatch.setattr(trainer, "loss_sum", real)
        monkeypatch.setattr(STOPPING, "reason", None)

    go.done = done  # pyright: ignore[reportFunctionMemberAccess]
    return go


@pytest.mark.parametrize(
    ("flags", "batch", "step"),
    [
        (["--save_strategy", "no", *PLATEAU], 6, 14),
        (["--save_strategy", "steps", "--save_steps", "7", "--num_train_epochs", "2"], 2, 7),
        (["--save_strategy", "best", "--load_best_model_at_end", "True", "--num_train_epochs", "2"], 2, 7),
        (["--save_strategy", "epoch", "--eval_strategy", "steps", "--eval_steps", "5", *PLATEAU], 2, 5),
    ],
    ids=["none saved", "a save is due", "the best", "within an epoch"],
)
def test_it_is_made_when_the_run_goes_on(
    train: Train, eval_flags: list[str], stop_in_evaluation: Any, flags: list[str], batch: int, step: int
) -> None:
    flags = [*RUN, *eval_flags, *SMALL, *flags]
    plain = train(*flags, name="plain")
    stop_in_evaluation(batch)
    stopped = train(*flags, name="stopped")
    assert stopped.code == 75, stopped.err
    assert f"step {step} of" in stopped.err and "resumes with its evaluation" in stopped.err
    assert not [row for row in stopped.metrics if row["step"] == step and "eval_loss" in row]
    assert max(row["step"] for row in stopped.metrics) == step, "no step was made after it"
    stop_in_evaluation.done()
    resumed = train(*flags, name="stopped")
    assert f"checkpoint-{step}: step {step}" in resumed.err, resumed.err
    same_run(plain, resumed)
    kept = [sorted(n for n in os.listdir(o.folder) if n.startswith("checkpoint-")) for o in (plain, resumed)]
    assert set(kept[0]) <= set(kept[1]), "what was due was saved"


def test_before_the_first_step_nothing_is_saved(train: Train, eval_flags: list[str], stop_in_evaluation: Any) -> None:
    stop_in_evaluation(2)
    stopped = train(*eval_flags, *SMALL, "--eval_on_start", "True")
    assert stopped.code == 75 and "before the first step: nothing was saved" in stopped.err
    assert not [name for name in os.listdir(stopped.folder) if name.startswith("checkpoint")]


def test_the_last_one_waits_for_the_next_start(
    train: Train, data_files: tuple[Path, Path], stop_in_evaluation: Any
) -> None:
    """The only evaluation is the one of the result, which is saved by then."""
    flags = ["--eval_data_path", str(data_files[1]), "--do_eval", "True", *SMALL]
    plain = train(*flags, name="plain")
    stop_in_evaluation(2)
    stopped = train(*flags, name="stopped")
    assert stopped.code == 75 and "the result is saved; the same command makes the last evaluation" in stopped.err
    assert {"adapter_model.safetensors", "checkpoint-2"} <= set(os.listdir(stopped.folder))
    stop_in_evaluation.done()
    resumed = train(*flags, name="stopped")
    same_run(plain, resumed)
    assert resumed.record["metrics"]["eval_loss"] is not None
    assert not [name for name in os.listdir(resumed.folder) if name.startswith("checkpoint-")]
