"""A plan as text and as a flat JSON object."""

from __future__ import annotations

from typing import Any

from fastchat.errors import counted
from fastchat.plan.activations import layer_bytes
from fastchat.plan.estimate import PROCESS, Plan, cuda_of
from fastchat.plan.limits import largest_context, largest_microbatch
from fastchat.plan.optimizers import optimizer_of
from fastchat.plan.run import Machine, Run
from fastchat.plan.units import human

_WIDTH = 24
_NO_GPU = "no GPU was found: give --gpu_memory (such as --gpu_memory 24GiB) to see whether it fits"
_NO_MEMORY = "the memory of the host is unknown: give --cpu_memory (such as --cpu_memory 64GiB) to see whether it fits"


def as_json(plan: Plan, *, limits: bool = True) -> dict[str, Any]:
    """One flat object, memory in bytes. The parts, `reserve` and `overlap` add up to `total`; `paged` is
    a part of `optimizer`.

    `fits` is null if the GPU's memory is neither given nor detected; `limits` adds the two searches.
    """
    run, machine = plan.run, plan.run.machine
    found: dict[str, Any] = {
        "weights": plan.weights,
        "gradients": plan.gradients,
        "optimizer": plan.optimizer,
        "paged": plan.paged,
        "activations": plan.activations,
        "loss": plan.loss,
        "quantisation_overhead": plan.quantisation_overhead,
        "zero_buffers": plan.zero_buffers,
        "reserve": plan.reserve,
        "overlap": plan.overlap,
        "total": plan.total,
        "allocated": plan.allocated,
        "loss_alone": plan.loss_alone,
        "activations_per_layer": layer_bytes(run),
        "peak_at": plan.peak_at,
        "host_weights": plan.host_weights,
        "host_gradients": plan.host_gradients,
        "host_optimizer": plan.host_optimizer,
        "host_processes": plan.host_processes,
        "host_total": plan.host_total,
        "fits": plan.fits,
        "gpu_fits": plan.gpu_fits,
        "host_fits": plan.host_fits,
        "gpus": machine.gpus,
        "gpu_memory": machine.gpu_memory,
        "cpu_memory": machine.cpu_memory,
        "model": run.architecture.name,
        "parameters": run.architecture.parameters,
        "trained_parameters": run.trained,
        "checkpointed_layers": run.checkpointed_layers,
        "model_max_length": run.model_max_length,
        "per_device_train_batch_size": run.per_device_train_batch_size,
        "gradient_accumulation_steps": run.gradient_accumulation_steps,
    }
    if limits:
        found |= {"largest_microbatch": largest_microbatch(run), "largest_context": largest_context(run)}
    return found


def _checkpointed(run: Run) -> str:
    """on, off, or how many layers."""
    layers, all_layers = run.checkpointed_layers, run.architecture.num_layers
    return {0: "off", all_layers: "on"}.get(layers, f"of the first {layers} of {all_layers} layers")


def describe(run: Run) -> str:
    """A one-line description of the configuration."""
    what = "full fine-tuning" if not run.lora else f"{'QLoRA' if run.q_lora else 'LoRA'} r{run.lora_r}"
    how = [
        what,
        engine(run),
        f"microbatch {run.per_device_train_batch_size} x {run.model_max_length} tokens",
        f"checkpointing {_checkpointed(run)}",
    ]
    if run.gradient_accumulation_steps > 1:
        how.insert(3, f"accumulation {run.gradient_accumulation_steps}")
    if run.packing:
        how.append("packed")
    return ", ".join(how)


def engine(run: Run) -> str:
    """The engine that divides the work between GPUs."""
    if run.fsdp is not None:
        return "FSDP"
    if run.zero is None:
        alone = "one process" if run.machine.on_cpu else "one GPU"
        return alone if run.machine.gpus == 1 else "DDP"
    places = (("optimizer", run.zero.offload_optimizer), ("weights", run.zero.offload_params))
    offloads = [name for name, offloaded in places if offloaded]
    return f"ZeRO-{run.zero.stage}" + (f" ({' and '.join(offloads)} on the host)" if offloads else "")


def short_line(plan: Plan) -> str:
    """The line that a run prints before it starts."""
    run, machine = plan.run, plan.run.machine
    sizes = {"weights": plan.weights, "gradients and optimizer": plan.gradients + plan.optimizer}
    sizes |= {"activations": plan.activations, "loss": plan.loss}
    parts = ", ".join(f"{name} {human(size)}" for name, size in sizes.items())
    per, limit = ("GPU", machine.gpu_memory) if not machine.on_cpu else ("process on the CPU", None)
    line = f"memory expected: {human(plan.total)} per {per}"
    line += f" of {human(limit)}" if limit is not None else ""
    if machine.on_cpu or plan.host_total > machine.gpus_per_host * PROCESS:
        line += f", {human(plan.host_total)} per host"
        line += f" of {human(machine.cpu_memory)}" if machine.cpu_memory is not None else ""
    left = experts_notes(run)[-1:] if run.q_lora else []  # training itself says what stays frozen
    notes = "".join(f"; {note}" for note in (*run.architecture.notes, *left))
    return f"{line} ({parts}; {describe(run)}, {run.attention}, {_processors(machine)}){notes}"


def as_lines(plan: Plan) -> list[str]:
    """The complete plan as lines of text."""
    run, machine = plan.run, plan.run.machine
    a = run.architecture
    lines = [
        f"{a.name}: {_number(a.parameters)} parameters, {_number(run.trained)} trained",
        f"{describe(run)}; {_processors(machine)}",
        "",
    ]
    lines += [f"  {name:<{_WIDTH}}{human(size):>10}   {note}".rstrip() for name, size, note in _rows(plan)]
    lines += ["", *_verdict(plan)]
    lines += [f"note: {note}" for note in (*a.notes, *_notes(run))]
    return lines


def _number(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.{1 if count >= 1e6 else 3}f} M"


def _processors(machine: Machine) -> str:
    many = "s" if machine.gpus > 1 else ""
    if machine.on_cpu:
        return f"{machine.gpus} process{'es' if many else ''} on the CPU"
    return f"{machine.gpus} GPU{many}" + (f" ({machine.gpu_name})" if machine.gpu_name else "")


def _rows(plan: Plan) -> list[tuple[str, int, str]]:
    run = plan.run
    checkpointed = run.checkpointed_layers
    cuda = f"CUDA {human(cuda_of(run))}, " if cuda_of(run) else ""
    loss = "logits in chunks" if run.chunked_head else "all logits at once"
    if checkpointed and plan.loss < plan.loss_alone:
        loss += f"; {human(plan.loss_alone)} alone, mostly in memory of the layer recomputed later"
    rows = [
        ("weights", plan.weights, ""),
        ("gradients", plan.gradients, ""),
        ("optimizer", plan.optimizer, run.optim + _paged(plan)),
        ("activations", plan.activations, _activations(run)),
        ("loss", plan.loss, loss),
        ("quantisation overhead", plan.quantisation_overhead, "scales, one matrix in 16 bits" if run.q_lora else ""),
        (_buffers(run), plan.zero_buffers, ""),
        ("reserve", plan.reserve, f"{cuda}fragmentation, temporary tensors; an estimate"),
    ]
    if plan.overlap:
        rows.append(("not at the same time", plan.overlap, "gradients grow while activations are freed"))
    each = "per process" if run.machine.on_cpu else "per GPU"
    rows.append((each, plan.total, "" if run.machine.on_cpu else _of(run.machine.gpu_memory)))
    rows.append(("per host", plan.host_total, _host(plan)))
    return [row for row in rows if row[1] or row[0] == "weights"]


def _activations(run: Run) -> str:
    if run.checkpointed_layers == run.architecture.num_layers:
        return "inputs of layers, one recomputed"
    return f"inputs of {run.checkpointed_layers} layers, the others whole" if run.checkpointed_layers else "all layers"


def _buffers(run: Run) -> str:
    if run.fsdp is not None:
        return "gathered units"
    return "ZeRO buffers" if run.zero else "DDP buckets"


def _paged(plan: Plan) -> str:
    """The locations of a paged optimizer's state. If it is offloaded, or adapters are too small, nothing is paged."""
    spilled = plan.host_optimizer // plan.run.machine.gpus_per_host
    offloaded = plan.run.zero is not None and plan.run.zero.offload_optimizer
    if offloaded or not (plan.paged or spilled):
        return ""
    return f": {human(plan.paged)} paged, {human(spilled)} more on the host" if spilled else ": paged, all on the GPU"


def _of(limit: int | None) -> str:
    return "" if limit is None else f"of {human(limit)}"


def _host(plan: Plan) -> str:
    parts = [
        f"{name} {human(size)}"
        for name, size in (
            ("weights", plan.host_weights),
            ("gradients", plan.host_gradients),
            ("optimizer", plan.host_optimizer),
            (counted(plan.run.machine.gpus_per_host, "process"), plan.host_processes),
        )
        if size
    ]
    limit = _of(plan.run.machine.cpu_memory) or "not checked without --cpu_memory"
    return f"{limit} ({', '.join(parts)})"


def _verdict(plan: Plan) -> list[str]:
    run = plan.run
    if plan.fits is None:
        return [_NO_MEMORY if run.machine.on_cpu else _NO_GPU]
    batch, context = largest_microbatch(run), largest_context(run)
    lines = ["fits" if plan.fits else f"does NOT fit: {why_not(plan)}"]
    if batch:
        lines.append(f"largest microbatch at {run.model_max_length} tokens: {batch}")
    elif plan.host_fits is not False:
        ask = "--recommend" if run.lora else "--recommend --full_finetuning True"
        lines.append(f"not even a microbatch of 1 fits at {run.model_max_length} tokens; try {ask}")
    if context:
        beyond = run.architecture.max_positions
        more = f" (beyond {beyond} it needs RoPE scaling)" if beyond and context > beyond else ""
        lines.append(f"largest context at microbatch {run.per_device_train_batch_size}: {context} tokens{more}")
    return lines


def experts_notes(run: Run) -> list[str]:
    """What a mixture of experts leaves frozen, and what --q_lora leaves in 16 bits."""
    a = run.architecture
    if not run.lora or not a.stacks:
        return []
    notes = []
    if run.frozen_experts:
        names = " ".join(stack.name for stack in a.stacks if stack not in run.adapted)
        notes.append(
            f"{_number(run.frozen_experts)} of {_number(a.parameters)} parameters are weights of experts and stay "
            f"frozen; --lora_target_parameters {names} --lora_dropout 0 adapts them"
        )
    if run.q_lora:
        size, bits = human(a.expert_elements * run.weight_bytes), 8 * run.weight_bytes
        notes.append(f"--q_lora quantizes Linear layers only: the experts, {size} of the weights, stay in {bits} bits")
    return notes


def why_not(plan: Plan) -> str:
    """The memory that is insufficient, briefly."""
    machine = plan.run.machine
    reasons = []
    if plan.gpu_fits is False and machine.gpu_memory is not None:
        when = " (while the whole quantized model is loaded)" if plan.peak_at == "loading" else ""
        reasons.append(f"{human(plan.total)} per GPU{when}, {human(machine.gpu_memory)} available")
    if plan.host_fits is False and machine.cpu_memory is not None:
        reasons.append(f"{human(plan.host_total)} per host, {human(machine.cpu_memory)} available")
    return " and ".join(reasons)


def _notes(run: Run) -> list[str]:
    notes = experts_notes(run)
    if run.copied.unknown:
        notes.append(f"--lora_modules_to_save {' '.join(run.copied.unknown)}: not known to the planner, so not counted")
    if not optimizer_of(run.optim).known:
        notes.append(f"unknown --optim {run.optim}: AdamW was assumed")
    if run.casts_weights and not run.q_lora:
        notes.append(
            f"the weights are stored in {run.stored_dtype} but used in another 16-bit dtype, so autocast keeps a copy "
            "of them: --dtype bfloat16 or --deepspeed avoids it"
        )
    return notes
