"""`python -m fastchat.plan`: how much memory a training run needs, whether it fits, and which settings would."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError, UserError, say, show
from fastchat.plan.api import estimate, machine_asked, plan_lines, run_of
from fastchat.plan.command_line import plan_help, read_flags
from fastchat.plan.known import architecture_of_size
from fastchat.plan.largest import largest_models
from fastchat.plan.recipes import launch_lines, recipe, with_given, write_recipes
from fastchat.plan.recommend import LENGTH, Recommendation, recommend, table
from fastchat.plan.report import as_json, describe
from fastchat.plan.run import Machine, Run
from fastchat.plan.units import human
from fastchat.settings.readers import LORA_ONLY
from fastchat.streams import kept_output


@kept_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done (also if the run does not fit), 2 settings."""
    try:
        flags = read_flags(sys.argv[1:] if argv is None else argv)
        if flags["help"] is not None:
            show(plan_help(flags["help"]))
            return 0
        for line in _answer(flags, machine_asked(flags)):
            show(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _answer(flags: dict[str, Any], machine: Machine) -> list[str]:
    if flags["recommend"] and flags["largest"]:
        raise SettingsError("--recommend and --largest cannot be combined; give one of them")
    adapters = [f"--{name}" for name in sorted(flags["given"] & LORA_ONLY)]
    if adapters and flags["full_finetuning"] and not flags["q_lora"]:
        say(f"ignored, because --full_finetuning trains no adapter: {', '.join(adapters)}")
    if flags["recommend"]:
        return _recommended(flags, machine)
    if flags["largest"]:
        return _largest(flags, machine)
    return plan_lines(estimate(run_of(flags, machine)), as_object=flags["json"])


def _needs_gpu_memory(machine: Machine, flag: str) -> None:
    if machine.on_cpu:
        raise SettingsError(f"--{flag} is for GPUs: remove --use_cpu")
    if machine.gpu_memory is None:
        raise SettingsError(f"--{flag}: no GPU was found; describe the GPUs, for example --gpus 8 --gpu_memory 24GiB")


def _given_run(flags: dict[str, Any], machine: Machine) -> Run | None:
    if flags["model_name_or_path"] or flags["model_size"]:
        return run_of(flags, machine)
    return None


_NO_HOST = "the memory of the host is unknown (give it as --cpu_memory 256GiB), so "
_SEARCHED = ("q_lora", "gradient_checkpointing", "deepspeed")


def _recommended(flags: dict[str, Any], machine: Machine) -> list[str]:
    _needs_gpu_memory(machine, "recommend")
    given = _given_run(flags, machine) or run_of(flags, machine, architecture_of_size("7b"))
    length = flags["model_max_length"] if "model_max_length" in flags["given"] else LENGTH
    if searched := [f"--{name}" for name in _SEARCHED if name in flags["given"]]:
        say(f"ignored, because --recommend tries all values: {', '.join(searched)}")
    found = recommend(machine, given, sorted(flags["given"]), length, flags["cache_dir"])
    named = flags["model_name_or_path"] or flags["model_size"]
    found = [with_given(r, flags, not named or r.wanted.architecture.name == given.architecture.name) for r in found]
    folder = Path(flags["recipes"]).expanduser()
    written = write_recipes(found, folder)
    if flags["json"]:
        return [json.dumps(_flat(found))]
    unknown = [_NO_HOST + "offloading to it is not checked"] if machine.cpu_memory is None else []
    lines = [_machine_line(machine, length), *unknown, "", *table(found)]
    if not given.lora and not written:
        lines += ["", "Full fine-tuning does not fit; without --full_finetuning, LoRA and QLoRA are tried."]
    for path, launch in written:
        lines += ["", f"{path}:", *(f"  {line}" for line in launch)]
    return lines


def _flat(recommendations: Sequence[Recommendation]) -> dict[str, Any]:
    """One flat object: `7b_total`, `7b_q_lora`, `7b_recipe` ..."""
    flat: dict[str, Any] = {}
    for r in recommendations:
        flat[f"{r.label}_fits"] = r.best is not None
        if r.best is not None:
            run = r.best.run
            found = as_json(r.best.plan, limits=False)
            found |= {"full_finetuning": not run.lora, "q_lora": run.q_lora, "lora_r": run.lora_r}
            found["deepspeed"] = run.zero.path if run.zero else None
            found |= {"zero_stage": run.zero.stage if run.zero else 0, "slowdown": round(r.best.slowdown, 3)}
            found |= {"gradient_checkpointing": run.gradient_checkpointing, "recipe": recipe(r)}
            found["launch"] = launch_lines(r, Path("RECIPE.yaml"))[0]
            flat |= {f"{r.label}_{name}": value for name, value in found.items()}
    return flat


def _largest(flags: dict[str, Any], machine: Machine) -> list[str]:
    _needs_gpu_memory(machine, "largest")
    if "model_max_length" not in flags["given"]:
        flags["model_max_length"] = LENGTH
    run = _given_run(flags, machine) or run_of(flags, machine, architecture_of_size("7b"))
    found = largest_models(run)
    if flags["json"]:
        flat: dict[str, Any] = {}
        for one in found:
            name = one.method.replace(" ", "_").replace("-", "_").lower()
            flat[f"{name}_parameters"] = one.plan.run.architecture.parameters if one.plan else 0
            found_json = as_json(one.plan, limits=False) if one.plan else {}
            flat |= {f"{name}_{key}": value for key, value in found_json.items()}
        return [json.dumps(flat)]
    lines = [_machine_line(machine, run.model_max_length), ""]
    if machine.cpu_memory is None:
        lines.insert(1, _NO_HOST + "offloading to it is not considered")
    for one in found:
        if one.plan is None:
            lines.append(f"{one.method:<17} not even a model of 1B fits")
            continue
        a = one.plan.run.architecture
        shape = f"{a.num_layers} layers, hidden {a.hidden}, {a.num_heads}/{a.num_kv_heads} heads, MLP {a.intermediate}"
        size = f"{one.billions:.1f}B{' or more' if one.more else ''}"
        lines.append(f"{one.method:<17} {size:<14} {describe(one.plan.run)}")
        lines.append(f"{'':<17} {human(one.plan.total)} per GPU, {human(one.plan.host_total)} per host ({shape})")
    return lines


def _machine_line(machine: Machine, length: int) -> str:
    host = f", {human(machine.cpu_memory)} per host" if machine.cpu_memory else ""
    name = f" {machine.gpu_name}" if machine.gpu_name else ""
    hosts = f" on {machine.hosts} hosts" if machine.hosts > 1 else ""
    return f"{machine.gpus} x {human(machine.gpu_memory or 0)}{name}{hosts}{host}; dialogues of {length} tokens"


if __name__ == "__main__":
    sys.exit(main())
