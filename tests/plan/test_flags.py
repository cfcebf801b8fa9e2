"""The planner's command line accepts everything that the training commands accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.command_line import plan_defaults, plan_help, read_flags
from fastchat.settings.readers import plan_options, training_options


def test_defaults_are_training_s() -> None:
    defaults = plan_defaults()
    differing = {option.name for option in training_options(True) if defaults[option.name] != option.default}
    assert differing == {"bf16"}, "it is on, because everybody trains so"


def test_reads_a_pasted_launch_line() -> None:
    words = ["--model_name_or_path", "M", "--data_path", "a.json", "b.json", "--q_lora", "True", "--lora_r", "16"]
    words += ["--lora_target_modules", "q_proj,", "v_proj", "--gradient_checkpoint", "--evaluation_strategy", "epoch"]
    words += ["--learning_rate", "3e-4", "--deepspeed", "ds.json", "--bf16=False", "--num_gpus", "8", "--no_packing"]
    words += ["--per-device-train-batch-size", "4", "--gpu_memory", "24GiB", "--lora_dropout", "0"]
    flags = read_flags(words)
    assert flags["q_lora"] is True
    assert flags["gradient_checkpointing"] is True
    assert flags["lora_target_modules"] == ["q_proj", "v_proj"]
    assert (flags["lora_r"], flags["per_device_train_batch_size"], flags["gpus"]) == (16, 4, 8)
    assert (flags["bf16"], flags["packing"], flags["lora_dropout"]) == (False, False, 0.0)
    assert flags["gpu_memory"] == 24 * 2**30
    assert flags["model_max_length"] == 512
    assert "lora_r" in flags["given"] and "optim" not in flags["given"]


def test_the_command_line_overrides_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("lora_r: 32\nmodel_max_length: 4096\nlearning_rate: 1e-5\ndata_path: [a, b]\npacking: true\n")
    flags = read_flags([str(recipe), "--lora_r", "4"])
    assert (flags["lora_r"], flags["model_max_length"], flags["packing"]) == (4, 4096, True)


def test_fp16_replaces_bf16() -> None:
    assert read_flags(["--fp16", "True"])["bf16"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora_rank", "8"], r"unknown setting --lora_rank; here it is --lora_r 8"),
        (["--gpu_mem", "24GiB"], r"did you mean --gpu_memory"),
        (["--qlora"], r"unknown setting --qlora; here it is --q_lora true"),
        (["--fsdp_version", "2"], r"its options are keys of --fsdp_config"),
        (["--xyzzy"], r"--help lists all settings"),
        (["--lora_r"], r"--lora_r needs a value"),
        (["--lora_r", "0"], r"--lora_r is 0; it must be at least 1"),
        (["--lora_r", "1.5"], r"whole number"),
        (["--lora_dropout", "1"], r"--lora_dropout is 1; it must be at least 0 and below 1"),
        (["--q_lora", "maybe"], r"True or False"),
        (["--no_q_lora", "True"], r"takes no value"),
        (["--gpu_memory", "much"], r"--gpu_memory is 'much'"),
        (["--q_lora", "True", "stray"], r"'stray' is not a --flag"),
        (["--lora_r", "None"], r"--lora_r is 'None', but a whole number"),
        (["--model_max_length", "None"], r"whole number"),
        (["--per_device_train_batch_size", "None"], r"whole number"),
        (["--gradient_accumulation_steps", "None"], r"whole number"),
        (["--hosts", "None"], r"--hosts is 'None', but a whole number"),
        (["--lora_dropout", "None"], r"--lora_dropout is 'None', but a number"),
        (["--q_lora", "None"], r"True or False"),
        (["--recipes", "None", "--recommend"], r"--recipes is 'None'; give a path"),
        (["--per_device_train_batch_size", "²"], r"--per_device_train_batch_size is '²', but a whole number"),
        (["--model_name_or_path", "~nosuch/x"], r"--model_name_or_path is '~nosuch/x', but there is no user"),
        (["~nosuch/x.yaml"], r"recipe is '~nosuch/x.yaml', but there is no user"),
        (["--optim", "adamw_torhc"], r"did you mean adamw_torch\?"),
        (["missing.yaml"], r"there is no recipe missing.yaml"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_flags(words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lora_rank: 8\n", "unknown setting lora_rank; here it is lora_r: 8"),
        ("- a\n", "name: value"),
        ("a: [\n", "is not valid YAML"),
        ("lora_r: x\n", "r.yaml"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message):
        read_flags([str(path)])


def test_none_is_the_same_as_leaving_it_out() -> None:
    names = [
        option.name for option in plan_options() if option.may_be_none and not option.refused and not option.is_list
    ]
    assert {"model_name_or_path", "deepspeed", "gpus", "gpu_memory", "eval_steps"} <= set(names)
    flags = read_flags([word for name in names for word in (f"--{name}", "None")])
    assert {flags[name] for name in names} == {None}


def test_help_names_every_flag_that_counts() -> None:
    text, everything = plan_help(""), plan_help("all")
    for option in plan_options():
        shown = option.group == "Planner" or option.memory
        assert (f"\n  --{option.name} " in text) == (shown and not option.refused), option.name
        assert (f"\n  --{option.name} " in everything) == (not option.refused), option.name
