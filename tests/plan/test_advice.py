"""Advice for a run that does not fit or ran out of memory: settings that fit, with the same global batch."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from fastchat.plan.api import (
    Machine,
    advice_after_oom,
    estimate,
    keep_global_batch,
    largest_microbatch,
    machine_asked,
    plan_lines,
    run_of,
    warning_line,
)
from fastchat.plan.command_line import read_flags
from fastchat.plan.search import ENGINES
from fastchat.plan.units import GIB
from fastchat.plan.zero import read_zero
from fastchat.settings.recipe_files import find_deepspeed_config
from tests.plan.test_api import plan


def test_the_documented_batch_of_7b_on_a_24_gib_card() -> None:
    """Not without checkpointing: the largest that fits keeps the global batch."""
    p = plan()
    largest = largest_microbatch(p.run)
    assert not p.fits and largest is not None and 1 <= largest < 16
    micro, accumulation = keep_global_batch(p.run, largest)
    assert micro * accumulation == 32
    smaller = replace(p.run, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)
    assert estimate(smaller).fits


def test_advice_after_running_out_of_memory() -> None:
    p = plan()
    advice = advice_after_oom(p)
    assert "planned for QLoRA r8" in advice and "settings that fit, fastest first" in advice
    flags = re.search(r"--per_device_train_batch_size (\d+) --gradient_accumulation_steps (\d+)", advice)
    assert flags and int(flags[1]) * int(flags[2]) == 32
    assert "--gradient_checkpointing True" in advice


def test_advice_leaves_room_when_the_plan_was_too_low() -> None:
    """A run that was planned to fit and still ran out of memory needs settings that are clearly smaller."""
    p = plan(gradient_checkpointing=True)
    assert p.fits
    tight = plan(gib=p.total / GIB + 0.01, gradient_checkpointing=True)
    advice = advice_after_oom(tight)
    micro = int(re.search(r"--per_device_train_batch_size (\d+)", advice)[1])  # type: ignore[index]
    assert micro < 16


def test_advice_when_nothing_fits_or_nothing_is_known() -> None:
    assert "smaller settings do not fit either" in advice_after_oom(plan(gib=2))
    unknown = replace(plan().run, machine=Machine(1))
    advice = advice_after_oom(estimate(unknown))
    assert "--per_device_train_batch_size 8 --gradient_accumulation_steps 4" in advice
    assert "--gradient_checkpointing True" in advice


# ---- a plan that does not fit ends with settings that do ----


def _asked(*words: str, as_object: bool = False) -> list[str]:
    flags = read_flags(list(words))
    return plan_lines(estimate(run_of(flags, machine_asked(flags))), as_object=as_object)


CARD = ("--gpus", "1", "--gpu_memory", "24GiB", "--cpu_memory", "128GiB")


@pytest.mark.parametrize("method", [["--q_lora", "True"], [], ["--full_finetuning", "True"]], ids=str)
@pytest.mark.parametrize("machine", [CARD, ("--gpus", "4", *CARD[2:])], ids=["one", "four"])
def test_it_ends_with_settings_that_fit(method: list[str], machine: tuple[str, ...]) -> None:
    words = ["--model_size", "7b", *machine, *method, "--model_max_length", "1024"]
    lines = _asked(*words)
    at = lines.index("settings that fit, fastest first (same global batch):")
    found = json.loads(_asked(*words, as_object=True)[0])
    listed = found["fitting_settings"].splitlines()
    assert [line.strip() for line in lines[at + 1 :]] == listed and found["fitting_otherwise"] is None
    for settings in listed:
        assert json.loads(_asked(*words, *settings.split(), as_object=True)[0])["fits"], settings


def test_gradient_checkpointing_alone_is_among_them() -> None:
    assert "  --gradient_checkpointing True" in _asked("--model_size", "7b", "--q_lora", "True", *CARD)


def test_where_no_settings_fit_it_says_what_would() -> None:
    words = ["--model_size", "7b", "--model_max_length", "8192", "--gpus", "2", "--gpu_memory", "8GiB"]
    words += ["--full_finetuning", "True", "--cpu_memory", "40GiB"]
    lines = _asked(*words)
    assert "no settings fit; what would:" in lines
    found = json.loads(_asked(*words, as_object=True)[0])
    ways = found["fitting_otherwise"].splitlines()
    assert found["fitting_settings"] is None and len(ways) >= 2
    for way in ways:
        gpus, size = re.match(r"(\d+) such GPUs", way), re.match(r"(\d+) GPUs of (\d+)GiB", way)
        hosts = re.search(r"on (\d+) hosts", way)
        more = ["--gpus", gpus[1], "--hosts", hosts[1] if hosts else "1"] if gpus else []
        more += ["--gpu_memory", f"{size[2]}GiB"] if size else []
        more += re.sub(r"^.*?(?=--)", "", way).split()
        assert json.loads(_asked(*words, *more, as_object=True)[0])["fits"], way


def test_nothing_is_added_to_a_plan_that_fits_or_that_nobody_can_judge() -> None:
    fits = _asked("--model_size", "7b", "--q_lora", "True", "--gpus", "1", "--gpu_memory", "80GiB")
    unknown = plan_lines(estimate(replace(plan().run, machine=Machine(1))), as_object=False)
    assert not any("what fits" in line or "no settings fit" in line for line in (*fits, *unknown))


# ---- the warning before a run ----


def test_no_warning_where_it_fits_or_nobody_knows() -> None:
    assert warning_line(plan(gib=141)) is None
    assert warning_line(estimate(replace(plan().run, machine=Machine(1)))) is None


def test_the_warning_names_the_largest_microbatch_and_keeps_the_global_batch() -> None:
    """48 GiB take 5 dialogues; 4 x 8 is the nearest below that divides 32."""
    tight = plan(gib=48)
    assert largest_microbatch(tight.run) == 5
    line = warning_line(tight)
    assert line is not None and line.startswith("WARNING: the run will not fit: 128 GiB per GPU, 48.0 GiB available.")
    assert "fits: --per_device_train_batch_size 5 (--per_device_train_batch_size 4 --gradient_acc" in line
    assert "--gradient_accumulation_steps 8 keeps the global batch)" in line


def test_where_no_microbatch_fits_other_settings_are_named() -> None:
    line = warning_line(plan(gib=16, q_lora=False))
    assert line is not None and "No microbatch fits with these settings; settings that fit, fastest first:" in line
    flags = line.split("first: ")[1].split("; or ")
    for choice in flags:
        found: Any = dict(re.findall(r"--(\w+) (\S+)", choice))
        assert plan(gib=16, **({"q_lora": False} | found)).fits, choice  # every switch in it is switched on


def test_full_fine_tuning_is_sent_to_its_own_configurations() -> None:
    words = ["--model_size", "7b", "--full_finetuning", "--per_device_train_batch_size", "4"]
    run = run_of(read_flags(words), Machine(8, 1, 24 * GIB, 512 * GIB))
    advice = advice_after_oom(estimate(run))
    (name, *_) = re.findall(r"--deepspeed ([^\s;]+)", advice)
    assert "lora" not in name and "/" not in name
    config = json.loads(find_deepspeed_config(name).read_text())
    assert config["data_types"]["grad_accum_dtype"] == "fp32"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.lora_file)
@pytest.mark.parametrize("lora", [True, False])
def test_the_engines_are_the_files_of_the_package(engine: Any, lora: bool) -> None:
    assert read_zero(engine.path(lora), 4096) == read_zero(engine.config(lora), 4096)


def test_gradients_summed_in_float32_take_twice_the_room() -> None:
    sizes = []
    for types in ({}, {"data_types": {"grad_accum_dtype": "fp32"}}):
        config: Any = {"zero_optimization": {"stage": 3}, **types}
        sizes.append(plan(full_finetuning=True, q_lora=False, deepspeed=config).gradients)
    assert sizes[1] == 2 * sizes[0]
