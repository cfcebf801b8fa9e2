"""Whole runs on models with a vision tower: trained, saved, merged, and with two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.multimodal import make_multimodal
from tests.train.flags import Train, ok
from tests.train.warm import Warm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that also has a decoder layer which text skips."""
    return make_multimodal(tmp_path_factory.mktemp("mllama"), "mllama")


def flags(base: Path, data_files: tuple[Path, Path]) -> list[str]:
    words = ["--model_name_or_path", str(base), "--data_path", str(data_files[0]), "--learning_rate", "1e-2"]
    return [*words, "--per_device_train_batch_size", "2", "--max_steps", "3", "--disable_tqdm", "True"]


def test_an_adapter_is_saved_merged_and_answers(
    train: Train, mllama: Path, data_files: tuple[Path, Path], tmp_path: Path
) -> None:
    from fastchat.checkpoint.merge import merge_adapter
    from fastchat.checkpoint.trained_model import find_trained, load_trained

    done = ok(train(base=flags(mllama, data_files)))
    assert "the head runs on learned tokens only, in chunks" in done.err and done.record["head"] == "chunked"
    merged = merge_adapter(str(done.folder), str(tmp_path / "merged"))
    assert merged.effect > 0.01
    model = load_trained(find_trained(str(merged.path)))
    ids = torch.arange(3, 9)[None]
    assert model.generate(input_ids=ids, max_new_tokens=4).shape[1] > 6


def test_full_fine_tuning_leaves_the_tower_bit_for_bit(
    train: Train, mllama: Path, data_files: tuple[Path, Path]
) -> None:
    from safetensors.torch import load_file

    done = ok(train(base=flags(mllama, data_files), full=True))
    assert (
        "Frozen, because text does not pass through it: 56,215 parameters of model.language_model.layers.1" in done.err
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (mllama, done.folder))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        idle = "vision" in name or "projector" in name or ".layers.1." in name
        assert torch.equal(tensor, after[name]) == idle, name


@pytest.mark.launch
@pytest.mark.parametrize("script", ["train_lora", "train"])
def test_two_processes(warm: Warm, mllama: Path, data_files: tuple[Path, Path], tmp_path: Path, script: str) -> None:
    outcome = warm.run(flags(mllama, data_files), tmp_path / "two", script=script)
    assert warm.codes == [0, 0], outcome.err
    assert len(outcome.losses) == 3 and outcome.record["engine"] == "ddp"
