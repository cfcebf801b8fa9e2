"""The command line of the planner: its own settings, and every setting of training, so that a launch line or a recipe
can be pasted as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fastchat.errors import SettingsError
from fastchat.plan.units import parse_bytes
from fastchat.settings.arguments import PlanArguments
from fastchat.settings.help import asked_for_help, help_text
from fastchat.settings.options import check_ranges, check_refused, options_of, split_recipe
from fastchat.settings.parsing import to_names
from fastchat.settings.readers import LORA_ONLY, plan_options, plan_reader
from fastchat.settings.recipe_files import find_recipe

_HEAD = (
    "usage: python -m fastchat.plan [RECIPE.yaml] (--model_name_or_path DIR | --model_size 7b) [--setting value ...]",
    "",
    "What memory does a training run need, does it fit, and what would? Needs no GPU and loads no model.",
    "Every setting of training is accepted; those that change memory are below. bf16 is on by default here.",
)


def read_flags(argv: Sequence[str], hidden: Collection[str] = ()) -> dict[str, Any]:
    """Typed values of a command line, every setting by its name, defaults filled in; `given` holds the names given,
    `help` what `--help` asks for (None: nothing).

    A first word that is no flag is a recipe; the command line overrides it. SettingsError for an unknown setting
    (naming the nearest that is not `hidden`), a missing value or one of the wrong kind.
    """
    asked = asked_for_help(argv)
    if asked is not None:
        return {"help": asked}
    recipe, words = split_recipe(argv)
    reader = plan_reader(hidden)
    given = reader.from_yaml(find_recipe(recipe)) if recipe else {}
    typed = reader.from_words(words)
    if "model_size" in typed:
        given.pop("model_name_or_path", None)  # the recipe's model need not be here yet
    given |= typed
    options = reader.options.values()
    check_refused(options, given)
    check_ranges(options, given)
    for name in ("gpu_memory", "cpu_memory"):
        if given.get(name) is not None:
            given[name] = parse_bytes(given[name], f"--{name}")
    if given.get("lora_target_modules") is not None:
        given["lora_target_modules"] = to_names(given["lora_target_modules"], "--lora_target_modules")
    values = plan_defaults() | given
    values |= {"given": frozenset(given), "help": None}
    if recipe and "full_finetuning" not in given:
        values["full_finetuning"] = not given.keys() & LORA_ONLY  # a recipe without any adapter is train.py's
    if given.get("fp16") and "bf16" not in given:
        values["bf16"] = False
    if values["bf16"] and values["fp16"]:
        raise SettingsError("--bf16 and --fp16 are both on; keep one")
    return values


def plan_defaults() -> dict[str, Any]:
    """Training's defaults; bf16 alone is on, as everybody trains with it."""
    return {option.name: option.default for option in plan_options()} | {"bf16": True}


def plan_help(asked: str) -> str:
    """What `--help` prints."""
    counted = [option for option in plan_options() if option.memory]
    sections = {"Planner": options_of((PlanArguments,)), "Training settings that decide memory": counted}
    return help_text(_HEAD, plan_options(), sections, asked)
