"""`fastchat plan` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastchat.plan.__main__ import main
from fastchat.settings.recipe_files import find_deepspeed_config

PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "quantisation_overhead", "zero_buffers", "reserve")


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(words) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def ask_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    return json.loads(ask(capsys, *words, "--json"))


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers on a machine with GPUs."""
    monkeypatch.setattr("fastchat.plan.api.detect_gpus", lambda: [])


def test_quick_and_without_torch(tmp_path: Path, repository: Path) -> None:
    """Under 2 seconds, the whole process; neither torch nor transformers nor numpy is loaded."""
    script = (
        "import sys, runpy; sys.argv[1:] = sys.argv[1:]\n"
        "try: runpy.run_module('fastchat.plan', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "bad = {'torch', 'transformers', 'peft', 'numpy', 'deepspeed'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    words = ["--recommend", "--gpus", "8", "--gpu_memory", "24GiB", "--recipes", str(tmp_path / "r")]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=os.environ | {"PYTHONPATH": str(repository)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_json_is_flat_and_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "--model_size", "7b", "--q_lora", "True", "--gpu_memory", "24GiB")
    assert all(not isinstance(value, (dict, list)) for value in found.values())
    assert found["total"] == sum(found[part] for part in PARTS)
    assert found["overlap"] == 0
    assert all(isinstance(found[part], int) and found[part] >= 0 for part in PARTS)
    assert isinstance(found["fits"], bool)
    assert found["fits"] == (found["total"] <= found["gpu_memory"] == 24 * 2**30)


def test_without_a_gpu_nothing_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "--model_size", "7b")
    assert (found["fits"], found["largest_microbatch"], found["gpu_memory"]) == (None, None, None)
    assert "--gpu_memory 24GiB" in ask(capsys, "--model_size", "7b")


def test_largest_microbatch_and_context_are_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--model_size", "7b", "--q_lora", "True", "--gpu_memory", "24GiB", "--gradient_checkpointing", "True")
    found = ask_json(capsys, *base, "--model_max_length", "1024")
    for flag, key in (
        ("--per_device_train_batch_size", "largest_microbatch"),
        ("--model_max_length", "largest_context"),
    ):
        length = () if flag == "--model_max_length" else ("--model_max_length", "1024")
        assert ask_json(capsys, *base, *length, flag, str(found[key]))["fits"]
        assert not ask_json(capsys, *base, *length, flag, str(found[key] + 1))["fits"]


def test_a_model_folder_is_read_from_its_headers(capsys: pytest.CaptureFixture[str], tiny_model_dir: Any) -> None:
    folder = tiny_model_dir("qwen2", "byte_nobos", hidden=64, tied=True, dtype="bfloat16")
    capsys.readouterr()
    found = ask_json(capsys, "--model_name_or_path", str(folder))
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["weights"] == sum(p.nbytes for p in model.parameters()) + 4 * found["trained_parameters"]


def test_text_says_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    text = ask(capsys, "--model_size", "13b", "--gpu_memory", "24GiB", "--cpu_memory", "8GiB", "--gpus", "8")
    assert "does NOT fit" in text and "per GPU" in text and "per host" in text
    assert "DDP" in text
    full = ask(capsys, "--model_size", "7b", "--full_finetuning", "--gpu_memory", "141GiB")
    assert "full fine-tuning" in full


def test_recommend_writes_recipes_that_training_accepts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from fastchat.plan.command_line import read_flags
    from fastchat.settings.readers import training_reader

    text = ask(
        capsys,
        "--recommend",
        "--gpus",
        "8",
        "--gpu_memory",
        "24GiB",
        "--cpu_memory",
        "512GiB",
        "--recipes",
        str(tmp_path),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["13b_lora.yaml", "70b_lora.yaml", "7b_lora.yaml"]
    reader = training_reader(True)
    for size, per_gpu in (("7b", 32), ("13b", 8), ("70b", 16)):
        path = tmp_path / f"{size}_lora.yaml"
        values = reader.from_yaml(path)
        assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == per_gpu
        assert values["lora_r"] == {"7b": 8, "13b": 16, "70b": 64}[size]
        assert values["learning_rate"] == 3e-4
        assert find_deepspeed_config(values["deepspeed"]).is_file()
        assert f"deepspeed --num_gpus 8 --module fastchat.train.train_lora {path}" in text
        # and the planner, asked about the recipe itself, agrees
        assert read_flags([str(path)])["q_lora"] == values["q_lora"]
        assert ask_json(capsys, str(path), *machine())["fits"]


def machine() -> tuple[str, ...]:
    return ("--gpus", "8", "--gpu_memory", "24GiB", "--cpu_memory", "512GiB")


def test_recommend_takes_the_given_model_and_flags(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model_dir: Any
) -> None:
    folder = tiny_model_dir("gemma2", "gemma", hidden=64)
    words = (
        "--recommend",
        *machine(),
        "--model_name_or_path",
        str(folder),
        "--lora_r",
        "4",
        "--recipes",
        str(tmp_path / "r"),
    )
    text = ask(capsys, *words, "--model_max_length", "256")
    assert str(folder) in text and "LoRA r4" in text and "256 tokens" in text
    found = ask_json(capsys, *words)
    assert found["7b_lora_r"] == 4 and found["7b_fits"] is True
    assert yaml.safe_load(found["7b_recipe"])["lora_r"] == 4


def test_recommend_says_why_neighbours_were_rejected(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = ask(capsys, "--recommend", *machine(), "--recipes", str(tmp_path))
    blocks = text.split("Its neighbours:")[1:]
    assert len(blocks) == 3
    for block in blocks:
        assert "checkpointing: " in block and "LoRA" in block and "microbatch" in block
        assert "does not fit" in block or "as long" in block


def test_a_recipe_without_an_adapter_is_planned_as_full_fine_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model_size", "7b", "--gpus", "8", "--gpu_memory", "80GiB")
    full, lora = (ask_json(capsys, name, *words) for name in ("mistral-7b-v0.3", "qwen2.5-7b-lora"))
    assert full["trained_parameters"] > 6e9 > 1e9 > lora["trained_parameters"]


def test_recommend_when_nothing_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = ask(
        capsys, "--recommend", "--gpus", "1", "--gpu_memory", "2GiB", "--cpu_memory", "8GiB", "--recipes", str(tmp_path)
    )
    assert text.count("nothing fits") >= 3
    least = [line.partition("The smallest configuration: ")[2] for line in text.splitlines() if "The smallest" in line]
    assert len(least) == 3 and all("checkpointing on" in line for line in least), least
    assert list(tmp_path.iterdir()) == []


def test_largest_grows_with_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for gpus, memory in ((1, "24GiB"), (8, "24GiB"), (8, "80GiB")):
        words = ("--largest", "--gpus", str(gpus), "--gpu_memory", memory)
        found = ask_json(capsys, *words)
        sizes.append([found[f"{how}_parameters"] for how in ("full_fine_tuning", "lora", "qlora")])
        assert all(found[f"{how}_fits"] for how in ("full_fine_tuning", "lora", "qlora"))
        assert sizes[-1][0] < sizes[-1][1]
    for smaller, larger in zip(sizes, sizes[1:], strict=False):
        assert all(a < b for a, b in zip(smaller, larger, strict=True))
    offloaded = ask_json(capsys, "--largest", "--gpus", "8", "--gpu_memory", "24GiB", "--cpu_memory", "512GiB")
    assert offloaded["full_fine_tuning_parameters"] > sizes[1][0]
    assert "full fine-tuning" in ask(capsys, "--largest", "--gpus", "1", "--gpu_memory", "24GiB")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --model_name_or_path DIR or --model_size"),
        (("--model_size", "8b"), r"--model_size 8b"),
        (("--model_size", "7b", "--model_name_or_path", "x"), "both given"),
        (("--model_name_or_path", "/nowhere"), "no such folder"),
        (("--model_name_or_path", "some/hub-name"), "the planner downloads nothing"),
        (("--model_size", "7b", "--deepspeed", "none.json"), "cannot be read"),
        (("--model_size", "7b", "--lora_target_modules", "q_prj"), "did you mean q_proj"),
        (("--model_size", "7b", "--dtype", "int8"), "--dtype is 'int8'"),
        (("--model_size", "7b", "--full_finetuning", "--q_lora"), "--q_lora needs an adapter"),
        (("--model_size", "7b", "--lora_weight_path", "/nowhere"), "adapter_config.json cannot be read"),
        (("--recommend",), "--gpus 8 --gpu_memory 24GiB"),
        (("--largest",), "--gpus 8 --gpu_memory 24GiB"),
        (("--model_size", "7b", "--gpus", "7", "--hosts", "2"), "divisible by --hosts 2; give --gpus 6 or 8"),
        (("--model_size", "7b", "--gpus", "1", "--hosts", "2"), "divisible by --hosts 2; give --gpus 2 or more"),
        (("--model_size", "7b", "--bf16", "True", "--fp16", "True"), "--bf16 and --fp16 are both on; keep one"),
        (("--largest", "--recommend"), "cannot be combined"),
        (("--modelsize", "7b"), "did you mean --model_size"),
    ],
)
def test_mistakes_get_one_message_and_code_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    error = ask(capsys, *words, code=2)
    assert message in error and "Traceback" not in error and error.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "usage: fastchat plan" in ask(capsys, "--help")
