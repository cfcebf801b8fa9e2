"""Flags of text, adapter, model and processes: each has a visible effect, and none is accepted without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastchat.settings.readers import training_options
from tests import builders
from tests.machine import free_port
from tests.train import (
    test_adapters,
    test_data_flags,
    test_early_stopping,
    test_eval_generate,
    test_expert_runs,
    test_flags_training,
    test_fsdp,
    test_head_runs,
    test_numbers,
    test_packed,
    test_packed_trees,
    test_proof_by_default,
    test_pushing,
    test_resume,
    test_run_report,
    test_speed,
    test_tokenizer_runs,
)
from tests.train.flags import COVERED, Train, adapter, covers, ok

pytestmark = pytest.mark.slow

SHOWN_IN = [test_data_flags, test_early_stopping, test_flags_training, test_head_runs, test_numbers, test_packed]
SHOWN_IN += [test_proof_by_default, test_resume, test_tokenizer_runs, test_adapters, test_expert_runs]
SHOWN_IN += [test_packed_trees, test_fsdp, test_run_report, test_eval_generate, test_pushing, test_speed]

# ---- text ----


@covers("model_max_length", "overlong")
def test_long_dialogues(train: Train) -> None:
    cut = ok(train("--model_max_length", "90")).record["data"]["train"]["counts"]
    assert cut["truncated_dialogues"] > 0 and cut["dialogues"] == 20
    dropped = ok(train("--model_max_length", "90", "--overlong", "drop", name="b")).record["data"]["train"]["counts"]
    assert dropped["dropped_overlong"] == cut["truncated_dialogues"]
    refused = train("--model_max_length", "90", "--overlong", "error", name="c")
    assert refused.code == 3 and "--model_max_length is 90" in refused.err


@covers("conv_template", "conv_template_file")
def test_templates(train: Train, tmp_path: Path) -> None:
    default = ok(train())
    assert default.record["template"]["name"] == "vicuna_v1.1" and "vicuna_v1.1 (the default" in default.err
    assert default.record["settings"]["conv_template"] == {"value": "vicuna_v1.1", "from": "derived"}
    zephyr = ok(train("--conv_template", "alpaca", name="b"))
    assert zephyr.record["template"]["name"] == "alpaca" and zephyr.losses != default.losses
    (tmp_path / "mine.yaml").write_text(
        "name: my-own\nroles: [Q, A]\nsystem_message: Answer.\nsep_style: ADD_COLON_TWO\nsep: ' '\nsep2: '</s>'\n",
        encoding="utf-8",
    )
    mine = ok(train("--conv_template_file", str(tmp_path / "mine.yaml"), "--conv_template", "my-own", name="c"))
    assert mine.record["template"]["definition"]["name"] == "my-own"
    assert "Q" in (mine.folder / "chat_template.jinja").read_text()
    (tmp_path / "only.yaml").write_text("{name: only-one, roles: [X, Y], stop_str: am}\n", encoding="utf-8")
    only = ok(train("--conv_template_file", str(tmp_path / "only.yaml"), name="d"))
    assert only.record["settings"]["conv_template"] == {"value": "only-one", "from": "derived"}
    assert "template: only-one, the only one in" in only.err and "default" not in only.err
    assert only.record["template"]["definition"]["stop_strings"] == ["am"]
    (tmp_path / "two.yaml").write_text("[{name: one, roles: [X, Y]}, {name: two, roles: [X, Y]}]\n", encoding="utf-8")
    refused = train("--conv_template_file", str(tmp_path / "two.yaml"), name="e")
    assert refused.code == 2 and "choose one: --conv_template one | two" in refused.err


@covers("lazy_preprocess", "padding_side")
def test_what_must_not_change_the_result(train: Train) -> None:
    plain = ok(train("--lora_dropout", "0"))
    left = ok(train("--lora_dropout", "0", "--padding_side", "left", "--lazy_preprocess", "True", name="b"))
    assert "--lazy_preprocess: data is always streamed" in left.err and "--lazy_preprocess" not in plain.err
    assert left.losses == pytest.approx(plain.losses, abs=1e-5)
    rows = [{"input_ids": [1], "labels": [1]}, {"input_ids": [1, 2], "labels": [1, 2]}]
    assert left.trainer.data_collator(rows)["attention_mask"][0].tolist() == [0, 1]
    assert plain.trainer.data_collator(rows)["attention_mask"][0].tolist() == [1, 0]


@covers("rope_scaling_type", "rope_scaling_factor")
def test_rope(train: Train) -> None:
    scaled = ok(train("--rope_scaling_type", "dynamic", "--model_max_length", "1200"))
    assert scaled.record["rope_parameters"]["rope_type"] == "dynamic"
    assert scaled.record["settings"]["rope_scaling_factor"] == {"value": 3.0, "from": "derived"}  # ceil(1200 / 512)
    given = ok(train("--rope_scaling_type", "linear", "--rope_scaling_factor", "4", name="b"))
    assert given.record["rope_parameters"]["factor"] == 4.0
    assert given.trainer.model.config.rope_parameters["factor"] == 4.0
    assert given.losses != scaled.losses


# ---- the adapter ----


@covers("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
def test_adapter_shape(train: Train) -> None:
    outcome = ok(
        train(
            "--lora_r", "3", "--lora_alpha", "5", "--lora_dropout", "0.5", "--lora_target_modules", "q_proj,", "v_proj"
        )
    )
    config = json.loads((outcome.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 5, 0.5)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert {t.shape[0] for name, t in adapter(outcome.folder).items() if "lora_A" in name} == {3}
    assert outcome.record["settings"]["lora_target_modules"]["from"] == "command line"
    seven = ok(train(name="b"))
    assert len(json.loads((seven.folder / "adapter_config.json").read_text())["target_modules"]) == 7


@covers("lora_bias")
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_biases(train: Train, tiny_model_dir: Callable[..., Path], bias: str) -> None:
    base = tiny_model_dir("llama", "metaspace_bos", attention_bias=True)
    outcome = ok(train("--model_name_or_path", str(base), "--lora_bias", bias, "--lora_target_modules", "q_proj"))
    biases = {name: t for name, t in adapter(outcome.folder).items() if name.endswith("bias")}
    assert len(biases) == {"none": 0, "all": 8, "lora_only": 2}[bias]
    assert all(t.abs().max() > 0 for t in biases.values()), "they started at zero and moved"


@covers("lora_weight_path")
def test_an_adapter_is_continued(train: Train) -> None:
    first = ok(train("--max_steps", "8", "--learning_rate", "1e-2"))
    second = ok(train("--lora_weight_path", str(first.folder), "--max_steps", "1", name="b"))
    assert second.losses[0] < first.losses[0] - 0.1
    assert "although" not in second.err
    other = ok(
        train(
            *("--lora_weight_path", str(first.folder), "--conv_template", "alpaca", "--q_lora", "True"),
            *("--rope_scaling_type", "linear", "--rope_scaling_factor", "2", "--max_steps", "1"),
            name="c",
        )
    )
    path = first.folder
    assert f"Template: alpaca, although {path} was trained with vicuna_v1.1." in other.err
    assert f"Base: nf4 (--q_lora True), although the adapter {path} was trained on its full weights." in other.err
    assert f"RoPE: linear, factor 2, although the adapter {path} was trained without scaling" in other.err
    back = ok(
        train(
            *("--lora_weight_path", str(other.folder), "--conv_template", "alpaca", "--max_steps", "1"),
            *("--rope_scaling_type", "linear", "--rope_scaling_factor", "2"),
            name="d",
        )
    )
    said = [line for line in back.err.splitlines() if "although" in line]
    line = f"Base: the full weights (--q_lora False), although the adapter {other.folder} was trained on nf4."
    assert said == [line]


@covers("q_lora")
def test_quantised_base(train: Train) -> None:
    outcome = ok(train("--q_lora", "True"))
    used = outcome.record["quantization"]
    assert (used["type"], used["double_quant"]) == ("nf4", True) and "nf4" in outcome.err
    assert ok(train(name="b")).record["quantization"] is None


# ---- where the model comes from ----


@covers("cache_dir")
def test_cache_dir(train: Train, tmp_path: Path, model_dir: Path) -> None:
    snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in model_dir.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    refs = tmp_path / "hub" / "models--me--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    found = ok(train("--model_name_or_path", "me/tiny", "--cache_dir", str(tmp_path / "hub")))
    assert found.record["base_model"] == "me/tiny"
    assert train("--model_name_or_path", "me/tiny", name="b").code == 2


@covers("trust_remote_code")
def test_code_in_the_model_folder_runs_only_on_request(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = builders.make_model(tmp_path / "custom", "llama", "metaspace_bos")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"},
        "model_type": "mine",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    refused = train("--model_name_or_path", str(folder))
    assert refused.code == 2 and "--trust_remote_code" in refused.err
    trusted = ok(train("--model_name_or_path", str(folder), "--trust_remote_code", "True", name="b"))
    assert type(trusted.trainer.model.get_base_model()).__name__ == "MyModel"


# ---- several processes: a group of one is enough to see the settings arrive ----


@covers("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph")
@covers("ddp_backend", "ddp_timeout")
def test_ddp(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **port}.items():
        monkeypatch.setenv(name, value)
    try:
        flags = ["--ddp_find_unused_parameters", "True", "--ddp_bucket_cap_mb", "3", "--ddp_broadcast_buffers", "False"]
        outcome = ok(train(*flags, "--ddp_backend", "gloo", "--ddp_timeout", "77", "--use_cpu"))
        assert outcome.record["engine"] == "ddp"
        wrapped = outcome.trainer.model_wrapped
        assert wrapped.find_unused_parameters and wrapped.bucket_bytes_cap == 3 * 2**20
        assert not wrapped.broadcast_buffers and not wrapped.static_graph
        assert dist.get_backend() == "gloo"
        options = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options
        assert options._timeout.total_seconds() == 77
        static = ok(train("--ddp_static_graph", "True", "--use_cpu", name="b"))
        assert static.trainer.model_wrapped.static_graph and not static.trainer.model_wrapped.find_unused_parameters
    finally:
        dist.destroy_process_group()


# ---- nothing is accepted that is not shown above ----


def test_every_accepted_flag_is_covered() -> None:
    assert all(SHOWN_IN), "imported, so that their marks count too"
    accepted = {option.name for option in training_options(lora=True) if not option.refused}
    assert accepted - COVERED == set()
    assert COVERED - accepted == set()
