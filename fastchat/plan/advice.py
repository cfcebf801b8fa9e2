"""What to say where a run does not fit, or did not: the settings that do, with the global batch unchanged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from fastchat.plan.estimate import Plan, estimate
from fastchat.plan.limits import largest_microbatch
from fastchat.plan.report import as_json, as_lines, describe, why_not
from fastchat.plan.run import Run
from fastchat.plan.search import ENGINES, Engine, batches, keep_global_batch, on_engine, slowdown, with_batch
from fastchat.plan.units import human


def plan_lines(plan: Plan, *, as_object: bool) -> list[str]:
    """The answer for one configuration: lines for people, or one flat JSON object.

    The object also has what to do where it does not fit: `warning` (text or null) and the largest microbatch with its
    accumulation that keep the global batch, `fitting_microbatch` and `fitting_accumulation` (0: none fits).
    """
    if not as_object:
        return as_lines(plan)
    found = as_json(plan)
    largest = found["largest_microbatch"]
    micro, accumulation = keep_global_batch(plan.run, largest) if largest else (largest, largest)
    found |= {"fitting_microbatch": micro, "fitting_accumulation": accumulation, "warning": warning_line(plan)}
    return [json.dumps(found)]


def warning_line(plan: Plan) -> str | None:
    """What is said loudly before a run that will not fit; None where it fits, or nobody can know."""
    if plan.fits is not False:
        return None
    run = plan.run
    largest = largest_microbatch(run)
    line = f"WARNING: this will not fit: {why_not(plan)}"
    if not largest:
        found = what_fits(run)
        return f"{line}. No microbatch does with these settings; " + (_listed(found) if found else _NOTHING)
    micro, accumulation = keep_global_batch(run, largest)
    kept = "" if micro == largest else f" --per_device_train_batch_size {micro}"
    how = f"{kept} --gradient_accumulation_steps {accumulation} keeps the global batch"
    return f"{line}. The largest microbatch that does: --per_device_train_batch_size {largest} ({how.strip()})"


def what_fits(run: Run) -> list[str]:
    """Flags that turn `run` into one that fits and keeps its global batch; least slowdown first, at most three."""
    start = replace(run, chunked_head=True)
    candidates = [with_batch(start, batch) for batch in batches(run)]
    candidates += [replace(c, gradient_checkpointing=True) for c in candidates]
    if run.lora and not run.q_lora:
        candidates += [replace(c, q_lora=True) for c in candidates]
    engines = [on_engine(c, engine) for engine in _more_engines(run) for c in candidates]
    fits = sorted((c for c in (*candidates, *engines) if c != run and estimate(c).fits), key=slowdown)
    best: dict[tuple[Any, ...], str] = {}  # of each kind only the fastest microbatch
    for choice in fits:
        best.setdefault((choice.zero, choice.q_lora, choice.gradient_checkpointing), _difference(run, choice))
    return list(best.values())[:3]


def _more_engines(run: Run) -> tuple[Engine, ...]:
    """Those that save more than the run's own. An adapter's optimizer is too small to gain from a partition."""
    first = 2 if run.lora else 0
    at = next((i + 1 for i, engine in enumerate(ENGINES) if on_engine(run, engine).zero == run.zero), 0)
    return ENGINES[max(first, at) :]


_NOTHING = "nothing smaller does either: more GPUs, a smaller model or a shorter --model_max_length are needed"


def _listed(found: list[str]) -> str:
    return "what does, fastest first: " + "; or ".join(found)


_SMALLER = 0.05  # what is suggested needs at least this much less than what ran out, whatever the plan said


def advice_after_oom(plan: Plan, limit: int | None = None) -> str:
    """What to say to a run that ran out of memory: which settings fit, least slowdown first.

    `limit`: bytes of one GPU, where the plan does not know them. A plan that said "fits" was too low, so what is
    suggested has to be planned with less than that, too.
    """
    run, machine = plan.run, plan.run.machine
    limit = limit or (machine.cpu_memory if machine.on_cpu else machine.gpu_memory)
    if limit is None:
        return _blind_advice(run)
    needs = plan.host_total if machine.on_cpu else plan.total
    stays = needs - plan.paged  # what is paged gave way, and it was not enough
    tensors = plan.total * machine.gpus_per_host if machine.on_cpu else stays
    room = min(limit, stays) - math.ceil(_SMALLER * tensors)
    smaller = replace(machine, cpu_memory=room) if machine.on_cpu else replace(machine, gpu_memory=room)
    found = what_fits(replace(run, machine=smaller))
    head = f"planned for {describe(run)}: {human(needs)} of {human(limit)}"
    return f"{head}; {_listed(found) if found else _NOTHING}"


def _difference(old: Run, new: Run) -> str:
    """The flags that turn one run into the other."""
    flags = []
    if new.per_device_train_batch_size != old.per_device_train_batch_size:
        flags.append(f"--per_device_train_batch_size {new.per_device_train_batch_size}")
        flags.append(f"--gradient_accumulation_steps {new.gradient_accumulation_steps}")
    if new.gradient_checkpointing and not old.gradient_checkpointing:
        flags.append("--gradient_checkpointing True")
    if new.q_lora and not old.q_lora:
        flags.append("--q_lora True")
    if new.zero != old.zero and new.zero is not None:
        flags.append(f"--deepspeed {new.zero.path}")
    return " ".join(flags) or "--chunked_head True"


def _blind_advice(run: Run) -> str:
    flags = []
    if run.per_device_train_batch_size > 1:
        micro, accumulation = keep_global_batch(run, run.per_device_train_batch_size // 2)
        flags.append(f"--per_device_train_batch_size {micro} --gradient_accumulation_steps {accumulation}")
    if not run.gradient_checkpointing:
        flags.append("--gradient_checkpointing True")
    if run.lora and not run.q_lora:
        flags.append("--q_lora True")
    flags.append(f"a --model_max_length below {run.model_max_length}")
    return f"with {describe(run)}; lower it with " + ", or ".join(flags)
