"""The command line of the planner: its own settings and all training settings, so that a launch command or a recipe
works unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fastchat.errors import SettingsError
from fastchat.plan.units import parse_bytes
from fastchat.settings.help import asked_for_help, help_head, help_text
from fastchat.settings.options import check_ranges, check_refused, options_of, split_recipe
from fastchat.settings.readers import LORA_ONLY, plan_options, plan_reader
from fastchat.settings.recipe_files import find_recipe
from fastchat.settings.targets import read_targets
from fastchat.settings.tool_arguments import PlanArguments

_HEAD = help_head(
    "fastchat plan [RECIPE.yaml] [--setting value ...]",
    "How much memory does a training run need, does it fit, and what would? Needs no GPU and loads no model.\n"
    "All training settings are accepted; those that affect memory are listed below. bf16 is on by default here.",
    (
        "fastchat plan my.yaml --gpus 1 --gpu_memory 24GiB",
        "fastchat plan --model_size 7b --q_lora True --gpus 1 --gpu_memory 24GiB",
        "fastchat plan --recommend --gpus 8 --gpu_memory 80GiB     # settings that fit, as recipes",
    ),
)


def read_flags(argv: Sequence[str], hidden: Collection[str] = ()) -> dict[str, Any]:
    """Typed values of a command line by setting, with defaults; `given` is the set of given names, `help` the argument
    of `--help` (None without it).

    A first word that is not a flag is a recipe; the command line overrides it. Raises SettingsError for an unknown
    setting (suggests the nearest one that is not `hidden`), a missing value or a value of the wrong type.
    """
    asked = asked_for_help(argv)
    if asked is not None:
        return {"help": asked}
    recipe, words = split_recipe(argv)
    reader = plan_reader(hidden)
    given = reader.from_yaml(find_recipe(recipe)) if recipe else {}
    typed = reader.from_words(words)
    if "model_size" in typed:
        given.pop("model_name_or_path", None)  # the recipe's model need not be downloaded yet
    given |= typed
    options = reader.options.values()
    check_refused(options, given)
    check_ranges(options, given)
    for name in ("gpu_memory", "cpu_memory"):
        if given.get(name) is not None:
            given[name] = parse_bytes(given[name], f"--{name}")
    if given.get("lora_target_modules") is not None:
        given["lora_target_modules"] = read_targets(given["lora_target_modules"])
    values = plan_defaults() | given
    values |= {"given": frozenset(given), "help": None}
    if recipe and "full_finetuning" not in given:
        values["full_finetuning"] = not given.keys() & LORA_ONLY  # a recipe without LoRA settings is for train.py
    if given.get("fp16") and "bf16" not in given:
        values["bf16"] = False
    if values["bf16"] and values["fp16"]:
        raise SettingsError("--bf16 and --fp16 are both on; keep one")
    return values


def plan_defaults() -> dict[str, Any]:
    """The defaults of training, except that bf16 is on, because almost all runs use it."""
    return {option.name: option.default for option in plan_options()} | {"bf16": True}


def plan_help(asked: str) -> str:
    """The text of `--help`."""
    counted = [option for option in plan_options() if option.memory]
    sections = {"Planner": options_of((PlanArguments,)), "Training settings that affect memory": counted}
    return help_text(_HEAD, plan_options(), sections, asked)
