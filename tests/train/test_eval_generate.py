"""--eval_generate: scores of generated answers, which choose the best model, and change nothing of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import builders
from tests.train.flags import Train, adapter, covers, ok
from tests.train.test_packed_processes import engine_flags
from tests.train.warm import Warm

ANSWER = "It is 7."


def rows(path: Path, num: int = 12) -> str:
    found = builders.chat_rows(num, rounds=1)
    for row in found:
        row["conversations"][1]["value"] = ANSWER
    return str(builders.write_rows(path, found))


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Five evaluations and checkpoints of a model that learns one answer."""
    found = ["--data_path", rows(tmp_path / "train.json"), "--eval_data_path", rows(tmp_path / "eval.json", 5)]
    found += ["--per_device_train_batch_size", "12", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant"]
    found += ["--max_steps", "40", "--eval_strategy", "steps", "--eval_steps", "8", "--save_strategy", "steps"]
    return [*found, "--save_steps", "8", "--conv_template", "vicuna_v1.1"]


def evaluations(outcome: Any) -> list[dict[str, Any]]:
    return [row for row in outcome.metrics if "eval_loss" in row]


@pytest.mark.slow
@covers("eval_generate", "eval_max_new_tokens")
def test_the_best_answers_choose_the_model_and_training_is_not_disturbed(train: Train, flags: list[str]) -> None:
    flags = [*flags, "--eval_on_start", "True"]
    best = ["--eval_generate", "4", "--eval_max_new_tokens", "16", "--metric_for_best_model", "exact_match"]
    best += ["--load_best_model_at_end", "True", "--early_stopping_patience", "2"]
    outcome = ok(train(*flags, *best, full=True))
    found = evaluations(outcome)
    scores = [row["eval_exact_match"] for row in found]
    assert scores[0] < 1 and max(scores) == 1 and all(0 <= row["eval_stopped"] <= 1 for row in found)
    first = found[scores.index(1.0)]["step"]
    steps = outcome.record["metrics"]["steps"]
    assert steps == first + 16 or steps == 40, "two evaluations that were no better"
    assert outcome.record["metrics"]["eval_exact_match"] == 1
    assert f"the weights of checkpoint-{first} (eval exact match 1.0000)" in outcome.err
    assert "exact match 100.0 %" in outcome.err
    plain = ok(train(*flags, "--max_steps", str(steps), full=True, name="plain"))
    assert plain.losses == outcome.losses[: len(plain.losses)], "bit for bit"
    assert [row["eval_loss"] for row in evaluations(plain)] == [row["eval_loss"] for row in found]


@covers("eval_match", "eval_pattern")
def test_with_dropout_and_adapter_nothing_is_disturbed(train: Train, flags: list[str]) -> None:
    short = [*flags, "--max_steps", "4", "--eval_steps", "2", "--save_strategy", "no", "--lora_dropout", "0.3"]
    plain = ok(train(*short, name="plain"))
    generate = ["--eval_generate", "5", "--eval_match", "regex", "--eval_pattern", r"is (\d)", "--packing", "False"]
    outcome = ok(train(*short, *generate, "--eval_max_new_tokens", "4"))
    assert outcome.losses == plain.losses
    mine, theirs = adapter(outcome.folder), adapter(plain.folder)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [row["eval_regex_match"] for row in evaluations(outcome)] == [0, 0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric_for_best_model", "exact_mach"], "it can be loss; --eval_generate N measures exact_match"),
        (
            ["--eval_generate", "2", "--metric_for_best_model", "exact_mach"],
            "it can be loss, exact_match, stopped; did you mean exact_match?",
        ),
        (["--eval_generate", "2", "--eval_match", "regex"], "--eval_match regex needs --eval_pattern"),
        (["--eval_match", "numeric"], "--eval_match is about generated answers: add --eval_generate N"),
        (["--eval_generate", "2", "--train_on", "all"], "--train_on all does not tell them from prompts"),
        (["--eval_generate", "2", "--eval_strategy", "no"], "--eval_generate generates at every evaluation"),
        (["--eval_generate", "-1"], "--eval_generate is -1"),
        (
            ["--eval_generate", "2", "--metric_for_best_model", "stopped", "--lr_scheduler_type"]
            + ["reduce_lr_on_plateau"],
            """add --lr_scheduler_kwargs '{"mode": "max"}'""",
        ),
    ],
)
def test_what_it_refuses(train: Train, flags: list[str], more: list[str], message: str) -> None:
    outcome = train(*flags, *more)
    assert outcome.code == 2 and message in outcome.err


def test_evaluation_data_without_a_number_to_compare(train: Train, flags: list[str], tmp_path: Path) -> None:
    words = builders.chat_rows(2, rounds=1)
    for row in words:
        row["conversations"][1]["value"] = "None."
    data = builders.write_rows(tmp_path / "words.json", words)
    outcome = train(*flags, "--eval_data_path", data, "--eval_generate", "2", "--eval_match", "numeric")
    assert outcome.code == 3 and "no evaluation dialogue has a complete answer to compare with" in outcome.err


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
@pytest.mark.thorough
def test_two_processes_choose_the_best_model_and_are_not_disturbed(
    warm: Warm, flags: list[str], model_dir: Path, tmp_path: Path, engine: str
) -> None:
    """Dropout is on: one random number taken by the generation would change every later loss."""
    words = [*flags, "--model_name_or_path", str(model_dir), "--disable_tqdm", "True", "--lora_dropout", "0.1"]
    words += ["--per_device_train_batch_size", "6", "--lora_r", "16", *engine_flags(engine, tmp_path)]
    best = ["--eval_generate", "5", "--eval_max_new_tokens", "16", "--metric_for_best_model", "exact_match"]
    best += ["--load_best_model_at_end", "True", "--early_stopping_patience", "2"]
    outcome = warm.run([*words, *best], tmp_path / "out")
    assert warm.codes == [0, 0], outcome.err[-4000:]
    scores = [row["eval_exact_match"] for row in evaluations(outcome)]
    assert outcome.record["engine"] == engine and len(scores) >= 3
    assert outcome.record["metrics"]["eval_exact_match"] == max(scores)
    plain = warm.run([*words, "--max_steps", str(outcome.record["metrics"]["steps"])], tmp_path / "plain")
    assert warm.codes == [0, 0], plain.err[-4000:]
    assert plain.losses == outcome.losses, "bit for bit"
    assert [row["eval_loss"] for row in evaluations(plain)] == [row["eval_loss"] for row in evaluations(outcome)]
