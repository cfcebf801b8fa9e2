"""Every recipe runs: the real code path with a tiny model of the same architecture; what was really used is looked at.

What this machine lacks (tf32, flash attention, the paged optimizer) has to fall back, each with one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastchat.settings.recipe_files import RECIPES, find_deepspeed_config, read_recipe
from tests import builders
from tests.tiers import thorough
from tests.train.conftest import Outcome
from tests.train.flags import Train, ok
from tests.train.test_recipes_run import OF_TODAY
from tests.train.warm import Warm

pytestmark = pytest.mark.slow
STEPS = 3
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """What a recipe's model is made of, and what its run must really use on a CPU."""

    arch: str
    tokenizer: str
    template: str
    attention: str = "sdpa"
    tied: bool = False
    engine: str = "plain"  # one process; with ZeRO a group of two
    optimizer: str = "AdamW"


CASES = {
    "gemma-2b-it": Case("gemma", "gemma", "gemma", tied=True),
    "gemma-7b-it": Case("gemma", "gemma", "gemma", tied=True),
    "codegemma-7b-it": Case("gemma", "gemma", "gemma", tied=True),
    "gemma-2-9b-it": Case("gemma2", "gemma", "gemma", attention="eager", tied=True),
    "mistral-7b-v0.3": Case("mistral", "metaspace_bos", "mistral"),
    "qwen2.5-7b-lora": Case("qwen2", "byte_nobos", "chatml"),
    "llama-2-7b-lora": Case("llama", "metaspace_bos", "vicuna_v1.1", engine="zero2"),
    "llama-2-13b-lora": Case("llama", "metaspace_bos", "vicuna_v1.1", engine="zero2"),
    "llama-2-70b-lora": Case("llama", "metaspace_bos", "vicuna_v1.1", engine="zero3", optimizer="DeepSpeedCPUAdam"),
}


@pytest.fixture(scope="module")
def math_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write_rows(tmp_path_factory.mktemp("math") / "math.jsonl", builders.math_rows(12))


@pytest.fixture
def words(math_file: Path, tiny_model_dir: Callable[..., Path]) -> Callable[..., list[str]]:
    """`words("gemma-2b-it")`: the recipe by its bare name, and only what a test has to replace in it."""

    def make(name: str) -> list[str]:
        case = CASES[name]
        base = tiny_model_dir(case.arch, case.tokenizer, tied=case.tied, max_positions=8192)
        found = [name, "--model_name_or_path", str(base), "--data_path", str(math_file)]
        found += ["--max_steps", str(STEPS), "--disable_tqdm", "True"]
        return found

    return make


def check_run(name: str, outcome: Outcome, processes: int) -> None:
    """Engine, attention, optimizer, quantisation, packing, template, schedule, warmup: what the recipe says."""
    case, recipe, record = CASES[name], read_recipe(RECIPES / f"{name}.yaml"), outcome.record
    assert (record["engine"], record["world_size"], record["device"]) == (case.engine, processes, "cpu")
    assert (record["attention"], record["optimizer"]) == (case.attention, case.optimizer)
    assert record["template"]["name"] == case.template == recipe["conv_template"]
    assert (record["quantization"] or {}).get("type") == ("nf4" if recipe.get("q_lora") else None)
    assert record["compute_dtype"] == "bfloat16" and record["settings"]["bf16"] == {"value": True, "from": "yaml"}
    assert (record["packing"] is not None) == recipe.get("packing", False)
    if recipe.get("packing"):
        packed = record["packing"]["train"]
        assert packed["dialogues"] > packed["packs"] and packed["capacity"] == 4096
    data = record["data"]
    held_out = data["eval"]["chosen"]["dialogues"] if "eval" in data else 0
    assert data["train"].get("chosen", data["train"]["counts"])["dialogues"] + held_out == 12
    assert (held_out > 0) == ("val_set_size" in recipe) == any("eval_loss" in row for row in outcome.metrics)
    settings = {key: entry["value"] for key, entry in record["settings"].items()}
    assert (settings["gradient_checkpointing"], settings["gradient_checkpointing_kwargs"]) == (
        True,
        {"use_reentrant": False},
    )
    assert settings["optim"] == "adamw_torch" and settings["tf32"] is None
    assert settings["max_grad_norm"] == 1.0 and settings["weight_decay"] == 0.0
    rates = [row["learning_rate"] for row in outcome.metrics if "loss" in row]
    assert rates == pytest.approx(scheduled(recipe), rel=1e-6), "cosine behind the recipe's own warmup"
    fallbacks = ["--tf32 needs a GPU", "flash_attention_2 needs a GPU"]
    fallbacks += [f"--optim {recipe['optim']} needs a GPU: using adamw_torch"] if "optim" in recipe else []
    for line in fallbacks:
        assert outcome.err.count(line) == 1, line
    if case.arch == "mistral":
        assert "Padding with" in outcome.err, "it says which pad token it chose"


def scheduled(recipe: dict[str, Any]) -> list[float]:
    """The learning rate of the first steps, by the formula of the schedule."""
    import math

    rate, warmup = float(recipe["learning_rate"]), recipe.get("warmup_steps")
    warmup = math.ceil(recipe["warmup_ratio"] * STEPS) if warmup is None else warmup
    cosine = [0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, STEPS - warmup))) for step in range(STEPS)]
    return [rate * (step / warmup if step < warmup else cosine[step]) for step in range(STEPS)]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.engine == "plain"])
def test_recipe(train: Train, words: Callable[..., list[str]], name: str) -> None:
    lora = name.endswith("-lora")
    outcome = ok(train(base=words(name), full=not lora))
    check_run(name, outcome, 1)
    found = [m for m in outcome.trainer.model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert found and found[0]._gradient_checkpointing_func.keywords["use_reentrant"] is False
    assert (outcome.folder / ("adapter_model.safetensors" if lora else "model.safetensors")).is_file()
    assert (outcome.folder / f"checkpoint-{STEPS}").is_dir(), "after the last step, whatever the save strategy"


@pytest.mark.launch
@pytest.mark.parametrize(
    "name",
    [
        thorough(name, in_default=name == "llama-2-13b-lora")  # the scripts with the same values are run too
        for name, case in CASES.items()
        if case.engine != "plain"
    ],
)
def test_recipe_with_zero(warm: Warm, words: Callable[..., list[str]], tmp_path: Path, name: str) -> None:
    """Its DeepSpeed configuration is named relative to the checkout."""
    flags = words(name)
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    outcome = warm.run(flags, tmp_path / "out")
    assert warm.codes == [0, 0], outcome.err
    check_run(name, outcome, 2)
    used = outcome.record["deepspeed"]["zero_optimization"]
    asked = json.loads(find_deepspeed_config(recipe["deepspeed"]).read_text())["zero_optimization"]
    assert used["stage"] == asked["stage"]
    assert used.get("offload_param", {}).get("device") == asked.get("offload_param", {}).get("device")
    config = json.loads((outcome.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (recipe["lora_r"], 16, 0.05)
    assert sorted(config["target_modules"]) == sorted(LORA_TARGETS)
    assert outcome.metrics[-1]["eval_loss"] > 0


def test_every_recipe_is_run() -> None:
    """Those for the models of today are in test_recipes_run.py."""
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*CASES, *OF_TODAY}
