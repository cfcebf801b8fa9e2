"""The recipes have the documented values, in flags that exist; so do the DeepSpeed configurations."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from fastchat.conversation import conv_templates
from fastchat.plan.api import Machine, estimate, run_of
from fastchat.plan.command_line import read_flags
from fastchat.plan.units import GIB
from fastchat.settings.readers import training_reader
from fastchat.settings.recipe_files import read_recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "playground" / "recipes").glob("*.yaml"))
COMMON_MATH = {
    "packing": True,
    "model_max_length": 4096,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optim": "paged_adamw_32bit",
    "bf16": True,
    "tf32": True,
    "flash_attn": True,
    "gradient_checkpointing": True,
}
COMMON_LORA = {
    "model_max_length": 1024,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "bf16": True,
    "tf32": True,
    "gradient_checkpointing": True,
    "conv_template": "vicuna_v1.1",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 1,
}


def math(micro, accumulation, rate, epochs, warmup, template, strategy, keep):
    return COMMON_MATH | {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "warmup_steps": warmup,
        "conv_template": template,
        "save_strategy": strategy,
        "save_total_limit": keep,
    }


def lora(rank, quantised, stage, micro, accumulation, epochs):
    return COMMON_LORA | {
        "lora_r": rank,
        "q_lora": quantised,
        "deepspeed": f"playground/deepspeed_config_lora_s{stage}.json",
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs,
    }


# The models of today: QLoRA or LoRA, microbatch, accumulation, length, learning rate, and whether it packs.
TODAY = {
    "deepseek-r1-distill-qwen-7b-lora": (True, 2, 8, 8192, 1e-4, True),
    "gemma-3-4b-lora": (False, 4, 4, 4096, 2e-4, True),
    "gemma-3-12b-lora": (True, 2, 8, 4096, 1e-4, True),
    "gpt-oss-20b-lora": (False, 2, 8, 2048, 1e-4, False),
    "llama-3.1-8b-lora": (True, 4, 4, 4096, 2e-4, True),
    "mistral-small-24b-lora": (True, 1, 16, 4096, 1e-4, True),
    "phi-4-lora": (True, 2, 8, 4096, 1e-4, True),
    "qwen3-4b-lora": (False, 4, 4, 4096, 2e-4, True),
    "qwen3-8b-lora": (True, 4, 4, 4096, 2e-4, True),
    "qwen3-14b-lora": (True, 2, 8, 4096, 1e-4, True),
    "qwen3-30b-a3b-lora": (False, 1, 16, 4096, 1e-4, True),
}


def today(quantised, micro, accumulation, length, rate, packing):
    assert micro * accumulation == 16
    common = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bf16": True, "gradient_checkpointing": True}
    return common | {
        "conv_template": "tokenizer",
        "q_lora": quantised or None,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "model_max_length": length,
        "learning_rate": rate,
        "packing": packing or None,
    }


DOCUMENTED = {
    "gemma-2b-it": math(4, 2, 5e-6, 4, 50, "gemma", "epoch", 4),
    "gemma-7b-it": math(4, 2, 5e-6, 4, 50, "gemma", "epoch", 4),
    "codegemma-7b-it": math(4, 2, 5e-6, 4, 50, "gemma", "epoch", 4),
    "gemma-2-9b-it": math(1, 8, 5e-6, 4, 100, "gemma", "steps", 4),
    "mistral-7b-v0.3": math(4, 2, 1e-5, 3, 50, "mistral", "epoch", 3),
    "llama-2-7b-lora": lora(8, True, 2, 16, 2, 10),
    "llama-2-13b-lora": lora(16, True, 2, 4, 1, 1),
    "llama-2-70b-lora": lora(64, False, 3, 2, 8, 5),
    **{name: today(*values) for name, values in TODAY.items()},
    "qwen2.5-7b-lora": {"packing": True, "model_max_length": 4096, "lora_r": 16, "conv_template": "chatml"},
}


@pytest.fixture(scope="module")
def reader():
    return training_reader


def test_every_documented_recipe_is_there():
    assert {path.stem for path in RECIPES} == set(DOCUMENTED)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_values(path, reader):
    values = reader(path.stem.endswith("-lora")).from_yaml(path)
    wanted = DOCUMENTED[path.stem]
    assert {name: values.get(name) for name in wanted} == wanted
    assert values["conv_template"] in (*conv_templates, "tokenizer")
    assert values["output_dir"] == f"output/{path.stem}"
    if "deepspeed" in values:
        assert (ROOT / values["deepspeed"]).is_file()
    if "eval_strategy" in values:
        assert 0 < values["val_set_size"] < 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_header_says_what_needs_launch_and_one_override(path, reader):
    header = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert all(line.startswith("# ") and len(line) <= 120 for line in header)
    starts = [line[2:11].strip() for line in header if line[2] != " "]
    assert starts == ["What:", "Needs:", "Launch:", "Override:"]
    (launch,) = (line[12:] for line in header if line.startswith("# Launch:"))
    (override,) = (line[12:] for line in header if line.startswith("# Override:"))
    lora = path.stem.endswith("-lora")
    assert launch.split()[:3] == ["fastchat", "train", path.stem]
    flags = reader(lora).from_words(shlex.split(override))
    assert flags and all(flags[name] != read_recipe(path).get(name) for name in flags)
    if "deepspeed" in flags:
        assert (ROOT / flags["deepspeed"]).is_file()


@pytest.mark.parametrize("name", TODAY)
def test_the_plan_fits_the_cards_in_the_header(name):
    """What the header says of a 24 GB and an 80 GB card is what the planner computes, and it fits."""
    path = ROOT / "playground" / "recipes" / f"{name}.yaml"
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    text = " ".join(line.removeprefix("#").strip() for line in header.splitlines())
    (override,) = re.findall(r"^# Override: (.*)$", header, re.MULTILINE)
    stated = re.findall(
        r"one GPU of (24|80) GB[^:]*:[^:.]*? (\d+\.\d) GiB(?: of the GPU and (\d+) GiB of the host)?", text
    )
    assert sorted(card for card, _, _ in stated) == ["24", "80"]
    for flags, (card, needs, host) in zip(([], override.split()), stated, strict=True):
        machine = Machine(1, 1, int({"24": 23.5, "80": 79}[card] * GIB))  # what such cards have
        plan = estimate(run_of(read_flags([str(path), *flags]), machine))
        assert plan.gpu_fits and f"{plan.total / GIB:.1f}" == needs
        assert not host or f"{plan.host_total / GIB:.0f}" == host


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if not name.endswith("-lora")])
def test_the_math_recipes_take_64_rows_per_step_on_8_gpus(name):
    values = read_recipe(ROOT / "playground" / "recipes" / f"{name}.yaml")
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * 8 == 64


# --- DeepSpeed


def config(name):
    return json.loads((ROOT / "playground" / f"deepspeed_config_{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("full", "adapter"),
    [("s2", "lora_s2"), ("s2_offload", "lora_s2_offload"), ("s3", "lora_s3_no_offload"), ("s3_offload", "lora_s3")],
)
def test_full_fine_tuning_adds_up_gradients_in_float32_and_is_otherwise_the_same(full, adapter):
    """Several micro-batches of bf16 gradients for all weights lose small ones; an adapter's gradients are few."""
    made = config(full)
    assert made.pop("data_types") == {"grad_accum_dtype": "fp32"}
    assert made == config(adapter)


@pytest.mark.parametrize("name", ["s2", "s2_offload", "s3", "s3_offload"])
def test_configurations_leave_precision_and_schedule_to_the_command_line(name):
    made = config(name)
    assert made["bf16"]["enabled"] == made["fp16"]["enabled"] == made["gradient_clipping"] == "auto"
    assert "scheduler" not in made and "optimizer" not in made
    assert made["zero_optimization"]["stage"] == int(name[1])
    offloaded = {key for key in made["zero_optimization"] if key.startswith("offload_")}
    wanted = {"s2_offload": {"offload_optimizer"}, "s3_offload": {"offload_optimizer", "offload_param"}}
    assert offloaded == wanted.get(name, set())
