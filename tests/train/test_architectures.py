"""Architectures whose configs lack what Llama's has (positions by ALiBi, state spaces, other names): a run ends with a
saved result, and its record says what is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders import make_tokenizer
from tests.train.conftest import Outcome
from tests.train.flags import ok

pytestmark = pytest.mark.slow
# Each by its own names for sizes; all with a vocabulary of 512 and at least 256 positions.
SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, "query_key_value"),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}, "Wqkv"),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}, "c_attn"),
    "falcon": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}, "query_key_value"),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "in_proj"),
    "mamba2": (
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1},
        "in_proj",
    ),
    "recurrent_gemma": (
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
        | {"lru_width": 32, "head_dim": 8, "num_key_value_heads": 1},
        "q_proj",
    ),
}
POSITIONS = {"mpt": 256, "gpt2": 256, "falcon": 2048}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(arch: str) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = make_tokenizer("metaspace_bos", tmp_path_factory.mktemp(arch), num_merges=200)
        values = {"vocab_size": 640, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        torch.manual_seed(0)
        config = AutoConfig.for_model(arch, **values, **SIZES[arch][0])
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("arch", sorted(SIZES))
def test_trains_and_saves(train: Callable[..., Outcome], folder_of, arch: str) -> None:
    flags = ["--model_name_or_path", folder_of(arch), "--model_max_length", "128"]
    flags += ["--lora_target_modules", SIZES[arch][1], "--save_strategy", "steps", "--save_steps", "1"]
    outcome = ok(train(*flags))
    assert outcome.record["max_position_embeddings"] == POSITIONS.get(arch)
    assert "will not contain" not in outcome.err and len(outcome.losses) == 2


def test_a_record_that_cannot_be_made_whole_costs_no_weights(train: Callable[..., Outcome], monkeypatch) -> None:
    """Whatever the reason, it is said before step 1, once."""

    def broken(*args: Any) -> Any:
        raise AttributeError("no such thing\nin this architecture")

    for name in ("used_attention", "count_parameters", "_versions"):
        monkeypatch.setattr(f"fastchat.train.record.{name}", broken)
    outcome = ok(train("--save_strategy", "steps", "--save_steps", "1"))
    assert outcome.record["attention"] is None and outcome.record["optimizer"] == "AdamW"
    said = "training.json will not contain 'attention' (AttributeError: no such thing in this architecture)"
    assert outcome.err.count(said) == 1 and "Traceback" not in outcome.err
    assert (outcome.folder / "adapter_model.safetensors").is_file()


def test_positions_of_configs_with_other_names() -> None:
    from transformers import AutoConfig

    from fastchat.errors import SettingsError
    from fastchat.model.rope import choose_rope, context_length

    mpt = AutoConfig.for_model("mpt", max_seq_len=256)
    assert context_length(mpt) == 256 and choose_rope(mpt, model_max_length=256) is None
    with pytest.raises(SettingsError, match="has 256 positions"):  # its table of biases is that long
        choose_rope(mpt, model_max_length=257)
    griffin = AutoConfig.for_model("recurrent_gemma")
    assert context_length(griffin) is None and choose_rope(griffin, model_max_length=100_000) is None
    with pytest.raises(SettingsError, match="has no context length"):
        choose_rope(griffin, factor=2.0, model_max_length=128)
