"""The plan of a run: printed alone with `--plan`, in short before every run, and as advice when memory ran out.

Needs no torch, so `--plan` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastchat.data.tokens.lost import Lost
from fastchat.errors import SettingsError, UserError, say, show
from fastchat.plan.api import (
    Machine,
    Plan,
    advice_after_oom,
    detect_cpu_memory,
    estimate,
    machine_asked,
    plan_for,
    plan_lines,
    run_of,
    short_line,
    warning_line,
)
from fastchat.plan.command_line import plan_help, read_flags
from fastchat.plan.units import human
from fastchat.settings.options import is_flag, split_recipe
from fastchat.settings.parsing import FALSE, TRUE
from fastchat.settings.readers import LORA_ONLY
from fastchat.settings.values import Values
from fastchat.streams import detail, kept_output

_PLANNERS_OWN = ("recommend", "largest", "recipes", "full_finetuning")
_ONLY = (
    "Only memory was planned, and each value read: paths, data, template and settings that need each other are checked "
    "when training starts."
)


@kept_output()
def end_if_only_planned(argv: Sequence[str], *, lora: bool) -> list[str]:
    """The words without `--plan`. Where it is among them, prints the plan and ends the process instead.

    Exit code 0, also when the answer is "does not fit"; 2 for settings that cannot be read. Nothing is loaded, and the
    output folder is not looked at.
    """
    try:
        asked, words = take_plan(argv)
        if not asked:
            return words
        lines = answer(words, lora=lora)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if os.environ.get("RANK", "0") == "0":
        show("\n".join(lines))
    sys.exit(0)


def take_plan(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """(whether `--plan` is on, the other words). It takes True or False like every other switch."""
    asked, words = False, []
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        name, glued, value = word.partition("=")
        if name != "--plan":
            words.append(word)
            continue
        if not glued and at < len(argv) and not is_flag(argv[at]):
            value, at = argv[at], at + 1
        if value.lower() not in TRUE | FALSE | {""}:
            raise SettingsError(f"--plan is {value!r}, but True or False is expected")
        asked = value.lower() not in FALSE
    return asked, words


def answer(argv: Sequence[str], *, lora: bool) -> list[str]:
    """The plan of a training command, and of no other settings: an unknown flag is an error here too.

    The planner's `--gpus`, `--hosts`, `--gpu_memory`, `--cpu_memory` describe another machine, `--json` asks for one
    object. Without them it is this machine, with as many GPUs as the command has processes; `--hosts` alone means so
    many machines like it.
    """
    recipe, words = split_recipe(argv)
    foreign_here = _PLANNERS_OWN if lora else (*_PLANNERS_OWN, *LORA_ONLY)
    flags = read_flags([*([recipe] if recipe else []), *words], hidden=foreign_here)
    if flags["help"] is not None:
        return [plan_help(flags["help"])]
    given = flags["given"]
    for name in _PLANNERS_OWN:
        if name in given:
            raise SettingsError(f"unknown setting --{name}; `fastchat plan --{name}` has it")
    if not lora and (foreign := sorted(given & LORA_ONLY)):
        raise SettingsError(f"--{foreign[0]} belongs to train_lora.py, not to full fine-tuning")
    if "bf16" not in given:
        flags["bf16"] = False  # the planner's own default is what everybody uses; this command's is not
    if "gpus" not in given:
        if not given & {"gpu_memory", "cpu_memory"}:
            flags["cpu_memory"] = detect_cpu_memory()
        processes, hosts = _launched()
        flags["hosts"] = flags["hosts"] if "hosts" in given else hosts
        flags["gpus"] = processes // hosts * flags["hosts"]
    flags["full_finetuning"] = not lora
    lines = plan_lines(estimate(run_of(flags, machine_asked(flags))), as_object=flags["json"])
    return lines if flags["json"] else [*lines, _ONLY]


def announce(settings: Values, device: Any, *, lora: bool, attention: str) -> Plan | None:
    """Says in one line what a run is expected to need, loudly where that is more than there is; the plan.

    `settings`: the checked ones by name; `device`: torch's, which it trains on; `attention`: the kernel that was
    chosen. None, with a line, for a model that the planner does not know: the run continues without a plan.
    """
    try:
        plan = plan_for(settings, _machine(device), lora=lora, attention=attention)
    except UserError as error:
        say(f"memory: not planned ({error})")
        return None
    detail(short_line(plan))
    warning = warning_line(plan)
    if warning is not None:
        say(warning)
    return plan


def advice(plan: Plan | None, otherwise: str) -> str:
    """What to lower after running out of memory; `otherwise` where nothing was planned."""
    return otherwise if plan is None else advice_after_oom(plan)


def length_costs(plan: Plan | None, lengths: Sequence[int]) -> dict[int, str]:
    """What a run with each of these `--model_max_length` takes more than the planned one, and whether it fits."""
    if plan is None:
        return {}
    costs = {}
    for length in lengths:
        longer = estimate(replace(plan.run, model_max_length=length))
        per = "process" if plan.run.machine.on_cpu else "GPU"
        says = {True: ", fits", False: ", does not fit", None: ""}[longer.fits]
        cost = f"+{human(max(longer.total - plan.total, 0))} per {per}{says}"
        context = plan.run.architecture.max_positions
        if context and length > context:
            cost += f"; beyond the model's {context} tokens: --rope_scaling_type"
        costs[length] = cost
    return costs


def say_lost(plan: Plan | None, lost: Lost | None, max_length: int) -> None:
    """Says which lengths keep what is cut off, and the memory they take; a warning where much is lost."""
    if lost is not None:
        costs = length_costs(plan, [length for length, _ in lost.lengths])
        if line := lost.line(max_length, costs):
            say(line)


def for_batch(plan: Plan, batch: int, length: int) -> Plan:
    """The plan as if every microbatch were [batch, length]: what is to be compared with a run that saw such ones."""
    return estimate(replace(plan.run, per_device_train_batch_size=batch, model_max_length=length))


def _launched() -> tuple[int, int]:
    """(processes, machines) of this command, as its launcher says."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size  # torchrun's name, deepspeed's
    return size, max(1, size // int(here))


def _machine(device: Any) -> Machine:
    """What this run has, with the driver's word for the GPU's memory."""
    processes, hosts = _launched()
    memory = None
    if device.type == "cuda":
        import torch

        memory = torch.cuda.get_device_properties(device).total_memory
    return Machine(processes, hosts, memory, detect_cpu_memory(), on_cpu=device.type == "cpu")
