"""Mistakes people make: one message that names the value and the way out, the right code, nothing written over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.conftest import Outcome

# (flags after the base ones, exit code, what the message must contain)
SETTINGS = [
    (["--lora_rank", "4"], 2, ["--lora_rank", "lora_r"]),
    (["--learning_rate", "fast"], 2, ["--learning_rate", "'fast'", "number"]),
    (["--learning_rate", "0"], 2, ["--learning_rate is 0", "above 0"]),
    (["--lora_r", "0"], 2, ["--lora_r is 0", "at least 1"]),
    (["--lora_dropout", "1"], 2, ["--lora_dropout is 1", "below 1"]),
    (["--lora_bias", "some"], 2, ["--lora_bias", "none, all, lora_only"]),
    (["--lora_target_modules", "q_prj"], 2, ["q_prj", "q_proj"]),
    (["--lora_target_modules", ","], 2, ["--lora_target_modules"]),
    (["--lora_weight_path", "/nowhere"], 2, ["--lora_weight_path /nowhere", "adapter_config.json"]),
    (["--model_max_length", "0"], 2, ["--model_max_length is 0"]),
    (["--per_device_train_batch_size", "0"], 2, ["--per_device_train_batch_size is 0"]),
    (["--gradient_accumulation_steps", "-1"], 2, ["--gradient_accumulation_steps is -1"]),
    (["--max_steps", "0"], 2, ["--max_steps is 0"]),
    (["--num_train_epochs", "0"], 2, ["--num_train_epochs is 0"]),
    (["--model_name_or_path", __file__], 2, ["is a file: give the folder that holds config.json"]),
    (["--model_name_or_path", "~nobody-here/x"], 2, ["there is no user of that name"]),
    (["--output_dir", "~nobody-here/x"], 2, ["there is no user of that name"]),
    (["--warmup_ratio", "2"], 2, ["--warmup_ratio is 2", "between 0 and 1"]),
    (["--warmup_steps", "-5"], 2, ["--warmup_steps is -5"]),
    (["--seed", "-1"], 2, ["--seed is -1"]),
    (["--logging_steps", "0"], 2, ["--logging_steps is 0"]),
    (["--eval_strategy", "epoch"], 2, ["--eval_strategy epoch needs --eval_data_path"]),
    (["--evaluation_strategy", "sometimes"], 2, ["--evaluation_strategy", "no, steps, epoch"]),
    (["--do_eval"], 2, ["--do_eval needs --eval_data_path"]),
    (["--eval_on_start"], 2, ["--eval_on_start needs --eval_data_path"]),
    (["--load_best_model_at_end"], 2, ["--load_best_model_at_end", "--eval_strategy"]),
    (["--save_strategy", "best"], 2, ["--save_strategy best", "--eval_strategy"]),
    (["--metric_for_best_model", "loss"], 2, ["--metric_for_best_model", "--eval_strategy"]),
    (["--lr_scheduler_type", "reduce_lr_on_plateau"], 2, ["reduce_lr_on_plateau", "--eval_strategy"]),
    (["--lr_scheduler_type", "cosin"], 2, ["'cosin'", "cosine"]),
    (["--lr_scheduler_type", "cosine_with_min_lr"], 2, ["cosine_with_min_lr", "--lr_scheduler_kwargs"]),
    (["--bf16", "--fp16"], 2, ["--bf16 and --fp16"]),
    (["--dtype", "int8"], 2, ["'int8'", "bfloat16"]),
    (["--optim", "adamw_apex_fused"], 2, ["adamw_apex_fused", "adamw_torch"]),
    (["--optim", "lion_8bit"], 2, ["lion_8bit needs a GPU"]),
    (["--optim", "adam"], 2, ["'adam'", "adamw_torch"]),
    (["--rope_scaling_type", "cubic"], 2, ["'cubic'", "linear, dynamic, yarn, llama3"]),
    (["--rope_scaling_type", "linear", "--rope_scaling_factor", "0.5"], 2, ["--rope_scaling_factor is 0.5"]),
    (["--padding_side", "top"], 2, ["'top'", "right, left"]),
    (["--overlong", "cut"], 2, ["'cut'", "truncate, drop, error"]),
    (["--on_bad_row", "ignore"], 2, ["'ignore'", "stop, skip"]),
    (["--conv_template", "vicuna"], 2, ["'vicuna'", "vicuna_v1.1"]),
    (["--conv_template_file", "/nowhere.py"], 2, ["/nowhere.py", "no such file"]),
    (["--fsdp", "full_shard", "--deepspeed", "deepspeed_config_s2"], 2, ["--deepspeed and --fsdp", "keep one"]),
    (["--push_to_hub"], 2, ["--push_to_hub", "HF_HUB_OFFLINE"]),
    (["--hub_token", "secret-value"], 2, ["--hub_token"]),
    (["--logging_dir", "x"], 2, ["--logging_dir", "TENSORBOARD_LOGGING_DIR"]),
    (["--report_to", "paper"], 2, ["'paper'", "wandb, tensorboard, mlflow, trackio"]),
    (["--deepspeed", "/nowhere.json"], 2, ["/nowhere.json", "cannot be read"]),
    (["--dataloader_prefetch_factor", "2"], 2, ["--dataloader_prefetch_factor", "--dataloader_num_workers"]),
    (["--train_sampling_strategy", "batch_rebalance"], 2, ["batch_rebalance", "group_by_length"]),
    (["--group_by_length", "--train_sampling_strategy", "sequential"], 2, ["--group_by_length", "keep one"]),
    (["--do_train", "False"], 2, ["--do_train False"]),
    (["--resume_from_checkpoint", "x"], 2, ["--resume_from_checkpoint"]),
    (["--data_path", "/nowhere.json"], 3, ["--data_path /nowhere.json", "no such file"]),
    (["--eval_data_path", "/nowhere.json"], 3, ["--eval_data_path /nowhere.json", "no such file"]),
    (["--model_name_or_path", "/nowhere"], 2, ["--model_name_or_path /nowhere", "no such folder"]),
    (["--model_max_length", "8"], 3, ["learned", "--model_max_length"]),
]


def _untouched(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(("flags", "code", "words"), SETTINGS, ids=[" ".join(flags) for flags, _, _ in SETTINGS])
def test_settings(train: Callable[..., Outcome], tmp_path: Path, flags: list[str], code: int, words: list[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_model.safetensors").write_text("an earlier result")
    before = _untouched(tmp_path / "out")
    outcome = train(*flags, "--overwrite_output_dir")
    assert outcome.code == code, outcome.err
    message = [line for line in outcome.err.splitlines() if "error: " in line]
    assert len(message) == 1 and "Traceback" not in outcome.err, outcome.err
    said = outcome.err[outcome.err.index("error: ") :]
    for word in words:
        assert word in said
    assert "secret-value" not in outcome.err
    assert _untouched(tmp_path / "out") == before, "nothing may be written over"


@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_an_option_of_fsdp_that_is_no_setting_names_its_place(train: Callable[..., Outcome], full: bool) -> None:
    outcome = train("--fsdp", "full_shard", "--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer", full=full)
    assert outcome.code == 2 and "its options are keys of --fsdp_config" in outcome.err


def _write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


GOOD = '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n'
DATA = [
    ("broken.jsonl", GOOD + '{"conversations": [\n', ["broken.jsonl:2"]),
    ("keys.jsonl", GOOD + '{"turns": []}\n', ["keys.jsonl:2"]),
    ("type.jsonl", GOOD + '{"conversations": [{"from": "human", "value": 5}]}\n', ["type.jsonl:2"]),
    ("role.jsonl", GOOD + '{"conversations": [{"from": "alien", "value": "x"}]}\n', ["role.jsonl:2", "alien"]),
    ("utf8.jsonl", GOOD.encode() + b'{"conversations": [{"from": "human", "value": "\xff"}]}\n', ["utf8.jsonl:2"]),
    ("cut.jsonl", GOOD + GOOD[:60], ["cut.jsonl:2", "truncated"]),
    ("twice.jsonl", GOOD + '{"id": 1, "id": 2, ' + GOOD[1:], ["twice.jsonl:2", "duplicate key"]),
    ("half.jsonl", GOOD + GOOD.replace('"b"', r'"\ud800"'), ["half.jsonl:2", "lone surrogate"]),
    ("nul.jsonl", GOOD + GOOD.replace('"b"', r'"\u0000"'), ["nul.jsonl:2", "NUL"]),
    ("number.jsonl", GOOD + GOOD.replace('"b"', "NaN"), ["number.jsonl:2"]),
    (
        "users.jsonl",
        '{"conversations": [{"from": "human", "value": "x"}]}\n',
        ["learned", "nothing to train on"],
    ),
    ("empty.jsonl", "", ["empty.jsonl"]),
]


@pytest.mark.parametrize(("name", "content", "words"), DATA, ids=[name for name, _, _ in DATA])
def test_data(train: Callable[..., Outcome], tmp_path: Path, name: str, content: str | bytes, words: list[str]) -> None:
    outcome = train("--data_path", str(_write(tmp_path / name, content)))
    assert outcome.code == 3, outcome.err
    for word in words:
        assert word in outcome.err
    assert "Loading weights" not in outcome.err, "data is checked before the model loads"
    assert not outcome.folder.exists(), "a refused start leaves no folder"


def test_harmless_forms_of_a_file_are_read(train: Callable[..., Outcome], tmp_path: Path) -> None:
    """A byte order mark, CRLF, blank lines, a line of a megabyte, no line end at the end: all rows are there."""
    lines = [GOOD.strip(), "", GOOD.replace('"a"', '"' + "long " * 200_000 + '"').strip(), "  ", GOOD.strip()]
    data = _write(tmp_path / "harmless.jsonl", b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    outcome = train("--data_path", str(data), "--max_steps", "1", "--log_samples", "True")
    assert outcome.code == 0, outcome.err
    assert outcome.record["data"]["train"]["counts"]["rows"] == 3
    assert len((outcome.folder / "samples.jsonl").read_text().splitlines()) == 1


def test_bad_rows_can_be_skipped(train: Callable[..., Outcome], tmp_path: Path) -> None:
    data = _write(tmp_path / "some.jsonl", GOOD * 4 + '{"turns": []}\n')
    outcome = train("--data_path", str(data), "--on_bad_row", "skip")
    assert outcome.code == 0, outcome.err
    counts = outcome.record["data"]["train"]["counts"]
    assert (counts["rows"], counts["dialogues"], counts["bad_rows"]) == (5, 4, 1)


def test_a_missing_required_setting_is_named(train: Callable[..., Outcome]) -> None:
    outcome = train(base=["--data_path", "x"])
    assert outcome.code == 2 and "--model_name_or_path is missing" in outcome.err


def test_a_model_folder_without_tokenizer(train: Callable[..., Outcome], tmp_path: Path, model_dir: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((model_dir / name).read_bytes())
    outcome = train("--model_name_or_path", str(folder))
    assert outcome.code == 2 and "has no tokenizer" in outcome.err
    (folder / "config.json").unlink()
    assert "no config.json" in train("--model_name_or_path", str(folder), name="second").err


def test_the_model_folder_is_never_the_output(train: Callable[..., Outcome], model_dir: Path) -> None:
    before = _untouched(model_dir)
    outcome = train("--output_dir", str(model_dir), "--overwrite_output_dir")
    assert outcome.code == 2 and "the base model's own folder" in outcome.err
    assert _untouched(model_dir) == before


def test_an_existing_result_is_kept(train: Callable[..., Outcome]) -> None:
    assert train().code == 0
    first = train("--learning_rate", "1e-3")
    assert first.code == 2 and "--overwrite_output_dir" in first.err
    assert first.status["exit_code"] == 0, "the finished run's status stays"
    assert train("--overwrite_output_dir").code == 0


def test_full_fine_tuning_points_to_the_adapter_command(train: Callable[..., Outcome]) -> None:
    outcome = train("--q_lora", "True", full=True)
    assert outcome.code == 2 and "train_lora.py" in outcome.err


DEEPSPEED = [
    ("{", ["is not valid JSON"]),
    ("[]", ["JSON object"]),
    (json.dumps({"zero_optimization": {"stage": 4}}), ["stage must be 0, 1, 2 or 3"]),
    (json.dumps({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}), ["bf16", '"auto"']),
    (
        json.dumps({"train_micro_batch_size_per_gpu": 3}),
        ["train_micro_batch_size_per_gpu=3", "per_device_train_batch_size", '"auto"'],
    ),
]


@pytest.mark.parametrize(("content", "words"), DEEPSPEED)
def test_deepspeed_configurations(
    train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: list[str]
) -> None:
    monkeypatch.setattr("fastchat.processes.start_processes", lambda **kwargs: None)
    outcome = train("--deepspeed", str(_write(tmp_path / "ds.json", content)))
    assert outcome.code == 2, outcome.err
    for word in words:
        assert word in outcome.err


def test_a_missing_compiler_is_named(
    train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastchat.train.hardware.shutil.which", lambda name: None)
    config = _write(
        tmp_path / "ds.json", json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    )
    outcome = train("--deepspeed", str(config))
    assert outcome.code == 6 and "C++ compiler" in outcome.err and "g++" in outcome.err


def test_a_recipe_is_checked_like_the_command_line(train: Callable[..., Outcome], tmp_path: Path) -> None:
    recipe = _write(tmp_path / "r.yaml", "learning_rate: 1e-4\nlora_rank: 4\n")
    outcome = train(base=[str(recipe)])
    assert outcome.code == 2 and "r.yaml: unknown setting lora_rank; here it is lora_r: 4" in outcome.err
