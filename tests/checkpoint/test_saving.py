"""Saving: complete or absent, read back, and never weights that are not finite."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastchat.checkpoint import adapter as adapter_files
from fastchat.checkpoint import full as full_files
from fastchat.checkpoint.folders import staged
from fastchat.checkpoint.gather import IN_PLACE, compare_files, gather_all, gather_trained
from fastchat.checkpoint.record import TrainingRecord
from fastchat.checkpoint.save import save_result
from fastchat.errors import CheckpointError, NumericError

# ---- files ----


def test_a_staged_folder_moves_in_completely(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("old")
    with staged(tmp_path, last=["a.json"]) as stage:
        for name in ("a.json", "b.json"):
            (stage / name).write_text("new")
            (stage / name).chmod(0o600)
        assert (tmp_path / "b.json").read_text() == "old", "nothing moves before the end"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": "new", "b.json": "new"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with staged(tmp_path / "out") as stage:
            save_file({"x": torch.ones(1)}, stage / "x.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_after_an_error_nothing_has_moved(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(CheckpointError), staged(tmp_path) as stage:
        (stage / "a.json").write_text("new")
        raise CheckpointError("torn")
    assert os.listdir(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


def test_the_loadable_name_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = os.replace

    def noted(source: Any, target: Any) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("fastchat.checkpoint.folders.os.replace", noted)
    with staged(tmp_path, last=["a"]) as stage:
        for name in "abc":
            (stage / name).touch()
    assert moved == ["b", "c", "a"]


# ---- comparing ----

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"a": TENSORS["a"]}, "1 trained tensors are missing from the saved file, such as b"),
        ({**TENSORS, "c": torch.ones(1)}, "has c"),
        ({**TENSORS, "a": TENSORS["a"].reshape(3, 2)}, r"a: saved torch.float32 \(3, 2\)"),
        ({**TENSORS, "b": TENSORS["b"].float()}, "b: saved torch.float32"),
        ({**TENSORS, "a": TENSORS["a"] + torch.eye(2, 3) * 1e-6}, "a read back from disk differs"),
    ],
)
def test_files_that_differ_are_refused(tmp_path: Path, stored: dict[str, torch.Tensor], message: str) -> None:
    save_file({name: t.contiguous() for name, t in stored.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        compare_files([tmp_path / "x.safetensors"], TENSORS)


def test_equal_files_pass_over_several_shards(tmp_path: Path) -> None:
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    compare_files(sorted(tmp_path.iterdir()), TENSORS)


# ---- adapters and models ----


@pytest.fixture
def peft_model(tiny_model_dir: Callable[..., Path]) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "metaspace_bos"))
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


@pytest.fixture
def tokenizer(tiny_model_dir: Callable[..., Path]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir("llama", "metaspace_bos"))


def _save(model: Any, folder: Path, tokenizer: Any, adapter: bool, stop_ids: tuple[int, ...] = ()) -> None:
    record = TrainingRecord(base_model="base")
    save_result(model, folder, weights=IN_PLACE, adapter=adapter, tokenizer=tokenizer, stop_ids=stop_ids, record=record)


def test_an_adapter_survives_the_round_trip(peft_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    _save(peft_model, tmp_path / "out", tokenizer, adapter=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).is_absolute() and config["inference_mode"] is True
    assert peft_model.peft_config["default"].inference_mode is False, "training could go on"
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    ids = torch.arange(5)[None]
    again = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    assert torch.equal(again.eval()(ids).logits, peft_model.eval()(ids).logits)
    names = {"tokenizer.json", "tokenizer_config.json", "training.json", "adapter_model.safetensors"}
    assert names <= set(os.listdir(tmp_path / "out"))


def test_only_what_is_trained_is_gathered(peft_model: Any) -> None:
    assert set(gather_trained(peft_model, IN_PLACE)) == {n for n, p in peft_model.named_parameters() if p.requires_grad}
    assert len(gather_trained(peft_model, IN_PLACE)) == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("adapter", [True, False])
def test_weights_that_are_not_finite_are_never_saved(
    peft_model: Any, tokenizer: Any, tmp_path: Path, value: float, adapter: bool
) -> None:
    model = peft_model if adapter else peft_model.unload()
    parameter = next(p for n, p in model.named_parameters() if not adapter or "lora_A" in n)
    parameter.data[0, 0] = value
    with pytest.raises(NumericError, match="not finite"):
        _save(model, tmp_path / "out", tokenizer, adapter=adapter)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("adapter", [True, False])
def test_a_bit_flipped_on_the_way_to_disk_is_found(
    peft_model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool
) -> None:
    module, name = (adapter_files, adapter_files.WEIGHTS) if adapter else (full_files, "model.safetensors")
    compare = compare_files

    def flipped(files: Any, expected: Any) -> None:
        path = next(Path(f) for f in files if Path(f).name == name)
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(content)
        compare([path], expected)

    monkeypatch.setattr(module, "compare_files", flipped)
    with pytest.raises(CheckpointError, match="differs"):
        _save(peft_model if adapter else peft_model.unload(), tmp_path / "out", tokenizer, adapter=adapter)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_model_survives_the_round_trip(
    tiny_model_dir: Callable[..., Path], tokenizer: Any, tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "metaspace_bos", tied=tied), dtype=dtype)
    model.config.use_cache = False
    _save(model, tmp_path / "out", tokenizer, adapter=False, stop_ids=(2, 7))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.generation_config.eos_token_id == [2, 7]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_cache"] is True
    assert model.config.use_cache is False, "training could go on"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied


def test_the_stops_of_the_base_are_kept_if_they_are_tokens_that_end_something(
    tiny_model_dir: Callable[..., Path], tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "metaspace_bos"))
    model.generation_config.eos_token_id, model.config.eos_token_id = [1, 300], 301
    for config in full_files.saved_configs(model, tokenizer, (7,)):
        assert config.eos_token_id == [1, 7, 2]


def test_a_large_model_is_saved_in_shards(
    tiny_model_dir: Callable[..., Path], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(full_files, "MAX_SHARD", "50KB")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "metaspace_bos"))
    _save(model, tmp_path / "out", tokenizer, adapter=False)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(again.state_dict()[name], t) for name, t in model.state_dict().items())


def test_generation_settings_that_transformers_refuses_are_mended(
    tiny_model_dir: Callable[..., Path], tokenizer: Any, tmp_path: Path
) -> None:
    """Llama-2's own file: a temperature without do_sample."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "metaspace_bos"))
    model.generation_config.temperature = 0.9
    _save(model, tmp_path / "out", tokenizer, adapter=False)
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["do_sample"] is True and saved["temperature"] == 0.9


@pytest.mark.parametrize("arch", ["gemma", "gemma2", "mistral", "qwen2", "phi3", "mixtral"])
def test_other_architectures(tiny_model_dir: Callable[..., Path], tokenizer: Any, tmp_path: Path, arch: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(arch, "metaspace_bos"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    _save(model, tmp_path / "out", tokenizer, adapter=False)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_weights_are_gathered_as_one(tiny_model_dir: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    tensors = gather_all(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "metaspace_bos", tied=True)), IN_PLACE
    )
    assert tensors["lm_head.weight"] is tensors["model.embed_tokens.weight"]
