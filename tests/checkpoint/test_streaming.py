"""Merging tensor by tensor writes the files that merging the whole model and `save_pretrained` write."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.checkpoint.digests import result_problems
from fastchat.checkpoint.gather import is_finite
from fastchat.checkpoint.merge import merge_adapter
from fastchat.checkpoint.record import read_training_record
from fastchat.checkpoint.shards import write_shards
from fastchat.checkpoint.trained_model import find_trained, load_trained
from fastchat.errors import CheckpointError, ResourceError
from fastchat.files import sha256_of
from fastchat.model.mapped import MappedFiles, released_after_use
from fastchat.settings.lora_options import LoraOptions
from tests.model.adapters import logits, save_random_adapter


@torch.no_grad()
def merge_whole(adapter: Path, target: Path, max_shard: str) -> None:
    """The result as peft and transformers make it, every layer rounded once."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    model = load_trained(find_trained(str(adapter)))
    dtype = model.dtype
    for layer in [m for kind in (LoraLayer, TrainableTokensLayer) for m in model.modules() if isinstance(m, kind)]:
        weight = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
        weight.data = weight.data.float()
        layer.merge(safe_merge=True)
        weight.data = weight.data.to(dtype)
    model.unload().to(dtype).save_pretrained(target, max_shard_size=max_shard)


@pytest.mark.parametrize(
    ("arch", "dtype", "tied", "max_shard", "lora"),
    [
        ("llama", "bfloat16", True, "5GB", {}),
        ("llama", "float32", False, "60KB", {"options": LoraOptions(use_dora=True, trainable_tokens=(3, 9))}),
        ("mixtral", "bfloat16", False, "5GB", {"target_parameters": ["gate_up_proj"]}),
        pytest.param("gpt2", "float32", True, "40KB", {"target_modules": ["c_attn"]}, marks=pytest.mark.thorough),
        pytest.param("qwen2", "float16", True, "5GB", {"bias": "lora_only"}, marks=pytest.mark.thorough),
        pytest.param(
            "gemma2",
            "bfloat16",
            True,
            "80KB",
            {"options": LoraOptions(modules_to_save=("embed_tokens", "norm"))},
            marks=pytest.mark.thorough,
        ),
        pytest.param("qwen3_moe", "float32", False, "5GB", {}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_the_same_bytes_as_the_whole_model(
    tmp_path: Path, tiny_model_dir: Any, monkeypatch: Any, arch: str, dtype: str, tied: bool, max_shard: str, lora: dict
) -> None:
    base = tiny_model_dir(arch, dtype=dtype, tied=tied)
    adapter, _ = save_random_adapter(tmp_path / "adapter", base, **lora)
    merge_whole(adapter, tmp_path / "whole", max_shard)
    monkeypatch.setattr("fastchat.checkpoint.merge.MAX_SHARD", max_shard)
    merge_adapter(str(adapter), str(tmp_path / "merged"))
    wanted = {path.name: sha256_of(path) for path in (tmp_path / "whole").glob("*.safetensors*")}
    assert {path.name: sha256_of(path) for path in (tmp_path / "merged").glob("*.safetensors*")} == wanted
    assert (len(wanted) > 1) is (max_shard != "5GB")
    record = read_training_record(tmp_path / "merged")
    assert record is not None and record.files.keys() >= wanted.keys()
    assert result_problems(tmp_path / "merged", record) == []


def test_pages_are_given_back_and_values_stay(tmp_path: Path, tiny_model_dir: Any) -> None:
    from safetensors.torch import load_file, save_file

    from fastchat.model.loading import load_base_model

    save_file({"a": torch.arange(1 << 20), "b": torch.ones(1 << 20)}, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    assert tensors["a"].sum() > 0
    before = resident(tmp_path / "x.safetensors")
    if before is None:
        pytest.skip("this system does not say which pages are in memory")
    MappedFiles().release(tensors["a"])
    assert (resident(tmp_path / "x.safetensors") or 0) < before - (7 << 20)
    assert torch.equal(tensors["a"], torch.arange(1 << 20))
    tensors["b"][0] = 5.0  # a page of its own: giving it back would lose it
    MappedFiles().release(tensors["b"])
    assert tensors["b"][0] == 5.0
    MappedFiles().release(own := torch.full((1 << 20,), 7.0))
    assert own.min() == 7.0

    model = load_base_model(str(tiny_model_dir("llama")), for_training=False).eval()
    plain = logits(model)
    with released_after_use(model):
        assert torch.equal(logits(model), plain)


def resident(path: Path) -> int | None:
    """Bytes of the mapped file in this process' memory; None if it is not listed."""
    smaps, found = Path("/proc/self/smaps"), None
    for line in smaps.read_text().splitlines() if smaps.is_file() else ():
        if "-" in line.partition(" ")[0]:
            found = line.endswith(str(path))
        elif found and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    return None


def test_a_tensor_that_reads_back_differently_or_is_not_as_planned(tmp_path: Path, monkeypatch: Any) -> None:
    planned = {"a": torch.empty(3, device="meta")}
    options: Any = {"max_shard": "5GB", "num_parameters": 3}
    with pytest.raises(CheckpointError, match="not torch.float32"):
        write_shards(tmp_path, planned, lambda name: torch.ones(3, dtype=torch.float16), **options)
    with pytest.raises(CheckpointError, match="safetensors files do not have"):
        other = {"a": torch.empty(3, dtype=torch.complex128, device="meta")}
        write_shards(tmp_path, other, lambda name: torch.ones(3), **options)
    monkeypatch.setattr("os.pread", lambda file, size, at: b"?" * size)
    with pytest.raises(CheckpointError, match="a read back from disk differs"):
        write_shards(tmp_path, planned, lambda name: torch.ones(3), **options)


def test_a_disk_that_is_full_while_merging(tmp_path: Path, tiny_model_dir: Any, monkeypatch: Any) -> None:
    adapter, _ = save_random_adapter(tmp_path / "adapter", tiny_model_dir("llama"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastchat.checkpoint.shards.sha256_of_blocks", full)
    with pytest.raises(ResourceError, match="merged model"):
        merge_adapter(str(adapter), str(tmp_path / "merged"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_value_that_is_not_finite_is_found(dtype: torch.dtype) -> None:
    assert is_finite(torch.empty(0, dtype=dtype)) and is_finite(torch.tensor(3))
    for size in (1, 7, 1000):
        for wrong in (float("nan"), float("inf"), -float("inf")):
            for at in (0, size // 2, size - 1):
                tensor = torch.randn(size).to(dtype)
                assert is_finite(tensor)
                tensor[at] = wrong
                assert not is_finite(tensor)
