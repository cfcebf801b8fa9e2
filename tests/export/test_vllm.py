"""The command for vLLM: an adapter on its base, or the merge that must come first."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastchat.export.vllm import commands


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.fixture
def half(adapter: Path, tmp_path: Path) -> Path:
    """The adapter, trained on weights of 16 bits."""
    copy = tmp_path / "half"
    shutil.copytree(adapter, copy)
    changed(copy / "training.json", dtype="bfloat16")
    return copy


def test_an_adapter_is_served_on_its_base(half: Path, exportable: Path) -> None:
    (line,) = commands(str(half))
    words = shlex.split(line)
    assert words[:4] == ["vllm", "serve", str(exportable.resolve()), "--enable-lora"]
    assert after(words, "--lora-modules") == f"half={half.resolve()}"
    assert after(words, "--max-lora-rank") == "8", "rank 4: the next larger one that vLLM accepts"
    assert after(words, "--dtype") == "bfloat16" and "--quantization" not in words
    assert after(words, "--tokenizer") == str(half.resolve()) and after(words, "--max-model-len") == "512"


def test_nf4_stays_nf4(half: Path, capsys: Any) -> None:
    changed(half / "training.json", quantization={"type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"})
    (line,) = commands(str(half))
    assert after(shlex.split(line), "--quantization") == "bitsandbytes"
    assert "4 bits" in capsys.readouterr().err


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_float32_is_not_rounded(exportable: Path, tmp_path: Path, stored: str) -> None:
    copy = tmp_path / "full"
    shutil.copytree(exportable, copy)
    changed(copy / "config.json", dtype=stored)
    (line,) = commands(str(copy))
    assert after(shlex.split(line), "--dtype") == ("float32" if stored == "float32" else "auto")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("use_dora", True, "DoRA"),
        ("modules_to_save", ["lm_head"], "lm_head"),
        ("trainable_token_indices", {"embed_tokens": [1]}, "rows of the embedding"),
        ("trainable_token_indices", [1], "rows of the embedding"),
        ("target_parameters", ["mlp.experts.down_proj"], "mlp.experts.down_proj"),
        ("target_modules", ["q_proj", "lm_head"], "lm_head"),
        ("bias", "all", "biases"),
        ("lora_bias", True, "biases"),
        ("rank_pattern", {"q_proj": 2}, "rank_pattern"),
        ("alpha_pattern", {"q_proj": 2}, "alpha_pattern"),
        ("r", 1024, "rank 1024"),
        (None, "float32", "16 bits"),
    ],
)
def test_what_vllm_cannot_apply_is_merged_first(
    half: Path, capsys: Any, key: str | None, value: Any, told: str
) -> None:
    changed(half / ("adapter_config.json" if key else "training.json"), **{key or "dtype": value})
    lines = commands(str(half))
    assert lines[0].startswith("fastchat merge") and lines[1].startswith("fastchat export vllm")
    assert told in capsys.readouterr().err


def test_what_is_written_ends_answers_as_in_training(half: Path, tmp_path: Path, capsys: Any) -> None:
    template = json.loads((half / "training.json").read_text())["template"]
    changed(half / "training.json", template={**template, "stop_token_ids": [2, 7]})
    (plain,) = commands(str(half))
    assert "--generation-config" not in plain and "does not end answers at the token ids [7]" in capsys.readouterr().err
    lines = commands(str(half), write=str(tmp_path / "a b"))
    script = tmp_path / "a b" / "serve.sh"
    assert script.read_text().splitlines() == ["#!/bin/sh", "set -e", *lines]
    assert shlex.split(script.read_text().splitlines()[-1]) == shlex.split(lines[0])
    assert after(shlex.split(lines[0]), "--generation-config") == str(script.parent)
    assert json.loads((script.parent / "generation_config.json").read_text())["eos_token_id"] == [2, 7]
