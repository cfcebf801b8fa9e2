"""The numbers of a run: what is logged, what stops it, what moves and what must not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastchat.data.tokens.dataset import ChatDataset
from tests import builders
from tests.train.conftest import Outcome
from tests.train.flags import adapter, covers, ok

pytestmark = pytest.mark.slow

Train = Callable[..., Outcome]
FIELDS = ["step", "epoch", "loss", "grad_norm", "learning_rate", "num_tokens", "num_supervised_tokens"]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, int], None]:
    """`poisoned(nan, 3)`: the loss of the third micro-batch of the next run is that value."""
    from fastchat.train import trainer

    def go(value: float, micro_batch: int) -> None:
        real, seen = trainer.loss_sum, [0]

        def loss_sum(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            loss = real(*args, **kwargs)
            return loss * value if seen[0] == micro_batch else loss

        monkeypatch.setattr(trainer, "loss_sum", loss_sum)

    return go


def test_the_fields_of_metrics(train: Train) -> None:
    rows = ok(train("--max_steps", "3")).metrics
    assert [list(row) for row in rows] == [[k for k in row if k in FIELDS] for row in rows]
    assert [set(row) for row in rows] == [set(FIELDS)] * 3
    assert any(len(repr(row["loss"])) > 12 for row in rows), "full precision"


def test_the_steps_loss_is_its_sum_over_supervised_tokens(train: Train) -> None:
    rows = ok(train("--max_steps", "5", "--log_samples", "True")).metrics
    assert all(0 < row["num_supervised_tokens"] < row["num_tokens"] for row in rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(train: Train, poisoned: Any, value: float) -> None:
    plain = ok(train("--max_steps", "4", "--log_samples", "True", name="plain"))
    poisoned(value, 3)
    outcome = train("--max_steps", "4", "--log_samples", "True", "--save_strategy", "steps", "--save_steps", "1")
    assert outcome.code == 4 and outcome.status["exit_code"] == 4
    rows = [json.loads(line) for line in (plain.folder / "samples.jsonl").read_text().splitlines()]
    ids = ", ".join(map(str, rows[2]["samples"]))
    assert f"step 3: the loss is not finite (rank 0, sample ids {ids})" in outcome.err
    assert outcome.losses == plain.losses[:2]
    assert "checkpoint-2" in os.listdir(outcome.folder) and "checkpoint-3" not in os.listdir(outcome.folder)


def test_a_gradient_that_is_not_finite_stops_the_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastchat.train.trainer import ChatTrainer

    real = ChatTrainer.training_step

    def bad(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, model, *args, **kwargs)
        if self.state.global_step == 1:
            next(p for p in model.parameters() if p.grad is not None).grad[0] = float("inf")
        return loss

    monkeypatch.setattr(ChatTrainer, "training_step", bad)
    outcome = train("--max_steps", "3")
    assert outcome.code == 4 and "step 2: the gradient is not finite, although every loss is" in outcome.err


@covers("on_nonfinite")
def test_skipping_leaves_weights_moments_and_schedule_as_they_were(train: Train, poisoned: Any) -> None:
    poisoned(float("nan"), 2)
    skipped = ok(train("--max_steps", "3", "--on_nonfinite", "skip", "--lora_dropout", "0"))
    assert "step 2: the loss is not finite" in skipped.err and "left out" in skipped.err
    rows = skipped.metrics
    assert rows[1]["loss"] is None and rows[1]["num_supervised_tokens"] == 0 and rows[1]["grad_norm"] is None
    assert skipped.record["metrics"]["train_loss"] > 0
    state = next(iter(skipped.trainer.optimizer.state.values()))
    assert int(state["step"]) == 2, "two updates were made"


def test_every_trained_tensor_moves_and_no_frozen_one(train: Train) -> None:
    outcome = ok(train("--max_steps", "4", "--learning_rate", "1e-2", "--lora_dropout", "0"))
    assert outcome.trainer is not None
    from transformers import AutoModelForCausalLM

    base_path = outcome.record["base_model"]
    base = AutoModelForCausalLM.from_pretrained(base_path).state_dict()
    found = 0
    for name, tensor in outcome.trainer.model.get_base_model().state_dict().items():
        plain = name.replace(".base_layer", "")
        if plain in base:
            found += 1
            assert torch.equal(tensor, base[plain]), f"{name} is frozen and moved"
    assert found == len(base)
    tensors = adapter(outcome.folder)
    trained = sum(t.numel() for t in tensors.values())
    assert f"LoRA, {trained:,} of " in outcome.err
    start = adapter(ok(train("--max_steps", "1", "--learning_rate", "1e-30", name="start")).folder)
    for name, tensor in tensors.items():
        assert not torch.equal(tensor, start[name]), f"{name} trains and did not move"


def test_every_tensor_of_a_whole_model_moves(train: Train) -> None:
    from transformers import AutoModelForCausalLM

    outcome = ok(train("--max_steps", "2", "--learning_rate", "1e-2", full=True))
    base = AutoModelForCausalLM.from_pretrained(outcome.record["base_model"]).state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(outcome.folder).state_dict().items():
        assert not torch.equal(tensor, base[name]), name


def test_nothing_to_train_is_an_error(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastchat.train import recipe

    real = recipe.prepare_model

    def frozen(*args: Any, **kwargs: Any) -> Any:
        model, dtype = real(*args, **kwargs)
        return model.requires_grad_(False), dtype

    monkeypatch.setattr(recipe, "prepare_model", frozen)
    outcome = train()
    assert outcome.code == 2 and "no parameter would be trained" in outcome.err
    assert not outcome.folder.exists()


def test_a_micro_batch_without_supervised_tokens_changes_nothing(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dialogue whose labels are all ignored next to every real one: the same losses, gradients and weights."""
    rows = builders.chat_rows(6, 1)
    mixed = [row for pair in zip(rows, [rows[0]] * 6, strict=True) for row in pair]
    flags = ["--max_steps", "-1", "--num_train_epochs", "1", "--train_sampling_strategy", "sequential"]
    flags += ["--per_device_train_batch_size", "1", "--lora_dropout", "0"]
    one = builders.write_rows(tmp_path / "one.json", rows)
    two = builders.write_rows(tmp_path / "two.json", mixed)
    alone = ok(train(*flags, "--data_path", one, name="alone"))
    get = ChatDataset.__getitem__

    def silenced(dataset: ChatDataset, i: int) -> dict[str, Any]:
        example = get(dataset, i)
        return {**example, "labels": np.full_like(example["labels"], -100)} if i % 2 else example

    monkeypatch.setattr(ChatDataset, "__getitem__", silenced)
    beside = ok(train(*flags, "--data_path", two, "--gradient_accumulation_steps", "2", name="beside"))
    assert beside.losses == alone.losses
    for name, tensor in adapter(alone.folder).items():
        assert torch.equal(tensor, adapter(beside.folder)[name]), name


def test_evaluation_dialogues_that_are_trained_too_are_counted(
    train: Train, data_files: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = json.loads(data_files[1].read_text())
    rows += json.loads(data_files[0].read_text())[:3]
    both = builders.write_rows(tmp_path / "both.json", rows)
    outcome = ok(train("--eval_data_path", both, "--eval_strategy", "epoch"))
    assert f"WARNING: 3 of {len(rows)} evaluation dialogues are in the training data too" in outcome.err
    clean = ok(train("--eval_data_path", data_files[1], "--eval_strategy", "epoch", name="clean"))
    assert "in the training data too" not in clean.err


def test_out_of_memory_says_what_to_lower(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastchat.train import trainer

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(trainer, "loss_sum", full)
    outcome = train()
    assert outcome.code == 6 and "out of memory (CUDA out of memory. Tried" in outcome.err
    assert "--per_device_train_batch_size 2 --gradient_accumulation_steps 2" in outcome.err  # in place of 4 x 1
    assert "settings that fit, fastest first: --per_device" in outcome.err


@pytest.fixture
def small_disk(tmp_path: Path):
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_a_disk_that_cannot_hold_the_checkpoints_is_found_before_training(train: Train, small_disk: Path) -> None:
    flags = ["--save_strategy", "steps", "--save_steps", "1", "--max_steps", "30", "--lora_r", "64"]
    outcome = train(*flags, "--output_dir", small_disk / "out")
    assert outcome.code == 6 and "30 checkpoints of about" in outcome.err and "are free" in outcome.err
    assert not (small_disk / "out" / "metrics.jsonl").exists()


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(train: Train, small_disk: Path, monkeypatch: Any) -> None:
    from fastchat.checkpoint.verify import verify
    from fastchat.train import checkpoint_plan

    monkeypatch.setattr(checkpoint_plan, "check_space", lambda *args: None)  # another program takes the space later
    flags = ["--save_strategy", "steps", "--save_steps", "1", "--max_steps", "30", "--lora_r", "32"]
    outcome = train(*flags, "--output_dir", small_disk / "out")
    assert outcome.code == 6 and "a checkpoint of about" in outcome.err, outcome.err
    names = os.listdir(small_disk / "out")
    kept = [name for name in names if name.startswith("checkpoint-")]
    assert kept and not any(name.startswith(".saving") for name in names), names
    assert verify(small_disk / "out")[1]
    monkeypatch.undo()
    shutil.copytree(small_disk / "out", small_disk.parent / "room")
    more = [*flags, "--save_total_limit", "1", "--output_dir", small_disk.parent / "room"]
    again = train(*more)
    assert again.code == 0 and "resuming from" in again.err, again.err


GOLDEN = Path(__file__).with_name("golden_losses.json")


def _fixed_model(folder: Path) -> Path:
    """The same model in every session; its tokenizer has no merges, since training those breaks ties by chance."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    builders.make_tokenizer("byte_nobos", folder, num_merges=0)
    values = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", vocab_size=len(AutoTokenizer.from_pretrained(folder)), **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_the_trajectory_is_the_committed_one(train: Train, tmp_path: Path) -> None:
    """A change that is no change of computation leaves 20 steps bit-identical; on the versions it was made with."""
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "cpu": _cpu()}
    wanted = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    write = os.environ.get("WRITE_GOLDEN") == "1"
    if versions != wanted.get("versions") and not write:
        pytest.skip(f"made with {wanted.get('versions')}, here are {versions}")
    flags = ["--max_steps", "20", "--learning_rate", "1e-3", "--per_device_train_batch_size", "2"]
    model = _fixed_model(tmp_path / "model")
    outcome = ok(train(*flags, "--model_name_or_path", model, "--conv_template", "vicuna_v1.1"))
    rows = [[row["loss"], row["grad_norm"]] for row in outcome.metrics]
    if write:
        GOLDEN.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    else:
        assert rows == wanted["rows"], "where the change was meant: WRITE_GOLDEN=1 writes new ones"


def _cpu() -> str:
    """What decides which kernels torch and its libraries take."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    kind = [value.strip() for name, _, value in lines if name.strip() in ("vendor_id", "cpu family", "model")][:3]
    return f"{' '.join(kind)}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
