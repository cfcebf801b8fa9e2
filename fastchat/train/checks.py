"""Refuses settings that cannot work, before anything is loaded: one line each, naming the value and the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastchat.data.mixing import check_proportions
from fastchat.data.sources import check_source
from fastchat.errors import SettingsError, say
from fastchat.paths import folders_instead, meant_here, model_instead
from fastchat.settings.values import Values
from fastchat.train.arguments import UNSUPPORTED

_AT_LEAST_ONE = [
    "model_max_length",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "lora_r",
    "lora_alpha",
    "save_total_limit",
    "ddp_timeout",
    "dataloader_prefetch_factor",
    "ddp_bucket_cap_mb",
    "early_stopping_patience",
    "preprocessing_num_workers",
]
_ABOVE_ZERO = [
    "num_train_epochs",
    "learning_rate",
    "logging_steps",
    "save_steps",
    "eval_steps",
    "adam_epsilon",
    "neftune_noise_alpha",
]
_NOT_NEGATIVE = [
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "data_seed",
    "dataloader_num_workers",
    "eval_delay",
]
_SHARE = ["lora_dropout", "label_smoothing_factor", "adam_beta1", "adam_beta2"]  # 0 <= x < 1
DTYPES = ("auto", "float32", "bfloat16", "float16")


def check(values: Values) -> None:
    """Every check that needs neither torch nor the model; raises at the first failure."""
    for step in (
        _required,
        _unsupported,
        _ranges,
        _paths,
        _data,
        _precision,
        _evaluation,
        _saving,
        _adapter,
        _batches,
        _packing,
    ):
        step(values)


def _required(values: Values) -> None:
    for name, example in (
        ("model_name_or_path", "the folder of the base model"),
        ("data_path", "the file with the conversations"),
        ("output_dir", "the folder for the result"),
    ):
        if not values[name] or "" in (values[name] if isinstance(values[name], list) else [values[name]]):
            raise SettingsError(f"--{name} is missing: give {example}")


def _unsupported(values: Values) -> None:
    for name, instead in UNSUPPORTED.items():
        if values.given(name) and values[name] != values.defaults[name] and values[name] not in ("", False, None):
            raise SettingsError(f"--{name} is not available here: {instead}")
        if values.given(name) and values.defaults[name] is True and values[name] is False:
            raise SettingsError(f"--{name} False is not available here: {instead}")


def _ranges(values: Values) -> None:
    rules: tuple[tuple[list[str], Callable[[Any], bool], str], ...] = (
        (_AT_LEAST_ONE, lambda x: x >= 1, "at least 1"),
        (_ABOVE_ZERO, lambda x: x > 0, "above 0"),
        (_NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
        (_SHARE, lambda x: 0 <= x < 1, "at least 0 and below 1"),
        (["warmup_ratio"], lambda x: 0 <= x <= 1, "between 0 and 1"),
        (["rope_scaling_factor"], lambda x: x >= 1, "at least 1 (1 changes nothing, 2 doubles the context)"),
    )
    for names, holds, wanted in rules:
        for name in names:
            if name in values and values[name] is not None and not holds(values[name]):
                raise SettingsError(f"--{name} is {values[name]}; it must be {wanted}")
    if values["max_steps"] == 0:
        raise SettingsError("--max_steps is 0, so nothing would be trained; give a positive number or leave it out")


def _paths(values: Values) -> None:
    named = values["model_name_or_path"]
    model = Path(named).expanduser()
    if model.is_file():
        raise SettingsError(f"--model_name_or_path {named} is a file: give the folder that holds config.json")
    if not model.is_dir() and meant_here(named):
        raise SettingsError(f"--model_name_or_path {named}: there is no such folder.{model_instead(named)}")
    if model.is_dir() and not (model / "config.json").is_file():
        raise SettingsError(f"--model_name_or_path {model}: no config.json there, so it is no model folder")
    for name in ("data_path", "eval_data_path"):
        for path in values[name] or []:
            check_source(f"--{name}", path)
    template_file = values["conv_template_file"]
    if template_file and not Path(template_file).expanduser().is_file():
        raise SettingsError(f"--conv_template_file {template_file}: there is no such file")
    output = Path(values["output_dir"]).expanduser()
    if output.exists() and not output.is_dir():
        raise SettingsError(f"--output_dir {output} is a file; name a folder")
    if model.is_dir() and output.resolve() == model.resolve():
        raise SettingsError(f"--output_dir {output} is the base model's own folder; name another one")


def _data(values: Values) -> None:
    size, proportions = values["val_set_size"], values["data_proportions"]
    if size < 0 or (size >= 1 and size != int(size)):
        raise SettingsError(
            f"--val_set_size is {size:g}; it must be a whole number of dialogues, or a share of them below 1"
        )
    if size and values["eval_data_path"]:
        raise SettingsError("--val_set_size and --eval_data_path both say what to evaluate on; keep one")
    if proportions is not None:
        try:
            values.restate("data_proportions", [float(share) for share in proportions])
        except ValueError:
            raise SettingsError(f"--data_proportions is {' '.join(proportions)}; numbers are expected") from None
        check_proportions(values["data_proportions"], len(values["data_path"]))
    for name in ("val_set_size", "data_proportions", "overwrite_cache", "preprocessing_num_workers"):
        if values["lazy_preprocess"] and values[name]:
            raise SettingsError(f"--{name} needs the data tokenised beforehand; leave --lazy_preprocess out")


def _precision(values: Values) -> None:
    if values["bf16"] and values["fp16"]:
        raise SettingsError("--bf16 and --fp16 are both on; keep one")
    if values["dtype"] not in DTYPES:
        raise SettingsError(f"--dtype is {values['dtype']!r}; it can be {', '.join(DTYPES)}")


def _evaluation(values: Values) -> None:
    strategy, data = values["eval_strategy"], values["eval_data_path"] or values["val_set_size"]
    if strategy != "no" and not data:
        raise SettingsError(
            f"--eval_strategy {strategy} needs --eval_data_path or --val_set_size (or set --eval_strategy no)"
        )
    if (values["do_eval"] or values["eval_on_start"]) and not data:
        name = "do_eval" if values["do_eval"] else "eval_on_start"
        raise SettingsError(f"--{name} needs --eval_data_path or --val_set_size")
    if strategy == "steps" and not values["eval_steps"]:
        raise SettingsError("--eval_strategy steps needs --eval_steps")
    needs = [
        ("load_best_model_at_end", values["load_best_model_at_end"]),
        ("save_strategy best", values["save_strategy"] == "best"),
        ("lr_scheduler_type reduce_lr_on_plateau", values["lr_scheduler_type"] == "reduce_lr_on_plateau"),
        ("metric_for_best_model", values["metric_for_best_model"]),
    ]
    for name, wanted in needs:
        if wanted and strategy == "no":
            raise SettingsError(f"--{name} compares evaluations; add --eval_strategy epoch and data (--eval_data_path)")
    if values["metric_for_best_model"] not in (None, "loss", "eval_loss"):
        raise SettingsError(
            f"--metric_for_best_model is {values['metric_for_best_model']!r}; only loss is measured here"
        )
    if values["do_train"] is False and values.given("do_train"):
        raise SettingsError("--do_train False: this command always trains; leave it out")


def _saving(values: Values) -> None:
    choice = values["resume_from_checkpoint"]
    if choice is not None:
        named = {"true": "auto", "false": "never"}.get(str(choice).lower(), str(choice))
        origin = values.origin["resume_from_checkpoint"]
        values.derive("resume_from_checkpoint", named)
        values.origin["resume_from_checkpoint"] = origin
        if named not in ("auto", "never") and not Path(named).expanduser().is_dir():
            raise SettingsError(
                f"--resume_from_checkpoint {choice}: there is no such folder; it can be auto, never or a checkpoint"
            )
        if named == "never" and values["resume_weights_only"]:
            raise SettingsError("--resume_weights_only needs a checkpoint, --resume_from_checkpoint never forbids one")
    if values["early_stopping_patience"] and not values["load_best_model_at_end"]:
        raise SettingsError(
            "--early_stopping_patience keeps the best evaluation's weights: add --load_best_model_at_end True, with "
            "--eval_strategy and --save_strategy equal (epoch or steps)"
        )
    if values["load_best_model_at_end"] and values["save_strategy"] not in ("best", values["eval_strategy"]):
        raise SettingsError(
            "--load_best_model_at_end needs a checkpoint for every evaluation: "
            f"--save_strategy is {values['save_strategy']}, "
            f"--eval_strategy is {values['eval_strategy']}; make them equal"
        )


def _adapter(values: Values) -> None:
    if "lora_r" not in values:
        return
    from fastchat.model.lora import parse_target_modules

    names, origin = parse_target_modules(values["lora_target_modules"]), values.origin["lora_target_modules"]
    values.derive("lora_target_modules", names)
    values.origin["lora_target_modules"] = origin  # the same names, without commas and quotes
    path = values["lora_weight_path"]
    if path and not (Path(path).expanduser() / "adapter_config.json").is_file():
        instead = "" if Path(path).expanduser().is_dir() else f".{folders_instead(path)}"
        raise SettingsError(
            f"--lora_weight_path {path}: no adapter_config.json there, so it is no adapter folder{instead}"
        )


def _batches(values: Values) -> None:
    if values["group_by_length"] and values["train_sampling_strategy"] == "sequential":
        raise SettingsError(
            "--group_by_length and --train_sampling_strategy sequential contradict each other; keep one"
        )
    if values["train_sampling_strategy"] not in ("random", "sequential", "group_by_length"):
        raise SettingsError(
            f"--train_sampling_strategy is {values['train_sampling_strategy']!r}; "
            "it can be random, sequential or group_by_length"
        )
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        if values[name] and not values["dataloader_num_workers"]:
            raise SettingsError(f"--{name} needs --dataloader_num_workers 1 or more")


def _packing(values: Values) -> None:
    if not values["packing"]:
        if values["verify_packing"]:
            raise SettingsError("--verify_packing compares packed with unpacked training: add --packing True")
        return
    if values["lazy_preprocess"]:
        raise SettingsError("--packing plans with every dialogue's length, --lazy_preprocess knows none; keep one")
    if values["train_sampling_strategy"] == "group_by_length" or values["group_by_length"]:
        raise SettingsError(
            "--packing and --group_by_length: packs are all about --model_max_length tokens long, so there is nothing "
            "to group; keep one"
        )
    if values["padding_side"] == "left":
        say("--padding_side left: packs need no padding side, only the saved tokenizer keeps it")
