"""Flags of training, evaluation, saving and logging: each has an effect that can be seen."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.machine import wait_for
from tests.train.conftest import Outcome
from tests.train.flags import Train, adapter, covers, ok

pytestmark = pytest.mark.slow


def rates(outcome: Outcome) -> list[float]:
    return [row["learning_rate"] for row in outcome.metrics if "loss" in row]


def group(outcome: Outcome) -> dict[str, Any]:
    return outcome.trainer.optimizer.param_groups[0]


# ---- steps, schedule, optimizer ----


@covers("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
def test_how_many_steps(train: Train) -> None:
    assert len(ok(train("--max_steps", "3")).losses) == 3
    epochs = ok(train("--max_steps", "-1", "--num_train_epochs", "2", "--per_device_train_batch_size", "8", name="b"))
    assert len(epochs.losses) == 6  # 20 dialogues in batches of 8: three steps an epoch
    accumulated = ok(train("--gradient_accumulation_steps", "2", "--max_steps", "1", name="c"))
    one = ok(train("--per_device_train_batch_size", "8", "--max_steps", "1", name="d"))
    assert accumulated.metrics[0]["num_tokens"] == one.metrics[0]["num_tokens"]
    assert accumulated.losses == pytest.approx(one.losses, abs=1e-5)


@covers("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")
def test_schedule(train: Train) -> None:
    four = ("--max_steps", "4", "--learning_rate", "0.1")
    none = ok(train(*four))
    assert rates(none) == pytest.approx([0.1, 0.075, 0.05, 0.025]) and "linear, no warmup\n" in none.err
    assert rates(ok(train(*four, "--lr_scheduler_type", "constant", name="b"))) == [0.1] * 4
    by_steps = ok(train(*four, "--lr_scheduler_type", "cosine", "--warmup_steps", "2", name="c"))
    assert rates(by_steps)[:3] == pytest.approx([0, 0.05, 0.1]) and "cosine, 2 warmup steps\n" in by_steps.err
    by_share = ok(train(*four, "--lr_scheduler_type", "cosine", "--warmup_ratio", "0.5", name="d"))
    assert rates(by_share) == rates(by_steps)
    both = ok(train(*four, "--warmup_ratio", "0.25", "--warmup_steps", "2", name="e"))
    assert rates(both)[1] == pytest.approx(0.05) and "--warmup_steps 2 wins" in both.err
    floor = ("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.5}')
    assert min(rates(ok(train(*four, *floor, name="f")))) > 0.05


def test_a_warmup_as_long_as_the_run(train: Train, data_files: tuple[Path, Path]) -> None:
    """One step behind a warmup of one step would be made with learning rate 0, and called a success."""
    one = ok(train("--max_steps", "1", "--learning_rate", "0.1", "--warmup_ratio", "0.03"))
    assert rates(one) == [0.1] and "warmup: none, the run has one step only" in one.err
    assert any(tensor.any() for name, tensor in adapter(one.folder).items() if "lora_B" in name)
    for name in ("constant", "reduce_lr_on_plateau"):
        more = ("--lr_scheduler_type", name, "--warmup_ratio", "1", "--eval_data_path", data_files[1])
        flat = ok(train("--max_steps", "2", "--eval_strategy", "epoch", *more, name=name))
        assert "the warmup takes" not in flat.err
    long = ok(train("--max_steps", "3", "--learning_rate", "0.1", "--warmup_steps", "10", name="b"))
    assert max(rates(long)) == pytest.approx(0.02)
    assert "the warmup takes 10 steps and the run has 3: the learning rate only reaches 0.02 of" in long.err


@covers("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
def test_optimizer(train: Train) -> None:
    plain = ok(train())
    assert plain.record["optimizer"] == "AdamW" and group(plain)["betas"] == (0.9, 0.999)
    changed = ok(
        train("--weight_decay", "0.1", "--adam_beta1", "0.5", "--adam_beta2", "0.6", "--adam_epsilon", "1e-3", name="b")
    )
    assert (group(changed)["weight_decay"], group(changed)["betas"], group(changed)["eps"]) == (0.1, (0.5, 0.6), 1e-3)
    assert ok(train("--optim", "adafactor", name="c")).record["optimizer"] == "Adafactor"
    paged = ok(train("--optim", "paged_adamw_32bit", name="d"))
    assert "--optim paged_adamw_32bit needs a GPU" in paged.err and paged.record["optimizer"] == "AdamW"
    assert paged.record["settings"]["optim"] == {"value": "adamw_torch", "from": "derived"}


@covers("max_grad_norm")
def test_clipping(train: Train) -> None:
    sgd = ("--optim", "sgd", "--learning_rate", "1", "--lora_dropout", "0")
    moved = [
        sum(t.norm().item() for name, t in adapter(ok(train(*sgd, "--max_grad_norm", norm, name=norm)).folder).items()
            if "lora_B" in name)
        for norm in ("0.001", "100")
    ]  # fmt: skip
    assert moved[0] < 0.01 < moved[1]


@covers("label_smoothing_factor", "neftune_noise_alpha")
def test_what_changes_the_training_loss(train: Train, eval_flags: list[str]) -> None:
    flags = [*eval_flags, "--eval_on_start", "--lora_dropout", "0"]
    plain = ok(train(*flags))
    smooth = ok(train(*flags, "--label_smoothing_factor", "0.3", name="b"))
    noisy = ok(train(*flags, "--neftune_noise_alpha", "50", name="c"))
    assert smooth.losses[0] != pytest.approx(plain.losses[0], abs=1e-6)
    assert noisy.losses[0] != pytest.approx(plain.losses[0], abs=1e-6)
    assert smooth.metrics[0] == noisy.metrics[0] == plain.metrics[0], "evaluation is not touched"


# ---- precision and memory ----


@covers("dtype", "bf16", "fp16", "tf32", "use_cpu")
def test_precision(train: Train) -> None:
    plain = ok(train())
    assert (plain.record["dtype"], plain.record["compute_dtype"]) == ("float32", "float32")
    half = ok(train("--dtype", "bfloat16", name="b"))
    assert half.record["dtype"] == "bfloat16"
    assert next(p for n, p in half.trainer.model.named_parameters() if "lora_" not in n).dtype == torch.bfloat16
    mixed = ok(train("--bf16", "True", name="c"))
    assert (mixed.record["dtype"], mixed.record["compute_dtype"]) == ("float32", "bfloat16")
    assert mixed.losses != plain.losses
    fallen = ok(train("--fp16", "True", "--tf32", "True", name="d"))
    assert "--fp16 needs a GPU" in fallen.err and "--tf32 needs a GPU" in fallen.err
    assert fallen.record["compute_dtype"] == "float32" and fallen.losses == plain.losses
    assert "no GPU here" in fallen.err
    forced = ok(train("--use_cpu", "True", name="e"))
    assert forced.record["device"] == "cpu" and "no GPU here" not in forced.err


@covers("gradient_checkpointing_kwargs")
def test_gradient_checkpointing(train: Train) -> None:
    plain = ok(train("--lora_dropout", "0"))
    for i, flag in enumerate(("--gradient_checkpoint", "--gradient_checkpointing")):
        outcome = ok(train("--lora_dropout", "0", flag, "True", name=f"b{i}"))
        assert outcome.trainer.model.is_gradient_checkpointing and not plain.trainer.model.is_gradient_checkpointing
        assert outcome.losses == pytest.approx(plain.losses, abs=1e-6)
        assert _checkpoint_keywords(outcome)["use_reentrant"] is False
    reentrant = ok(
        train("--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"use_reentrant": true}', name="c")
    )
    assert _checkpoint_keywords(reentrant)["use_reentrant"] is True


def _checkpoint_keywords(outcome: Outcome) -> dict[str, Any]:
    found = [m for m in outcome.trainer.model.modules() if getattr(m, "gradient_checkpointing", False)]
    return found[0]._gradient_checkpointing_func.keywords


@covers("flash_attn")
def test_flash_attention_falls_back_and_says_so(train: Train) -> None:
    outcome = ok(train("--flash_attn", "True"))
    assert "needs a GPU" in outcome.err and outcome.record["attention"] == "sdpa"


# ---- evaluation ----


def _evaluated(outcome: Outcome) -> list[int]:
    return [row["step"] for row in ok(outcome).metrics if "eval_loss" in row]


@covers("eval_data_path", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval", "do_train")
def test_when_evaluation_happens(train: Train, data_files: tuple[Path, Path]) -> None:
    data = ("--eval_data_path", str(data_files[1]), "--max_steps", "7")
    assert _evaluated(train(*data, "--evaluation_strategy", "epoch")) == [5, 7]
    steps = train(*data, "--eval_strategy", "steps", "--eval_steps", "3", name="b")
    assert _evaluated(steps) == [3, 6, 7] and " after step 3 (the first evaluation) -> " in steps.err
    assert _evaluated(train(*data, "--eval_strategy", "epoch", "--eval_on_start", name="c")) == [0, 5, 7]
    delayed = train(*data, "--eval_strategy", "steps", "--eval_steps", "2", "--eval_delay", "5", name="d")
    assert _evaluated(delayed) == [6, 7]
    once = train(*data, "--do_eval", "--do_train", name="e")
    assert _evaluated(once) == [7] and "(--eval_on_start True also measures it before training)" in once.err
    unused = train(*data, name="f")
    assert _evaluated(unused) == [] and "--eval_data_path is not used" in unused.err


@covers("per_device_eval_batch_size")
def test_evaluation_is_exact_for_any_batch_size(train: Train, eval_flags: list[str]) -> None:
    found = [
        ok(train(*eval_flags, "--per_device_eval_batch_size", str(size), name=f"b{size}")) for size in (1, 2, 3, 100)
    ]
    losses = [outcome.record["metrics"]["eval_loss"] for outcome in found]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)
    assert [len(outcome.trainer.get_eval_dataloader()) for outcome in found] == [7, 4, 3, 1]


# ---- saving on the way ----


def _checkpoints(outcome: Outcome) -> list[str]:
    return sorted(p.name for p in ok(outcome).folder.glob("checkpoint-*"))


@covers("save_strategy", "save_steps", "save_total_limit", "save_only_model")
def test_checkpoints(train: Train) -> None:
    six = ("--max_steps", "6")
    assert _checkpoints(train(*six)) == []
    every = train(*six, "--save_strategy", "steps", "--save_steps", "2", name="b")
    assert _checkpoints(every) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    names = set(os.listdir(every.folder / "checkpoint-6"))
    assert {"adapter_model.safetensors", "optimizer.pt", "training.json", "chat_template.jinja"} <= names
    assert "training_args.bin" not in names
    last, result = adapter(every.folder / "checkpoint-6"), adapter(every.folder)
    assert all(torch.equal(last[name], result[name]) for name in result)
    assert _checkpoints(train(*six, "--save_strategy", "epoch", name="c")) == ["checkpoint-5", "checkpoint-6"]
    limited = train(*six, "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1", name="d")
    assert _checkpoints(limited) == ["checkpoint-6"]
    slim = train(*six, "--save_strategy", "steps", "--save_steps", "6", "--save_only_model", name="e")
    assert "optimizer.pt" not in os.listdir(ok(slim).folder / "checkpoint-6")


@covers("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
def test_the_best_checkpoint_wins(train: Train, data_files: tuple[Path, Path]) -> None:
    flags = ["--eval_data_path", str(data_files[1]), "--max_steps", "4", "--learning_rate", "1e-3", "--save_strategy"]
    flags += ["steps", "--save_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end"]
    for greater in ("False", "True"):
        outcome = ok(train(*flags, "--metric_for_best_model", "loss", "--greater_is_better", greater, name=greater))
        rows = [row for row in outcome.metrics if "eval_loss" in row]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        best = (max if greater == "True" else min)(rows, key=lambda row: row["eval_loss"])
        assert outcome.record["metrics"]["eval_loss"] == pytest.approx(best["eval_loss"], abs=1e-6)
        chosen = adapter(outcome.folder / f"checkpoint-{best['step']}")
        assert all(torch.equal(t, chosen[name]) for name, t in adapter(outcome.folder).items())


# ---- order, workers, logging ----


@covers("seed", "data_seed", "full_determinism", "train_sampling_strategy", "group_by_length")
def test_randomness_and_order(train: Train, data_files: tuple[Path, Path]) -> None:
    plain, again = ok(train()), ok(train(name="b"))
    assert plain.losses == again.losses and plain.metrics == again.metrics
    assert ok(train("--seed", "1", name="c")).losses != plain.losses
    reordered = ok(train("--data_seed", "1", name="d"))
    order = [
        outcome.trainer.get_train_dataloader().batch_sampler.permutation().tolist() for outcome in (plain, reordered)
    ]
    assert order[0] != order[1]
    rows = ok(train("--train_sampling_strategy", "sequential", name="e")).trainer.get_train_dataloader().batch_sampler
    assert rows.permutation().tolist() == list(range(20))
    grouped = ok(train("--group_by_length", "True", name="f"))
    batch = next(iter(grouped.trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[1] == max(grouped.trainer.train_lengths)
    assert int(batch["attention_mask"].sum(dim=1).min()) > 0.8 * max(grouped.trainer.train_lengths)
    try:
        ok(train("--full_determinism", "True", name="g"))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
            os.environ.pop(name, None)


@covers("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers")
@covers("dataloader_prefetch_factor", "dataloader_multiprocessing_context")
def test_loader(train: Train) -> None:
    plain = ok(train("--lora_dropout", "0"))
    flags = ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "--dataloader_prefetch_factor", "3"]
    outcome = ok(train("--lora_dropout", "0", *flags, "--dataloader_multiprocessing_context", "fork", name="b"))
    loader = outcome.trainer.get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 3)
    outcome.trainer.eval_dataset = outcome.trainer.train_dataset
    for _ in range(3):
        outcome.trainer.evaluate()
        wait_for(lambda: len(multiprocessing.active_children()) == 1)  # those of the evaluation before are gone
    outcome.trainer.end_workers()
    assert not multiprocessing.active_children()
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert outcome.losses == plain.losses
    short = ok(train("--max_steps", "-1", "--num_train_epochs", "1", "--per_device_train_batch_size", "8",
                     "--dataloader_drop_last", name="c"))  # fmt: skip
    assert len(short.losses) == 2
    assert plain.trainer.get_train_dataloader().pin_memory is False
    assert not ok(train("--no_dataloader_pin_memory", name="d")).trainer.get_train_dataloader().pin_memory


@covers("logging_steps", "logging_strategy", "logging_first_step", "include_num_input_tokens_seen")
def test_what_is_logged(train: Train) -> None:
    four = ("--max_steps", "4", "--lora_dropout", "0")
    each = ok(train(*four)).metrics
    assert [row["step"] for row in each] == [1, 2, 3, 4]
    assert set(each[0]) == {
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "num_tokens",
        "num_supervised_tokens",
    }
    pairs = ok(train(*four, "--logging_steps", "2", name="b")).metrics
    weights = [row["num_supervised_tokens"] for row in each]
    mean = (each[0]["loss"] * weights[0] + each[1]["loss"] * weights[1]) / (weights[0] + weights[1])
    assert pairs[0]["loss"] == pytest.approx(mean, abs=1e-7) and pairs[0]["num_supervised_tokens"] == sum(weights[:2])
    first = ok(train(*four, "--logging_steps", "2", "--logging_first_step", name="c")).metrics
    assert [row["step"] for row in first] == [1, 2, 4]
    assert [row["step"] for row in ok(train(*four, "--logging_strategy", "epoch", name="d")).metrics] == [4]
    seen = ok(train(*four, "--include_num_input_tokens_seen", "non_padding", name="e")).metrics
    assert "num_input_tokens_seen" in seen[0]


@covers("disable_tqdm", "log_level", "log_level_replica")
def test_how_much_is_shown(train: Train) -> None:
    shown = ok(train("--disable_tqdm", "False"))
    assert "%|" not in shown.err, "bars are for terminals"
    assert re.search(r"^step 2/2  epoch .*  loss [\d.]+  lr [\de.-]+  grad .* tok/s \(", shown.err, re.MULTILINE)
    assert "{'loss'" not in shown.err and "'eval_loss'" not in shown.err
    from transformers.utils import logging

    level = logging.get_verbosity()
    try:
        loud = ok(train("--log_level", "info", "--log_level_replica", "error", name="c"))
        assert logging.get_verbosity() == logging.INFO
        assert loud.trainer.args.log_level_replica == "error"
    finally:
        logging.set_verbosity(level)


@covers("report_to", "run_name")
def test_wandb_offline(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: list[str] = []
    monkeypatch.setattr(wandb, "init", _noting(wandb.init, names))
    outcome = train("--report_to", "wandb", "--run_name", "my run")
    wandb.finish()
    assert ok(outcome).record["settings"]["report_to"]["value"] == ["wandb"]
    assert names == ["my run"] and list(tmp_path.glob("wandb/offline-run-*"))


def _noting(init: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        names.append(kwargs.get("name"))
        return init(*args, **kwargs)

    return wrapped
