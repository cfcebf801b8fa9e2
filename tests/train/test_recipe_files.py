"""A recipe by its path or its bare name, from any folder; and a name that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastchat.errors import SettingsError
from fastchat.settings.recipe_files import (
    DEEPSPEED_CONFIGS,
    RECIPES,
    find_deepspeed_config,
    find_recipe,
    read_recipe,
)
from fastchat.train.settings import find_output_dir
from tests.train.conftest import Outcome
from tests.train.flags import Train, ok


@pytest.mark.parametrize("name", ["gemma-2b-it", "gemma-2b-it.yaml", "gemma-2b-it.yml", "gemma-2-9b-it"])
def test_a_bare_name_is_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    assert find_recipe(name) == RECIPES / f"{stem}.yaml"
    assert find_output_dir([name]) == f"output/{stem}"


def test_every_recipe_has_its_bare_name() -> None:
    assert {find_recipe(path.stem) for path in RECIPES.glob("*.yaml")} == set(RECIPES.glob("*.yaml"))


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma-2b-it.yaml").write_text("seed: 1\n")
    assert find_recipe("gemma-2b-it.yaml") == Path("gemma-2b-it.yaml")
    assert find_recipe(str(tmp_path / "gemma-2b-it.yaml")) == tmp_path / "gemma-2b-it.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gema-2b-it", "did you mean gemma-2b-it"),
        ("mistral.yaml", "did you mean mistral-7b-v0.3"),
        ("somewhere/gemma-2b-it.yaml", "did you mean gemma-2b-it"),
        ("xyz", "`fastchat recipes` lists the built-in ones"),
    ],
)
def test_an_unknown_name_suggests_near_ones(name: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=f"there is no recipe {name}; {hint}"):
        find_recipe(name)


def test_a_near_file_in_the_folder_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("seed: 1\n")
    with pytest.raises(SettingsError, match="did you mean mine.yml"):
        find_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", ["faq.csv", "chats.jsonl", "chats.parquet", "chats.jsonl.gz", "chats.json"])
def test_data_is_not_a_recipe(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('[{"messages": []}]')
    with pytest.raises(SettingsError, match="pass the file as --data_path"):
        read_recipe(tmp_path / name)


def test_an_unknown_name_in_a_run(train: Train) -> None:
    outcome: Outcome = train(base=["gemma-2b-ti"])
    assert outcome.code == 2 and outcome.err.count("error: ") == 1 and "did you mean gemma-2b-it" in outcome.err


@pytest.mark.parametrize(
    "name", ["playground/deepspeed_config_s3.json", "deepspeed_config_s3.json", "deepspeed_config_s3"]
)
def test_a_deepspeed_configuration_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = DEEPSPEED_CONFIGS / "deepspeed_config_s3.json"
    assert find_deepspeed_config(name) == found and f"--deepspeed {name}: {found}" in capsys.readouterr().err
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("{}")
    assert find_deepspeed_config(name) == Path(name) and find_deepspeed_config(str(own)) == own
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["deepspeed_config_lora_s4", "elsewhere/deepspeed_config_lora_s3.json"])
def test_an_unknown_deepspeed_configuration_suggests_near_ones(name: str) -> None:
    with pytest.raises(
        SettingsError, match=f"--deepspeed {name} cannot be read: .* did you mean deepspeed_config_lora_s"
    ):
        find_deepspeed_config(name)


def test_playground_shows_the_files_of_the_package(repository: Path) -> None:
    for ours, pattern, shown in (
        (RECIPES, "*.yaml", repository / "playground" / "recipes"),
        (DEEPSPEED_CONFIGS, "*.json", repository / "playground"),
    ):
        found = {path.name: path.read_bytes() for path in ours.glob(pattern)}
        assert found == {path.name: path.read_bytes() for path in shown.glob(pattern)}, f"copy {ours} to {shown}"


def test_the_recipe_that_is_used_is_said(train: Train, base_flags: list[str], tmp_path: Path) -> None:
    flags = ["qwen2.5-7b-lora", *base_flags, "--val_set_size", "0"]
    outcome = train(base=flags)
    assert f"recipe: {RECIPES / 'qwen2.5-7b-lora.yaml'}" in outcome.err
    own = tmp_path / "own.yaml"
    own.write_text("learning_rate: 1e-4\n")
    assert "recipe:" not in ok(train(base=[str(own), *base_flags])).err
