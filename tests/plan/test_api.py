"""The interface for other packages: plans from settings, records of a measurement, advice when memory runs out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.api import (
    Machine,
    Measured,
    as_lines,
    estimate,
    keep_global_batch,
    plan_for,
    run_of,
    short_line,
)
from fastchat.plan.command_line import read_flags
from fastchat.plan.run import Run
from fastchat.plan.units import GIB

SETTINGS = {
    "model_size": "7b",
    "q_lora": True,
    "model_max_length": 1024,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "learning_rate": 3e-4,
}


def plan(gib: float = 24, **changed: Any) -> Any:
    settings: Any = SETTINGS | changed
    return plan_for(settings, Machine(1, 1, round(gib * GIB), 64 * GIB))


def test_settings_of_a_real_run(tmp_path: Path, tiny_model_dir: Any) -> None:
    """`Values` can be passed unchanged."""
    from fastchat.settings.readers import training_reader
    from fastchat.settings.values import Values

    reader = training_reader(True)
    words = ["--model_name_or_path", str(tiny_model_dir()), "--lora_r", "4", "--bf16", "True", "--optim", "sgd"]
    values = Values(reader.options.values(), {}, reader.from_words(words))
    found = plan_for(values, Machine(2, 1, GIB))
    assert (found.run.lora_r, found.run.bf16, found.run.model_max_length, found.optimizer) == (4, True, 512, 0)
    assert not plan_for(values, Machine(2, 1, GIB), lora=False).run.lora


def test_the_same_from_flags() -> None:
    words = ["--model_size", "7b", "--q_lora", "True", "--model_max_length", "1024"]
    words += ["--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2"]
    machine = Machine(1, 1, 24 * GIB, 64 * GIB)
    assert run_of(read_flags(words), machine) == plan().run


def test_short_line() -> None:
    line = r"memory expected: [\d.]+ GiB per GPU of 24.0 GiB \(weights .*, loss .*; QLoRA r8, one GPU, .* sdpa, 1 GPU\)"
    assert re.fullmatch(line, short_line(plan()))


def test_a_continued_adapter_brings_its_rank_and_layers(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 64, "target_modules": ["q_proj", "v_proj"]}))
    run = plan(lora_weight_path=str(tmp_path)).run
    assert (run.lora_r, [linear.leaf for linear in run.adapted]) == (64, ["q_proj", "v_proj"])


@pytest.mark.parametrize("content", ["{", "[]", '{"r": 8}', '{"target_modules": 3}'])
def test_an_unusable_adapter(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(SettingsError, match="adapter_config.json"):
        plan(lora_weight_path=str(tmp_path))


def test_measured_beside_predicted() -> None:
    p = plan()
    close = Measured(p.allocated, round(p.allocated / 1.05))
    assert not close.surprising and not close.line().startswith("warning")
    toy = Measured(92 * 2**20, 137 * 2**20)
    assert not toy.surprising and toy.line() == "peak memory 137 MiB per GPU, 92 MiB predicted (-33 %)"
    assert Measured(92 * 2**20, 157 * 2**20).surprising
    far = Measured(p.allocated, round(p.allocated / 1.2))
    assert far.surprising and far.line().startswith("warning") and "+20 %" in far.line()
    assert far.record() == {
        "memory_predicted": p.allocated,
        "memory_measured": far.measured,
        "memory_off_by": pytest.approx(0.2, abs=1e-4),
    }


@pytest.mark.parametrize(("limit", "pair"), [(16, (16, 2)), (12, (8, 4)), (1, (1, 32)), (100, (32, 1)), (0, (1, 32))])
def test_keeping_the_global_batch(limit: int, pair: tuple[int, int]) -> None:
    assert keep_global_batch(plan().run, limit) == pair


# ---- what must hold for every plan ----


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("stage", [None, 2, 3, "fsdp"])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_parts_add_up_and_more_costs_more(gpus: int, stage: int | str | None, lora: bool, checkpointing: bool) -> None:
    settings: Any = {"model_size": "7b", "deepspeed": None, "full_finetuning": not lora, "model_max_length": 1024}
    settings |= {"gradient_checkpointing": checkpointing, "gradient_accumulation_steps": 2}
    if stage == "fsdp":
        settings["engine"] = stage
    elif stage is not None:
        settings["deepspeed"] = {"zero_optimization": {"stage": stage}}
    run: Run = run_of(settings, Machine(gpus, 1, 80 * GIB, 512 * GIB))
    p = estimate(run)
    parts = p.weights + p.gradients + p.optimizer + p.activations + p.loss + p.quantisation_overhead + p.zero_buffers
    assert p.total == parts + p.reserve + p.overlap
    assert p.overlap <= 0 and p.reserve > 0
    assert p.allocated < p.total
    if lora:
        assert p.overlap == 0
    larger = [replace(run, per_device_train_batch_size=16), replace(run, model_max_length=2048)]
    for more in map(estimate, larger):
        assert more.activations > p.activations
        assert more.total > p.total or (more.total == p.total and p.peak_at == "step")
    assert estimate(replace(run, gradient_checkpointing=True)).total <= p.total
    if lora:
        assert estimate(replace(run, lora_r=64)).total > p.total
        assert estimate(replace(run, q_lora=True)).weights < p.weights
    assert any("per GPU" in line for line in as_lines(p))


@pytest.mark.parametrize(
    ("optim", "bytes_each"), [("adamw_torch", 8), ("adamw_torch_fused", 8), ("sgd", 0), ("adamw_bnb_8bit", 2.03125)]
)
def test_optimizer_states(optim: str, bytes_each: float) -> None:
    p = plan(optim=optim)
    assert p.optimizer == pytest.approx(bytes_each * p.run.trained, rel=1e-6)


def test_unknown_optimizer_is_said() -> None:
    assert any("unknown --optim brand_new" in line for line in as_lines(plan(optim="brand_new")))
