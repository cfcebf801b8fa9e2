"""A merged model gives the logits of base and adapter unmerged, and includes everything that its users need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastchat.checkpoint.merge import merge_adapter
from fastchat.checkpoint.trained_model import find_trained, load_trained
from fastchat.errors import CheckpointError, SettingsError
from fastchat.model import apply_lora
from fastchat.model.first_weights import FirstWeights
from fastchat.model.loading import load_base_model
from fastchat.settings.lora_options import LoraOptions
from tests.model.adapters import logits, save_random_adapter


def reload(path: Path):
    """The merged model, loaded without this project."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path).eval()


def difference(a, b, **more) -> float:
    return (logits(a, **more) - logits(b, **more)).abs().max().item()


@pytest.mark.parametrize(
    ("arch", "lora"),
    [
        ("llama", {}),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
        ("gpt_neox", {"target_modules": ["query_key_value"], "bias": "all"}),
        ("gpt_neox", {"target_modules": ["dense", "dense_4h_to_h"], "bias": "lora_only"}),
        ("phi3", {}),
        ("gemma2", {}),
        ("qwen2", {}),
        ("llama", {"target_modules": ["q_proj", "lm_head"], "options": LoraOptions(use_dora=True, use_rslora=True)}),
        ("gemma", {"options": LoraOptions(trainable_tokens=(3, 9))}),
        ("gemma2", {"options": LoraOptions(modules_to_save=("embed_tokens", "norm"))}),
        ("gpt2", {"target_modules": ["c_attn"], "first": FirstWeights("olora")}),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_merged_equals_adapter_on_base(tmp_path, tiny_model_dir, arch, lora, tied):
    base = tiny_model_dir(arch, tied=tied)
    adapter, apart = save_random_adapter(tmp_path / "adapter", base, **lora)
    report = merge_adapter(str(adapter), str(tmp_path / "merged"))
    merged = reload(tmp_path / "merged")
    plain = load_base_model(str(base), for_training=False).eval()
    moved = difference(apart, plain)
    assert moved > 0.05, "the adapter does nothing, so the test would prove nothing"
    assert difference(merged, apart) < 1e-5 * max(1.0, logits(apart).abs().max().item())
    assert report.error < 1e-4 and report.effect > 0.01
    assert merged.dtype == torch.float32


def test_q_lora_is_merged_into_what_nf4_stands_for(tmp_path, tiny_model_dir):
    base = tiny_model_dir("llama", hidden=64)
    adapter, apart = save_random_adapter(tmp_path / "adapter", base, q_lora=True)
    merge_adapter(str(adapter), str(tmp_path / "nf4"))
    merge_adapter(str(adapter), str(tmp_path / "full"), weights="full")
    assert difference(reload(tmp_path / "nf4"), apart) < 1e-5
    assert difference(reload(tmp_path / "full"), apart) > 1e-2
    assert "quantiz" not in (tmp_path / "nf4" / "config.json").read_text()


def test_stories260k_q_lora_and_lora(tmp_path, shared):
    base = shared / "models" / "stories260K"
    if not base.is_dir():
        pytest.skip("no stories260K")
    for q_lora in (False, True):
        adapter, apart = save_random_adapter(tmp_path / f"a{q_lora}", base, q_lora=q_lora, spread=0.03)
        merge_adapter(str(adapter), str(tmp_path / f"m{q_lora}"))
        error = difference(reload(tmp_path / f"m{q_lora}"), apart)
        assert error < 1e-4, (q_lora, error)


@pytest.mark.parametrize("q_lora", [False, True])
def test_merge_keeps_the_dtype_of_the_base(tmp_path, tiny_model_dir, q_lora):
    base = tiny_model_dir("llama", dtype="bfloat16", hidden=64)
    adapter, apart = save_random_adapter(tmp_path / "adapter", base, q_lora=q_lora)
    merge_adapter(str(adapter), str(tmp_path / "merged"))
    merged = reload(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert difference(merged, apart) < 0.05 * logits(apart).abs().max().item()


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "llama3"])
def test_merged_model_has_the_rope_of_the_run(tmp_path, tiny_model_dir, rope_type):
    base = tiny_model_dir("llama", max_positions=64)
    adapter, apart = save_random_adapter(tmp_path / "adapter", base, length=200, rope_type=rope_type)
    merge_adapter(str(adapter), str(tmp_path / "merged"))
    merged = reload(tmp_path / "merged")
    assert merged.config.rope_parameters["rope_type"] == rope_type
    assert merged.config.rope_parameters["factor"] == 4.0
    assert difference(merged, apart, num_tokens=150) < 1e-4
    unscaled = json.loads((tmp_path / "merged" / "config.json").read_text())
    original = json.loads((base / "config.json").read_text())
    unscaled["rope_parameters"], unscaled["max_position_embeddings"] = (
        original["rope_parameters"],
        original["max_position_embeddings"],
    )
    (tmp_path / "merged" / "config.json").write_text(json.dumps(unscaled))
    assert difference(reload(tmp_path / "merged"), apart, num_tokens=150) > 1e-2


def test_what_stands_beside_the_weights(tmp_path, tiny_model_dir):
    from transformers import AutoTokenizer, GenerationConfig

    base = tiny_model_dir("llama", "byte_bos")
    adapter, _ = save_random_adapter(tmp_path / "adapter", base, template="llama-3")
    report = merge_adapter(str(adapter), str(tmp_path / "merged"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    stop = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    eos = GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id
    assert stop in eos and tokenizer.eos_token_id in eos and set(report.stop_ids) <= set(eos)
    assert (tmp_path / "merged/chat_template.jinja").read_bytes() == (adapter / "chat_template.jinja").read_bytes()
    of_run, of_merge = (json.loads((f / "training.json").read_text()) for f in (adapter, tmp_path / "merged"))
    assert {**of_merge, "files": of_run["files"]} == of_run and of_merge["files"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert not list(tmp_path.glob(".merged*")), "staging left behind"
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["use_cache"] is True


def test_an_adapter_without_a_record_is_merged_too(tmp_path, tiny_model_dir, capsys):
    adapter, apart = save_random_adapter(tmp_path / "adapter", tiny_model_dir("llama"), with_record=False)
    merge_adapter(str(adapter), str(tmp_path / "merged"))
    assert difference(reload(tmp_path / "merged"), apart) < 1e-5
    assert "no training record" in capsys.readouterr().err


def test_command_line_merges_with_a_base_that_moved(tmp_path, tiny_model_dir, capsys):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir("llama"), base)
    adapter, apart = save_random_adapter(tmp_path / "adapter", base)
    base.rename(tmp_path / "moved")
    arguments = ["--lora-path", str(adapter), "--target-model-path", str(tmp_path / "merged")]
    assert apply_lora.main(arguments) == 2
    assert "pass --base-model-path" in capsys.readouterr().err
    assert apply_lora.main([*arguments, "--base-model-path", str(tmp_path / "moved")]) == 0
    assert difference(reload(tmp_path / "merged"), apart) < 1e-5


def test_a_filled_target_is_refused_untouched(tmp_path, tiny_model_dir):
    adapter, _ = save_random_adapter(tmp_path / "adapter", tiny_model_dir("llama"))
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(SettingsError, match="not empty"):
        merge_adapter(str(adapter), str(target))
    assert [p.name for p in target.iterdir()] == ["mine.txt"]


def test_a_failed_merge_leaves_nothing(tmp_path, tiny_model_dir, monkeypatch):
    adapter, _ = save_random_adapter(tmp_path / "adapter", tiny_model_dir("llama"))
    monkeypatch.setattr("fastchat.checkpoint.merge.TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(CheckpointError, match="logits differ"):
        merge_adapter(str(adapter), str(tmp_path / "merged"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_bad_input_is_named(tmp_path, tiny_model_dir):
    base = tiny_model_dir("llama")
    with pytest.raises(SettingsError, match="No such adapter|no adapter|not an adapter|adapter_config"):
        merge_adapter(str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(SettingsError, match="is a full model"):
        merge_adapter(str(base), str(tmp_path / "out"))
    adapter, _ = save_random_adapter(tmp_path / "adapter", base)
    other = tiny_model_dir("llama", hidden=64)
    with pytest.raises(SettingsError, match="does not fit"):
        merge_adapter(str(adapter), str(tmp_path / "out"), base_model_path=str(other))
    poisoned = tmp_path / "poisoned"
    shutil.copytree(adapter, poisoned)
    from safetensors.torch import load_file, save_file

    tensors = load_file(poisoned / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, poisoned / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        merge_adapter(str(poisoned), str(tmp_path / "out"))
    save_file({n: t for n, t in tensors.items() if n != name}, poisoned / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="incomplete"):
        load_trained(find_trained(str(poisoned)))
    assert not (tmp_path / "out").exists()


def test_the_tokenizers_own_template_stays(tmp_path, tiny_model_dir):
    jinja = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    jinja += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    base = tiny_model_dir("llama", "byte_nobos", chat_template=jinja)
    adapter, _ = save_random_adapter(tmp_path / "adapter", base, template="tokenizer")
    report = merge_adapter(str(adapter), str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == jinja
    assert report.stop_ids
