"""`--gradient_checkpointing auto`: as few checkpointed layers as fit."""

from __future__ import annotations

from dataclasses import replace

from fastchat.plan.estimate import estimate
from fastchat.plan.run import Run

_USABLE = 0.95  # share of the memory that a plan may fill: it is off by a few percent itself


def fewest_checkpoints(run: Run) -> Run:
    """`run` with the fewest checkpointed layers with which it fits; with all of them if nothing fits, or the memory is
    unknown."""
    machine, layers = run.machine, run.architecture.num_layers
    everything = replace(run, gradient_checkpointing=True)
    limit = machine.cpu_memory if machine.on_cpu else machine.gpu_memory
    if limit is None:
        return everything
    name = "cpu_memory" if machine.on_cpu else "gpu_memory"
    tight = replace(machine, **{name: int(_USABLE * limit)})
    for number in range(layers):
        found = replace(run, gradient_checkpointing=number or False)
        if estimate(replace(found, machine=tight)).fits:
            return found
    return everything
