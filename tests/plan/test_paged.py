"""Paged optimizer states are on the GPU while there is room, and only the rest is the host's, also in the recipes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastchat.plan.__main__ import main
from fastchat.plan.api import Machine, Plan, advice_after_oom, as_lines, plan_for
from fastchat.plan.units import GIB, human

PAGED: dict[str, Any] = {
    "model_size": "7b",
    "full_finetuning": True,
    "optim": "paged_adamw_32bit",
    "gradient_checkpointing": True,
}
RECIPES = ("gemma-2b-it", "gemma-7b-it", "codegemma-7b-it", "gemma-2-9b-it", "mistral-7b-v0.3")


def plan(gib: float | None, gpus: int = 1, **changed: Any) -> Plan:
    limit = None if gib is None else round(gib * GIB)
    return plan_for(PAGED | changed, Machine(gpus, 1, limit, 512 * GIB))


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("zero", [None, {"zero_optimization": {"stage": 2}}, {"zero_optimization": {"stage": 3}}])
def test_the_host_gets_what_the_gpu_has_no_room_for(gpus: int, zero: dict[str, Any] | None) -> None:
    """Whatever the GPU's size: nothing is lost or counted twice, and the GPU is full before the host is used."""
    whole = plan(None, gpus, deepspeed=zero)
    states = whole.paged
    assert states == pytest.approx(8 * whole.run.trained / (gpus if zero else 1), rel=0.01)
    assert whole.host_optimizer == 0
    least = (whole.total - states) / GIB
    for gib in (least + 1, (least + whole.total / GIB) / 2, whole.total / GIB, 2 * whole.total / GIB):
        p = plan(gib, gpus, deepspeed=zero)
        assert p.paged + p.host_optimizer // gpus == states
        assert p.fits and p.total == min(round(gib * GIB), whole.total)
        assert p.allocated == whole.allocated, "torch's allocator holds nothing paged"
    too_small = plan(least - 1, gpus, deepspeed=zero)
    assert too_small.gpu_fits is False and too_small.host_optimizer == gpus * states


def test_on_the_processor_nothing_is_paged() -> None:
    on_cpu = plan_for(PAGED, Machine(1, 1, None, 512 * GIB, on_cpu=True))
    assert (on_cpu.paged, on_cpu.host_optimizer, on_cpu.optimizer) == (0, 0, 8 * on_cpu.run.trained)


def test_where_the_states_are_is_said() -> None:
    roomy, tight = ("\n".join(as_lines(plan(gib))) for gib in (141, 64))
    assert "paged_adamw_32bit: paged, all on the GPU" in roomy
    assert re.search(r"paged_adamw_32bit: [\d.]+ GiB paged, [\d.]+ GiB more on the host", tight)


def test_advice_does_not_count_on_what_has_moved_already() -> None:
    """If memory ran out although the states were paged out, something else has to become smaller."""
    tight = plan(64, per_device_train_batch_size=32)
    assert tight.fits and tight.host_optimizer
    found = re.search(r"first: --per_device_train_batch_size (\d+) --gradient_accum\w+ (\d+)", advice_after_oom(tight))
    assert found is not None
    micro, accumulation = int(found[1]), int(found[2])
    assert micro * accumulation == 32
    smaller = plan(64, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)
    assert smaller.allocated < 0.96 * tight.allocated


def test_a_host_that_is_not_needed_is_not_charged(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("gemma-2b-it", "--gpus", "8", "--gpu_memory", "80GiB", "--cpu_memory", "128GiB", "--json")
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["host_optimizer"] == 0 and found["total"] < 80 * GIB


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_say_what_the_planner_says(
    name: str, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    lines = (repository / "playground" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    gib = re.search(r"8 GPUs of (\d+) GiB", header)
    override = re.search(r"With the override ([\d.]+ GiB) on each", header)
    config = re.search(r"Override: --deepspeed (\S+)", header)
    assert gib and override and config
    words = (name, "--gpus", "8", "--gpu_memory", f"{gib[1]}GiB", "--json")
    assert main(words) == 0 and main((*words, "--deepspeed", config[1])) == 0
    plain, sharded = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert plain["fits"] and sharded["fits"]
    assert human(sharded["total"]) == override[1] and sharded["host_optimizer"] == 0
    states = human(8 * plain["trained_parameters"])
    if plain["host_optimizer"]:
        assert f"{human(plain['host_total'])} of CPU memory" in header
        assert f"{human(plain['paged'])} of the {states} of Adam's states fit on each GPU" in header
    else:
        assert f"{human(plain['total'])} on each, of which {states} are Adam's states" in header
