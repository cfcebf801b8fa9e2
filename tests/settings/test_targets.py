"""What is typed as LoRA targets: names in the forms people write, regular expressions, all-linear."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from fastchat.errors import SettingsError
from fastchat.settings.targets import EXPERT_NAMES, LORA_TARGETS, as_names, matches, read_targets, seven_fit


@pytest.mark.parametrize(
    "written",
    [
        ["q_proj", "k_proj"],
        ["q_proj,", "k_proj"],
        ["q_proj,k_proj"],
        ["'q_proj',", "'k_proj'"],
        ['"q_proj"', "k_proj", ","],
        "q_proj k_proj",
        "['q_proj', 'k_proj']",
        ["[q_proj,", "k_proj]"],
        ["q_proj", "k_proj", "q_proj"],
    ],
)
def test_names_as_people_write_them(written) -> None:
    assert read_targets(written) == ["q_proj", "k_proj"]


@pytest.mark.parametrize("empty", [[], "", [","], "[]"])
def test_nothing_named(empty) -> None:
    with pytest.raises(SettingsError, match="names no module"):
        read_targets(empty)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        (r".*\.(q|v)_proj", {"model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.q_proj"}),
        (r"model\.layers\.[0-9]\.self_attn\.q_proj", {"model.layers.0.self_attn.q_proj"}),
        (r".*\.\d{2}\..*", {"model.layers.11.self_attn.q_proj"}),
        ("[l]m_head", {"lm_head"}),
        (".*head", {"lm_head"}),
        ("q_proj.*", set()),  # of the full name, as in peft
    ],
)
def test_a_regular_expression_is_kept_whole_and_means_full_names(pattern: str, meant: set[str]) -> None:
    names = ["model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.q_proj", "lm_head"]
    assert read_targets([pattern]) == read_targets(pattern) == [pattern]
    assert {name for name in names if matches(pattern, name)} == meant


def test_all_targets_together_and_an_invalid_pattern() -> None:
    assert read_targets(["All-Linear", "lm_head,embed_tokens", r".*\.k_proj"]) == [
        "all-linear",
        "lm_head",
        "embed_tokens",
        r".*\.k_proj",
    ]
    with pytest.raises(SettingsError, match=r"--lora_target_modules '\.\*\(q' is not a valid regular expression"):
        read_targets(".*(q")


def test_when_the_default_seven_fit() -> None:
    block = [f"self_attn.{name}" for name in LORA_TARGETS]
    assert seven_fit([block, [*block, "extra"]])
    assert not seven_fit([block, block[:-1]]), "a hybrid: one block has no down_proj"
    assert not seven_fit([])


def test_names_asked_for_are_kept_if_they_are_exact() -> None:
    everything = ["a.0.mlp.up", "a.0.gate.up", "a.1.mlp.up"]
    assert as_names(["mlp.up"], {"a.0.mlp.up", "a.1.mlp.up"}, everything) == ["mlp.up"]
    assert as_names(["up"], {"a.0.mlp.up", "a.1.mlp.up"}, everything) == ["mlp.up"]
    assert as_names([r".*\.up"], set(everything), everything) == ["up"]


def test_the_names_that_peft_takes_for_experts_are_those_of_this_version() -> None:
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    def taken(model_type: str, name: str) -> bool:
        model = nn.Module()
        model.config = SimpleNamespace(model_type=model_type)  # type: ignore[assignment]
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:
            return True
        return name not in (config.target_modules or ())

    candidates = ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj", "q_proj")
    found = {kind: tuple(name for name in candidates if taken(kind, name)) for kind in CONFIG_MAPPING_NAMES}
    assert {kind: names for kind, names in found.items() if names} == EXPERT_NAMES
