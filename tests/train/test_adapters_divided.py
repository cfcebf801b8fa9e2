"""Adapters of every kind under ZeRO with two processes: the losses of one process, and resumed bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.checkpoint.trained_model import find_trained, load_trained
from tests.model.adapters import logits
from tests.tiers import thorough
from tests.train.conftest import Outcome
from tests.train.flags import Train, adapter, ok
from tests.train.launches import STEADY_ADAM
from tests.train.test_launch import config
from tests.train.warm import Warm

pytestmark = pytest.mark.launch
RUN = [
    "--conv_template",
    "chatml",
    "--max_steps",
    "3",
    "--save_strategy",
    "steps",
    "--save_steps",
    "2",
    "--learning_rate",
    "1e-2",
]
RUN += ["--lora_dropout", "0", "--lora_r", "4", "--logging_steps", "1", "--disable_tqdm", "True", *STEADY_ADAM]
WHOLE = ["--lora_init", "pissa", "--use_rslora", "1", "--lora_modules_to_save", "embed_tokens", "lm_head"]
DORA = ["--lora_init", "eva", "--use_dora", "1", "--lora_layers_to_transform", "1"]
QUANTISED = ["--lora_init", "loftq", "--q_lora", "1", "--lora_modules_to_save", "norm"]
PLUS = ["--loraplus_lr_ratio", "4"]
HALF = ["--lora_init", "pissa", "--bf16", "1"]
TOKENS = ["--trainable_tokens", "5", "6", "7"]


@pytest.mark.parametrize(
    ("stage", "options", "resumed"),
    [
        thorough(3, [*WHOLE, *PLUS], False, in_default=False),
        thorough(3, DORA, False, in_default=False),
        thorough(3, QUANTISED, False, in_default=False),
        (2, [*HALF, *TOKENS, *PLUS], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_two_processes_equal_one(
    stage: int,
    options: list[str],
    resumed: bool,
    train: Train,
    warm: Warm,
    tiny_model_dir: Callable[..., Path],
    data_files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    base = tiny_model_dir("llama", "byte_bos", hidden=64)
    flags = ["--model_name_or_path", str(base), "--data_path", str(data_files[0]), *RUN, *options]
    one = ok(train(base=[*flags, "--per_device_train_batch_size", "4"]))
    flags += ["--per_device_train_batch_size", "2", *config(tmp_path, stage)]
    two = warm.run(flags, tmp_path / "two")
    assert warm.codes == [0, 0], two.err[-6000:]
    assert two.losses == pytest.approx(one.losses, abs=0.05 if "--bf16" in options else 1e-5)
    assert two.record["engine"] == f"zero{stage}"
    _same_adapter(two, one, 0.2 if "--bf16" in options else 1e-3)
    if resumed:
        shutil.copytree(two.folder / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
        again = warm.run(flags, tmp_path / "again")
        assert warm.codes == [0, 0] and "checkpoint-2" in again.err, again.err[-6000:]
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (two.folder / file).read_bytes() == (again.folder / file).read_bytes(), file


def _same_adapter(two: Outcome, one: Outcome, tolerance: float) -> None:
    """The saved adapters compute the same on the base as it is on disk."""
    assert set(adapter(two.folder)) == set(adapter(one.folder))
    models = [load_trained(find_trained(str(outcome.folder))) for outcome in (two, one)]
    assert (logits(models[0]) - logits(models[1])).abs().max() < tolerance
