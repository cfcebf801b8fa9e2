"""Merging every kind of adapter that training makes on a model with new tokens, and kinds that only peft makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.checkpoint.merge import merge_adapter
from fastchat.checkpoint.prepare import prepare_model
from fastchat.model import apply_lora
from fastchat.settings.lora_options import LoraOptions
from tests.model.adapters import logits, save_random_adapter

NEW = ["<tool>", "</tool>"]
THOROUGH = pytest.mark.thorough


def reload(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize(
    ("options", "dtype", "tied", "q_lora"),
    [
        ({"trainable_tokens": NEW}, "float32", True, False),
        pytest.param({"trainable_tokens": NEW}, "float32", False, False, marks=THOROUGH),
        ({"trainable_tokens": NEW, "use_dora": True}, "bfloat16", False, True),
        ({"modules_to_save": ("lm_head",), "use_rslora": True}, "float32", True, False),
        pytest.param({"modules_to_save": ("lm_head", "embed_tokens")}, "bfloat16", True, False, marks=THOROUGH),
        pytest.param({"modules_to_save": ("embed_tokens",)}, "float32", False, True, marks=THOROUGH),
        ({"use_dora": True}, "float32", False, False),
        pytest.param({"use_dora": True}, "float32", False, True, marks=THOROUGH),
        ({"use_rslora": True}, "bfloat16", True, False),
    ],
    ids=str,
)
def test_merged_equals_adapter_on_a_prepared_base(
    tmp_path: Path, tiny_model_dir: Any, options: dict[str, Any], dtype: str, tied: bool, q_lora: bool
) -> None:
    base = tiny_model_dir("llama", "metaspace_bos", hidden=64, tied=tied, dtype=dtype)
    made = prepare_model(str(base), str(tmp_path / "base"), special_tokens=NEW)
    ids = tuple(made.ids[token] for token in NEW)
    if "trainable_tokens" in options:
        options = {**options, "trainable_tokens": ids}
    adapter, apart = save_random_adapter(
        tmp_path / "adapter", tmp_path / "base", q_lora=q_lora, options=LoraOptions(**options)
    )
    report = merge_adapter(str(adapter), str(tmp_path / "merged"))
    merged, tokenizer = reload(tmp_path / "merged")
    assert tokenizer.convert_tokens_to_ids(NEW) == list(ids) and tokenizer.tokenize("a<tool>b")[1] == "<tool>"
    assert merged.dtype == getattr(torch, dtype)
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) is tied
    row = torch.tensor([[*ids, 5, *ids]])
    with torch.no_grad():
        pairs = [(merged(input_ids=row).logits.float(), apart(input_ids=row).logits.float())]
    pairs.append((logits(merged), logits(apart)))
    allowed = 1e-5 if dtype == "float32" else 0.05
    for got, wanted in pairs:
        assert (got - wanted).abs().max() < allowed * max(1.0, wanted.abs().max().item())
    with apart.disable_adapter(), torch.no_grad():
        assert (apart(input_ids=row).logits.float() - pairs[0][1]).abs().max() > 0.05, "the adapter does nothing"
    assert report.effect > 0.01


@pytest.mark.parametrize(
    ("arch", "config", "problem"),
    [
        ("llama", {"lora_bias": True}, "base layer has no bias"),
        ("llama", {"alora_invocation_tokens": [5, 6]}, "aLoRA"),
        pytest.param("llama", {"layer_replication": [(0, 2), (1, 2)]}, "share one weight", marks=THOROUGH),
        pytest.param("qwen2", {"lora_bias": True}, None, marks=THOROUGH),
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 64}}, None),
        pytest.param(
            "llama", {"trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [3]}}, None, marks=THOROUGH
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_peft_is_merged_or_refused_with_one_message(
    tmp_path: Path, tiny_model_dir: Any, capsys: Any, arch: str, config: dict[str, Any], problem: str | None
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_model_dir(arch, hidden=64)
    made = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **config)
    apart: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), made).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in apart.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape) * 0.1
    apart.save_pretrained(tmp_path / "adapter")
    capsys.readouterr()
    words = ["--lora-path", str(tmp_path / "adapter"), "--target-model-path", str(tmp_path / "merged")]
    code = apply_lora.main([*words, "--base-model-path", str(base)])
    if problem is None:
        assert code == 0 and (logits(reload(tmp_path / "merged")[0]) - logits(apart)).abs().max() < 1e-5
    else:
        told = capsys.readouterr().err
        assert code == 5 and told.count("error: ") == 1 and problem in told and "unmerged" in told
        assert not (tmp_path / "merged").exists()
