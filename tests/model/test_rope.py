"""RoPE scaling: what is chosen, what is refused, and that the model computes with it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastchat.errors import SettingsError
from fastchat.model.loading import load_base_model, load_config
from fastchat.model.rope import ROPE_TYPES, apply_rope, choose_rope, context_length
from tests.model.adapters import logits

THETA = {"rope_type": "default", "rope_theta": 10000.0}


def llama(length=4096, **rope):
    parameters = THETA | rope if rope else dict(THETA)
    return AutoConfig.for_model(
        "llama", max_position_embeddings=length, rope_parameters=parameters, hidden_size=64, num_attention_heads=4
    )


def test_short_enough_means_untouched(capsys):
    assert choose_rope(llama(), model_max_length=4096) is None
    assert capsys.readouterr().err == ""


def test_a_longer_length_alone_gives_linear_with_the_documented_factor(capsys):
    choice = choose_rope(llama(), model_max_length=10000)
    assert choice.rope_parameters == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
    assert choice.max_position_embeddings == 4096
    assert "linear, factor 3 (no --rope_scaling_type given): context 4096 -> 12288" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("type", "extra", "length"),
    [
        ("linear", {}, 4096),
        ("dynamic", {}, 4096),
        ("yarn", {"original_max_position_embeddings": 4096}, 16384),
        (
            "llama3",
            {"original_max_position_embeddings": 4096, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            16384,
        ),
    ],
)
def test_every_type(type, extra, length):
    choice = choose_rope(llama(), type=type, model_max_length=16384)
    assert choice.rope_parameters == {"rope_type": type, "rope_theta": 10000.0, "factor": 4.0, **extra}
    assert choice.max_position_embeddings == length
    config = llama()
    apply_rope(config, choice)
    assert context_length(config) == 16384


def test_a_factor_of_ones_own(capsys):
    assert choose_rope(llama(), factor=8.0, model_max_length=8192).factor == 8.0
    assert choose_rope(llama(), factor=2.5, type="yarn", model_max_length=8192).factor == 2.5
    capsys.readouterr()
    choose_rope(llama(), factor=1.5, type="linear", model_max_length=8192)
    assert "less than --model_max_length 8192; factor 2 would cover it" in capsys.readouterr().err


def test_a_type_that_has_no_effect_is_said(capsys):
    assert choose_rope(llama(), type="dynamic", model_max_length=1024) is None
    assert "no effect: 1024 tokens fit" in capsys.readouterr().err
    assert choose_rope(llama(), type="yarn", factor=1.0, model_max_length=1024) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": "liner"}, "Did you mean linear"),
        ({"type": "ntk"}, "Unknown --rope_scaling_type 'ntk'"),
        ({"factor": 0.5}, "at least 1.0"),
        ({"factor": float("nan")}, "at least 1.0"),
        ({"factor": float("inf")}, "at least 1.0"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(SettingsError, match=message):
        choose_rope(llama(), model_max_length=8192, **arguments)


LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def test_a_base_with_scaling_of_its_own(capsys):
    config = llama(131072, **LLAMA31)
    assert choose_rope(config, model_max_length=65536) is None
    with pytest.raises(SettingsError, match="Pass --rope_scaling_type llama3 to extend it further"):
        choose_rope(config, model_max_length=200000)
    for wrong in ({"type": "linear"}, {"factor": 2.0}, {"type": "yarn", "factor": 16.0}):
        with pytest.raises(SettingsError, match="cannot be combined"):
            choose_rope(config, model_max_length=200000, **wrong)
    choice = choose_rope(config, type="llama3", model_max_length=200000)
    assert choice.rope_parameters == {"rope_theta": 10000.0, **LLAMA31, "factor": 16.0}
    assert choice.max_position_embeddings == 262144
    assert "factor 8 of the base -> 16: context 131072 -> 262144" in capsys.readouterr().err


def test_a_linear_base_is_stretched_by_the_whole_factor():
    config = llama(4096, rope_type="linear", factor=4.0)
    assert context_length(config) == 16384
    assert choose_rope(config, model_max_length=16384) is None
    choice = choose_rope(config, type="linear", model_max_length=32768)
    assert (choice.factor, choice.max_position_embeddings) == (8.0, 4096)
    with pytest.raises(SettingsError, match="would undo it"):
        choose_rope(config, type="linear", factor=2.0, model_max_length=32768)


def test_models_without_rope():
    gpt2 = AutoConfig.for_model("gpt2", n_positions=128)
    assert choose_rope(gpt2, model_max_length=128) is None
    with pytest.raises(SettingsError, match="128 learned positions"):
        choose_rope(gpt2, model_max_length=256)
    with pytest.raises(SettingsError, match="no RoPE to scale"):
        choose_rope(gpt2, type="linear", model_max_length=128)
    assert choose_rope(AutoConfig.for_model("bloom"), model_max_length=100000) is None
    with pytest.raises(SettingsError, match="no RoPE to scale"):
        choose_rope(AutoConfig.for_model("falcon", alibi=True), type="yarn", model_max_length=4096)


def test_only_full_attention_layers_are_scaled():
    config = AutoConfig.for_model("gemma3_text", max_position_embeddings=1024)
    before = config.rope_parameters["sliding_attention"]
    choice = choose_rope(config, model_max_length=4096)
    assert choice.rope_parameters["full_attention"]["factor"] == 4.0
    assert choice.rope_parameters["sliding_attention"] == before


@pytest.mark.parametrize("arch", ["llama", "gpt_neox", "qwen2", "gemma2"])
@pytest.mark.parametrize("type", ROPE_TYPES)
def test_logits_change_and_survive_saving(tmp_path, tiny_model_dir, arch, type):
    base = str(tiny_model_dir(arch, max_positions=64, hidden=128))
    choice = choose_rope(load_config(base), type=type, model_max_length=200)
    scaled = load_base_model(base, rope=choice).eval()
    wanted = logits(scaled, num_tokens=150)
    plain = load_base_model(base).eval()
    assert (logits(plain, num_tokens=150) - wanted).abs().max() > 1e-4
    scaled.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation=scaled.config._attn_implementation
    ).eval()
    assert torch.equal(logits(again, num_tokens=150), wanted)
    assert again.config.rope_parameters == {**scaled.config.rope_parameters}


def test_a_config_changed_after_the_model_is_built_does_nothing(tiny_model_dir):
    """Why the choice is made before loading: the library gives no error for this."""
    base = str(tiny_model_dir("llama", max_positions=64))
    model = load_base_model(base).eval()
    before = logits(model)
    apply_rope(model.config, choose_rope(model.config, model_max_length=256))
    assert torch.equal(logits(model), before)


def test_a_type_that_the_architecture_refuses_is_found_before_anything_is_loaded(tiny_model_dir):
    config = load_config(str(tiny_model_dir("phi3")))
    with pytest.raises(SettingsError, match="phi3 does not accept RoPE scaling 'linear'"):
        choose_rope(config, model_max_length=8192)
