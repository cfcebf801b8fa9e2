"""Advice for a run that does not fit or ran out of memory: settings that fit, with the same global batch; otherwise the
length, the number of GPUs or the GPU size that would."""

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
    """The answer for one configuration: lines of text, or one flat JSON object.

    If the plan does not fit, the lines end with settings that do. The object has the same information: `warning`
    (string or null); `fitting_microbatch` and `fitting_accumulation`, the largest microbatch that fits and the
    accumulation that keeps the global batch (0: none fits); and as strings with one way per line, `fitting_settings`
    (flags; null: none) and, if there are none, `fitting_otherwise`.
    """
    misses = plan.fits is False
    settings = what_fits(plan.run) if misses else []
    otherwise = what_else(plan.run) if misses and not settings else []
    if not as_object:
        lines = [f"  {found}" for found in (*settings, *otherwise)]
        head = "settings that fit, fastest first (same global batch):" if settings else "no settings fit; what would:"
        return [*as_lines(plan), *([head, *lines] if misses else [])]
    found = as_json(plan)
    found |= {"fitting_settings": "\n".join(settings) or None, "fitting_otherwise": "\n".join(otherwise) or None}
    largest = found["largest_microbatch"]
    micro, accumulation = keep_global_batch(plan.run, largest) if largest else (largest, largest)
    found |= {"fitting_microbatch": micro, "fitting_accumulation": accumulation, "warning": warning_line(plan)}
    return [json.dumps(found)]


def warning_line(plan: Plan) -> str | None:
    """The warning before a run that will not fit; None if it fits or the memory is unknown."""
    if plan.fits is not False:
        return None
    run = plan.run
    largest = largest_microbatch(run)
    line = f"WARNING: the run will not fit: {why_not(plan)}"
    if not largest:
        found = what_fits(run)
        return f"{line}. No microbatch fits with these settings; " + (_listed(found) if found else _nothing(run))
    micro, accumulation = keep_global_batch(run, largest)
    kept = "" if micro == largest else f" --per_device_train_batch_size {micro}"
    how = f"{kept} --gradient_accumulation_steps {accumulation} keeps the global batch"
    return f"{line}. The largest microbatch that fits: --per_device_train_batch_size {largest} ({how.strip()})"


def what_fits(run: Run) -> list[str]:
    """Flags that make `run` fit with the same global batch; least slowdown first, at most three."""
    start = replace(run, chunked_head=True)
    candidates = [with_batch(start, batch) for batch in batches(run)]
    candidates += [replace(c, gradient_checkpointing=True) for c in candidates]
    if run.lora and not run.q_lora:
        candidates += [replace(c, q_lora=True) for c in candidates]
    engines = [on_engine(c, engine) for engine in _more_engines(run) for c in candidates]
    fits = sorted((c for c in (*candidates, *engines) if c != run and estimate(c).fits), key=slowdown)
    best: dict[tuple[Any, ...], str] = {}  # only the fastest microbatch of each kind
    for choice in fits:
        best.setdefault((choice.zero, choice.q_lora, choice.gradient_checkpointing), _difference(run, choice))
    return list(best.values())[:3]


def _more_engines(run: Run) -> tuple[Engine, ...]:
    """The engines that save more memory than the run's own. The optimizer state of an adapter is too small to gain from
    partitioning, and a single process has no other to partition its weights with."""
    first = 2 if run.lora else 0
    at = next((i + 1 for i, engine in enumerate(ENGINES) if on_engine(run, engine).zero == run.zero), 0)
    alone = run.lora and run.machine.gpus == 1
    return tuple(e for e in ENGINES[max(first, at) :] if not alone or "offload_param" in e.zero)


# Memory sizes of available GPUs in GiB, and the numbers of GPUs that are tried.
_GPU_SIZES = (16, 24, 32, 40, 48, 80, 96, 141, 180)
_MOST_GPUS, _GPUS_PER_HOST = 64, 8
_SHORTEST = 64  # tokens; a shorter length is not suggested


def what_else(run: Run) -> list[str]:
    """What would fit if no settings do: a shorter length, more GPUs, larger GPUs. Never empty."""
    variants = list(_smallest(run))
    found = [_shorter(run, variants)]
    if run.machine.on_cpu:
        needed = min(estimate(variant).host_total for variant in variants)
        return [*filter(None, found), f"a host with {human(needed)} of memory"]
    found += [_more_gpus(run, variants), _larger_gpus(run, variants)]
    nothing = f"a smaller model: this one fits neither on {_MOST_GPUS} such GPUs nor on {run.machine.gpus} x "
    return [*filter(None, found)] or [f"{nothing}{_GPU_SIZES[-1]}GiB"]


def _smallest(run: Run) -> Iterator[Run]:
    """The run with all memory-saving settings, on each engine."""
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
    return "smaller settings do not fit either; what would: " + "; or ".join(what_else(run))


def _listed(found: list[str]) -> str:
    return "settings that fit, fastest first: " + "; or ".join(found)


_SMALLER = 0.05  # suggestions need at least this much less than the run that ran out of memory, whatever its plan


def advice_after_oom(plan: Plan, limit: int | None = None) -> str:
    """Advice for a run that ran out of memory: settings that fit, least slowdown first.

    `limit`: bytes of one GPU, if the plan does not know them. If the plan predicted that the run fits, it was too low,
    so the suggestions must need less than that plan, too.
    """
    run, machine = plan.run, plan.run.machine
    limit = limit or (machine.cpu_memory if machine.on_cpu else machine.gpu_memory)
    if limit is None:
        return _blind_advice(run)
    needs = plan.host_total if machine.on_cpu else plan.total
    stays = needs - plan.paged  # paged memory was moved to the host, and that was not enough
    tensors = plan.total * machine.gpus_per_host if machine.on_cpu else stays
    room = min(limit, stays) - math.ceil(_SMALLER * tensors)
    smaller = replace(machine, cpu_memory=room) if machine.on_cpu else replace(machine, gpu_memory=room)
    found = what_fits(replace(run, machine=smaller))
    head = f"planned for {describe(run)}: {human(needs)} of {human(limit)}"
    return f"{head}; {_listed(found) if found else _nothing(replace(run, machine=smaller))}"


def _difference(old: Run, new: Run) -> str:
    """The flags that change one run into the other."""
    flags = []
    if new.per_device_train_batch_size != old.per_device_train_batch_size:
        flags.append(f"--per_device_train_batch_size {new.per_device_train_batch_size}")
        flags.append(f"--gradient_accumulation_steps {new.gradient_accumulation_steps}")
    if new.checkpointed_layers > old.checkpointed_layers:
        flags.append("--gradient_checkpointing True")
    if new.q_lora and not old.q_lora:
        flags.append("--q_lora True")
    if new.zero != old.zero and new.zero is not None:
        flags.append(f"--deepspeed {new.zero.path}" + (" instead of FSDP" if old.fsdp is not None else ""))
    return " ".join(flags) or "--chunked_head True"


def _blind_advice(run: Run) -> str:
    flags = []
    if run.per_device_train_batch_size > 1:
        micro, accumulation = keep_global_batch(run, run.per_device_train_batch_size // 2)
        flags.append(f"--per_device_train_batch_size {micro} --gradient_accumulation_steps {accumulation}")
    if run.checkpointed_layers < run.architecture.num_layers:
        flags.append("--gradient_checkpointing True")
    if run.lora and not run.q_lora:
        flags.append("--q_lora True")
    flags.append(f"a --model_max_length below {run.model_max_length}")
    return f"with {describe(run)}; reduce memory with " + ", or ".join(flags)
