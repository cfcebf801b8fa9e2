"""Going on from a checkpoint: bit for bit the run that was never interrupted, or a refusal that says what changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.train.engine import ZeRO
from tests.train.conftest import Outcome
from tests.train.flags import covers

pytestmark = pytest.mark.slow

Train = Callable[..., Outcome]
# 20 dialogues, 3 to a step: 7 steps an epoch; dropout, accumulation and shuffling on; evaluation at every epoch's end.
RUN = ["--max_steps", "-1", "--num_train_epochs", "3", "--per_device_train_batch_size", "1", "--lora_dropout", "0.1"]
RUN += ["--gradient_accumulation_steps", "3", "--learning_rate", "1e-3", "--lr_scheduler_type", "cosine"]
RUN += ["--warmup_ratio", "0.1", "--log_samples", "True"]


class Interruption(RuntimeError):
    """The end of a process, as far as one process can play it: nothing is written after it."""


@pytest.fixture
def interrupted(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`interrupted(step, *flags)`: a run that ends without a word after so many steps."""
    from fastchat.train.callbacks import MetricsFile

    def go(step: int, *flags: str, **more: Any) -> Outcome:
        def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise Interruption(f"after step {step}")

        with monkeypatch.context() as patch:
            patch.setattr(MetricsFile, "on_step_begin", on_step_begin, raising=False)
            outcome = train(*flags, **more)
        assert outcome.code == 1 and "Interruption" in outcome.err, outcome.err
        return outcome

    return go


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the uninterrupted run gave, filled by the first test that makes it."""
    return {}


def same_run(one: Outcome, other: Outcome, full: bool = False) -> None:
    """Bit for bit: every row of the metrics, every sample id, every trained weight."""
    assert one.code == other.code == 0, one.err + other.err
    assert one.metrics == other.metrics
    samples = [(o.folder / "samples.jsonl") for o in (one, other)]
    if samples[0].is_file():
        assert samples[0].read_text() == samples[1].read_text()
    name = "model.safetensors" if full else "adapter_model.safetensors"
    assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    for key in ("train_loss", "steps", "eval_loss"):
        assert one.record["metrics"].get(key) == other.record["metrics"].get(key), key


@covers("resume_from_checkpoint", "save_steps", "log_samples")
def test_the_first_epoch_a_later_one_and_twice_in_a_row(
    train: Train, interrupted: Callable[..., Outcome], eval_flags: list[str]
) -> None:
    flags = [*RUN, *eval_flags, "--save_strategy", "steps", "--save_steps", "2"]
    plain = train(*flags, name="plain")
    for step, start in ((5, 4), (7, 6), (12, 12), (17, 16)):  # one run, interrupted again and again
        outcome = interrupted(step, *flags, name="broken")
        assert f"checkpoint-{start}" in os.listdir(outcome.folder)
        assert (outcome.folder / "adapter_model.safetensors").exists() is False
    resumed = train(*flags, name="broken")
    assert "resuming from" in resumed.err and "checkpoint-16: step 16" in resumed.err
    same_run(plain, resumed)
    rows = [json.loads(line) for line in (resumed.folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 22))
    for epoch in range(3):
        ids = [i for row in rows[7 * epoch : 7 * epoch + 7] for i in row["samples"]]
        assert sorted(ids) == list(range(20)), "every dialogue once in every epoch"
    assert rows[0]["samples"] != rows[7]["samples"], "epochs differ in order"


def test_epoch_ends_workers_and_rows_that_span_several_steps(
    train: Train, interrupted: Callable[..., Outcome], eval_flags: list[str]
) -> None:
    flags = [*RUN, *eval_flags, "--save_strategy", "epoch", "--logging_steps", "3", "--dataloader_num_workers", "1"]
    plain = train(*flags, name="plain")
    interrupted(9, *flags, name="broken")
    same_run(plain, train(*flags, name="broken"))


def test_saving_on_the_last_step_of_an_epoch_does_not_lose_its_evaluation(
    train: Train, interrupted: Callable[..., Outcome], eval_flags: list[str]
) -> None:
    flags = [*RUN, *eval_flags, "--save_strategy", "steps", "--save_steps", "7", "--num_train_epochs", "2"]
    flags += ["--lr_scheduler_type", "reduce_lr_on_plateau", "--warmup_ratio", "0"]
    plain = train(*flags, name="plain")
    interrupted(7, *flags, name="broken")
    same_run(plain, train(*flags, name="broken"))


def test_full_fine_tuning(train: Train, interrupted: Callable[..., Outcome], base_flags: list[str]) -> None:
    flags = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "1e-3"]
    plain = train(*flags, full=True, name="plain")
    interrupted(3, *flags, full=True, name="broken")
    same_run(plain, train(*flags, full=True, name="broken"), full=True)


def test_a_checkpoint_holds_what_the_manifest_says(train: Train) -> None:
    from fastchat.checkpoint.manifest import find_problems, read_manifest

    outcome = train("--max_steps", "3", "--save_strategy", "steps", "--save_steps", "3")
    path = outcome.folder / "checkpoint-3"
    assert find_problems(path) == []
    assert sorted(os.listdir(path)) == [
        *("MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "optimizer.pt"),
        *("rank_0.pt", "scheduler.pt", "tokenizer.json", "tokenizer_config.json", "trainer_state.json"),
        "training.json",
    ]
    manifest = read_manifest(path)
    tokens, supervised = (sum(row[k] for row in outcome.metrics) for k in ("num_tokens", "num_supervised_tokens"))
    assert (manifest.step, manifest.samples, manifest.world_size, manifest.engine) == (3, 12, 1, "plain")
    assert (manifest.tokens, manifest.supervised_tokens) == (tokens, supervised)
    assert manifest.settings["learning_rate"] == 5e-5 and manifest.fingerprints == outcome.record["fingerprints"]
    assert {"data", "template", "tokenizer", "base_model"} <= set(manifest.fingerprints)
    assert len({path.stat().st_mode for path in path.iterdir() if path.is_file()}) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_the_space_that_is_asked_for_is_what_a_checkpoint_takes(train: Train, full: bool, dtype: str) -> None:
    flags = ["--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1", "--dtype", dtype]
    more = [] if full else ["--lora_r", "64"]
    outcome = train(*flags, *more, full=full)
    names = ("adapter_model.safetensors", "model.safetensors", "optimizer.pt")
    paths = [outcome.folder / "checkpoint-1" / name for name in names]
    size = sum(path.stat().st_size for path in paths if path.is_file())
    assert outcome.trainer is not None
    assert 0.9 < outcome.trainer.plan.expected_bytes / size < 1.1


@covers("save_total_limit")
def test_old_checkpoints_go(train: Train) -> None:
    outcome = train("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2")
    assert [name for name in sorted(os.listdir(outcome.folder)) if name.startswith("checkpoint")] == [
        "checkpoint-3",
        "checkpoint-4",
    ]


@pytest.fixture
def broken(interrupted: Callable[..., Outcome]) -> Outcome:
    """An interrupted run with checkpoints 2 and 4."""
    return interrupted(5, *SHORT)


SHORT = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "1e-3"]


def test_a_finished_run_has_nothing_to_do(train: Train, monkeypatch: Any) -> None:
    first = train(*SHORT)
    before = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")}
    again = train(*SHORT)
    assert again.code == 0 and "nothing to do" in again.err and again.trainer is None
    assert before == {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")}
    with monkeypatch.context() as patch:  # by its numbers it is the same run
        patch.setattr("fastchat.train.recipe.choose_engine", lambda *_, **__: ZeRO({"zero_optimization": {}}, 1))
        assert "nothing to do" in train(*SHORT).err
    other = train(*SHORT, "--data_seed", "7")
    assert other.code == 2 and "data_seed" in other.err
    for checkpoint in first.folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    other = train(*SHORT, "--conv_template", "zero_shot")
    assert other.code == 2 and "already holds a result (adapter_config.json)" in other.err
    assert " used, " not in other.err, "said before the data is read"
    again = train(*SHORT)
    assert "nothing to do" in again.err and " used, " in again.err


def test_a_run_killed_while_it_saved_its_result(train: Train, broken: Outcome, monkeypatch: Any) -> None:
    from fastchat.train import result

    def killed(*args: Any) -> None:
        raise Interruption("while saving")

    with monkeypatch.context() as patch:
        patch.setattr(result, "measured", killed)
        assert train(*SHORT).code == 1
    assert "checkpoint-6" in os.listdir(broken.folder) and "training.json" not in os.listdir(broken.folder)
    steps = len(train(*SHORT).losses)
    assert steps == 6, "not one step more"


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(train: Train, broken: Outcome) -> None:
    path = broken.folder / "checkpoint-4" / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (broken.folder / ".saving-checkpoint-6").mkdir()
    outcome = train(*SHORT)
    assert outcome.code == 0, outcome.err
    assert "WARNING" in outcome.err and "checkpoint-4 is not usable" in outcome.err and "optimizer.pt" in outcome.err
    assert "checkpoint-2: step 2" in outcome.err and "removed .saving-checkpoint-6" in outcome.err
    same_run(train(*SHORT, name="plain"), outcome)
    from fastchat.checkpoint.verify import verify

    assert verify(outcome.folder)[1], "the damaged one was replaced"


def test_only_damaged_checkpoints_stop_the_run(train: Train, broken: Outcome) -> None:
    for step in (2, 4):
        (broken.folder / f"checkpoint-{step}" / "optimizer.pt").unlink()
    outcome = train(*SHORT)
    assert outcome.code == 5 and "no valid checkpoint" in outcome.err and "optimizer.pt: is missing" in outcome.err
    assert train(*SHORT, "--resume_from_checkpoint", "never").code == 2, "what is there is not written over"
    fresh = train(*SHORT, "--resume_from_checkpoint", "never", "--overwrite_output_dir")
    assert fresh.code == 0 and len(fresh.losses) == 6 and "going on" not in fresh.err


@covers("resume_weights_only")
def test_weights_only_does_without_the_rest(train: Train, broken: Outcome) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rank_0.pt"):
        (broken.folder / "checkpoint-4" / name).unlink()
    refused = train(*SHORT, "--lora_dropout", "0", "--resume_from_checkpoint", broken.folder / "checkpoint-4")
    assert refused.code == 5 and "scheduler.pt: is missing" in refused.err
    outcome = train(*SHORT, "--resume_weights_only", "True")
    assert outcome.code == 0, outcome.err
    plain = train(*SHORT, name="plain")
    assert outcome.losses[4] == pytest.approx(plain.losses[4], abs=2e-3), "the same weights and the same dialogues"
    rates = [row["learning_rate"] for row in outcome.metrics], [row["learning_rate"] for row in plain.metrics]
    assert rates[0] == pytest.approx(rates[1])
    assert outcome.losses != plain.losses, "Adam has begun anew"


def test_a_named_checkpoint(train: Train, broken: Outcome) -> None:
    path = broken.folder / "checkpoint-2"
    elsewhere = train(*SHORT, "--resume_from_checkpoint", path, name="elsewhere")
    outcome = train(*SHORT, "--resume_from_checkpoint", path)
    assert "checkpoint-2: step 2" in outcome.err
    assert "checkpoint-4 is newer" in outcome.err and "set-aside-1-checkpoint-4" in os.listdir(outcome.folder)
    same_run(train(*SHORT, name="plain"), outcome)
    assert len(elsewhere.losses) == 4 and elsewhere.losses == outcome.losses[2:]
    (path / "scheduler.pt").write_bytes(b"")
    bad = train(*SHORT, "--resume_from_checkpoint", path, name="third")
    assert bad.code == 5 and "scheduler.pt" in bad.err and not bad.folder.joinpath("metrics.jsonl").exists()


CHANGES: list[tuple[list[str], str]] = [
    (["--model_max_length", "400"], "--model_max_length (512 -> 400)"),
    (["--conv_template", "zero_shot"], "the conversation template"),
    (["--train_on", "last"], "--train_on (assistant -> last)"),
    (["--seed", "3"], "--seed (42 -> 3)"),
    (["--lora_r", "4"], "--lora_r (8 -> 4)"),
    (["--per_device_train_batch_size", "2"], "the global batch (per-device batch x accumulation x processes) (4 -> 2)"),
]


@pytest.mark.parametrize(("flags", "named"), CHANGES, ids=[flags[0] for flags, _ in CHANGES])
def test_another_run_is_refused_and_the_change_named(
    train: Train, broken: Outcome, flags: list[str], named: str
) -> None:
    before = {p: p.stat().st_mtime_ns for p in broken.folder.rglob("*") if p.is_file()}
    outcome = train(*SHORT, *flags)
    assert outcome.code == 2 and named in outcome.err and "belongs to another run" in outcome.err, outcome.err
    assert " used, " not in outcome.err, "said before the data is read, which may take long"
    assert before == {p: p.stat().st_mtime_ns for p in broken.folder.rglob("*") if p.is_file()}


def test_other_data_tokenizer_or_base_are_refused(
    train: Train, broken: Outcome, data_files: tuple[Path, Path], tmp_path: Path, model_dir: Path
) -> None:
    rows = json.loads(data_files[0].read_text())
    rows[0]["conversations"][1]["value"] += " Yes."
    (tmp_path / "other.json").write_text(json.dumps(rows))
    outcome = train(*SHORT, "--data_path", tmp_path / "other.json")
    assert outcome.code == 2 and "the training data (" in outcome.err
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    assert train(*SHORT, "--model_name_or_path", copy, "--max_steps", "5").code == 0, "the same base at another place"
    shutil.rmtree(broken.folder)


def test_another_base_is_refused(train: Train, broken: Outcome, tmp_path: Path, model_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    tensors = load_file(copy / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    outcome = train(*SHORT, "--model_name_or_path", copy)
    assert outcome.code == 2 and "the base model's weights (" in outcome.err


def test_a_new_learning_rate_is_said_and_used(train: Train, broken: Outcome) -> None:
    outcome = train(*SHORT, "--learning_rate", "5e-4", "--weight_decay", "0.1")
    assert outcome.code == 0, outcome.err
    assert "--learning_rate 0.001 -> 0.0005" in outcome.err and "--weight_decay 0.0 -> 0.1" in outcome.err
    rates = [row["learning_rate"] for row in outcome.metrics]
    fresh = [row["learning_rate"] for row in train(*SHORT, name="plain").metrics]
    assert rates[:4] == fresh[:4] and rates[4:] == pytest.approx([rate / 2 for rate in fresh[4:]])
    assert outcome.trainer.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_two_runs_in_one_folder(train: Train, tmp_path: Path) -> None:
    from fastchat.files import Lock

    (tmp_path / "out").mkdir()
    lock = Lock(tmp_path / "out")
    assert lock.acquire(wait=False)
    outcome = train()
    assert outcome.code == 2 and "in use by another run" in outcome.err and os.listdir(tmp_path / "out") == []
    lock.release()
    assert train().code == 0


def test_no_pickle_but_our_own_is_opened(train: Train, broken: Outcome, tmp_path: Path) -> None:
    """A file that runs code when it is unpickled, with a manifest that vouches for it: refused when it is opened."""
    from fastchat.checkpoint import manifest as m

    path = broken.folder / "checkpoint-4"
    torch.save({"x": _Evil(tmp_path / "executed")}, path / "optimizer.pt")
    known = m.read_manifest(path)
    files = m.describe_files(path, m.files_in(path))
    m.write_manifest(path, m.Manifest(**{**vars(known), "files": files}))
    outcome = train(*SHORT)
    assert outcome.code == 5 and "cannot be loaded safely" in outcome.err
    assert not (tmp_path / "executed").exists()


def test_a_folder_of_another_program_is_no_checkpoint(train: Train, tmp_path: Path) -> None:
    """As transformers would save it, without our manifest: refused before a byte of it is used."""
    foreign = tmp_path / "foreign" / "checkpoint-3"
    foreign.mkdir(parents=True)
    for name in ("optimizer.pt", "rng_state.pth", "pytorch_model.bin", "training_args.bin"):
        torch.save({"x": _Evil(tmp_path / "executed")}, foreign / name)
    (foreign / "trainer_state.json").write_text('{"global_step": 3}')
    outcome = train("--resume_from_checkpoint", foreign)
    assert outcome.code == 5 and "has no MANIFEST.json: it is not a complete checkpoint of this project" in outcome.err
    outcome = train("--output_dir", foreign.parent)
    assert outcome.code == 5 and "has no valid checkpoint to resume from" in outcome.err
    assert not (tmp_path / "executed").exists()


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)
