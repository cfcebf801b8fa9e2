"""`--gradient_checkpointing` as the planner reads it: a switch, a number of layers, or as few as fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.api import Machine, Run, estimate, run_of
from fastchat.plan.report import describe
from fastchat.settings.checkpointing import read_checkpointing
from fastchat.settings.readers import plan_reader

SETTINGS = {"model_size": "7b", "model_max_length": 1024, "per_device_train_batch_size": 8}


def run(value: object, gib: float | None = 80) -> Run:
    machine = Machine(1, 1, None if gib is None else int(gib * 2**30))
    return run_of({**SETTINGS, "gradient_checkpointing": value}, machine)


def test_more_checkpointed_layers_never_take_more_memory() -> None:
    totals = [estimate(run(number)).total for number in range(33)]
    assert totals[:-1] == sorted(totals[:-1], reverse=True) and totals[0] > 2 * totals[-1]
    assert totals[-1] == pytest.approx(totals[-2], rel=0.01), "one layer is whole in either"
    assert totals[32] == estimate(run(True)).total and totals[0] == estimate(run(False)).total
    assert run(99).checkpointed_layers == 32


def test_auto_is_as_few_as_fit() -> None:
    assert run("auto", gib=300).gradient_checkpointing is False
    assert run("auto", gib=10).gradient_checkpointing is True, "nothing fits: the least"
    assert run("auto", gib=None).gradient_checkpointing is True
    found = run("auto", gib=40)
    number = found.gradient_checkpointing
    assert 0 < number < 32 and estimate(found).fits
    assert estimate(found).total < 0.95 * 40 * 2**30 < estimate(replace(found, gradient_checkpointing=number - 1)).total
    assert f"checkpointing of the first {number} of 32 layers" in describe(found)


@pytest.mark.parametrize(
    ("raw", "value"),
    [("True", True), ("off", False), ("full", True), ("12", 12), ("1", 1), ("0", False), ("auto", "auto"), (12, 12)],
)
def test_values(raw: object, value: object) -> None:
    typed = plan_reader().from_words(["--gradient_checkpointing", str(raw)])["gradient_checkpointing"]
    read = read_checkpointing(typed)
    assert read == value and type(read) is type(value)
    assert plan_reader().from_words(["--gradient_checkpointing"]) == {"gradient_checkpointing": True}


@pytest.mark.parametrize("raw", ["-1", "2.5", "ful", "all"])
def test_other_values_are_refused(raw: str) -> None:
    with pytest.raises(SettingsError, match="--gradient_checkpointing is '.*'; it can be True, False, auto"):
        read_checkpointing(raw)
