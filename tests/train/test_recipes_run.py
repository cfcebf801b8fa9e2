"""The recipes for the models of today, as they are, on tiny models of their architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.plan.known import known_values
from fastchat.settings.recipe_files import RECIPES, read_recipe
from tests.train.flags import Train, ok

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OF_TODAY = [p.stem for p in sorted(RECIPES.glob("*-lora.yaml")) if read_recipe(p)["conv_template"] == "tokenizer"]
# Sizes, and what differs on a CPU; 64 channels, because bitsandbytes packs whole blocks of 64 weights there.
SMALL = {"hidden": 64, "max_positions": 512, "chat_template": CHATML}
EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
HERE = {"bf16": False, "tf32": False, "flash_attn": False, "model_max_length": 128, "max_steps": 1, "logging_steps": 1}


@pytest.mark.parametrize("name", OF_TODAY)
def test_recipe(
    train: Train, tiny_model_dir: Callable[..., Path], data_files: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    kind = known_values(recipe["model_name_or_path"])["model_type"]
    model = tiny_model_dir(kind, "byte_nobos", **SMALL, **EXPERTS.get(kind, {}))
    flags = {"model_name_or_path": model, "data_path": data_files[0], "disable_tqdm": True} | HERE
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    outcome = ok(train(*words, base=[str(RECIPES / f"{name}.yaml")]))
    settings = outcome.record["settings"]
    for key in recipe.keys() - flags.keys() - {"output_dir"}:
        assert settings[key] == {"value": recipe[key], "from": "yaml"}
    assert (outcome.folder / "adapter_model.safetensors").is_file() and "memory: not planned" not in outcome.err
    assert not any(word in outcome.err for word in ("unknown model type", "outside the decoder"))
