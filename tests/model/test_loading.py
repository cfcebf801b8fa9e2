"""The base is loaded in its own dtype, completely, from safetensors only; nf4 is reported correctly."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastchat.errors import SettingsError
from fastchat.model.loading import count_parameters, dequantised_base, describe_quantization, load_base_model
from tests.model.adapters import logits, save_random_adapter


@pytest.fixture
def copy(tiny_model_dir, tmp_path):
    """A copy of a model directory, to be broken."""

    def make(**more):
        return shutil.copytree(tiny_model_dir("llama", **more), tmp_path / "model")

    return make


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_the_checkpoints_own_dtype(tiny_model_dir, stored):
    base = str(tiny_model_dir("llama", dtype=stored))
    assert {p.dtype for p in load_base_model(base).parameters()} == {getattr(torch, stored)}
    for asked in (torch.float32, torch.bfloat16):
        assert {p.dtype for p in load_base_model(base, dtype=asked).parameters()} == {asked}


def test_a_config_without_dtype_takes_that_of_the_weights(copy):
    folder = copy(dtype="bfloat16")
    config = json.loads((folder / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    assert load_base_model(str(folder)).dtype == torch.bfloat16


def test_use_cache_is_off_for_training_only(tiny_model_dir):
    base = str(tiny_model_dir("llama"))
    assert load_base_model(base).config.use_cache is False
    assert load_base_model(base, for_training=False).config.use_cache is True


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"},
            "missing and would stay randomly initialised.*lm_head",
        ),
        (lambda t: {n: v for n, v in t.items() if "layers.1" not in n}, "missing and would stay randomly initialised"),
        (lambda t: {**t, "model.extra.weight": torch.ones(2)}, "do not belong to any layer.*model.extra"),
        (lambda t: {**t, "model.norm.weight": torch.ones(3)}, "shape|size"),
    ],
)
def test_weights_must_fit_exactly(copy, edit, message):
    folder = copy()
    edit_weights(folder, edit)
    with pytest.raises(SettingsError, match=message):
        load_base_model(str(folder))


def test_a_tied_head_is_not_missing(tiny_model_dir):
    base = tiny_model_dir("llama", tied=True)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    model = load_base_model(str(base))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_directories_that_are_no_model(copy, tmp_path, tiny_model_dir):
    folder = copy()
    with pytest.raises(SettingsError, match="No such model directory"):
        load_base_model(str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="hf download some/model"):
        load_base_model("some/model")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(SettingsError, match="cannot be loaded"):
        load_base_model(str(folder))
    weights.unlink()
    with pytest.raises(SettingsError, match="no model.safetensors"):
        load_base_model(str(folder))
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(SettingsError, match="only as pickle"):
        load_base_model(str(folder))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SettingsError, match="lacks 2 of 2 weight files"):
        load_base_model(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    weights.write_bytes(content)
    (folder / "config.json").write_text("{")
    with pytest.raises(SettingsError, match="config.*cannot be loaded|cannot be read"):
        load_base_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(SettingsError, match="no config.json"):
        load_base_model(str(folder))
    adapter, _ = save_random_adapter(tmp_path / "adapter", tiny_model_dir("llama"))
    with pytest.raises(SettingsError, match="is an adapter, not a base model"):
        load_base_model(str(adapter))


def test_remote_code_stays_off(copy):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(SettingsError, match="--trust_remote_code"):
        load_base_model(str(folder))


def test_an_already_quantised_base_is_refused(copy):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match="already quantised .gptq"):
        load_base_model(str(folder))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nf4_is_described_as_it_is(tiny_model_dir, dtype):
    base = str(tiny_model_dir("llama", hidden=64, dtype=dtype))
    model = load_base_model(base, quantization=True)
    assert describe_quantization(model) == {
        "type": "nf4",
        "double_quant": True,
        "linear4bit": 14,
        "linear": 1,
        "storage": "uint8",
        "compute_dtype": dtype,
    }
    assert model.lm_head.weight.dtype == model.model.embed_tokens.weight.dtype == getattr(torch, dtype)
    plain = load_base_model(base)
    assert describe_quantization(plain) == {"type": None, "linear4bit": 0, "linear": 15}
    assert count_parameters(model)[1] == count_parameters(plain)[1] == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dequantised_base_is_what_nf4_computes_with(tiny_model_dir, dtype):
    base = str(tiny_model_dir("llama", hidden=64, dtype=dtype))
    quantised = load_base_model(base, quantization=True, for_training=False).eval()
    full = dequantised_base(base, for_training=False).eval()
    assert describe_quantization(full)["type"] is None and full.dtype == getattr(torch, dtype)
    assert torch.equal(logits(quantised), logits(full))
    moved = (logits(full) - logits(load_base_model(base).eval())).abs().max()
    assert moved > 1e-3, "quantising changed nothing: not quantised"


def test_evaluating_does_not_cut_the_gradients_of_a_quantised_model(tiny_model_dir):
    """On CPUs with AVX512-BF16 bitsandbytes repacks weights in the first evaluation, to a layout without backward."""
    from fastchat.model.lora import add_lora

    model = add_lora(load_base_model(str(tiny_model_dir("llama", hidden=64)), quantization=True), dropout=0.0)
    ids = torch.arange(40)[None]

    def gradients():
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    after = gradients()
    assert before.keys() == after.keys() and len(before) == 28
    assert all(torch.equal(before[name], after[name]) for name in before)
