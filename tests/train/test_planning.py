"""`--plan`, what a run says of its memory before it starts, what it records of it, and what it says when it ran out."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.families import architecture_from_config
from fastchat.train import planning
from fastchat.train.planning import answer, take_plan
from tests.builders import chat_rows, write_rows
from tests.train.flags import Train, ok

GIB = 2**30
NO_TORCH = """
import runpy, sys
try:
    runpy.run_module("fastchat.train.{script}", run_name="__main__")
finally:
    heavy = {{"torch", "transformers", "numpy", "peft", "deepspeed"}} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.fixture
def plan_only(repository: Path, tmp_path: Path) -> Callable[..., Any]:
    """`plan_only("train_lora", ...)`: the real command in a process of its own, which must not load torch."""

    def run(script: str, *words: str, **environment: str) -> Any:
        code = NO_TORCH.format(script=script)
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            env=os.environ | {"PYTHONPATH": str(repository), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


# ---- --plan ----


def test_plan_answers_without_torch_and_touches_nothing(
    plan_only: Callable[..., Any], tmp_path: Path, tiny_model_dir: Any
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {tiny_model_dir()}\noutput_dir: {tmp_path / 'out'}\nlora_r: 4\n")
    before = sorted(tmp_path.rglob("*"))
    run = plan_only("train_lora", str(recipe), "--plan", "--gpu_memory", "24GiB", "--json", "--lora_r", "2")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    adapted = 2 * 2 * (4 * (32 + 32) - 2 * 16 + 3 * (32 + 64))  # rank 2 over two layers
    assert found["trained_parameters"] == adapted and found["fits"] is True and found["gpus"] == 1
    assert sorted(tmp_path.rglob("*")) == before
    full = plan_only("train", str(recipe).replace("recipe", "full"), "--plan")
    assert full.returncode == 2 and "there is no recipe" in full.stderr


def test_plan_of_full_fine_tuning(plan_only: Callable[..., Any], tmp_path: Path) -> None:
    run = plan_only("train", "--model_size", "7b", "--plan", "True", "--output_dir", str(tmp_path / "out"))
    assert run.returncode == 0 and "full fine-tuning" in run.stdout and not (tmp_path / "out").exists()


def test_only_the_first_process_answers(plan_only: Callable[..., Any]) -> None:
    words = ("--model_size", "7b", "--plan", "--json")
    launched = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    first = plan_only("train_lora", *words, "--local_rank=0", RANK="0", **launched)
    assert json.loads(first.stdout)["gpus"] == 8 and json.loads(first.stdout)["host_processes"] == 4 * 2 * GIB
    assert plan_only("train_lora", *words, RANK="3", **launched).stdout == ""


@pytest.mark.parametrize(
    ("words", "lora", "message"),
    [
        (["--model_size", "7b", "--lora_rank", "8"], True, r"unknown setting --lora_rank; here it is --lora_r 8"),
        (["--model_size", "7b", "--recommend"], True, r"`fastchat plan --recommend` has it"),
        (["--model_size", "7b", "--lora_alpha", "8"], False, r"--lora_alpha belongs to train_lora.py"),
        (["--model_size", "7b", "--q_lora", "True"], False, r"--q_lora belongs to train_lora.py"),
        (["--model_name_or_path", "/nowhere"], True, r"no such folder"),
        ([], True, r"no model"),
    ],
)
def test_mistakes_stay_mistakes(words: list[str], lora: bool, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        answer(words, lora=lora)


def test_recipes_by_name_are_planned_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["llama-2-7b-lora", "--model_size", "7b", "--json", "--gpu_memory", "24GiB", "--gpus", "4"]
    plan = json.loads(answer(words, lora=True)[0])
    assert plan["zero_buffers"] and plan["fits"], "its DeepSpeed configuration is found too"
    with pytest.raises(SettingsError, match="there is no recipe llama-2-7b-lore; did you mean llama-2-7b-lora"):
        answer(["llama-2-7b-lore"], lora=True)


def test_a_recipe_that_training_refuses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("lora_r: 8\nlora_r: 16\n")
    with pytest.raises(SettingsError, match="given twice"):
        answer([str(tmp_path / "r.yaml")], lora=True)


def test_hosts_alone_are_as_many_machines_like_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model_size", "7b", "--gpu_memory", "80GiB", "--json"]
    for size, hosts, gpus in ("1", "2", 2), ("4", "2", 4), ("4", None, 4), ("4", "3", 6):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2" if size == "4" else "1")
        plan = json.loads(answer([*words, *(["--hosts", hosts] if hosts else [])], lora=True)[0])
        assert (plan["gpus"], plan["host_processes"]) == (gpus, gpus // int(hosts or 2) * 2 * GIB)


def test_precision_is_the_commands_own() -> None:
    """Without --bf16 training computes in float32; the planner alone assumes bf16."""
    words = ["--model_size", "7b", "--dtype", "float32", "--json", "--gpu_memory", "80GiB"]
    wide, half = (json.loads(answer([*words, *more], lora=True)[0]) for more in ([], ["--bf16", "True"]))
    assert wide["weights"] == half["weights"] and wide["activations"] > 1.2 * half["activations"]


@pytest.mark.parametrize(
    ("words", "asked", "rest"),
    [
        (["--plan"], True, []),
        (["a.yaml", "--plan", "--lora_r", "8"], True, ["a.yaml", "--lora_r", "8"]),
        (["--plan", "True", "--x", "--plan=False"], False, ["--x"]),
        (["--planned", "x"], False, ["--planned", "x"]),
    ],
)
def test_the_switch_is_taken_out(words: list[str], asked: bool, rest: list[str]) -> None:
    assert take_plan(words) == (asked, rest)
    with pytest.raises(SettingsError, match="--plan is 'maybe'"):
        take_plan(["--plan", "maybe"])


# ---- before, during and after a run ----


def test_a_run_says_what_it_expects(train: Train) -> None:
    """What it measured is in test_launch.py: in a process that had other runs, memory need not grow."""
    outcome = ok(train("--lora_r", "4", "--model_max_length", "256", "--max_steps", "1"))
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("memory expected: "))
    assert "per process on the CPU" in line and "LoRA r4, one process, microbatch 4 x 256 tokens" in line
    assert line.endswith("sdpa, 1 process on the CPU)")


def test_a_model_that_cannot_be_planned_is_trained_all_the_same(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the planner answers for a config.json without its sizes."""

    def no_sizes(*args: Any, **options: Any) -> Any:
        return architecture_from_config({"model_type": "brand_new"}, "some/model")

    monkeypatch.setattr(planning, "plan_for", no_sizes)
    outcome = ok(train("--max_steps", "1"))
    assert re.search(
        r"memory: not planned \(some/model: hidden_size .*training itself does not need a plan", outcome.err
    )
    assert outcome.record["memory"] is None and "memory_predicted" not in outcome.rows[0]


def test_an_unknown_family_is_planned_by_its_sizes(
    train: Train, tiny_model_dir: Any, data_files: tuple[Path, Path]
) -> None:
    model = tiny_model_dir("helium")
    base = ["--model_name_or_path", str(model), "--data_path", str(data_files[0]), "--max_steps", "1"]
    outcome = ok(train("--disable_tqdm", "True", base=base))
    log = (outcome.folder / "log.txt").read_text()
    assert re.search(r"memory expected: .*unknown model type 'helium': planned as a Llama of the same sizes", log)


def test_what_does_not_fit_is_said_loudly_and_tried(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--gradient_accumulation_steps", "1", "--model_max_length", "512")
    monkeypatch.setattr(planning, "detect_cpu_memory", lambda: 2 * GIB + 24 * 2**20)
    outcome = ok(train(*flags))
    warning = next(line for line in outcome.err.splitlines() if line.startswith("WARNING: the run will not fit"))
    found = re.search(r"fits: --per_device_train_batch_size (\d)", warning)
    assert found and 1 <= int(found[1]) < 4 and "keeps the global batch" in warning
    monkeypatch.setattr(planning, "detect_cpu_memory", lambda: GIB)
    assert "smaller settings do not fit either" in ok(train(*flags, name="again")).err


@pytest.mark.slow
def test_running_out_of_memory_says_what_fits(train: Train, tmp_path: Path, model_dir: Path) -> None:
    """Really: the process may take 150 MiB more than it has, and a batch of long dialogues needs several times that."""
    data = write_rows(tmp_path / "long.json", chat_rows(64, rounds=40))
    words = ["--model_name_or_path", str(model_dir), "--data_path", str(data), "--max_steps", "1"]
    words += ["--per_device_train_batch_size", "64", "--gradient_accumulation_steps", "1", "--model_max_length", "512"]
    ok(train("--max_steps", "1"))  # everything is imported
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20, limits[1]))
        outcome = train("--disable_tqdm", "True", base=words, name="full")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert outcome.code == 6, outcome.err
    assert "planned for LoRA r8, one process, microbatch 64 x 512 tokens" in outcome.err
    smaller = re.search(r"--per_device_train_batch_size (\d+) --gradient_accumulation_steps (\d+)", outcome.err)
    assert smaller and int(smaller[1]) * int(smaller[2]) == 64 and int(smaller[1]) < 64


@pytest.mark.slow
@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_lost_answers_are_warned_of_with_what_longer_limits_take(train: Any, tmp_path: Path, overlong: str) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "word " * 40}]
    longer = [*turns, {"from": "human", "value": "More"}, {"from": "gpt", "value": "word " * 300}]
    data = tmp_path / "long.json"
    data.write_text(json.dumps([{"conversations": turns}] * 4 + [{"conversations": longer}] * 2), encoding="utf-8")
    flags = ["--data_path", str(data), "--max_steps", "1", "--overlong", overlong, "--model_max_length"]
    outcome = train(*flags, "300")
    assert outcome.code == 0, outcome.err
    (line,) = (line for line in outcome.err.splitlines() if "of the tokens to learn" in line)
    found = re.search(
        r"([\d.]+) % of .* in 2 dialogues\) are cut off .*: --model_max_length (\d+) keeps all \(\+[\d.]+ ", line
    )
    assert found and float(found[1]) > 5, line
    whole = train(*flags, found[2], "--rope_scaling_type", "linear", name="whole")
    assert whole.code == 0 and "of the tokens to learn" not in whole.err, whole.err
    counts = whole.record["data"]["train"]["counts"]
    assert counts["dialogues"] == 6 and not counts.get("lost_supervised_tokens")
