"""The settings that training.json records, given back as a recipe: accepted by every command, and the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastchat.data import preview
from fastchat.errors import SettingsError
from fastchat.plan.command_line import read_flags
from fastchat.settings.readers import training_options, training_reader
from fastchat.settings.recipe_files import read_recipe
from tests.train.flags import Train, ok

# Every kind of value: lists, mappings, numbers in lists, derived ones, empty text, None, choices, switches.
MORE = ["--lora_target_modules", "q_proj,", "v_proj", "--lora_r", "4", "--gradient_checkpointing", "True"]
MORE += [
    "--lr_scheduler_type",
    "cosine_with_min_lr",
    "--lr_scheduler_kwargs",
    '{"min_lr": 1e-6}',
    "--warmup_steps",
    "1",
]
MORE += ["--eval_strategy", "steps", "--eval_steps", "1", "--val_set_size", "0.2", "--data_proportions", "0.5", "0.5"]
MORE += [
    "--optim",
    "paged_adamw_32bit",
    "--run_name",
    "yes",
    "--rope_scaling_type",
    "linear",
    "--model_max_length",
    "600",
]


def _same(record: dict[str, Any], other: dict[str, Any]) -> None:
    free = ("output_dir",)
    was, now = ({n: e["value"] for n, e in r["settings"].items() if n not in free} for r in (record, other))
    assert now == was
    assert other["fingerprints"] == record["fingerprints"]


@pytest.mark.slow
def test_the_same_run_again(train: Train, tmp_path: Path, data_files: tuple[Path, Path]) -> None:
    first = ok(train(*MORE, "--data_path", *map(str, data_files)))
    record, losses = first.record, first.losses
    recorded = {name: entry["value"] for name, entry in record["settings"].items()}
    recipes = {"record": first.folder / "training.json"}
    for name, content in (("flat", recorded), ("section", record["settings"])):
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(content), encoding="utf-8")
    recipes["json"] = tmp_path / "flat.json"
    recipes["json"].write_text(json.dumps(recorded), encoding="utf-8")
    for name, recipe in recipes.items():
        again = ok(train(base=[str(recipe)], name=name))
        assert again.losses == losses and again.folder.name == name
        _same(record, again.record)
        assert "steps has no effect" not in again.err
    finished = ok(train(base=[str(recipes["record"])], name=first.folder.name))
    assert "holds the finished result of this run" in finished.err


@pytest.mark.slow
def test_the_plainest_run_again(train: Train, tmp_path: Path) -> None:
    """Everything at its default: `debug`, `do_train`, `report_to` and the like are recorded as well."""
    for full in (False, True):
        first = ok(train(full=full, name=f"first{full}"))
        again = ok(train(base=[str(first.folder / "training.json")], full=full, name=f"again{full}"))
        assert again.losses == first.losses
        _same(first.record, again.record)
    changed = train("--learning_rate", "1e-3", base=[str(first.folder / "training.json")], full=True, name="changed")
    assert ok(changed).losses[1:] != first.losses[1:], "the command line overrides it"


def test_every_command_reads_it(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ok(train(*MORE[:6])).folder / "training.json")
    flags = read_flags([recipe])
    assert flags["lora_r"] == 4 and flags["lora_target_modules"] == ["q_proj", "v_proj"] and flags["bf16"] is False
    capsys.readouterr()
    assert preview.main([recipe, "--num", "1"]) == 0
    assert "learned" in capsys.readouterr().out


def test_every_default_is_accepted_as_it_is_recorded(tmp_path: Path) -> None:
    for lora in (True, False):
        options = training_options(lora)
        (tmp_path / "all.yaml").write_text(yaml.safe_dump({option.name: option.default for option in options}))
        (tmp_path / "all.json").write_text(json.dumps({option.name: option.default for option in options}))
        for name in ("all.yaml", "all.json"):
            values = training_reader(lora).from_yaml(tmp_path / name)
            differing = {o.name: values[o.name] for o in options if values[o.name] != o.default}
            assert differing == {}


def test_an_older_record_names_both_names(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("gradient_checkpointing: true\nactivation_checkpointing: null\n")
    assert training_reader(True).from_yaml(tmp_path / "r.yaml") == {"gradient_checkpointing": True}
    (tmp_path / "r.yaml").write_text("gradient_checkpointing: true\nactivation_checkpointing: false\n")
    with pytest.raises(SettingsError, match="another name for gradient_checkpointing are both given"):
        training_reader(True).from_yaml(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 1, "seed": 2}', "seed is given twice"),
        ('{"seed": 1', "is not valid JSON"),
        ("[1]", "must consist of `name: value` lines"),
    ],
)
def test_bad_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_recipe(tmp_path / "r.json")


@pytest.mark.parametrize(
    "value", ["{min_lr: .inf}", "{min_lr: .nan}", "{when: 2024-01-01}", "'{\"min_lr\": Infinity}'"]
)
def test_what_training_json_cannot_record_is_refused_before_the_run(tmp_path: Path, value: str) -> None:
    (tmp_path / "r.yaml").write_text(f"lr_scheduler_kwargs: {value}\n")
    with pytest.raises(SettingsError, match="lr_scheduler_kwargs cannot be written as JSON"):
        training_reader(True).from_yaml(tmp_path / "r.yaml")
