"""A run that resumes with another number of processes: its global batch, what was counted, and DeepSpeed's state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastchat.checkpoint.manifest import Manifest, write_manifest
from fastchat.errors import CheckpointError, SettingsError
from fastchat.settings.readers import training_options
from fastchat.settings.values import Values
from fastchat.train import other_processes
from fastchat.train.engine import zero_universal
from tests.tiers import thorough
from tests.train.conftest import Outcome
from tests.train.warm import Warm


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Values]:
    """`saved(8, 2)`: the settings of a run whose folder has a checkpoint of 2 processes with a global batch of 8."""

    def make(batch: int, processes: int, **values: Any) -> Values:
        folder = tmp_path / "out" / "checkpoint-2"
        folder.mkdir(parents=True)
        counts = {"epoch": 0.5, "samples": 16, "tokens": 100, "supervised_tokens": 10}
        fingerprints = {"global_batch": batch}
        manifest = Manifest(
            step=2, **counts, world_size=processes, engine="ddp", fingerprints=fingerprints, settings={}, files={}
        )
        write_manifest(folder, manifest)
        return Values(training_options(True), {}, {"output_dir": str(tmp_path / "out"), **values})

    return make


@pytest.mark.parametrize(
    ("processes", "micro", "accumulation"),
    [(1, 1, 8), (1, 4, 2), (4, 1, 2), (4, 2, 1), (2, 1, 4), (8, 1, 1)],
)
def test_the_accumulation_follows_from_the_processes(
    saved: Callable[..., Values], monkeypatch: pytest.MonkeyPatch, processes: int, micro: int, accumulation: int
) -> None:
    values = saved(8, 3 if processes == 2 else 2, per_device_train_batch_size=micro, gradient_accumulation_steps=7)
    monkeypatch.setattr(other_processes, "world_size", lambda: processes)
    other_processes.keep_global_batch(values)
    assert values["gradient_accumulation_steps"] == accumulation
    assert values.origin["gradient_accumulation_steps"] == "derived"


@pytest.mark.parametrize(
    ("processes", "more", "message"),
    [
        (4, {}, "which is 2 for each of 4 processes: give --per_device_train_batch_size 2 "),
        (1, {}, "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 or --per_device_train_batch_size 1 "),
        (3, {}, "a global batch of 8, which 3 processes cannot share: start 1 or 2 or 4 or 8, or name another"),
    ],
)
def test_what_no_accumulation_can_keep_names_the_values_that_do(
    saved: Callable[..., Values], monkeypatch: pytest.MonkeyPatch, processes: int, more: dict[str, Any], message: str
) -> None:
    values = saved(8, 2, per_device_train_batch_size=3, **more)
    monkeypatch.setattr(other_processes, "world_size", lambda: processes)
    with pytest.raises(SettingsError, match=message):
        other_processes.keep_global_batch(values)


@pytest.mark.parametrize(
    "more", [{"resume_from_checkpoint": "never"}, {"overwrite_output_dir": True}, {"output_dir": "/nowhere/else"}]
)
def test_a_run_that_starts_over_keeps_its_own_batch(
    saved: Callable[..., Values], monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    values = saved(8, 2, **{"per_device_train_batch_size": 3, **more})
    monkeypatch.setattr(other_processes, "world_size", lambda: 1)
    other_processes.keep_global_batch(values)
    assert values["gradient_accumulation_steps"] == 1 and not values.given("gradient_accumulation_steps")


def test_what_was_counted_is_counted_once() -> None:
    mine = [
        {"loss": torch.tensor(float(n)), "counts": torch.tensor([n, 2 * n]), "run": torch.tensor(9)} for n in (1, 2)
    ]
    first, other = (other_processes.joined(mine, first=first) for first in (True, False))
    assert (first["loss"].item(), first["counts"].tolist(), first["run"].item()) == (3.0, [3, 6], 9)
    assert (other["loss"].item(), other["counts"].tolist(), other["run"].item()) == (0.0, [0, 0], 9)


def test_new_random_numbers_belong_to_a_step_and_a_process() -> None:
    def draw(*where: int) -> float:
        other_processes.new_random_state(*where)
        return torch.rand(()).item()

    before = torch.random.get_rng_state()
    drawn = [draw(*where) for where in ((42, 2, 0), (42, 2, 1), (42, 3, 0), (43, 2, 0))]
    assert len(set(drawn)) == 4 and draw(42, 2, 0) == drawn[0]
    torch.random.set_rng_state(before)


# ---- DeepSpeed ----


def test_a_state_that_deepspeed_cannot_divide_anew_is_refused() -> None:
    zero_universal.check_optimizer(torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))
    with pytest.raises(CheckpointError, match="the state of SGD only fits as many processes"):
        zero_universal.check_optimizer(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1))


def test_options_and_steps_that_deepspeed_mixes_up(tmp_path: Path) -> None:
    parts = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [parts[0]], "lr": 1.0}, {"params": [parts[1]], "lr": 1.0}])
    step = torch.tensor(5.0)
    for part in parts:
        optimizer.state[part]["step"] = step
    file = tmp_path / zero_universal.TAG / "zero" / "optimizer_state.pt"
    file.parent.mkdir(parents=True)
    torch.save(
        {"optimizer_state_dict": {"param_groups": [{"lr": 1.0, "params": []}, {"lr": 16.0, "params": []}]}}, file
    )
    zero_universal.mend(optimizer, tmp_path)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 16.0]
    optimizer.state[parts[0]]["step"] += 1
    assert optimizer.state[parts[1]]["step"] == 5


def test_nothing_but_tensors_is_read_whatever_deepspeed_asks_for(tmp_path: Path) -> None:
    torch.save(SimpleNamespace(code=1), tmp_path / "x.pt")
    with zero_universal.only_tensors([]), pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "x.pt", weights_only=False)
    with zero_universal.only_tensors([SimpleNamespace]):
        assert torch.load(tmp_path / "x.pt", weights_only=False).code == 1


@pytest.mark.launch
@pytest.mark.parametrize(
    ("engine", "script", "more"),
    [
        thorough("zero2", "train_lora", ["--bf16", "True", "--loraplus_lr_ratio", "16"], in_default=False),
        thorough("zero3", "train", [], in_default=False),
        thorough("zero3", "train_lora", ["--q_lora", "True", "--loraplus_lr_ratio", "16"], in_default=False),
    ],
)
def test_zero_resumes_on_one_process_and_on_four(
    warm: Warm,
    model_dir: Path,
    data_files: tuple[Path, Path],
    tmp_path: Path,
    engine: str,
    script: str,
    more: list[str],
) -> None:
    flags = ["--model_name_or_path", str(model_dir), "--data_path", str(data_files[0]), "--disable_tqdm", "True"]
    flags += ["--max_steps", "4", "--learning_rate", "1e-3", "--engine", engine, "--weight_decay", "0.1", *more]
    flags += ["--lora_dropout", "0"] if script == "train_lora" else []
    micro, saves = "--per_device_train_batch_size", ["--save_strategy", "steps", "--save_steps", "2"]
    plain = warm.run([*flags, micro, "2", *saves], tmp_path / "two", 2, script)
    assert set(warm.codes) == {0}, plain.err[-4000:]
    start = ["--resume_from_checkpoint", str(plain.folder / "checkpoint-2")]
    for processes, batch in ((1, "2"), (4, "1")):
        found: Outcome = warm.run([*flags, micro, batch, *start], tmp_path / str(processes), processes, script)
        assert set(warm.codes) == {0}, found.err[-4000:]
        half = "--bf16" in more
        assert found.losses == pytest.approx(plain.losses[2:], rel=1e-4 if half else 1e-6, abs=0 if half else 1e-6)
        assert found.record["engine"] == engine and found.record["world_size"] == processes
    assert {path.name for path in plain.folder.iterdir() if path.name.startswith(".saving")} == set()
