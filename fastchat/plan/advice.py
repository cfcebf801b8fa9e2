"""What to say where a run does not fit, or did not: the settings that do, with the global batch unchanged; else what
length, how many GPUs or what GPU it takes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastchat.plan.estimate import Plan, estimate
from fastchat.plan.limits import largest_context, largest_microbatch
from fastchat.plan.report import as_json, as_lines, describe, why_not
from fastchat.plan.run import Machine, Run
from fastchat.plan.search import ENGINES, Engine, batches, keep_global_batch, on_engine, slowdown, with_batch
from fastchat.plan.units import GIB, human


def plan_lines(plan: Plan, *, as_object: bool) -> list[str]:
    """The answer for one configuration: lines for people, or one flat JSON object.

    The lines of a plan that does not fit end with what does. The object has it too: `warning` (text or null), the
    largest microbatch with its accumulation that keep the global batch, `fitting_microbatch` and `fitting_accumulation`
    (0: none fits), and as texts with one way per line, `fitting_settings` (flags; null: none) and, where there are
    none, `fitting_otherwise`.
    """
    misses = plan.fits is False
    settings = what_fits(plan.run) if misses else []
    otherwise = what_else(plan.run) if misses and not settings else []
    if not as_object:
        lines = [f"  {found}" for found in (*settings, *otherwise)]
        head = "what fits, fastest first (the global batch stays):" if settings else "no settings fit; what would:"
        return [*as_lines(plan), *([head, *lines] if misses else [])]
    found = as_json(plan)
    found |= {"fitting_settings": "\n".join(settings) or None, "fitting_otherwise": "\n".join(otherwise) or None}
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
        return f"{line}. No microbatch does with these settings; " + (_listed(found) if found else _nothing(run))
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
    """Those that save more than the run's own. An adapter's optimizer is too small to gain from a partition, and one
    process has nobody to share its weights with."""
    first = 2 if run.lora else 0
    at = next((i + 1 for i, engine in enumerate(ENGINES) if run.zero and engine.path(run.lora) == run.zero.path), 0)
    alone = run.lora and run.machine.gpus == 1
    return tuple(e for e in ENGINES[max(first, at) :] if not alone or "offload_param" in e.zero)


# GPUs that are sold, in GiB, and how many of them are looked at.
_GPU_SIZES = (16, 24, 32, 40, 48, 80, 96, 141, 180)
_MOST_GPUS, _GPUS_PER_HOST = 64, 8
_SHORTEST = 64  # tokens; a shorter window is no advice


def what_else(run: Run) -> list[str]:
    """What would fit where no settings do: a shorter window, more such GPUs, larger ones. Never empty."""
    variants = list(_smallest(run))
    found = [_shorter(run, variants)]
    if run.machine.on_cpu:
        needed = min(estimate(variant).host_total for variant in variants)
        return [*filter(None, found), f"a host with {human(needed)} of memory"]
    found += [_more_gpus(run, variants), _larger_gpus(run, variants)]
    nothing = f"a smaller model: {_MOST_GPUS} such GPUs do not take this one, nor do {run.machine.gpus} x "
    return [*filter(None, found)] or [f"{nothing}{_GPU_SIZES[-1]}GiB"]


def _smallest(run: Run) -> Iterator[Run]:
    """The run with everything that saves memory, on each engine."""
    product = run.per_device_train_batch_size * run.gradient_accumulation_steps
    run = replace(with_batch(run, (1, product)), chunked_head=True, gradient_checkpointing=True, q_lora=run.lora)
    yield run
    for engine in ENGINES:
        yield on_engine(run, engine)


def _fitting_on(variants: list[Run], machine: Machine) -> Run | None:
    moved = (replace(variant, machine=machine) for variant in variants)
    return min((variant for variant in moved if estimate(variant).fits), key=slowdown, default=None)


def _shorter(run: Run, variants: list[Run]) -> str | None:
    length, best = max(((largest_context(v) or 0, v) for v in variants), key=lambda pair: pair[0])
    if not _SHORTEST <= length < run.model_max_length:
        return None
    return f"--model_max_length {length} {_difference(run, best)}"


def _more_gpus(run: Run, variants: list[Run]) -> str | None:
    gpus = run.machine.gpus
    while (gpus := 2 * gpus) <= _MOST_GPUS:
        hosts = max(run.machine.hosts, -(-gpus // _GPUS_PER_HOST))
        if gpus % hosts == 0 and (choice := _fitting_on(variants, replace(run.machine, gpus=gpus, hosts=hosts))):
            where = f" on {hosts} hosts" if hosts > 1 else ""
            return f"{gpus} such GPUs{where}: {_difference(run, choice)}"
    return None


def _larger_gpus(run: Run, variants: list[Run]) -> str | None:
    for size in _GPU_SIZES:
        if size * GIB > (run.machine.gpu_memory or 0):
            machine = replace(run.machine, gpu_memory=size * GIB, gpu_name="")
            if choice := _fitting_on(variants, machine):
                return f"{run.machine.gpus} GPU{'s' * (run.machine.gpus > 1)} of {size}GiB: {_difference(run, choice)}"
    return None


def _nothing(run: Run) -> str:
    return "nothing smaller does either; what would: " + "; or ".join(what_else(run))


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
    return f"{head}; {_listed(found) if found else _nothing(replace(run, machine=smaller))}"


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
