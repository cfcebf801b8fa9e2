"""An adapter on a base that is not its own: detected by the recorded fingerprint, in a chat and before a merge."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from fastchat.checkpoint.fingerprint import model_fingerprint
from fastchat.checkpoint.merge import merge_adapter
from fastchat.checkpoint.trained_model import find_trained, load_trained
from fastchat.errors import CheckpointError


@pytest.fixture
def adapter(tmp_path: Path, tiny_model_dir) -> Path:
    """An adapter with a record, on a base of its own in tmp_path/base."""
    import torch

    from fastchat.checkpoint.gather import IN_PLACE
    from fastchat.checkpoint.record import TrainingRecord
    from fastchat.checkpoint.save import save_result
    from fastchat.model.loading import load_base_model
    from fastchat.model.lora import add_lora
    from fastchat.model.tokenizer import load_tokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir("llama", "metaspace_bos"), base)
    model = add_lora(load_base_model(str(base)), r=2, alpha=4, dropout=0.0, target_modules=["q_proj"], bias="none")
    torch.manual_seed(0)
    record = TrainingRecord(base_model=str(base), fingerprints={"base_model": model_fingerprint(base)})
    tokenizer, _ = load_tokenizer(str(base))
    save_result(
        model, tmp_path / "adapter", weights=IN_PLACE, adapter=True, tokenizer=tokenizer, stop_ids=(2,), record=record
    )
    return tmp_path / "adapter"


def test_another_base_is_noticed(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "base", moved)
    assert find_trained(str(adapter), str(moved)).other_base() == "", "the same weights at another place"
    weights = load_file(moved / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    load_trained(find_trained(str(adapter), str(moved)))
    assert "does not have the weights that the adapter" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="does not have the weights"):
        merge_adapter(str(adapter), str(tmp_path / "merged"), base_model_path=str(moved))
    assert not (tmp_path / "merged").exists()
    assert merge_adapter(str(adapter), str(tmp_path / "merged")).path.is_dir()


def test_an_adapter_is_not_continued_on_another_base(adapter: Path, tmp_path: Path) -> None:
    from fastchat.train import train_lora
    from fastchat.train.status import RunStatus
    from tests import builders

    data = builders.write_rows(tmp_path / "rows.json", builders.chat_rows(4))
    words = ["--data_path", str(data), "--lora_weight_path", str(adapter), "--max_steps", "1", "--disable_tqdm", "True"]
    train_lora.run(
        [*words, "--model_name_or_path", str(tmp_path / "base"), "--output_dir", str(tmp_path / "right")], RunStatus()
    )
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "base" / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="--lora_weight_path: .* does not have the weights that the adapter"):
        train_lora.run(
            [*words, "--model_name_or_path", str(tmp_path / "base"), "--output_dir", str(tmp_path / "out")], RunStatus()
        )
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_a_fingerprint_is_used_as_before(adapter: Path) -> None:
    record = json.loads((adapter / "training.json").read_text())
    del record["fingerprints"], record["files"]
    (adapter / "training.json").write_text(json.dumps(record))
    assert find_trained(str(adapter)).other_base() == ""


def test_a_replaced_result_is_never_mixed_with_the_old_one(tmp_path: Path) -> None:
    """When the new files move in, the files that make the old result loadable have already been removed."""
    from fastchat.checkpoint.folders import staged

    (tmp_path / "adapter_config.json").write_text("old")
    (tmp_path / "adapter_model.safetensors").write_text("old")
    real, seen = os.replace, []

    def replace(source: Path, target: Path) -> None:
        seen.append((tmp_path / "adapter_config.json").exists())
        real(source, target)

    os.replace = replace
    try:
        with staged(tmp_path, last=["adapter_config.json"]) as stage:
            (stage / "adapter_config.json").write_text("new")
            (stage / "adapter_model.safetensors").write_text("new")
    finally:
        os.replace = real
    assert seen == [False, False] and (tmp_path / "adapter_config.json").read_text() == "new"
