"""Refuses settings that cannot work, before anything is loaded: one line each, naming the value and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastchat.data.rows.columns import Columns
from fastchat.data.rows.sources import check_source
from fastchat.data.tokens.mixing import check_proportions
from fastchat.errors import SettingsError, not_among, say
from fastchat.eval.matching import EVAL_FLAGS, make_match, metrics_of
from fastchat.paths import folders_instead, meant_here, model_instead
from fastchat.security import special_kind
from fastchat.settings.checkpointing import read_checkpointing
from fastchat.settings.engines import EngineChoice, check_fsdp, check_stage
from fastchat.settings.lora_options import DEFAULT, GAUSSIAN, check_combination, check_init, parse_layers
from fastchat.settings.lora_options import check_engine as check_adapter_engine
from fastchat.settings.options import COMMAND, check_ranges, check_refused
from fastchat.settings.parsing import to_names, to_shares
from fastchat.settings.targets import read_targets
from fastchat.settings.values import Values
from fastchat.train.deepspeed_config import stage_of


def check(values: Values) -> None:
    """Every check that needs neither torch nor the model; raises at the first failure."""
    for step in (
        _required,
        _settings,
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


def _settings(values: Values) -> None:
    """What each setting says of itself."""
    check_refused(values.options, {name: values[name] for name in values.names() if values.given(name)})
    check_ranges(values.options, {name: values[name] for name in values.names()})


def _paths(values: Values) -> None:
    named = values["model_name_or_path"]
    model = Path(named).expanduser()
    if model.is_file():
        raise SettingsError(f"--model_name_or_path {named} is a file: give the folder that holds config.json")
    if not model.is_dir() and meant_here(named):
        raise SettingsError(f"--model_name_or_path {named}: there is no such folder.{model_instead(named)}")
    if model.is_dir() and not (model / "config.json").is_file():
        raise SettingsError(f"--model_name_or_path {model}: no config.json there, so it is no model folder")
    for name, split in (("data_path", "data_split"), ("eval_data_path", "eval_data_split")):
        for path in values[name] or []:
            check_source(f"--{name}", path, values[split])
    template_file = values["conv_template_file"]
    if template_file and not Path(template_file).expanduser().is_file():
        kind = special_kind(template_file)
        raise SettingsError(
            f"--conv_template_file {template_file}: {f'is {kind}' if kind else 'there is no such file'}"
        )
    output = Path(values["output_dir"]).expanduser()
    if output.exists() and not output.is_dir():
        raise SettingsError(f"--output_dir {output} is a file; name a folder")
    if model.is_dir() and output.resolve() == model.resolve():
        raise SettingsError(f"--output_dir {output} is the base model's own folder; name another one")


def _data(values: Values) -> None:
    Columns(values["data_columns"], values["data_roles"])  # checks the names
    size, proportions = values["val_set_size"], values["data_proportions"]
    if size and values["eval_data_path"]:
        raise SettingsError("--val_set_size and --eval_data_path both say what to evaluate on; keep one")
    if proportions is not None:
        values.restate("data_proportions", to_shares(proportions))
        check_proportions(values["data_proportions"], len(values["data_path"]))


def _precision(values: Values) -> None:
    if values["bf16"] and values["fp16"]:
        raise SettingsError("--bf16 and --fp16 are both on; keep one")
    if values["flash_attn"] and values["attn_implementation"]:
        raise SettingsError(
            f"--flash_attn and --attn_implementation {values['attn_implementation']} both choose the attention kernel; "
            "keep one"
        )
    checkpointing = read_checkpointing(values["gradient_checkpointing"])
    values.restate("gradient_checkpointing", checkpointing)
    more = values["gradient_checkpointing_kwargs"]
    if not isinstance(checkpointing, bool) and isinstance(more, dict) and "every_n_layers" in more:
        raise SettingsError(
            f"--gradient_checkpointing {checkpointing} and every_n_layers in --gradient_checkpointing_kwargs both "
            "choose the layers; keep one"
        )


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
    _best_metric(values, _generated_metrics(values, strategy))
    if values["do_train"] is False and values.origin["do_train"] == COMMAND:  # training.json records it so
        raise SettingsError("--do_train False: this command always trains; leave it out")


def _generated_metrics(values: Values, strategy: str) -> tuple[str, ...]:
    """The names of what --eval_generate will measure; empty without it. Raises SettingsError."""
    more = ("eval_match", "eval_pattern", "eval_max_new_tokens")
    if not values["eval_generate"]:
        for name in more:
            if values[name] != values.defaults[name]:
                raise SettingsError(f"--{name} is about generated answers: add --eval_generate N")
        return ()
    if strategy == "no" and not values["do_eval"] and not values["eval_on_start"]:
        raise SettingsError("--eval_generate generates at every evaluation: add --eval_strategy epoch and data")
    if values["train_on"] == "all":
        raise SettingsError("--eval_generate needs answers, and --train_on all does not tell them from prompts")
    return metrics_of(make_match(values["eval_match"], values["eval_pattern"], EVAL_FLAGS))


def _best_metric(values: Values, generated: tuple[str, ...]) -> None:
    """Refuses a metric that no evaluation of this run will have."""
    name = values["metric_for_best_model"]
    if name is None:
        return
    plain = name.removeprefix("eval_")
    if plain not in ("loss", *generated):
        error = not_among("--metric_for_best_model", name, ("loss", *generated))
        more = "" if generated else "; --eval_generate N measures exact_match and others"
        raise SettingsError(f"{error}{more}")
    if plain == "loss" or values["lr_scheduler_type"] != "reduce_lr_on_plateau":
        return
    given = values["lr_scheduler_kwargs"]
    if not (isinstance(given, dict) and given.get("mode") == "max"):
        raise SettingsError(
            f"--lr_scheduler_type reduce_lr_on_plateau waits for a smaller --metric_for_best_model, and {plain} grows: "
            """add --lr_scheduler_kwargs '{"mode": "max"}'"""
        )


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
    targets = read_targets(values["lora_target_modules"])
    values.restate("lora_target_modules", targets)  # the same names, without commas and quotes
    if values["lora_target_parameters"] is not None:
        _target_parameters(values)
    path = values["lora_weight_path"]
    check_combination(
        check_init(values["lora_init"]),
        use_dora=values["use_dora"],
        modules_to_save=_restated_names(values, "lora_modules_to_save"),
        trainable_tokens=values["trainable_tokens"],
        targets=targets,
        q_lora=values["q_lora"],
        continues=bool(path),
    )
    parse_layers(values["lora_layers_to_transform"])
    if path and not (Path(path).expanduser() / "adapter_config.json").is_file():
        instead = "" if Path(path).expanduser().is_dir() else f".{folders_instead(path)}"
        raise SettingsError(
            f"--lora_weight_path {path}: no adapter_config.json there, so it is no adapter folder{instead}"
        )


def _target_parameters(values: Values) -> None:
    label = "--lora_target_parameters"
    values.restate("lora_target_parameters", read_targets(values["lora_target_parameters"], label))
    for name, kept in (("use_dora", (False,)), ("lora_init", (DEFAULT, GAUSSIAN))):
        if values[name] not in kept:
            raise SettingsError(f"{label} and --{name} {values[name]}: peft has that for layers only; keep one of them")
    dropout = values["lora_dropout"]
    if dropout and values.given("lora_dropout"):
        raise SettingsError(
            f"{label}: peft has no dropout for adapters on parameters; write --lora_dropout 0 instead of {dropout:g}"
        )
    if dropout:
        values.derive("lora_dropout", 0.0, f"{label}: --lora_dropout is 0, peft has no dropout for parameters")


def _restated_names(values: Values, name: str) -> list[str]:
    """The names in a list setting, without commas and quotes; empty if it is not set."""
    names = to_names(values[name], f"--{name}") if values[name] else []
    values.restate(name, names)
    return names


def check_engine(values: Values, config: dict[str, Any] | None, choice: EngineChoice) -> None:
    """What the engine cannot train. `config`: the DeepSpeed configuration that `choice` names, None without."""
    if config is not None:
        check_stage(values["engine"], stage_of(config))
    if choice.fsdp is not None:
        check_fsdp(values)
    if "lora_r" in values and config is not None:
        asked = {name: values[name] for name in ("trainable_tokens", "use_dora", "q_lora")}
        check_adapter_engine(**asked, zero_stage=stage_of(config))


def _batches(values: Values) -> None:
    if values["group_by_length"] and values["train_sampling_strategy"] == "sequential":
        raise SettingsError(
            "--group_by_length and --train_sampling_strategy sequential contradict each other; keep one"
        )
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        if values[name] and not values["dataloader_num_workers"]:
            raise SettingsError(f"--{name} needs --dataloader_num_workers 1 or more")


def _packing(values: Values) -> None:
    if not values["packing"]:
        if values["verify_packing"]:
            raise SettingsError("--verify_packing compares packed with unpacked training: add --packing True")
        return
    if values["train_sampling_strategy"] == "group_by_length" or values["group_by_length"]:
        raise SettingsError(
            "--packing and --group_by_length: packs are all about --model_max_length tokens long, so there is nothing "
            "to group; keep one"
        )
    if values["padding_side"] == "left":
        say("--padding_side left: packs need no padding side, only the saved tokenizer keeps it")
