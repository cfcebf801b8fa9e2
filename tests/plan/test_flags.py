"""The planner's command line takes what the training commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.flags import ALIASES, NULLABLE, PLANNING, SKIPPED, TRAINING, help_text, read_flags


def test_every_training_flag_is_known() -> None:
    """A flag added to training belongs into TRAINING, if it changes memory, or into SKIPPED."""
    from fastchat.train.arguments import RENAMED, UNSUPPORTED, all_arguments
    from fastchat.train.settings import options_of

    options = options_of(all_arguments(True))
    known = {*TRAINING, *ALIASES, *SKIPPED}
    assert {option.name for option in options} - set(UNSUPPORTED) - known == set()
    assert set(RENAMED) - set(UNSUPPORTED) - known == set()
    assert (set(TRAINING) | SKIPPED) & set(PLANNING) == set()
    assert set(TRAINING) & SKIPPED == set()


def test_defaults_are_training_s() -> None:
    from fastchat.train.arguments import all_arguments
    from fastchat.train.settings import options_of

    defaults = {option.name: option.default for option in options_of(all_arguments(True))}
    differing = {name for name, (_, default, _) in TRAINING.items() if name in defaults and defaults[name] != default}
    # bf16 is on, because everybody trains so; no target means the usual seven that exist.
    assert differing == {"bf16", "lora_target_modules"}


def test_reads_a_pasted_launch_line() -> None:
    words = ["--model_name_or_path", "M", "--data_path", "a.json", "b.json", "--q_lora", "True", "--lora_r", "16"]
    words += ["--lora_target_modules", "q_proj,", "v_proj", "--gradient_checkpoint", "--evaluation_strategy", "epoch"]
    words += ["--learning_rate", "3e-4", "--deepspeed", "ds.json", "--bf16=False", "--num_gpus", "8", "--no_packing"]
    words += ["--per-device-train-batch-size", "4", "--gpu_memory", "24GiB", "--lora_dropout", "0"]
    flags = read_flags(words)
    assert flags["q_lora"] is True
    assert flags["gradient_checkpointing"] is True
    assert flags["lora_target_modules"] == ("q_proj", "v_proj")
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
        (["--lora_rank", "8"], r"--lora_rank is no setting .*--lora_r"),
        (["--gpu_mem", "24GiB"], r"did you mean --gpu_memory"),
        (["--qlora"], r"did you mean --q_lora"),
        (["--fsdp", "full_shard"], r"--fsdp is no setting"),
        (["--xyzzy"], r"--help lists them"),
        (["--lora_r"], r"--lora_r needs a value"),
        (["--lora_r", "0"], r"--lora_r is '0'"),
        (["--lora_r", "1.5"], r"whole number"),
        (["--lora_dropout", "1"], r"--lora_dropout is '1'"),
        (["--q_lora", "maybe"], r"True or False"),
        (["--no_q_lora", "True"], r"takes no value"),
        (["--gpu_memory", "much"], r"--gpu_memory is 'much'"),
        (["--q_lora", "True", "stray"], r"'stray' stands where a --flag"),
        (["--lora_r", "None"], r"--lora_r is 'None', but a whole number"),
        (["--model_max_length", "None"], r"whole number"),
        (["--per_device_train_batch_size", "None"], r"whole number"),
        (["--gradient_accumulation_steps", "None"], r"whole number"),
        (["--hosts", "None"], r"--hosts is 'None', but a whole number"),
        (["--lora_dropout", "None"], r"--lora_dropout is 'None', but a number"),
        (["--q_lora", "None"], r"True or False"),
        (["--recipes", "None", "--recommend"], r"--recipes is 'None'; give a folder"),
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
        ("lora_rank: 8\n", "did you mean"),
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


def test_only_what_may_be_left_out_may_be_none() -> None:
    """As in training (test_other_flags.py compares the lists), and it is the same as leaving it out."""
    words = [word for name in sorted(NULLABLE) for word in (f"--{name}", "None")]
    assert {name: value for name, value in read_flags(words).items() if name in NULLABLE} == dict.fromkeys(NULLABLE)


def test_help_names_every_flag() -> None:
    text = help_text()
    names: list[Any] = [*PLANNING, *TRAINING]
    assert all(f"--{name} " in text for name in names)
