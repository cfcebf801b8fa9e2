"""Tokens that the base never learned are named where LoRA would leave them as they are, and the ways out work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.checkpoint.prepare import prepare_model
from fastchat.train.untrained import untrained_rows
from tests.train.flags import Train, ok

CHATML = ["--conv_template", "chatml"]


@pytest.fixture(scope="module")
def prepared(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "model"
    prepare_model(str(tiny_model_dir("llama", "byte_bos")), str(out), special_tokens=["<|im_start|>", "<|im_end|>"])
    return out


def flags(base: Path, data_files: tuple[Path, Path]) -> list[str]:
    words = ["--model_name_or_path", str(base), "--data_path", str(data_files[0]), "--max_steps", "2"]
    return [*words, "--disable_tqdm", "True", "--learning_rate", "1e-2", *CHATML]


def test_the_template_of_new_tokens_is_warned_of(train: Train, prepared: Path, data_files: tuple[Path, Path]) -> None:
    err = ok(train(base=flags(prepared, data_files))).err
    assert "WARNING: the template uses tokens that the base model has never learned" in err
    assert "'<|im_start|>' (embedding and output matrix), '<|im_end|>' (embedding and output matrix)" in err
    assert "Train them with --trainable_tokens untrained, add embed_tokens lm_head to --lora_target_modules" in err


def test_the_named_way_out_trains_them(train: Train, prepared: Path, data_files: tuple[Path, Path]) -> None:
    from fastchat.checkpoint.trained_model import find_trained, load_trained

    done = ok(train("--lora_target_modules", "q_proj", "embed_tokens", "lm_head", base=flags(prepared, data_files)))
    assert "never learned" not in done.err
    model: Any = load_trained(find_trained(str(done.folder)))
    delta = model.get_input_embeddings().get_delta_weight("default")
    assert not torch.equal(delta[-2], delta[-1])
    assert "never learned" not in ok(train(base=flags(prepared, data_files), full=True, name="full")).err


def test_single_rows_are_another_way_out(train: Train, prepared: Path, data_files: tuple[Path, Path]) -> None:
    one = ok(train("--trainable_tokens", "<|im_start|>", base=flags(prepared, data_files)))
    assert "never learned" in one.err and "'<|im_end|>' (embedding and output matrix)" in one.err
    assert "'<|im_start|>' (" not in one.err
    both = ok(train("--trainable_tokens", "untrained", base=flags(prepared, data_files), name="both"))
    assert "never learned" not in both.err and "'<|im_start|>', '<|im_end|>'" in both.err


@pytest.mark.parametrize("kind", ["zero", "equal", "mean"])
def test_every_kind_of_row_that_was_never_trained(kind: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(500, 32) + 0.3
    assert untrained_rows(weight, [7, 8, 9]) == []
    weight[7] = weight[8] = {"zero": torch.zeros(32), "equal": torch.randn(32), "mean": weight.mean(dim=0)}[kind]
    assert untrained_rows(weight, [7, 8, 9, 600]) == [7, 8]


def test_a_base_that_knows_them_is_not_warned_of(
    train: Train, tiny_model_dir: Callable[..., Path], data_files: tuple[Path, Path]
) -> None:
    base = tiny_model_dir("qwen2", "byte_nobos")
    assert "never learned" not in ok(train(base=flags(base, data_files))).err
