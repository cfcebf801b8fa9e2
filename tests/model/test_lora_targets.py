"""Which layers get an adapter: in architectures of many kinds, and of what the user names."""

from __future__ import annotations

import copy

import pytest
import torch

from fastchat.errors import CheckpointError, SettingsError
from fastchat.model.loading import load_base_model
from fastchat.model.lora import add_lora
from fastchat.model.lora_targets import choose_targets
from fastchat.settings.targets import LORA_TARGETS
from tests.model.adapters import save_random_adapter
from tests.model.architectures import SIZES, loss, tiny
from tests.tiers import thorough

_SEVEN = " ".join(sorted(LORA_TARGETS))
_QKVO = "k_proj o_proj q_proj v_proj"
_MLA = "kv_a_proj_with_mqa kv_b_proj o_proj q_a_proj q_b_proj"
_NEOX = "dense dense_4h_to_h dense_h_to_4h query_key_value"
# The layers that get an adapter by default, and whether the default run of the tests has the architecture.
DEFAULTS = {
    "llama": (_SEVEN, True),
    "gpt2": ("c_attn c_fc c_proj", True),
    "gpt_neox": (_NEOX, True),
    "gptj": ("fc_in fc_out k_proj out_proj q_proj v_proj", False),
    "gpt_bigcode": ("c_attn c_fc c_proj", False),
    "falcon": (_NEOX, True),
    "bloom": (_NEOX, True),
    "mpt": ("Wqkv down_proj out_proj up_proj", True),
    "opt": ("fc1 fc2 k_proj out_proj q_proj v_proj", True),
    "phi": ("dense fc1 fc2 k_proj q_proj v_proj", False),
    "phi3": ("down_proj gate_up_proj o_proj qkv_proj", True),
    "glm4": ("down_proj gate_up_proj k_proj o_proj q_proj v_proj", False),
    "starcoder2": (f"c_fc c_proj {_QKVO}", True),
    "lfm2": ("in_proj k_proj out_proj q_proj v_proj w1 w2 w3", True),
    "nemotron": ("down_proj k_proj o_proj q_proj up_proj v_proj", False),
    "ctrl": ("Wk Wq Wv dense ffn.0 ffn.2", True),
    "mamba": ("in_proj", True),
    "mamba2": ("in_proj", False),
    "falcon_h1": (_SEVEN, True),
    "bamba": (f"down_proj gate_proj in_proj {_QKVO} up_proj", False),
    "jamba": (f"down_proj gate_proj in_proj {_QKVO} out_proj up_proj x_proj", True),
    "recurrent_gemma": (f"down_proj gate_proj {_QKVO} linear_out linear_x linear_y up_proj", False),
    "rwkv": ("key output receptance value", False),
    "mixtral": (_QKVO, True),
    "qwen2_moe": (_SEVEN, True),
    "qwen3_moe": (_QKVO, True),
    "qwen3_next": (f"in_proj_ba in_proj_qkvz {_QKVO} out_proj", True),
    "gpt_oss": (_QKVO, True),
    "granitemoehybrid": (f"in_proj input_linear {_QKVO} output_linear", False),
    "jetmoe": ("kv_proj", True),
    "llama4_text": (_SEVEN, True),
    "phimoe": (_QKVO, False),
    "gemma4_text": (f"down_proj gate_proj {_QKVO} per_layer_input_gate per_layer_projection up_proj", True),
    "deepseek_v2": (_MLA, False),
    "deepseek_v3": (_MLA, True),
    "deepseek_v32": (_MLA, True),
    "minimax": (f"{_QKVO} out_proj output_gate qkv_proj", False),
    "zamba2": (f"down_proj gate_up_proj in_proj {_QKVO} linear", False),
}


def modules(model) -> set[str]:
    """Full names of the layers with an adapter."""
    names = (name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name)
    return {name.removeprefix("base_model.model.") for name in names}


def test_the_table_is_complete() -> None:
    assert DEFAULTS.keys() == SIZES.keys()


@pytest.mark.parametrize(
    ("arch", "names"), [thorough(arch, names, in_default=often) for arch, (names, often) in DEFAULTS.items()]
)
def test_by_default_layers_of_the_blocks_that_can_learn(arch: str, names: str) -> None:
    model = tiny(arch)
    output = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), "")
    targets = choose_targets(model, None)
    peft_model = add_lora(model, dropout=0.0).train()
    assert targets.modules == sorted(names.split())
    assert output not in modules(peft_model) and not [name for name in modules(peft_model) if "embed" in name]
    loss(peft_model).backward()
    idle = [name for name, p in peft_model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "every adapter gets a gradient"


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for arch, line in (
        ("phi3", "LoRA targets: down_proj, gate_up_proj, o_proj, qkv_proj, the linear layers in the blocks of Phi3"),
        ("falcon_h1", "LoRA targets: the default seven. The blocks of FalconH1ForCausalLM also have in_proj."),
        ("jamba", "LoRA: no adapter on mamba.dt_proj: the model's code reads the weight itself"),
        ("qwen3_next", "LoRA: no adapter on mlp.shared_expert_gate: it is a router, or a gate of experts"),
        ("deepseek_v32", "self_attn.indexer.wq_b: it would get no gradient"),
        ("deepseek_v3", "--lora_target_parameters mlp.down_proj.weight mlp.gate_proj.weight mlp.shared_experts."),
    ):
        choose_targets(tiny(arch), None)
        assert line in capsys.readouterr().err
    choose_targets(tiny("llama"), None)
    assert capsys.readouterr().err == "", "nothing to say where the seven are all there is"


@pytest.mark.parametrize(
    ("arch", "leaves"),
    [
        ("llama", set(LORA_TARGETS)),
        ("qwen3_next", {"in_proj_ba", "in_proj_qkvz", "k_proj", "o_proj", "out_proj", "q_proj", "v_proj"}),
        ("falcon_h1", {*LORA_TARGETS, "in_proj"}),
        ("qwen2_moe", set(LORA_TARGETS)),
        ("jetmoe", {"kv_proj"}),
    ],
)
def test_all_linear_is_the_blocks_without_head_and_router(arch: str, leaves: set[str]) -> None:
    model = add_lora(tiny(arch), target_modules="all-linear")
    assert {name.rpartition(".")[2] for name in modules(model)} == leaves


def test_all_linear_and_more() -> None:
    model = add_lora(tiny("llama"), target_modules=["all-linear", "lm_head"])
    assert {name.rpartition(".")[2] for name in modules(model)} == {*LORA_TARGETS, "lm_head"}


@pytest.mark.parametrize("arch", ["llama", "mixtral", "qwen3_moe"])
def test_a_regular_expression_means_what_it_says(arch: str) -> None:
    """peft itself would take the ends of the names alone in some families, and adapt the other blocks as well."""
    model = add_lora(tiny(arch), target_modules=r"model\.layers\.1\.self_attn\.[qv]_proj")
    assert modules(model) == {f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")}


def test_what_matches_nothing_lists_what_exists() -> None:
    with pytest.raises(
        SettingsError, match="'q_prj' matches nothing in LlamaForCausalLM.*Did you mean q_proj.*all-lin"
    ):
        add_lora(tiny("llama"), target_modules=["v_proj", "q_prj"])
    with pytest.raises(SettingsError, match="'self_attn' matches nothing"):
        add_lora(tiny("llama"), target_modules="self_attn")
    with pytest.raises(SettingsError, match=r"'\.\*\\\\\.q' matches nothing"):
        add_lora(tiny("llama"), target_modules=r".*\.q")
    with pytest.raises(SettingsError, match="'gate_proj', 'up_proj' match nothing in Phi3.*gate_up_proj"):
        add_lora(tiny("phi3"), target_modules=["o_proj", "gate_proj", "up_proj"])
    with pytest.raises(SettingsError, match="'router' matches nothing"):
        add_lora(tiny("llama4_text"), target_modules="router")
    with pytest.raises(SettingsError, match="nothing can be adapted in the blocks in ModuleDict. .* there: stem"):
        choose_targets(torch.nn.ModuleDict({"stem": torch.nn.Embedding(3, 3)}), None)


def test_names_kept_as_typed() -> None:
    model = add_lora(tiny("llama"), target_modules=["self_attn.q_proj", "layers.0.mlp.up_proj"])
    assert set(model.peft_config["default"].target_modules) == {"self_attn.q_proj", "layers.0.mlp.up_proj"}


def test_a_layer_without_effect_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    add_lora(tiny("jamba"), target_modules="dt_proj")
    assert "WARNING: adapters on dt_proj may have no effect: the model's code reads" in capsys.readouterr().err


def test_names_that_peft_takes_for_experts_are_refused() -> None:
    """Of DeepSeek-V3: adapting `up_proj` would adapt the fused weights of all experts, and not the dense layers."""
    with pytest.raises(SettingsError, match=r"peft applies the names up_proj .* leave them out; --lora_target_param"):
        add_lora(tiny("deepseek_v3"), target_modules="o_proj,up_proj")


def test_layers_of_unknown_code() -> None:
    """An architecture that nobody has listed: names of its own, a router that is a Linear, experts as layers."""

    class Router(torch.nn.Linear):
        def forward(self, input: torch.Tensor):  # type: ignore[override]
            return super().forward(input), None

    class Mixture(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.route, self.score = Router(8, 3), torch.nn.Linear(8, 3)
            self.experts = torch.nn.ModuleList(torch.nn.ModuleDict({"inner": torch.nn.Linear(8, 8)}) for _ in range(3))

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.ffn = torch.nn.Linear(8, 8), Mixture()

    model = torch.nn.Module()
    model.tower = torch.nn.ModuleDict({"stem": torch.nn.Linear(8, 8)})
    model.stack = torch.nn.ModuleList([Block(), Block()])
    model.vocabulary = torch.nn.Linear(8, 20)
    assert choose_targets(model, None).modules == ["inner", "mix"]


def test_gpt2_transposed_layers_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = add_lora(tiny("gpt2"))
    assert model.peft_config["default"].fan_in_fan_out is True
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]


def test_shared_weights_cannot_be_merged() -> None:
    from fastchat.checkpoint.merged_weights import MergedWeights

    model = add_lora(tiny("zamba2"), dropout=0.0)
    with pytest.raises(CheckpointError, match="share one weight and have an adapter each"):
        MergedWeights(copy.deepcopy(model), torch.float32)


@pytest.mark.parametrize("arch", ["gpt2", "bloom", "phi3"])
def test_q_lora_merges_into_the_layers_of_the_architecture(tmp_path, tiny_model_dir, arch: str) -> None:
    """GPT-2's layers hold their weights transposed."""
    from fastchat.checkpoint.merge import merge_adapter

    adapter, _ = save_random_adapter(tmp_path / "adapter", tiny_model_dir(arch, hidden=64), q_lora=True)
    assert merge_adapter(str(adapter), str(tmp_path / "merged")).error < 1e-4


def test_q_lora_without_a_layer_to_quantise(tmp_path) -> None:
    """Falcon's layers are a subclass of nn.Linear, which bitsandbytes leaves alone."""
    tiny("falcon").save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="--q_lora True: bitsandbytes quantises .* FalconForCausalLM"):
        load_base_model(str(tmp_path), quantization=True)
