"""Models that are known without files: those of the recipes and scripts, with their published parameter counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.__main__ import main
from fastchat.plan.known import _HUB, SIZES, architecture_of_hub_name, architecture_of_size
from fastchat.plan.model_files import read_architecture
from fastchat.security import load_yaml
from fastchat.settings.recipe_files import RECIPES

PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "google/gemma-1.1-2b-it": 2_506_172_416,
    "google/gemma-1.1-7b-it": 8_537_680_896,
    "google/codegemma-1.1-7b-it": 8_537_680_896,
    "google/gemma-2-9b-it": 9_241_705_984,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "microsoft/phi-4": 14_659_507_200,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "openai/gpt-oss-20b": 20_914_757_184,
}


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))


def test_parameters_are_the_published_ones() -> None:
    found = {name: a.parameters for name in _HUB if (a := architecture_of_hub_name(name))}
    assert found == PUBLISHED


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_its_hub_model(size: str) -> None:
    sized = architecture_of_size(size)
    known = architecture_of_hub_name(sized.name)
    assert known and (known.parameters, known.name) == (sized.parameters, sized.name)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_is_planned_as_it_stands(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([recipe, "--gpus", "8", "--gpu_memory", "80GiB"]) == 0
    text = capsys.readouterr().out
    name = load_yaml(RECIPES / f"{recipe}.yaml", "recipe")["model_name_or_path"]
    assert f"note: the built-in architecture of {name} was used; nothing was downloaded" in text
    assert "\nfits\n" in text


def test_the_names_in_scripts_are_known(repository: Path) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (repository / "scripts").glob("*.sh"))
    names = set(re.findall(r"\bmeta-llama/[\w.-]+\b", text))
    assert names and all(architecture_of_hub_name(name) for name in names)


def test_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hub" / "models--google--gemma-1.1-2b-it" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    sizes = '"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 10'
    (snapshot / "config.json").write_text(f'{{"model_type": "gemma", "num_hidden_layers": 1, {sizes}}}')
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = read_architecture("google/gemma-1.1-2b-it")
    assert (found.hidden, found.notes) == (8, ())


def test_other_names_are_still_refused() -> None:
    with pytest.raises(SettingsError, match="the planner downloads nothing"):
        read_architecture("google/gemma-1.1-3b-it")
    assert architecture_of_hub_name("./google/gemma-1.1-2b-it") is None
