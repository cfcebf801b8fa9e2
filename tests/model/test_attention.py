"""The attention kernel that is chosen is the one that runs, and a missing one is named."""

from __future__ import annotations

import pytest
import torch

from fastchat.errors import SettingsError
from fastchat.model import attention
from fastchat.model.attention import check_attention, choose_attention, used_attention
from fastchat.model.loading import load_base_model, load_config


def test_without_a_gpu_flash_falls_back_and_says_why():
    name, line = choose_attention(True, device="cpu")
    assert name == "sdpa" and "needs a GPU" in line
    assert choose_attention(False) == ("sdpa", "Attention: sdpa, torch's own fused kernels.")


@pytest.mark.parametrize(
    ("installed", "dtype", "name", "why"),
    [
        (True, torch.bfloat16, "flash_attention_2", ""),
        (True, torch.float32, "sdpa", "needs bf16 or fp16, not torch.float32"),
        (False, torch.bfloat16, "sdpa", "not installed"),
    ],
)
def test_on_a_gpu(monkeypatch, installed, dtype, name, why):
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda _: object() if installed else None)
    chosen, line = choose_attention(True, dtype=dtype, device="cuda")
    assert chosen == name and why in line


def test_models_without_sdpa_run_eager(tiny_model_dir):
    base = str(tiny_model_dir("gemma2"))
    name, line = choose_attention(False, config=load_config(base))
    assert name == "eager" and "Gemma2ForCausalLM does not support sdpa" in line
    assert used_attention(load_base_model(base)) == "eager"


def test_what_runs_is_checked(tiny_model_dir):
    model = load_base_model(str(tiny_model_dir("llama")), attn_implementation="eager")
    assert check_attention(model, "eager") == "eager"
    with pytest.raises(SettingsError, match="runs eager attention although sdpa"):
        check_attention(model, "sdpa")
