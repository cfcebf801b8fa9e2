"""Reading settings from recipes and command lines: types, spellings, messages, provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from fastchat.errors import SettingsError
from fastchat.settings.options import Option, Reader, convert, split_recipe
from fastchat.settings.recipe_files import read_recipe
from fastchat.settings.values import Values

OPTIONS = [
    Option("learning_rate", float, 5e-5),
    Option("lora_r", int, 8),
    Option("bf16", bool, False),
    Option("tf32", bool | None, None),
    Option("pin", bool, True),
    Option("names", list[str], ["a"]),
    Option("strategy", Literal["no", "steps"], "no", also=("evaluation_strategy",)),
    Option("extra", dict[str, Any] | str | None, None),
    Option("seed", int | None, None),
]
READER = Reader(OPTIONS, {"logging_dir": "use the environment"}, hidden=["pin"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--learning_rate", "1e-5"], {"learning_rate": 1e-5}),
        (["--learning-rate=3"], {"learning_rate": 3.0}),
        (["--bf16"], {"bf16": True}),
        (["--bf16", "False"], {"bf16": False}),
        (["--bf16", "--lora_r", "4"], {"bf16": True, "lora_r": 4}),
        (["--tf32"], {"tf32": True}),
        (["--no_pin"], {"pin": False}),
        (["--names", "x", "y z"], {"names": ["x", "y z"]}),
        (["--names=--odd"], {"names": ["--odd"]}),
        (["--evaluation_strategy", "steps"], {"strategy": "steps"}),
        (["--extra", '{"a": 1}'], {"extra": {"a": 1}}),
        (["--extra", "file.json"], {"extra": "file.json"}),
        (["--seed", "-1"], {"seed": -1}),
        (["--seed", "None"], {"seed": None}),
        (["--lora_r", "4", "--lora_r", "16"], {"lora_r": 16}),
    ],
)
def test_words_become_typed_values(words: list[str], expected: dict[str, Any]) -> None:
    assert READER.from_words(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora_rank", "4"], "did you mean --lora_r"),
        (["--lora_r", "eight"], "--lora_r is 'eight', but a whole number is expected"),
        (["--lora_r", "8.5"], "whole number"),
        (["--lora_r"], "--lora_r needs a value"),
        (["--learning_rate", "nan"], "a number is expected"),
        (["--learning_rate", "1e-4", "2e-4"], "'2e-4' is not a --flag"),
        (["--bf16", "maybe"], "True or False"),
        (["--strategy", "sometimes"], "it can be no, steps"),
        (["--extra", "{broken"], "not valid JSON"),
        (["--no_pin", "True"], "takes no value"),
        (["--no_lora_r"], "unknown setting --no_lora_r"),
        (["--logging_dir", "x"], "use the environment"),
        (["stray"], "'stray' is not a --flag"),
    ],
)
def test_bad_words_are_named(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        READER.from_words(words)


def _yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_values(tmp_path: Path) -> None:
    text = "learning_rate: 1e-5\nstrategy: no\nnames: [a, b]\nbf16: true\nseed: null\nlora_r: '4'\n"
    text += "extra: {k: 1, rate: 1e-6}\n"
    assert READER.from_yaml(_yaml(tmp_path, text)) == {
        "learning_rate": 1e-5,  # the YAML library reads 1e-5 as text, alone and in a mapping
        "strategy": "no",  # and a bare no as false
        "names": ["a", "b"],
        "bf16": True,
        "extra": {"k": 1, "rate": 1e-6},
        "seed": None,
        "lora_r": 4,
    }
    assert READER.from_yaml(_yaml(tmp_path, "names: one\n")) == {"names": ["one"]}
    assert READER.from_yaml(_yaml(tmp_path, "# nothing\n")) == {}


# Nine lines that would be a list of ten thousand million entries.
BOMB = "names: &a0 [x, x]\n" + "".join(f"n{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


def test_a_value_may_be_named_and_used_again(tmp_path: Path) -> None:
    assert READER.from_yaml(_yaml(tmp_path, "lora_r: &n 4\nseed: *n\n")) == {"lora_r": 4, "seed": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_r: 4\nlora_r: 8\n", r"recipe.yaml:2: lora_r is given twice \(first on line 1\)"),
        ("strategy: no\nevaluation_strategy: no\n", "another name for strategy"),
        ("- a\n- b\n", "name: value"),
        ("a: [1\n", "not valid YAML"),
        ("lora_r: true\n", "whole number"),
        ("lora_r: 4.0\n", "whole number"),
        ("learning_rate: fast\n", "'fast', but a number"),
        ("learning_rate: [1, 2]\n", "is a list"),
        ("learning_rate: {a: 1}\n", "is a mapping"),
        ("lora_r:\n", "is empty"),
        ("names: [true]\n", "text is expected"),
        ("lora_rr: 1\n", "did you mean lora_r"),
        ("x: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("x: !!python/name:os.system\n", "not valid YAML"),
        (BOMB, r"recipe.yaml:2: an alias of a list"),
        ("lora_r: &a [*a]\n", "an alias of a list"),
        ("names: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_bad_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        READER.from_yaml(_yaml(tmp_path, text))


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere.yaml cannot be read"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_the_deepspeed_launcher_puts_a_rank_in_front() -> None:
    assert split_recipe(["--local_rank=1", "recipe.yaml", "--bf16"]) == ("recipe.yaml", ["--bf16"])
    assert split_recipe(["--local-rank", "1", "--bf16"]) == (None, ["--bf16"])
    assert split_recipe([]) == (None, [])


def test_command_line_overrides_recipe_overrides_default() -> None:
    values = Values(OPTIONS, {"lora_r": 4, "bf16": True}, {"lora_r": 16})
    assert (values["lora_r"], values["bf16"], values["pin"]) == (16, True, True)
    assert [values.origin[name] for name in ("lora_r", "bf16", "pin")] == ["command line", "yaml", "default"]
    values.derive("seed", 7)
    assert values["seed"] == 7 and values.origin["seed"] == "derived" and not values.given("seed")


def test_hidden_options_are_not_suggested() -> None:
    with pytest.raises(SettingsError) as error:
        READER.from_words(["--pinn"])
    assert "mean pin" not in str(error.value)


def test_a_flag_that_is_text_or_bool() -> None:
    option = Option("seen", str | bool, "no")
    assert [convert(option, raw, "x") for raw in (True, "off", "no", "all")] == [True, False, "no", "all"]
