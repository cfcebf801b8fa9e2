"""The training scripts and memory: a warning before anything loads, and with AUTO=1 a batch that fits.

A folder with the config.json of a 7B (13B, 70B) model is enough, since planning needs no weights; the GPUs are those
that a false `nvidia-smi` lists.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders import chat_rows, write_rows
from tests.scripts.conftest import Run

Here = Callable[..., dict[str, str]]
SIZES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}  # Llama-2: hidden, MLP, layers, heads
DETECTION = """#!/bin/sh
[ "$1" = -L ] && list="GPU %d: NVIDIA X (UUID: GPU-%d)\\n" || list="NVIDIA X, {mib}, GPU-%d\\n"
for i in $(seq 0 {last}); do [ "$1" = -L ] && printf "$list" $i $i || printf "$list" $i; done
"""


@pytest.fixture
def here(tmp_path: Path) -> Here:
    """`here(size, gpus, gib)`: the variables of a run of that size on such a machine, with names that need quotes."""

    def make(size: str = "7b", gpus: int = 8, gib: int = 24) -> dict[str, str]:
        tools, model = tmp_path / "the tools", tmp_path / "it's a $(model) -x"
        tools.mkdir()
        model.mkdir()
        (tools / "nvidia-smi").write_text(DETECTION.format(mib=gib * 1024, last=gpus - 1))
        (tools / "nvidia-smi").chmod(0o755)
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        shape = dict(zip(names, SIZES[size], strict=True)) | {"vocab_size": 32000, "dtype": "bfloat16"}
        (model / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
        data = write_rows(tmp_path / "da ta.json", chat_rows(1))
        path = os.pathsep.join([str(tools), os.environ["PATH"]])
        return {"MODEL": str(model), "DATA": str(data), "PATH": path}

    return make


def planned(run: Any) -> dict[str, Any]:
    """What the script would run, as `--plan --json` prints it."""
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_documented_batch_fits_as_documented(here: Here, run_script: Run) -> None:
    found = planned(run_script("train_lora_7b_base.sh", "--plan", "--json", **here()))
    assert (found["gpus"], found["gpu_memory"], found["fits"], found["warning"]) == (8, 24 * 2**30, True, None)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (16, 2)
    assert (found["trained_parameters"], found["model_max_length"]) == (19_988_480, 1024)


def test_auto_keeps_the_global_batch(here: Here, run_script: Run) -> None:
    """On 12 GiB the batch of 16 does not fit; the largest that divides 32 evenly replaces it."""
    variables = here(gib=12)
    before = planned(run_script("train_lora_7b_base.sh", "--plan", "--json", **variables))
    assert before["fits"] is False and 1 < before["largest_microbatch"] < 16
    run = run_script("train_lora_7b_base.sh", "--plan", "--json", AUTO="1", **variables)
    after = planned(run)
    batch, accumulation = after["per_device_train_batch_size"], after["gradient_accumulation_steps"]
    assert after["fits"] is True and batch <= before["largest_microbatch"] and batch * accumulation == 32
    assert f"--per_device_train_batch_size {before['largest_microbatch']} (" in run.stderr
    assert f"batch {batch} x accumulation {accumulation} instead of 16 x 2" in run.stderr
    assert "stays 256" in run.stderr


def test_flags_at_the_end_count_too(here: Here, run_script: Run) -> None:
    own = ("--per_device_train_batch_size", "64", "--lora_r", "64", "--model_max_length=2048")
    run = run_script("train_lora_7b_base.sh", *own, "--plan", "--json", AUTO="1", NUM_GPUS="2", **here())
    found = planned(run)
    assert found["gpus"] == 2 and found["model_max_length"] == 2048 and found["fits"] is True
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 128
    assert "instead of 64 x 2; the global batch stays 256" in run.stderr


def test_nothing_fits(here: Here, run_script: Run) -> None:
    run = run_script("train_lora_13b_base.sh", AUTO="1", **here("13b", gib=6))
    assert run.returncode == 6 and "AUTO=1: no batch fits" in run.stderr
    assert "WARNING: the run will not fit" in run.stderr


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs a script in a copy of the checkout, which has no .venv; its environment is only what is given."""

    def run(*flags: str, **variables: str) -> Any:
        root = tmp_path / "check out"
        if not root.exists():
            shutil.copytree(repository / "scripts", root / "scripts")
            for name in ("fastchat", "playground"):
                (root / name).symlink_to(repository / name)
        return subprocess.run(
            ["bash", "-u", str(root / "scripts" / "train_lora_7b_base.sh"), *flags],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def start(copied: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Runs a script to its end; only the launcher is a stub, which prints its arguments."""

    def run(*flags: str, **variables: str) -> Any:
        launcher = tmp_path / "the tools" / "deepspeed"
        launcher.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        launcher.chmod(0o755)
        seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        return copied(*flags, **seen | variables)

    return run


@pytest.fixture
def laptop(tmp_path: Path) -> dict[str, str]:
    """Neither GPU, compiler, deepspeed, data nor the model's files, and a Python without packages that is `python3`."""
    tools = tmp_path / "few tools"
    tools.mkdir()
    for name in ("bash", "dirname", "grep", "sed", "tr", "cut", "cat"):
        (tools / name).symlink_to(next(p for p in (Path("/bin") / name, Path("/usr/bin") / name) if p.exists()))
    (tools / "python3").symlink_to(Path(sys.executable).resolve())
    return {"PATH": str(tools), "HOME": str(tmp_path), "MODEL": "meta-llama/Llama-2-7b-hf"}


def test_a_plan_needs_only_the_model(copied: Callable[..., Any], laptop: dict[str, str]) -> None:
    elsewhere = ("--gpus", "8", "--gpu_memory", "80GiB")
    run = copied("--plan", *elsewhere, "--json", **laptop)
    found = planned(run)
    assert (found["gpus"], found["gpu_memory"], found["fits"], run.stderr) == (8, 80 * 2**30, True, "")
    text = copied("--plan", "True", *elsewhere, "--data_path", "not here.json", NUM_GPUS="2", **laptop)
    assert text.returncode == 0 and "; 8 GPUs" in text.stdout and "\nfits\n" in text.stdout
    named = {**laptop, "PYTHON": sys.executable}
    (Path(laptop["PATH"]) / "python3").unlink()
    assert planned(copied("--plan", *elsewhere, "--json", **named))["fits"], "PYTHON alone is enough"
    none = copied("--plan", **laptop | {"PYTHON": "no-python"})
    assert none.returncode == 6 and "looked at no-python, python" in none.stderr
    (Path(laptop["PATH"]) / "python3").symlink_to(Path(sys.executable).resolve())
    alone = copied("--plan", **laptop)
    assert alone.returncode == 0 and "such as --gpu_memory 24GiB" in alone.stdout
    assert copied("--plan", **laptop | {"MODEL": "gone"}).stderr == "cannot start: MODEL=gone does not exist\n"


def test_auto_plans_for_other_machines_too(copied: Callable[..., Any], laptop: dict[str, str]) -> None:
    run = copied("--plan", "--gpus", "8", "--gpu_memory", "12GiB", "--json", AUTO="1", **laptop)
    found = planned(run)
    assert found["fits"] and found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 32
    assert "the global batch stays 256" in run.stderr


def test_a_plan_that_is_not_wanted_trains(copied: Callable[..., Any], laptop: dict[str, str]) -> None:
    for flags in (("--plan", "False"), ("--plan=no",)):
        run = copied(*flags, **laptop)
        assert run.returncode == 2 and "DATA is not set" in run.stderr and "no NVIDIA GPU found" in run.stderr


@pytest.mark.parametrize("auto", ["0", "1"])
def test_what_is_started(auto: str, here: Here, start: Callable[..., Any]) -> None:
    """Logged before the launcher starts; without AUTO the run continues unchanged."""
    variables = here(gib=12)
    run = start("--num_train_epochs", "1", AUTO=auto, **variables)
    assert run.returncode == 0, run.stderr
    words = run.stdout.splitlines()
    assert f"--model_name_or_path={variables['MODEL']}" in words
    assert run.stderr.count("WARNING: the run will not fit") == 1
    last = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("--")}
    found = int(last["--per_device_train_batch_size"]), int(last["--gradient_accumulation_steps"])
    assert found == (16, 2) if auto == "0" else (found[0] * found[1] == 32 and found[0] < 16)
    assert last["--num_train_epochs"] == "1"
    assert ("AUTO=1 takes one that fits" in run.stderr) == (auto == "0")


def test_an_unknown_model_is_said_and_goes_on(here: Here, start: Callable[..., Any]) -> None:
    variables = here()
    (Path(variables["MODEL"]) / "config.json").write_text(
        '{"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 0}'
    )
    run = start(AUTO="1", **variables)
    assert "its memory cannot be planned" in run.stderr and "the memory could not be planned" in run.stderr
    assert run.returncode == 0 and "--per_device_train_batch_size" in run.stdout


def test_auto_is_0_or_1(here: Here, run_script: Run) -> None:
    run = run_script("train_lora_7b_base.sh", AUTO="yes", **here())
    assert run.returncode == 2 and "AUTO=yes is neither 0 nor 1" in run.stderr
