"""The attention kernel that is chosen is the one that runs, and a missing one is named."""

from __future__ import annotations

import pytest
import torch

from fastchat.errors import SettingsError
from fastchat.model import attention
from fastchat.model.attention import check_attention, choose_attention, used_attention, wants_one_row
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


PACKED = [
    # arch, installed, dtype, changes of the config -> kernel, what the line says
    ("llama", {"flash_attn", "triton"}, torch.bfloat16, {}, "flash_attention_2", "flash_attention_2."),
    ("llama", {"triton"}, torch.bfloat16, {}, "flex_attention", "flash-attn, which is not installed"),
    ("gemma2", {"triton"}, torch.bfloat16, {}, "flex_attention", "flash-attn, which is not installed"),
    ("llama", {"flash_attn", "triton"}, torch.float32, {}, "flex_attention", "needs bf16 or fp16"),
    ("llama", set(), torch.bfloat16, {}, "sdpa", "triton, which is not installed"),
    ("gemma2", set(), torch.bfloat16, {}, "eager", "triton, which is not installed"),
    ("llama", {"triton"}, torch.bfloat16, {"attention_dropout": 0.1}, "sdpa", "flex_attention does not support the"),
    (
        "llama",
        {"triton"},
        torch.bfloat16,
        {"head_dim": 8},
        "sdpa",
        "needs a head dimension of at least 16",
    ),
]


@pytest.mark.parametrize(("arch", "installed", "dtype", "changes", "name", "why"), PACKED)
@pytest.mark.parametrize("flash_attn", [False, True])
def test_packing_on_a_gpu_takes_a_kernel_that_skips_other_dialogues(
    monkeypatch, tiny_model_dir, arch, installed, dtype, changes, name, why, flash_attn
):
    config = load_config(str(tiny_model_dir(arch)))
    for key, value in {"head_dim": 16, **changes}.items():
        setattr(config, key, value)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda x: object() if x in installed else None)
    chosen, line = choose_attention(flash_attn, config=config, dtype=dtype, device="cuda", packing=True)
    assert chosen == name and why in line and "\n" not in line
    assert wants_one_row(chosen) == (name in ("flash_attention_2", "flex_attention"))


def test_packing_on_a_cpu_takes_what_is_right_there():
    name, line = choose_attention(True, device="cpu", dtype=torch.float32, packing=True)
    assert name == "sdpa" and "needs a GPU" in line and "flex" not in line


def can_compile() -> bool:
    """Whether torch can compile for this processor: it supports only those with vector instructions."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return bool(pick_vec_isa())


@pytest.mark.slow
def test_flex_attention_keeps_packed_dialogues_apart(tiny_model_dir):
    """Its forward pass runs on a CPU too: Gemma 2's softcap and window, three dialogues and padding-free rows."""
    if not can_compile():
        pytest.skip("torch compiles nothing for this processor")
    import numpy as np

    from fastchat.data.batches.packing import pack_collate
    from fastchat.data.batches.packing_check import check_no_leak

    base = str(tiny_model_dir("gemma2", "gemma", layers=1, sliding_window=8))
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 300, n) for n in (150, 30, 77)]
    ids = np.concatenate(parts)
    pack = {"input_ids": ids, "labels": ids, "lengths": [150, 30, 77]}
    batch = pack_collate([pack, {"input_ids": parts[1], "labels": parts[1]}], pad_token_id=0, flat=True)
    logits = []
    for kernel in ("eager", "flex_attention"):
        model = load_base_model(base, attn_implementation=kernel).eval()
        with torch.no_grad():
            logits.append(
                model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            )
    assert used_attention(model) == "flex_attention"
    assert (logits[0] - logits[1]).abs().max() < 1e-5
    assert check_no_leak(model, vocab_size=300, flat=True) == 0.0


@pytest.mark.slow
def test_flex_attention_takes_one_kernel_for_rows_of_every_length(tiny_model_dir, monkeypatch):
    """torch cannot compile the kernel for fewer than 128 tokens if several heads share a key."""
    if not can_compile():
        pytest.skip("torch compiles nothing for this processor")
    from torch.nn.attention.flex_attention import flex_attention as unfused
    from transformers.integrations import flex_attention as integration

    seen = []

    def called(query, key, value, training=False, **options):
        seen.append((query.shape[2], options["kernel_options"]))
        return unfused(query, key, value, **{**options, "kernel_options": None})

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", called)
    model = load_base_model(str(tiny_model_dir("llama")), attn_implementation="flex_attention")
    with torch.no_grad():
        model(input_ids=torch.arange(64)[None], use_cache=False)
    assert seen == [(64, {"FORCE_USE_FLEX_ATTENTION": True})] * model.config.num_hidden_layers
