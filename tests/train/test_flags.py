"""Every accepted flag has an effect that can be seen; `covers` notes which, and the last test compares."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from fastchat.train.arguments import RENAMED, UNSUPPORTED, all_arguments
from fastchat.train.settings import options_of
from tests import builders
from tests.train.conftest import Outcome

COVERED: set[str] = {  # shown in test_bad_inputs.py, test_launch.py and in every test here
    "model_name_or_path", "data_path", "output_dir", "on_bad_row", "overwrite_output_dir", "deepspeed",
}  # fmt: skip
Train = Callable[..., Outcome]
T = TypeVar("T")


def covers(*names: str) -> Callable[[T], T]:
    COVERED.update(names)
    return lambda test: test


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def rates(outcome: Outcome) -> list[float]:
    return [row["learning_rate"] for row in outcome.metrics if "loss" in row]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def group(outcome: Outcome) -> dict[str, Any]:
    return outcome.trainer.optimizer.param_groups[0]


# ---- steps, schedule, optimizer ----


@covers("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
def test_how_many_steps(train: Train) -> None:
    assert len(ok(train("--max_steps", "3")).losses) == 3
    epochs = ok(train("--max_steps", "-1", "--num_train_epochs", "2", "--per_device_train_batch_size", "8", name="b"))
    assert len(epochs.losses) == 6  # 20 dialogues in batches of 8: three steps an epoch
    accumulated = ok(train("--gradient_accumulation_steps", "2", "--max_steps", "1", name="c"))
    one = ok(train("--per_device_train_batch_size", "8", "--max_steps", "1", name="d"))
    assert accumulated.metrics[0]["num_tokens"] == one.metrics[0]["num_tokens"]
    assert accumulated.losses == pytest.approx(one.losses, abs=1e-5)


@covers("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")
def test_schedule(train: Train) -> None:
    four = ("--max_steps", "4", "--learning_rate", "0.1")
    assert rates(ok(train(*four))) == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert rates(ok(train(*four, "--lr_scheduler_type", "constant", name="b"))) == [0.1] * 4
    by_steps = ok(train(*four, "--lr_scheduler_type", "cosine", "--warmup_steps", "2", name="c"))
    assert rates(by_steps)[:3] == pytest.approx([0, 0.05, 0.1])
    by_share = ok(train(*four, "--lr_scheduler_type", "cosine", "--warmup_ratio", "0.5", name="d"))
    assert rates(by_share) == rates(by_steps)
    both = ok(train(*four, "--warmup_ratio", "0.25", "--warmup_steps", "2", name="e"))
    assert rates(both)[1] == pytest.approx(0.05) and "--warmup_steps 2 wins" in both.err
    floor = ("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.5}')
    assert min(rates(ok(train(*four, *floor, name="f")))) > 0.05


@covers("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
def test_optimizer(train: Train) -> None:
    plain = ok(train())
    assert plain.record["optimizer"] == "AdamW" and group(plain)["betas"] == (0.9, 0.999)
    changed = ok(
        train("--weight_decay", "0.1", "--adam_beta1", "0.5", "--adam_beta2", "0.6", "--adam_epsilon", "1e-3", name="b")
    )
    assert (group(changed)["weight_decay"], group(changed)["betas"], group(changed)["eps"]) == (0.1, (0.5, 0.6), 1e-3)
    assert ok(train("--optim", "adafactor", name="c")).record["optimizer"] == "Adafactor"
    paged = ok(train("--optim", "paged_adamw_32bit", name="d"))
    assert "--optim paged_adamw_32bit needs a GPU" in paged.err and paged.record["optimizer"] == "AdamW"
    assert paged.record["settings"]["optim"] == {"value": "adamw_torch", "from": "derived"}


@covers("max_grad_norm")
def test_clipping(train: Train) -> None:
    sgd = ("--optim", "sgd", "--learning_rate", "1", "--lora_dropout", "0")
    moved = [
        sum(t.norm().item() for name, t in adapter(ok(train(*sgd, "--max_grad_norm", norm, name=norm)).folder).items()
            if "lora_B" in name)
        for norm in ("0.001", "100")
    ]  # fmt: skip
    assert moved[0] < 0.01 < moved[1]


@covers("label_smoothing_factor", "neftune_noise_alpha")
def test_what_changes_the_training_loss(train: Train, eval_flags: list[str]) -> None:
    flags = [*eval_flags, "--eval_on_start", "--lora_dropout", "0"]
    plain = ok(train(*flags))
    smooth = ok(train(*flags, "--label_smoothing_factor", "0.3", name="b"))
    noisy = ok(train(*flags, "--neftune_noise_alpha", "50", name="c"))
    assert smooth.losses[0] != pytest.approx(plain.losses[0], abs=1e-6)
    assert noisy.losses[0] != pytest.approx(plain.losses[0], abs=1e-6)
    assert smooth.metrics[0] == noisy.metrics[0] == plain.metrics[0], "evaluation is not touched"


# ---- precision and memory ----


@covers("dtype", "bf16", "fp16", "tf32", "use_cpu")
def test_precision(train: Train) -> None:
    plain = ok(train())
    assert (plain.record["dtype"], plain.record["compute_dtype"]) == ("float32", "float32")
    half = ok(train("--dtype", "bfloat16", name="b"))
    assert half.record["dtype"] == "bfloat16"
    assert next(p for n, p in half.trainer.model.named_parameters() if "lora_" not in n).dtype == torch.bfloat16
    mixed = ok(train("--bf16", "True", name="c"))
    assert (mixed.record["dtype"], mixed.record["compute_dtype"]) == ("float32", "bfloat16")
    assert mixed.losses != plain.losses
    if not torch.cuda.is_available():
        fallen = ok(train("--fp16", "True", "--tf32", "True", name="d"))
        assert "--fp16 needs a GPU" in fallen.err and "--tf32 needs a GPU" in fallen.err
        assert fallen.record["compute_dtype"] == "float32" and fallen.losses == plain.losses
        assert "no GPU here" in fallen.err
    forced = ok(train("--use_cpu", "True", name="e"))
    assert forced.record["device"] == "cpu" and "no GPU here" not in forced.err


@covers("gradient_checkpointing", "gradient_checkpointing_kwargs")
def test_gradient_checkpointing(train: Train) -> None:
    plain = ok(train("--lora_dropout", "0"))
    for i, flag in enumerate(("--gradient_checkpoint", "--gradient_checkpointing")):
        outcome = ok(train("--lora_dropout", "0", flag, "True", name=f"b{i}"))
        assert outcome.trainer.model.is_gradient_checkpointing and not plain.trainer.model.is_gradient_checkpointing
        assert outcome.losses == pytest.approx(plain.losses, abs=1e-6)
        assert _checkpoint_keywords(outcome)["use_reentrant"] is False
    reentrant = ok(
        train("--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"use_reentrant": true}', name="c")
    )
    assert _checkpoint_keywords(reentrant)["use_reentrant"] is True


def _checkpoint_keywords(outcome: Outcome) -> dict[str, Any]:
    found = [m for m in outcome.trainer.model.modules() if getattr(m, "gradient_checkpointing", False)]
    return found[0]._gradient_checkpointing_func.keywords


@covers("flash_attn")
def test_flash_attention_falls_back_and_says_so(train: Train) -> None:
    outcome = ok(train("--flash_attn", "True"))
    if not torch.cuda.is_available():
        assert "needs a GPU" in outcome.err and outcome.record["attention"] == "sdpa"


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


@covers("lazy_preprocess", "padding_side")
def test_what_must_not_change_the_result(train: Train) -> None:
    plain = ok(train("--lora_dropout", "0"))
    lazy = ok(train("--lora_dropout", "0", "--lazy_preprocess", "True", name="b"))
    assert lazy.losses == plain.losses
    assert "tokens" not in lazy.record["data"]["train"]["counts"], "not tokenised beforehand"
    left = ok(train("--lora_dropout", "0", "--padding_side", "left", name="c"))
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


@covers("q_lora")
def test_quantised_base(train: Train) -> None:
    outcome = ok(train("--q_lora", "True"))
    used = outcome.record["quantization"]
    assert (used["type"], used["double_quant"]) == ("nf4", True) and "nf4" in outcome.err
    assert ok(train(name="b")).record["quantization"] is None


# ---- evaluation ----


def _evaluated(outcome: Outcome) -> list[int]:
    return [row["step"] for row in ok(outcome).metrics if "eval_loss" in row]


@covers("eval_data_path", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval", "do_train")
def test_when_evaluation_happens(train: Train, data_files: tuple[Path, Path]) -> None:
    data = ("--eval_data_path", str(data_files[1]), "--max_steps", "7")
    assert _evaluated(train(*data, "--evaluation_strategy", "epoch")) == [5, 7]
    assert _evaluated(train(*data, "--eval_strategy", "steps", "--eval_steps", "3", name="b")) == [3, 6, 7]
    assert _evaluated(train(*data, "--eval_strategy", "epoch", "--eval_on_start", name="c")) == [0, 5, 7]
    delayed = train(*data, "--eval_strategy", "steps", "--eval_steps", "2", "--eval_delay", "5", name="d")
    assert _evaluated(delayed) == [6, 7]
    assert _evaluated(train(*data, "--do_eval", "--do_train", name="e")) == [7]
    unused = train(*data, name="f")
    assert _evaluated(unused) == [] and "--eval_data_path is not used" in unused.err


@covers("per_device_eval_batch_size")
def test_evaluation_is_exact_for_any_batch_size(train: Train, eval_flags: list[str]) -> None:
    found = [
        ok(train(*eval_flags, "--per_device_eval_batch_size", str(size), name=f"b{size}")) for size in (1, 2, 3, 100)
    ]
    losses = [outcome.record["metrics"]["eval_loss"] for outcome in found]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)
    assert [len(outcome.trainer.get_eval_dataloader()) for outcome in found] == [7, 4, 3, 1]


# ---- saving on the way ----


def _checkpoints(outcome: Outcome) -> list[str]:
    return sorted(p.name for p in ok(outcome).folder.glob("checkpoint-*"))


@covers("save_strategy", "save_steps", "save_total_limit", "save_only_model")
def test_checkpoints(train: Train) -> None:
    six = ("--max_steps", "6")
    assert _checkpoints(train(*six)) == []
    every = train(*six, "--save_strategy", "steps", "--save_steps", "2", name="b")
    assert _checkpoints(every) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    names = set(os.listdir(every.folder / "checkpoint-6"))
    assert {"adapter_model.safetensors", "optimizer.pt", "training.json", "chat_template.jinja"} <= names
    assert "training_args.bin" not in names
    last, result = adapter(every.folder / "checkpoint-6"), adapter(every.folder)
    assert all(torch.equal(last[name], result[name]) for name in result)
    assert _checkpoints(train(*six, "--save_strategy", "epoch", name="c")) == ["checkpoint-5", "checkpoint-6"]
    limited = train(*six, "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1", name="d")
    assert _checkpoints(limited) == ["checkpoint-6"]
    slim = train(*six, "--save_strategy", "steps", "--save_steps", "6", "--save_only_model", name="e")
    assert "optimizer.pt" not in os.listdir(ok(slim).folder / "checkpoint-6")


@covers("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
def test_the_best_checkpoint_wins(train: Train, data_files: tuple[Path, Path]) -> None:
    flags = ["--eval_data_path", str(data_files[1]), "--max_steps", "4", "--learning_rate", "1e-3", "--save_strategy"]
    flags += ["steps", "--save_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end"]
    for greater in ("False", "True"):
        outcome = ok(train(*flags, "--metric_for_best_model", "loss", "--greater_is_better", greater, name=greater))
        rows = [row for row in outcome.metrics if "eval_loss" in row][:4]
        best = (max if greater == "True" else min)(rows, key=lambda row: row["eval_loss"])
        assert outcome.record["metrics"]["eval_loss"] == pytest.approx(best["eval_loss"], abs=1e-6)
        chosen = adapter(outcome.folder / f"checkpoint-{best['step']}")
        assert all(torch.equal(t, chosen[name]) for name, t in adapter(outcome.folder).items())


# ---- order, workers, logging ----


@covers("seed", "data_seed", "full_determinism", "train_sampling_strategy", "group_by_length")
def test_randomness_and_order(train: Train, data_files: tuple[Path, Path]) -> None:
    plain, again = ok(train()), ok(train(name="b"))
    assert plain.losses == again.losses and plain.metrics == again.metrics
    assert ok(train("--seed", "1", name="c")).losses != plain.losses
    reordered = ok(train("--data_seed", "1", name="d"))
    order = [
        outcome.trainer.get_train_dataloader().batch_sampler.permutation().tolist() for outcome in (plain, reordered)
    ]
    assert order[0] != order[1]
    rows = ok(train("--train_sampling_strategy", "sequential", name="e")).trainer.get_train_dataloader().batch_sampler
    assert rows.permutation().tolist() == list(range(20))
    grouped = ok(train("--group_by_length", "True", name="f"))
    batch = next(iter(grouped.trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[1] == max(grouped.trainer.train_lengths)
    assert int(batch["attention_mask"].sum(dim=1).min()) > 0.8 * max(grouped.trainer.train_lengths)
    try:
        ok(train("--full_determinism", "True", name="g"))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
            os.environ.pop(name, None)


@covers("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers")
@covers("dataloader_prefetch_factor", "dataloader_multiprocessing_context")
def test_loader(train: Train) -> None:
    plain = ok(train("--lora_dropout", "0"))
    flags = ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "--dataloader_prefetch_factor", "3"]
    outcome = ok(train("--lora_dropout", "0", *flags, "--dataloader_multiprocessing_context", "fork", name="b"))
    loader = outcome.trainer.get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 3)
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert outcome.losses == plain.losses
    short = ok(train("--max_steps", "-1", "--num_train_epochs", "1", "--per_device_train_batch_size", "8",
                     "--dataloader_drop_last", name="c"))  # fmt: skip
    assert len(short.losses) == 2
    assert plain.trainer.get_train_dataloader().pin_memory is torch.cuda.is_available()
    assert not ok(train("--no_dataloader_pin_memory", name="d")).trainer.get_train_dataloader().pin_memory


@covers("logging_steps", "logging_strategy", "logging_first_step", "include_num_input_tokens_seen")
def test_what_is_logged(train: Train) -> None:
    four = ("--max_steps", "4", "--lora_dropout", "0")
    each = ok(train(*four)).metrics
    assert [row["step"] for row in each] == [1, 2, 3, 4]
    assert set(each[0]) == {
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "num_tokens",
        "num_supervised_tokens",
    }
    pairs = ok(train(*four, "--logging_steps", "2", name="b")).metrics
    weights = [row["num_supervised_tokens"] for row in each]
    mean = (each[0]["loss"] * weights[0] + each[1]["loss"] * weights[1]) / (weights[0] + weights[1])
    assert pairs[0]["loss"] == pytest.approx(mean, abs=1e-7) and pairs[0]["num_supervised_tokens"] == sum(weights[:2])
    first = ok(train(*four, "--logging_steps", "2", "--logging_first_step", name="c")).metrics
    assert [row["step"] for row in first] == [1, 2, 4]
    assert [row["step"] for row in ok(train(*four, "--logging_strategy", "epoch", name="d")).metrics] == [4]
    seen = ok(train(*four, "--include_num_input_tokens_seen", "non_padding", name="e")).metrics
    assert "num_input_tokens_seen" in seen[0]


@covers("disable_tqdm", "log_level", "log_level_replica")
def test_how_much_is_shown(train: Train) -> None:
    quiet = ok(train())
    shown = ok(train("--disable_tqdm", "False", name="b"))
    assert "%|" not in quiet.err and "2/2" in shown.err
    from transformers.utils import logging

    level = logging.get_verbosity()
    try:
        loud = ok(train("--log_level", "info", "--log_level_replica", "error", name="c"))
        assert logging.get_verbosity() == logging.INFO
        assert loud.trainer.args.log_level_replica == "error"
    finally:
        logging.set_verbosity(level)


@covers("report_to", "run_name")
def test_wandb_offline(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: list[str] = []
    monkeypatch.setattr(wandb, "init", _noting(wandb.init, names))
    outcome = train("--report_to", "wandb", "--run_name", "my run")
    wandb.finish()
    assert ok(outcome).record["settings"]["report_to"]["value"] == ["wandb"]
    assert names == ["my run"] and list(tmp_path.glob("wandb/offline-run-*"))


def _noting(init: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        names.append(kwargs.get("name"))
        return init(*args, **kwargs)

    return wrapped


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

    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
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
    accepted = {option.name for option in options_of(all_arguments(lora=True))} - set(UNSUPPORTED)
    newer_names = {name for name in RENAMED if name in accepted}
    assert accepted - newer_names - COVERED == set()
    assert COVERED - accepted == set()
