"""Adapters: which layers they adapt, what is trained, how they are continued, and what is refused."""

from __future__ import annotations

import pytest
import torch

from fastchat.errors import CheckpointError, SettingsError
from fastchat.model.loading import count_parameters, load_base_model
from fastchat.model.lora import add_lora
from tests.model.adapters import logits, save_random_adapter


def trained(model) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 0}, "--lora_r 0"),
        ({"alpha": 0}, "--lora_alpha 0"),
        ({"dropout": 1.0}, "--lora_dropout 1.0"),
        ({"dropout": -0.1}, "--lora_dropout -0.1"),
        ({"bias": "some"}, "--lora_bias 'some'"),
    ],
)
def test_values_out_of_range(tiny_model_dir, values, message):
    with pytest.raises(SettingsError, match=message):
        add_lora(load_base_model(str(tiny_model_dir("llama"))), **values)


def test_every_value_has_an_effect(tiny_model_dir):
    base = str(tiny_model_dir("llama"))
    model = add_lora(load_base_model(base), r=3, alpha=12, dropout=0.25, target_modules="v_proj")
    layer = model.get_base_model().model.layers[0].self_attn.v_proj
    assert layer.lora_A["default"].weight.shape == (3, 32)
    assert layer.scaling["default"] == 4.0 and layer.lora_dropout["default"].p == 0.25
    assert count_parameters(model)[0] == 2 * 3 * (32 + 16)


@pytest.mark.parametrize(("bias", "biases"), [("none", 0), ("all", 2 * 8 + 1), ("lora_only", 2)])
def test_bias(tiny_model_dir, bias, biases):
    """GPT-NeoX: per layer two norms and four linear layers have a bias, and the last norm has one."""
    base = load_base_model(str(tiny_model_dir("gpt_neox")))
    expected = [n for n, _ in base.named_parameters() if n.endswith(".bias")]
    model = add_lora(base, target_modules="dense_h_to_4h", bias=bias)
    found = {n for n in trained(model) if n.endswith(".bias")}
    assert len(found) == (len(expected) if bias == "all" else biases)


def test_bias_where_there_is_none_is_said(tiny_model_dir, capsys):
    add_lora(load_base_model(str(tiny_model_dir("llama"))), bias="lora_only")
    assert "--lora_bias lora_only: the adapted layers have no bias" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_adapter_trains_and_all_of_it(tiny_model_dir, dtype, quantization, checkpointing):
    base = load_base_model(str(tiny_model_dir("llama", hidden=64, dtype=dtype)), quantization=quantization)
    frozen_dtypes = {n: p.dtype for n, p in base.named_parameters()}
    model = add_lora(base, dropout=0.0, gradient_checkpointing=checkpointing).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    for name, parameter in model.get_base_model().named_parameters():
        plain = name.replace(".base_layer", "")
        assert plain not in frozen_dtypes or parameter.dtype == frozen_dtypes[plain], f"{name} was cast"
    for step in range(2):  # in the first step B is zero, so A has no gradient
        model(input_ids=torch.arange(40)[None], labels=torch.arange(40)[None]).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            if parameter.grad is not None:
                assert step == 0 or parameter.grad.abs().max() > 0, name
                parameter.data -= 0.1 * parameter.grad.sign()
                parameter.grad = None


def test_checkpointing_recomputes_and_gives_the_same_gradients(tiny_model_dir):
    base = str(tiny_model_dir("llama"))
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = add_lora(load_base_model(base), dropout=0.0, gradient_checkpointing=checkpointing).train()
        calls = []
        model.get_base_model().model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(input_ids=torch.arange(40)[None], labels=torch.arange(40)[None]).loss.backward()
        assert len(calls) == 1 + checkpointing
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("q_lora", [False, True])
@pytest.mark.parametrize(
    ("arch", "lora"),
    [("llama", {}), ("gpt_neox", {"target_modules": "query_key_value", "bias": "all"})],
)
def test_continuing_an_adapter(tmp_path, tiny_model_dir, capsys, q_lora, arch, lora):
    base = tiny_model_dir(arch, hidden=64)
    folder, before = save_random_adapter(tmp_path / "a", base, q_lora=q_lora, **lora)
    capsys.readouterr()
    again = add_lora(
        load_base_model(str(base), quantization=q_lora), r=64, alpha=8, dropout=0.5, weight_path=str(folder)
    )
    err = capsys.readouterr().err
    assert "r 64 -> 4" in err and "lora_alpha" not in err
    assert torch.equal(logits(again.eval()), logits(before))
    assert trained(again) == trained(before)
    layer = next(m for m in again.modules() if "lora.layer" in type(m).__module__ or hasattr(m, "lora_dropout"))
    assert layer.lora_dropout["default"].p == 0.5


def test_adapters_that_cannot_be_continued(tmp_path, tiny_model_dir):
    base = str(tiny_model_dir("llama"))
    folder, _ = save_random_adapter(tmp_path / "a", tiny_model_dir("llama"))
    for path, message in (
        (tmp_path / "nowhere", "No such adapter directory"),
        (tmp_path, "is not an adapter"),
        (base, "is a full model"),
    ):
        with pytest.raises(SettingsError, match=message):
            add_lora(load_base_model(base), weight_path=str(path))
    with pytest.raises((SettingsError, CheckpointError), match="does not fit|other"):
        add_lora(load_base_model(str(tiny_model_dir("llama", hidden=64))), weight_path=str(folder))
    with pytest.raises((SettingsError, CheckpointError), match="trained on another one|does not fit"):
        add_lora(load_base_model(str(tiny_model_dir("llama", layers=1))), weight_path=str(folder))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(SettingsError, match="pickled adapters are not opened"):
        add_lora(load_base_model(base), weight_path=str(folder))


def test_continuing_with_another_rope_is_refused(tmp_path, tiny_model_dir):
    from fastchat.model.loading import load_config
    from fastchat.model.rope import choose_rope

    base = tiny_model_dir("llama", max_positions=64)
    folder, before = save_random_adapter(tmp_path / "a", base, length=200, rope_type="yarn")
    with pytest.raises(SettingsError, match="was trained with RoPE.*yarn"):
        add_lora(load_base_model(str(base)), weight_path=str(folder))
    rope = choose_rope(load_config(str(base)), type="yarn", model_max_length=200)
    again = add_lora(load_base_model(str(base), rope=rope), weight_path=str(folder))
    assert torch.equal(logits(again.eval(), 150), logits(before, 150))


def test_what_peft_refuses_is_not_a_bug_of_ours(tiny_model_dir, monkeypatch):
    def refuses(*args):
        raise ValueError("no such thing")

    monkeypatch.setattr("peft.get_peft_model", refuses)
    with pytest.raises(SettingsError, match="peft cannot adapt .* no such thing"):
        add_lora(load_base_model(str(tiny_model_dir("llama"))))
