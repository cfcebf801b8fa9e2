"""LoRA on the weights of experts: adapted, saved, read again, continued and merged, with plain peft as well."""

from __future__ import annotations

import pytest
import torch

from fastchat.checkpoint.merge import merge_adapter
from fastchat.checkpoint.trained_model import find_trained, load_trained
from fastchat.errors import SettingsError
from fastchat.model.loading import load_base_model
from fastchat.model.lora import add_lora, load_adapter
from fastchat.model.lora_experts import expert_parameters
from fastchat.settings.lora_options import LoraOptions
from tests.model.adapters import logits, save_random_adapter
from tests.model.architectures import loss, tiny

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
_MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MODELS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**_ROUTED, **_MLA, "first_k_dense_replace": 1, "num_key_value_heads": 4},
}


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        *((arch, EXPERTS) for arch in MODELS),
        ("mixtral", ["experts.down_proj", "mlp.gate.weight"]),  # one of the two nested ones, and the router
        ("deepseek_v3", [*EXPERTS, "mlp.shared_experts.up_proj.weight", "layers.0.mlp.down_proj.weight"]),
        ("qwen3_moe", [r".*\.1\.mlp\.experts\..*"]),
    ],
)
def test_saved_read_continued_and_merged(tmp_path, tiny_model_dir, arch: str, names: list[str]) -> None:
    base = tiny_model_dir(arch, **MODELS[arch])
    folder, apart = save_random_adapter(tmp_path / "adapter", base, target_parameters=names)
    again = load_adapter(load_base_model(str(base)), str(folder)).eval()
    assert torch.equal(logits(again), logits(apart))
    plain = load_base_model(str(base)).eval()
    with apart.disable_adapter():
        assert torch.equal(logits(plain), logits(apart))
    continued = add_lora(load_base_model(str(base)), weight_path=str(folder), dropout=0.05)
    assert torch.equal(logits(continued.eval()), logits(apart)) and not continued.peft_config["default"].lora_dropout
    assert torch.equal(logits(load_trained(find_trained(str(folder)))), logits(apart)), "as a chat opens it"
    report = merge_adapter(str(folder), str(tmp_path / "merged"))
    assert report.error < 1e-5 and report.effect > 0.1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_adapter_learns(dtype: torch.dtype, checkpointing: bool) -> None:
    """Adapters are float32 on a bfloat16 base too, and the same without and with checkpointing."""
    model = add_lora(
        tiny("mixtral").to(dtype), dropout=0.0, target_parameters=EXPERTS, gradient_checkpointing=checkpointing
    ).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(".experts." in name for name in trained) == 2 * 2 * 2
    assert {p.dtype for p in trained.values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss(model).backward()
    assert not [name for name, p in trained.items() if p.grad is None]


def test_the_effect_is_that_of_the_product() -> None:
    model = add_lora(tiny("mixtral"), r=4, alpha=8, dropout=0.0, target_parameters=["experts.down_proj"]).eval()
    wrapper = model.get_submodule("base_model.model.model.layers.0.mlp.experts")
    with torch.no_grad():
        wrapper.lora_B["default"].weight.normal_()
        adapted = logits(model, 20)
        wrapper.get_base_layer().down_proj += wrapper.get_delta_weight("default")
        with model.disable_adapter():
            assert torch.allclose(logits(model, 20), adapted, atol=1e-5)


def test_only_in_the_layers_asked_for() -> None:
    """peft's layers_to_transform is of layers alone."""
    model = add_lora(tiny("mixtral"), dropout=0.0, target_parameters=EXPERTS, options=LoraOptions(layers=(1,)))
    adapted = {name.split(".layers.")[1].split(".")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"1"} and any("experts" in name for name, _ in model.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize(
    ("arch", "lora", "message"),
    [
        ("mixtral", {"target_parameters": ["experts.up_proj"]}, "'experts.up_proj' matches no parameter .* there: mlp"),
        ("mixtral", {"target_parameters": ["experts.gate_up_prj"]}, "Did you mean mlp.experts.gate_up_proj"),
        ("mixtral", {"target_parameters": ["norm.weight"]}, "'norm.weight' matches no parameter that can be adapted"),
        ("gpt_oss", {"target_parameters": ["down_proj_bias"]}, "matches no parameter that can be adapted"),
        ("llama", {"target_parameters": ["experts.down_proj"]}, "in LlamaForCausalLM. It has no weights of experts"),
        (
            "llama",
            {"target_parameters": ["o_proj.weight"]},
            "o_proj.weight is the weight of a layer that --lora_target",
        ),
        (
            "mixtral",
            {"target_parameters": EXPERTS, "dropout": 0.1},
            "lora.ParamWrapper does not work with lora_dropout",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(arch: str, lora: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        add_lora(tiny(arch), **{"dropout": 0.0} | lora)


def test_frozen_experts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny("mixtral")
    experts = expert_parameters(model)
    number = sum(p.numel() for p in experts.values())
    add_lora(model, dropout=0.0)
    line = "parameters are weights of experts and stay frozen; --lora_target_parameters"
    err = capsys.readouterr().err
    assert f"LoRA: {number:,} of " in err and f"{line} mlp.experts.down_proj mlp.experts.gate_up_proj adapts" in err
    add_lora(tiny("mixtral"), dropout=0.0, target_parameters=EXPERTS[:1])
    number = sum(p.numel() for name, p in experts.items() if name.endswith("down_proj"))
    err = capsys.readouterr().err
    assert f"LoRA: {number:,} of " in err and f"{line} mlp.experts.down_proj adapts" in err
    add_lora(tiny("mixtral"), dropout=0.0, target_parameters=EXPERTS)
    assert "stay frozen" not in capsys.readouterr().err
    add_lora(tiny("zamba2"), dropout=0.0)
    assert "stay frozen" not in capsys.readouterr().err, "its 3-D parameters are no experts"


def test_q_lora_says_what_stays_and_adapts_it(tmp_path, tiny_model_dir, capsys) -> None:
    base = tiny_model_dir("mixtral", hidden=64, **MODELS["mixtral"])
    folder, apart = save_random_adapter(tmp_path / "adapter", base, q_lora=True, target_parameters=EXPERTS)
    number = 2 * (4 * 64 * 256 + 4 * 128 * 64 + 4 * 64)  # experts and router of two blocks
    line = f"{number:,} parameters stay in float32 (0.00 GiB): mlp.experts.down_proj, mlp.experts.gate_up_proj, mlp.ga"
    assert f"q_lora: bitsandbytes quantises linear layers only; {line}" in capsys.readouterr().err
    assert torch.equal(logits(load_trained(find_trained(str(folder)))), logits(apart))
    assert merge_adapter(str(folder), str(tmp_path / "merged")).error < 1e-4


def test_a_quantised_parameter_is_refused(tiny_model_dir) -> None:
    base = load_base_model(str(tiny_model_dir("llama", hidden=64)), quantization=True)
    with pytest.raises(SettingsError, match="mlp.up_proj.weight is quantised, and peft cannot adapt a quantised"):
        add_lora(base, dropout=0.0, target_modules="q_proj", target_parameters=["mlp.up_proj.weight"])
