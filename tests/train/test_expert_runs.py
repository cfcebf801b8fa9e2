"""Whole runs with adapters on the weights of experts: trained, resumed, saved, verified, continued, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastchat.checkpoint.merge import merge_adapter
from fastchat.checkpoint.trained_model import find_trained, load_trained
from fastchat.checkpoint.verify import verify
from tests.model.test_lora_experts import EXPERTS, MODELS
from tests.train.flags import Train, adapter, covers, ok

Models = Callable[..., Path]


@pytest.fixture
def flags(tiny_model_dir: Models, data_files: tuple[Path, Path]) -> list[str]:
    base = tiny_model_dir("mixtral", **MODELS["mixtral"])
    words = ["--model_name_or_path", str(base), "--data_path", str(data_files[0]), "--disable_tqdm", "True"]
    return [*words, "--per_device_train_batch_size", "2", "--learning_rate", "1e-2"]


@covers("lora_target_parameters")
def test_trained_resumed_saved_and_merged(train: Train, flags: list[str], tmp_path: Path) -> None:
    more = ["--lora_target_parameters", ",".join(EXPERTS), "--save_strategy", "steps", "--save_steps", "2"]
    more += ["--gradient_checkpointing", "True", "--save_total_limit", "3"]
    whole = ok(train(*more, "--max_steps", "4", base=flags, name="whole"))
    assert "--lora_dropout is 0, peft has no dropout for parameters" in whole.err
    assert "stay frozen" not in whole.err
    config = json.loads((whole.folder / "adapter_config.json").read_text())
    assert sorted(config["target_parameters"]) == sorted(EXPERTS) and config["lora_dropout"] == 0
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert whole.record["settings"]["lora_target_parameters"] == {"value": EXPERTS, "from": "command line"}
    assert whole.record["settings"]["lora_target_modules"]["from"] == "derived"
    tensors = adapter(whole.folder)
    learned = [name for name, tensor in tensors.items() if "experts" in name and "lora_B" in name and tensor.any()]
    assert len(learned) == 2 * 2, "both matrices of both blocks"
    resumed = train(
        *more, "--max_steps", "4", "--resume_from_checkpoint", str(whole.folder / "checkpoint-2"), base=flags, name="b"
    )
    assert resumed.code == 0, resumed.err
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in adapter(resumed.folder).items())
    assert verify(whole.folder)[1]
    report = merge_adapter(str(whole.folder), str(tmp_path / "merged"))
    assert report.effect > 0.01
    answers = load_trained(find_trained(str(whole.folder))).generate(torch.arange(3, 9)[None], max_new_tokens=2)
    assert answers.shape[1] > 6


def test_an_adapter_on_experts_is_continued(train: Train, flags: list[str]) -> None:
    first = ok(train("--lora_target_parameters", *EXPERTS, "--max_steps", "1", base=flags, name="a"))
    again = ok(train("--lora_weight_path", str(first.folder), "--max_steps", "1", base=flags, name="b"))
    assert "no dropout, because the adapter" in again.err
    assert again.record["settings"]["lora_target_parameters"]["value"] == sorted(EXPERTS)
    assert adapter(again.folder).keys() == adapter(first.folder).keys()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lora_target_parameters", *EXPERTS, "--lora_dropout", "0.1"], "write --lora_dropout 0 instead of 0.1"),
        (["--lora_target_parameters", "experts.up_proj"], "Weights of experts there: mlp.experts.down_proj"),
        (["--lora_target_parameters", *EXPERTS, "--use_dora", "True"], "and --use_dora True: peft has that for"),
        (
            ["--lora_target_parameters", *EXPERTS, "--lora_init", "pissa"],
            "and --lora_init pissa: peft has that for layers",
        ),
        (["--lora_target_modules", ".*(q"], "not a valid regular expression"),
        (["--lora_target_modules", "all"], "write all-linear"),
    ],
)
def test_refused_before_the_first_step(train: Train, flags: list[str], more: list[str], said: str) -> None:
    outcome = train(*more, base=flags)
    assert outcome.code == 2 and said in outcome.err and "Traceback" not in outcome.err, outcome.err
    assert not (outcome.folder / "adapter_config.json").exists()


@pytest.mark.parametrize("target", ["all-linear", r".*\.1\..*_proj"])
def test_a_run_with_all_linear_and_with_a_regular_expression(train: Train, target: str) -> None:
    done = ok(train("--lora_target_modules", target))
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 7
    assert {name.split(".layers.")[1][0] for name in adapter(done.folder)} == set("01" if target[0] == "a" else "1")
    assert done.record["settings"]["lora_target_modules"] == {"value": [target], "from": "command line"}
    again = ok(train("--lora_weight_path", str(done.folder), name="b"))
    assert adapter(again.folder).keys() == adapter(done.folder).keys()
