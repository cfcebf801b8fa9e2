"""What an adapter trains, by its settings, against peft."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.api import Machine, estimate, run_of
from fastchat.plan.command_line import read_flags
from fastchat.plan.families import architecture_from_config
from fastchat.plan.run import Run
from fastchat.plan.states import states_of
from tests.plan.shapes import config
from tests.plan.test_families import real_model


def run_with(family: str, flags: str, **changed: Any) -> Run:
    architecture = architecture_from_config(config(family, **changed).to_dict(), "test")
    return run_of(read_flags(["--lora_r", "4", *flags.split()]), Machine(), architecture)


# flags, and what they are in peft
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("--use_dora True", {"use_dora": True}),
    "rslora": ("--use_rslora True", {"use_rslora": True}),
    "layers": ("--lora_layers_to_transform 0 2", {"layers_to_transform": [0, 2]}),
    "head": ("--lora_modules_to_save lm_head", {"modules_to_save": ["lm_head"]}),
    "tables": ("--lora_modules_to_save embed_tokens lm_head", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "norms": ("--lora_modules_to_save input_layernorm norm", {"modules_to_save": ["input_layernorm", "model.norm"]}),
    "block": ("--lora_target_modules q_proj --lora_modules_to_save mlp", {"modules_to_save": ["mlp"]}),
    "pattern": (r"--lora_target_modules .*\.[01]\.mlp\.(up|down)_proj", {}),
    "all": ("--lora_target_modules all-linear", {"target_modules": "all-linear"}),
}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("case", CASES)
def test_trained_parameters(family: str, case: str) -> None:
    from peft import LoraConfig, get_peft_model

    flags, options = CASES[case]
    run = run_with(family, flags)
    modules = run.lora_target_modules or tuple(linear.leaf for linear in run.adapted)
    wanted: dict[str, Any] = {"target_modules": modules[0] if case == "pattern" else list(modules)} | options
    model = get_peft_model(real_model(config(family)), LoraConfig(r=4, task_type="CAUSAL_LM", **wanted))
    assert run.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = states_of(run)
    assert states.gradients == 4 * run.trained and states.optimizer == 8 * run.trained


@pytest.mark.parametrize("tied", [False, True])
def test_trained_tokens(tied: bool) -> None:
    run = run_with("llama", "--trainable_tokens <tool> 7 --lora_target_modules q_proj", tie_word_embeddings=tied)
    rows = 2 * run.architecture.hidden * (1 if tied else 2)
    assert run.trained - run.low_rank == rows
    assert run.groups[0].differentiated, "the embedding's output has a gradient"


def test_an_adapter_that_subtracts_its_start_is_there_twice() -> None:
    plain, pissa = run_with("llama", ""), run_with("llama", "--lora_init pissa_niter_4")
    assert states_of(pissa).weights - states_of(plain).weights == plain.trained * 4
    assert (pissa.trained, states_of(pissa).gradients) == (plain.trained, states_of(plain).gradients)


def test_layers_below_the_first_adapter_keep_nothing() -> None:
    whole, last = run_with("llama", ""), run_with("llama", "--lora_layers_to_transform 2")
    whole, last = replace(whole, gradient_checkpointing=False), replace(last, gradient_checkpointing=False)
    assert estimate(last).activations < 0.4 * estimate(whole).activations


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lora_layers_to_transform 1 3", "test has the layers 0 to 2, not 3"),
        ("--lora_target_parameters experts.down_proj", "no fused experts"),
        ("--lora_target_modules q_prj", r"q_prj match nothing.*did you mean q_proj"),
    ],
)
def test_what_does_not_exist(flags: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        _ = run_with("llama", flags).trained


def test_a_module_that_the_planner_does_not_know_is_said() -> None:
    from fastchat.plan.report import as_lines

    lines = as_lines(estimate(run_with("llama", "--lora_modules_to_save rotary")))
    assert any("--lora_modules_to_save rotary: not known to the planner" in line for line in lines)


def test_experts_that_stay_frozen_or_in_16_bits_are_said() -> None:
    from fastchat.plan.report import as_lines, short_line

    plan = estimate(run_with("mixtral", "--q_lora True"))
    text = "\n".join(as_lines(plan))
    assert "stay frozen; --lora_target_parameters mlp.experts.gate_up_proj mlp.experts.down_proj" in text
    size = plan.run.architecture.expert_elements * 2 / 2**20
    assert f"the experts, {size:.0f} MiB of the weights, stay in 16 bits" in text
    assert "stay in 16 bits" in short_line(plan)
    both = "--lora_target_parameters experts.gate_up_proj experts.down_proj --lora_dropout 0"
    assert "stay frozen" not in "\n".join(as_lines(estimate(run_with("mixtral", both))))


def test_an_adapter_to_train_further(tmp_path: Path) -> None:
    saved = {
        "r": 2,
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.down_proj"],
        "modules_to_save": ["lm_head"],
        "layers_to_transform": [1],
        "trainable_token_indices": {"embed_tokens": [1, 2, 3]},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    run = run_with("mixtral", f"--lora_weight_path {tmp_path}")
    a = run.architecture
    down = 8 * (1408 + 512)
    assert run.trained == 2 * (512 + 512 + down) + a.vocab * a.hidden + 2 * 3 * a.hidden
