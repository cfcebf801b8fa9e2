"""Recommendations as files: YAML recipes that training reads, and the commands that run them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError, say
from fastchat.files import sha256_of_text, write_text
from fastchat.plan.recommend import Recommendation
from fastchat.plan.report import describe
from fastchat.plan.run import Run
from fastchat.plan.templates import template_line
from fastchat.plan.units import human
from fastchat.settings.readers import LORA_ONLY, training_options

_MARK = "# Worked out by `python -m fastchat.plan --recommend"
_DIGEST = "# Unchanged since then: "
_TEMPLATE = frozenset(("conv_template", "conv_template_file"))
# Given settings that belong to one run and its data; the launch command has placeholders for them.
_OF_A_RUN = frozenset(("plan", "data_path", "data_split", "data_revision", "data_proportions", "output_dir"))
_OF_A_RUN |= {"data_columns", "data_roles"}
_OF_A_RUN |= {"run_name", "overwrite_output_dir", "local_rank", "resume_from_checkpoint", "resume_weights_only"}
_NOT_SEARCHED = ("flash_attn", "lora_weight_path")  # they affect memory, but are not changed
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "null", "none"))  # not strings in YAML without quotes


def recipe(recommendation: Recommendation) -> str:
    """The best choice as a YAML recipe for train_lora.py or train.py; data and output go on the command line."""
    best = recommendation.best
    assert best is not None, recommendation.label
    run, machine, name = best.run, best.run.machine, best.run.architecture.name
    micro, accumulation = run.per_device_train_batch_size, run.gradient_accumulation_steps
    many = f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''}"
    asked = "" if run.lora else " --full_finetuning True"
    lines = [
        f"# {describe(run)}",
        f"{_MARK}{asked}` for {machine.gpus} x {human(machine.gpu_memory or 0)}:",
        f"# needs {human(best.plan.total)} per GPU and {human(best.plan.host_total)} per host.",
        f"# Global batch: {micro} x {accumulation} x {many} = {micro * accumulation * machine.gpus} examples per step.",
        *(f"# {line}" for line in launch_lines(recommendation, Path("THIS_FILE"))),
        f"model_name_or_path: {_yaml(name)}",
        *([f"cache_dir: {_yaml(recommendation.cache_dir)}"] if recommendation.cache_dir else []),
        *([] if _TEMPLATE & set(recommendation.kept) else [template_line(name, recommendation.cache_dir)]),
        *(f"{key}: {_yaml(value)}" for key, value in _values(recommendation, run).items()),
    ]
    return _with_digest("\n".join(lines) + "\n")


def with_given(recommendation: Recommendation, flags: Mapping[str, Any], own: bool) -> Recommendation:
    """Add the given settings in `flags` (`read_flags`) that do not affect memory to the recipe of a recommendation.

    `own`: it is for the user's model, so a given template or adapter applies to it.
    """
    left_out = _OF_A_RUN | (frozenset() if own else _TEMPLATE | {"lora_weight_path"})
    left_out |= frozenset() if recommendation.wanted.lora else LORA_ONLY
    offered = [option for option in training_options(True) if not option.refused]
    names = [option.name for option in offered if not option.memory or option.name in _NOT_SEARCHED]
    names = [name for name in names if name in flags["given"] - left_out]
    return replace(recommendation, kept={name: flags[name] for name in names if flags[name] is not None})


def _values(recommendation: Recommendation, run: Run) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if run.lora:
        values = {"lora_r": run.lora_r, "lora_alpha": 16, "lora_dropout": run.lora_dropout, "q_lora": run.q_lora}
        if run.lora_target_modules:
            values["lora_target_modules"] = list(run.lora_target_modules)
        if run.lora_bias != "none":
            values["lora_bias"] = run.lora_bias
    if run.dtype != "auto":
        values["dtype"] = run.dtype
    if run.zero is not None:
        values["deepspeed"] = run.zero.path
    values |= {
        "model_max_length": run.model_max_length,
        "per_device_train_batch_size": run.per_device_train_batch_size,
        "gradient_accumulation_steps": run.gradient_accumulation_steps,
        "gradient_checkpointing": run.gradient_checkpointing,
        "num_train_epochs": recommendation.row.epochs,
        "learning_rate": recommendation.row.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.03,
        "weight_decay": 0,
        "optim": run.optim,
        "bf16": run.bf16 and not run.fp16,
        "fp16": run.fp16,
        "tf32": True,
        "flash_attn": True,  # falls back to torch's kernels, which the plan assumes
    }
    if run.packing:
        values["packing"] = True
    if not run.chunked_head:
        values["chunked_head"] = False
    values |= {"save_strategy": "epoch", "logging_steps": 1}
    if not run.lora:
        values["save_total_limit"] = 2
    if "warmup_steps" in recommendation.kept:
        del values["warmup_ratio"]
    return {**values, **recommendation.kept}


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, dict):
        return _yaml(json.dumps(value))
    if isinstance(value, str):
        plain = all(c.isalnum() or c in "-_./" for c in value) and (value[:1].isalpha() or value[:1] == "/")
        return value if plain and value.lower() not in _WORDS else "'" + value.replace("'", "''") + "'"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def launch_lines(recommendation: Recommendation, path: Path) -> list[str]:
    """The command that runs a recipe and, for several hosts, its requirements."""
    run = recommendation.best.run if recommendation.best else recommendation.wanted
    machine = run.machine
    several = f"--hostfile hostfile --num_nodes {machine.hosts} " if machine.hosts > 1 else ""
    launcher = f"deepspeed {several}--num_gpus {machine.gpus_per_host} --module"
    if run.zero is None:
        launcher = "python -m"
    module = f"fastchat.train.{'train_lora' if run.lora else 'train'}"
    command = f"{launcher} {module} {shlex.quote(str(path))} --data_path DATA.json --output_dir OUTPUT"
    if machine.hosts == 1:
        return [command]
    slots = f"NAME slots={machine.gpus_per_host}"
    return [
        command,
        f"(hostfile: a line `{slots}` for each of the {machine.hosts} hosts. The first host needs pdsh and ssh access "
        "without a password to the others; this folder, model and data must have the same paths on all hosts.)",
    ]


def write_recipes(recommendations: Sequence[Recommendation], folder: Path) -> list[tuple[Path, list[str]]]:
    """Write one YAML file per model that fits. Returns [(file, launch lines)].

    Files of an earlier call that this call does not write again are removed, with a message, unless they were changed.
    Raises SettingsError, before anything is written, if a file that was not written by --recommend would be replaced.
    """
    wanted = {_path(r, folder): r for r in recommendations if r.best is not None}
    for path in wanted:
        if path.exists() and not _is_unchanged(path):
            raise SettingsError(
                f"{path} was not written by --recommend or was changed since, so it is not replaced: move it, or give "
                "another folder with --recipes"
            )
    _remove_stale({_path(r, folder).name.rpartition("_")[2] for r in recommendations}, set(wanted), folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, r in wanted.items():
            write_text(path, recipe(r))
    except OSError as error:
        raise SettingsError(f"--recipes {folder}: cannot be written ({error})") from None
    return [(path, launch_lines(r, path)) for path, r in wanted.items()]


def _path(recommendation: Recommendation, folder: Path) -> Path:
    method = "lora" if recommendation.wanted.lora else "full"
    return folder / f"{recommendation.label.rstrip('/').rpartition('/')[2]}_{method}.yaml"


def _remove_stale(endings: set[str], wanted: set[Path], folder: Path) -> None:
    for path in sorted(folder.glob("*.yaml")):
        if path in wanted or path.name.rpartition("_")[2] not in endings or _MARK not in _text(path):
            continue
        if _is_unchanged(path):
            path.unlink()
            say(f"{path}: removed; it is from an earlier --recommend")
        else:
            say(f"{path}: kept; it is from an earlier --recommend, but was changed since")


def _with_digest(text: str) -> str:
    """Add a digest line after the comments, to recognise an unchanged file."""
    digest = sha256_of_text(text)[:16]
    return text.replace("\nmodel_name_or_path:", f"\n{_DIGEST}{digest}\nmodel_name_or_path:", 1)


def _is_unchanged(path: Path) -> bool:
    lines = _text(path).splitlines(keepends=True)
    without = "".join(line for line in lines if not line.startswith(_DIGEST))
    return _MARK in without and _with_digest(without) == "".join(lines)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
