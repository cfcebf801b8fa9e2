"""The shapes of the known families are those of the real classes, to the last parameter."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.estimate import estimate
from fastchat.plan.families import architecture_from_config
from fastchat.plan.known import SIZES, architecture_of_size
from fastchat.plan.run import Run
from fastchat.plan.targets import adapted_by_layer
from tests.plan.shapes import EXPERTS, FAMILIES, config, llama


def real_model(cfg: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(cfg)


def real_linears(model: Any) -> set[tuple[Any, ...]]:
    """(name within the layer, inputs, outputs, has a bias) of the Linear layers of all layers."""
    import torch

    return {
        (name, module.in_features, module.out_features, module.bias is not None)
        for layer in model.model.layers
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def real_stacks(model: Any) -> set[tuple[str, int]]:
    """(name within the layer, elements) of the 3-D parameters of experts in all layers."""
    return {
        (name, parameter.numel())
        for layer in model.model.layers
        for name, parameter in layer.named_parameters()
        if parameter.ndim == 3 and ".experts." in name
    }


def assert_same(cfg: Any) -> None:
    architecture = architecture_from_config(cfg.to_dict(), "test")
    model = real_model(cfg)
    assert {(x.name, x.inputs, x.outputs, x.bias) for x in architecture.linears} == real_linears(model)
    assert {(x.name, x.elements) for x in architecture.stacks} == real_stacks(model)
    assert architecture.parameters == sum(p.numel() for p in model.parameters())
    assert architecture.notes == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_the_real_ones(family: str) -> None:
    assert_same(config(family))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "starcoder2", "cohere"])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied(family: str, tied: bool) -> None:
    assert_same(config(family, tie_word_embeddings=tied))


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 8, "head_dim": 96}),
        ("mistral", {"head_dim": 128}),
        ("qwen3", {"attention_bias": True}),
        ("gemma3_text", {"attention_bias": True}),
        ("cohere", {"use_qk_norm": True}),
        ("glm4_moe", {"use_qk_norm": True, "attention_bias": True}),
        ("deepseek_v3", {"q_lora_rank": None, "attention_bias": True, "first_k_dense_replace": 0}),
        ("qwen2_moe", {"decoder_sparse_step": 2, "qkv_bias": False}),
        ("qwen3_moe", {"mlp_only_layers": [0, 2], "head_dim": 128}),
        ("ernie4_5_moe", {"moe_layer_start_index": 1, "moe_layer_end_index": 1, "use_bias": True}),
        ("llama4_text", {"moe_layers": None, "interleave_moe_layer_step": 2}),
        ("gpt_oss", {"attention_bias": False}),
        ("starcoder2", {"use_bias": False}),
    ],
)
def test_switches_in_the_config(family: str, changed: dict[str, Any]) -> None:
    assert_same(config(family, **changed))


@pytest.mark.parametrize("size", SIZES)
def test_built_in_sizes(size: str) -> None:
    architecture = architecture_of_size(size)
    assert_same(llama(architecture))
    # The published sizes: 6.74, 13.02 and 68.98 billion.
    assert architecture.parameters == {"7b": 6738415616, "13b": 13015864320, "70b": 68976648192}[size]


def test_text_model_inside_a_multimodal_config() -> None:
    text = config("gemma3_text").to_dict()
    text.pop("model_type")
    text.pop("dtype")  # outside of text_config, as in published files
    outer = {"model_type": "gemma3", "dtype": "bfloat16", "text_config": text, "vision_config": {"hidden_size": 7}}
    architecture = architecture_from_config(outer, "test")
    assert architecture == replace(architecture_from_config(config("gemma3_text").to_dict(), "test"), dtype="bfloat16")


def test_a_sparse_gemma3_config_gets_the_family_defaults() -> None:
    # google/gemma-3-4b-it's text_config leaves out heads, head_dim and vocabulary.
    from transformers import AutoConfig

    sparse = {"model_type": "gemma3_text", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    real = AutoConfig.for_model(**sparse)
    assert architecture_from_config(sparse, "test").parameters == sum(p.numel() for p in real_model(real).parameters())


def test_unknown_family_is_counted_as_llama_and_says_so() -> None:
    values = config("llama").to_dict() | {"model_type": "brand_new"}
    architecture = architecture_from_config(values, "test")
    assert architecture.parameters == architecture_from_config(config("llama").to_dict(), "test").parameters
    assert "brand_new" in architecture.notes[0]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "bloom", "falcon", "mpt", "gptj", "phi"])
def test_older_families_are_planned_by_their_sizes(family: str) -> None:
    """Nearly all of the parameters, and targets by names that the planner does not know."""
    from transformers import AutoConfig

    old = {"n_layer": 4, "n_embd": 512, "n_head": 8, "n_layers": 4, "d_model": 512, "n_heads": 8, "ffn_dim": 2048}
    old |= {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    known = AutoConfig.for_model(family).to_dict().keys()
    chosen = {key: value for key, value in old.items() if key in known}
    cfg = AutoConfig.for_model(family, vocab_size=1000, word_embed_proj_dim=512, pad_token_id=0, **chosen)
    architecture = architecture_from_config(cfg.to_dict() | {"max_position_embeddings": 16}, "test")
    layers = sum(p.numel() for name, p in real_model(cfg).named_parameters() if ".3." in name) * 4
    planned = architecture.linear_elements + architecture.bias_elements + architecture.norm_elements
    assert planned == pytest.approx(layers, rel=0.2)  # some share the keys of all heads
    run = Run(architecture, lora_target_modules=("query_key_value",))
    assert run.adapted and "planned as a GPT-2 of the same sizes" in architecture.notes[0]


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"])
def test_experts_of_an_unknown_family_are_counted(key: str) -> None:
    mixtral = config("mixtral").to_dict()
    values = {name: value for name, value in mixtral.items() if name != "num_local_experts"}
    architecture = architecture_from_config(values | {key: 8, "model_type": "brand_new"}, "test")
    assert architecture.parameters == architecture_from_config(mixtral, "test").parameters
    assert "a Llama with experts" in architecture.notes[0]


@pytest.mark.parametrize("value", [None, 0, 9, "x"])
def test_a_number_of_active_experts_that_cannot_be_is_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="num_experts_per_tok .*training itself does not need a plan"):
        architecture_from_config(config("mixtral").to_dict() | {"num_experts_per_tok": value}, "test")


@pytest.mark.parametrize(
    "family", ["gemma3_text", "qwen2_moe", "deepseek_v3", "ernie4_5_moe", "llama4_text", "qwen3_next"]
)
def test_nonsense_in_a_config_is_planned_or_refused(family: str) -> None:
    """Every key with values of other types: no traceback."""
    values = config(family).to_dict()
    for key, value in itertools.product(values, (None, "x", [], [1], ["a"], {}, -1, 0, True, 1.5)):
        with contextlib.suppress(SettingsError):
            _ = estimate(Run(architecture_from_config(values | {key: value}, "test"))).total


@pytest.mark.parametrize("value", [None, 0, "big", True])
def test_a_config_without_a_size_is_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="hidden_size"):
        architecture_from_config(config("llama").to_dict() | {"hidden_size": value}, "models/x")


def test_unknown_size_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"--model_size 72b .*nearest: 7"):
        architecture_of_size("72b")


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_parameters_are_peft_s(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    cfg = config(family)
    run = Run(architecture_from_config(cfg.to_dict(), "test"), lora_r=4)
    names = [linear.name for linear in run.adapted]
    model = get_peft_model(real_model(cfg), LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))
    assert run.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", EXPERTS)
def test_adapters_of_experts_are_peft_s(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    cfg = config(family)
    architecture = architecture_from_config(cfg.to_dict(), "test")
    stacks = ("experts.gate_up_proj", "experts.down_proj")
    run = Run(architecture, lora_r=4, lora_target_modules=("q_proj",), lora_target_parameters=stacks)
    if architecture.latent:
        run = replace(run, lora_target_modules=("o_proj",))
    leaves = [*(run.lora_target_modules or ())]
    adapter = LoraConfig(r=4, target_modules=leaves, target_parameters=list(stacks), task_type="CAUSAL_LM")
    model = get_peft_model(real_model(cfg), adapter)
    assert run.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert run.frozen_experts == 0


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_trained_biases_and_head_targets(bias: Any) -> None:
    from peft import LoraConfig, get_peft_model

    cfg = config("qwen2")
    targets = ("q_proj", "self_attn.o_proj", "lm_head", "embed_tokens")
    architecture = architecture_from_config(cfg.to_dict(), "test")
    run = Run(architecture, lora_r=4, lora_bias=bias, lora_target_modules=targets)
    model = get_peft_model(real_model(cfg), LoraConfig(r=4, bias=bias, target_modules=list(targets)))
    assert run.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_target_that_matches_nothing_lists_what_exists() -> None:
    run = Run(architecture_of_size("7b"), lora_target_modules=("q_prj",))
    with pytest.raises(SettingsError, match=r"q_prj match nothing.*down_proj.*did you mean q_proj"):
        _ = run.trained


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_those_of_training(family: str) -> None:
    from fastchat.model.lora_targets import choose_targets
    from fastchat.settings.targets import matches

    cfg = config(family)
    model = real_model(cfg)
    architecture = architecture_from_config(cfg.to_dict(), "test")
    for asked in (None, ("all-linear",)):
        chosen = choose_targets(model, asked)
        names = [name for name, _ in model.named_modules() if any(matches(target, name) for target in chosen.modules)]
        planned = adapted_by_layer(architecture, asked, (), ())
        assert sorted(names) == sorted(f"model.layers.{i}.{x.name}" for i, found in enumerate(planned) for x in found)
