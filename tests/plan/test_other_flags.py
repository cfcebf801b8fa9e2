"""A plan refuses the values that training refuses, with the same messages, and without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.command_line import read_flags
from fastchat.settings.readers import LORA_ONLY, training_reader
from fastchat.train.planning import answer


@pytest.fixture(scope="module")
def reader() -> Any:
    return training_reader(True)


WRONG = [
    "learning_rate: 5e-6x",
    "save_strategy: sometimes",
    "num_train_epochs: [1, 2]",
    "num_train_epochs: ",
    "seed: 1.5",
    "eval_strategy: true",
    "tf32: perhaps",
    "run_name: true",
    "conv_template: {a: b}",
    "max_steps: ten",
    "lr_scheduler_kwargs: '{'",
    "data_path: [a, [b]]",
    "optim: adamw_torhc",
    "lora_bias: al",
    "lora_r: ",
    "lora_dropout: ",
    "lora_target_modules: ",
    "bf16: ",
    "cache_dir: true",
    "deepspeed: true",
    "per_gpu_train_batch_size: 1\nper_device_train_batch_size: 64",
    "per_device_train_batch_size: 64\nper_gpu_train_batch_size: 1",
    "no_cuda: true\nuse_cpu: false",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_in_a_recipe_is_training_s_message(line: str, tmp_path: Path, reader: Any) -> None:
    recipe = tmp_path / "x.yaml"
    recipe.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as theirs:
        reader.from_yaml(recipe)
    with pytest.raises(SettingsError) as ours:
        answer([str(recipe), "--model_size", "7b"], lora=True)
    assert str(ours.value) == str(theirs.value)
    assert str(ours.value).startswith(f"{recipe}: {line.splitlines()[-1].partition(':')[0]}")


@pytest.mark.parametrize(
    "words",
    [
        ("--learning_rate", "fast"),
        ("--save_strategy=now",),
        ("--seed", "x"),
        ("--lazy_preprocess", "2"),
        ("--seed",),
        ("--optim", "adamw_torhc"),
        ("--optim", "None"),
        ("--lora_bias", "al"),
        ("--lora_bias", "None"),
    ],
)
def test_a_wrong_value_on_the_command_line_is_training_s_message(words: tuple[str, ...], reader: Any) -> None:
    with pytest.raises(SettingsError) as theirs:
        reader.from_words(words)
    with pytest.raises(SettingsError) as ours:
        read_flags([*words])
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--val_set_size -1", "--val_set_size is -1; it must be a whole number"),
        ("--val_set_size 1.5", "--val_set_size is 1.5; it must be a whole number of dialogues, or a share"),
        ("--learning_rate 0", r"--learning_rate is 0; it must be above 0"),
        ("--warmup_ratio 2", r"--warmup_ratio is 2; it must be between 0 and 1"),
        ("--adam_beta1 1", r"--adam_beta1 is 1; it must be at least 0 and below 1"),
        ("--max_steps 0", r"--max_steps is 0"),
        ("--lora_alpha 0", r"--lora_alpha is 0; it must be at least 1"),
    ],
)
def test_ranges(words: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_flags(words.split())


def test_the_command_line_mends_a_recipe_s_range(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("learning_rate: 0\n")
    flags = read_flags([str(tmp_path / "x.yaml"), "--learning_rate", "1e-5", "--no_log_samples"])
    assert (flags["learning_rate"], flags["log_samples"]) == (1e-5, False)


@pytest.mark.parametrize("words", ["", "all", "True", "--no_include_num_input_tokens_seen"])
def test_a_switch_that_may_be_a_word_too_is_taken_as_in_training(words: str, reader: Any) -> None:
    line = [words] if words.startswith("--") else ["--include_num_input_tokens_seen", *words.split()]
    assert reader.from_words(line).keys() <= read_flags([*line, "--lora_r", "4"])["given"]
    assert answer([*line, "--model_size", "7b"], lora=True)


@pytest.mark.parametrize(("lora", "suggested"), [(True, True), (False, False)])
def test_full_fine_tuning_is_not_sent_to_an_adapter_s_flags(lora: bool, suggested: bool, tmp_path: Path) -> None:
    recipe = tmp_path / "x.yaml"
    recipe.write_text("lora_: 1e-4\n")
    with pytest.raises(SettingsError) as found:
        answer([str(recipe), "--model_size", "7b"], lora=lora)
    assert str(found.value).startswith(f"{recipe}: unknown setting lora_;")
    assert any(name in str(found.value) for name in LORA_ONLY) == suggested
    with pytest.raises(SettingsError) as typed:
        answer(["--recommended", "x"], lora=lora)
    assert "did you mean --recommend" not in str(typed.value)


def test_what_was_not_checked_is_said() -> None:
    assert answer(["--model_size", "7b"], lora=True)[-1].startswith("Only memory was planned")


def test_both_precisions_are_refused(tmp_path: Path) -> None:
    for words in (["--bf16", "True", "--fp16", "True"], [str(tmp_path / "x.yaml"), "--fp16"]):
        (tmp_path / "x.yaml").write_text("bf16: true\n")
        with pytest.raises(SettingsError, match="--bf16 and --fp16 are both on; keep one"):
            read_flags(words)


# ---- a DeepSpeed configuration inside a recipe ----


def test_a_mapping_is_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fastchat.plan.__main__ import main

    recipe = tmp_path / "x.yaml"
    recipe.write_text("packing: true\ndeepspeed: {zero_optimization: {stage: 2}}\n")
    assert "full fine-tuning, ZeRO-2" in "\n".join(answer([str(recipe), "--model_size", "7b"], lora=False))
    assert main([str(recipe), "--model_size", "7b", "--gpus", "2"]) == 0
    assert "ZeRO-2" in capsys.readouterr().out
    words = ["--model_size", "7b", "--gpus", "2", "--deepspeed", '{"zero_optimization": {"stage": 3}}']
    assert main(words) == 0 and "ZeRO-3" in capsys.readouterr().out
    for content in ("deepspeed: {zero_optimization: {stage: 5}}", "lora_r: {a: 1}", "lora_r: [8, 16]"):
        recipe.write_text(f"{content}\n")
        with pytest.raises(SettingsError, match=r"stage must be|is a (mapping|list), but one value"):
            answer([str(recipe), "--model_size", "7b"], lora=True)
