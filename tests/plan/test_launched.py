"""Real runs with two processes: memory and traffic of each engine against the planner, and a recommended recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastchat.plan.__main__ import main
from fastchat.plan.api import Machine, plan_for
from fastchat.plan.traffic import sent_per_step
from tests.builders import chat_rows, write_rows
from tests.tiers import thorough
from tests.train.warm import Warm

CASES = {  # training command, DeepSpeed configuration (None: FSDP), flags
    "LoRA, ZeRO-2": ("train_lora", "lora_s2", {"bf16": True}),
    "LoRA in float32, ZeRO-3": ("train_lora", "lora_s3_no_offload", {"bf16": False}),
    "QLoRA, ZeRO-3": ("train_lora", "lora_s3_no_offload", {"bf16": True, "q_lora": True}),
    "full, ZeRO-2": ("train", "s2", {"bf16": True}),
    "full, ZeRO-3": ("train", "s3", {"bf16": True}),
    "LoRA, FSDP": ("train_lora", None, {"bf16": True, "dtype": "bfloat16"}),
    "QLoRA, FSDP": ("train_lora", None, {"bf16": False, "q_lora": True}),
    "full, FSDP": ("train", None, {"bf16": True, "dtype": "bfloat16"}),
    "full in float32, FSDP": ("train", None, {"bf16": False}),
}
DEFAULT = ("QLoRA, ZeRO-3", "full, ZeRO-2")


@pytest.mark.launch
@pytest.mark.parametrize("case", [thorough(case, in_default=case in DEFAULT) for case in CASES])
def test_what_two_processes_hold(case: str, warm: Warm, tiny_model_dir: Any, tmp_path: Path, repository: Path) -> None:
    script, config, flags = CASES[case]
    model = tiny_model_dir("llama", hidden=128, layers=3)
    settings: dict[str, Any] = {
        "model_name_or_path": str(model),
        **({} if config else {"engine": "fsdp"}),
        **({"deepspeed": str(repository / "playground" / f"deepspeed_config_{config}.json")} if config else {}),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "model_max_length": 256,
        **flags,
    }
    data = write_rows(tmp_path / "rows.json", chat_rows(16))
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    words += ["--data_path", str(data), "--max_steps", "2", "--disable_tqdm", "True"]
    states = tmp_path / "states"
    outcome = warm.run(words, tmp_path / "out", script="tests.plan.zero_program", SCRIPT=script, STATES=str(states))
    assert outcome.code == 0, outcome.err
    plan = plan_for(settings, Machine(2), lora=script == "train_lora")
    for rank in range(2):
        found = json.loads(Path(f"{states}.{rank}").read_text())
        sent = sent_per_step(plan.run, "zero3" if plan.run.zero and plan.run.zero.stage == 3 else "zero2").inside
        assert sent == pytest.approx(found.pop("sent"), rel=0.05), (rank, found)
        for part, size in found.items():
            assert getattr(plan, part) == pytest.approx(size, rel=0.05), (part, rank, found)


@pytest.mark.launch
def test_a_recommended_recipe_trains(
    warm: Warm, tiny_model_dir: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model_dir("llama", hidden=64)
    words = ["--recommend", "--model_name_or_path", str(model), "--gpus", "2", "--gpu_memory", "24GiB"]
    words += ["--model_max_length", "256", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    assert main([*words, "--recipes", str(tmp_path / "recipes")]) == 0
    recipe = tmp_path / "recipes" / f"{model.name}_lora.yaml"
    assert f"{recipe} --data_path DATA.json --output_dir OUTPUT" in capsys.readouterr().out
    data = write_rows(tmp_path / "rows.json", chat_rows(16))
    own = ["--data_path", str(data), "--max_steps", "1", "--disable_tqdm", "True"]
    outcome = warm.run([str(recipe), *own], tmp_path / "out")
    assert outcome.code == 0, outcome.err
    record = outcome.record
    assert record["engine"] == "zero2" and record["settings"]["lora_r"] == {"value": 8, "from": "yaml"}
    batch = record["settings"]["per_device_train_batch_size"]["value"]
    assert batch * record["settings"]["gradient_accumulation_steps"]["value"] == 4
    assert (
        "2 processes on the CPU)" in (outcome.folder / "log.txt").read_text()
        and record["memory"]["memory_measured"] > 0
    )
