"""The states of a run under FSDP2 (torch 2.13): the rows of each process, and what is gathered at the moment.

Units are the decoder layers, and the rest of the model (embedding, last norm, head), which is gathered from the
beginning of each pass to its end. While one layer computes, the next one arrives, in a buffer it is then copied out of.
"""

from __future__ import annotations

import math

from fastchat.plan.optimizers import optimizer_of
from fastchat.plan.run import Run
from fastchat.plan.states import States, base_weights

_ARRIVING = 3  # the layer that computes, the next one, and the buffer that it arrives in


def fsdp_states(run: Run) -> States:
    """Weights, gradients and optimizer state by rows, the gathered units, and the unit whose gradients are reduced."""
    processes = run.machine.gpus
    wide = 4 if run.half else run.trained_bytes  # what trains is kept in float32 in half precision
    mine = math.ceil(run.trained / processes)
    base, scales = base_weights(run)
    frozen = base if run.lora else base - run.trained * run.weight_bytes
    part = math.ceil(frozen / processes) + wide * mine
    optimizer = optimizer_of(run.optim)
    copies = 2 * _largest_unit(run) * wide // processes if run.machine.on_cpu else optimizer.copies * wide * mine
    everything = frozen + run.trained * wide
    return States(
        weights=part,
        scales=scales,  # quantization constants are no parameters: they are not divided
        gradients=wide * mine,
        optimizer=round(optimizer.state_bytes(mine, wide)),
        buffers=_gathered(run) + _reduced(run, wide),
        # On a CPU, and in 4 bits, the whole model is loaded where it trains, and then divided.
        loading=everything - part if run.machine.on_cpu or run.q_lora else 0,
        stepping=copies if optimizer.copies else 0,
    )


def _gathered(run: Run) -> int:
    layer, rest = _layer(run), _rest(run)
    layers = run.architecture.num_layers if not run.reshards else min(_ARRIVING, run.architecture.num_layers)
    return rest + layers * layer


def _layer(run: Run) -> int:
    """Bytes of the largest layer as it is gathered, its adapters included."""
    each = 0.5 if run.q_lora else run.weight_bytes
    layers = run.architecture.kinds
    base = max(layer.linear_elements * each + layer.expert_elements * run.weight_bytes for layer in layers)
    adapters = run.low_rank * run.adapter_bytes / run.architecture.num_layers if run.lora else 0
    return round(base + adapters)


def _rest(run: Run) -> int:
    a = run.architecture
    return (a.embedding_elements + a.head_elements + a.hidden + run.copied.elements) * run.weight_bytes


def _reduced(run: Run, wide: int) -> int:
    """Whole gradients of the rest, which wait for the end of the pass, and of a layer, with the buffer they are summed
    in."""
    if run.lora:
        layer = run.low_rank / run.architecture.num_layers
        return round(layer * (run.adapter_bytes + wide)) + run.copied.elements * (run.weight_bytes + wide)
    return _rest(run) + round(_largest_unit(run) * (run.weight_bytes + wide))


def _largest_unit(run: Run) -> int:
    """Trained numbers of a layer."""
    if run.lora:
        return math.ceil(run.low_rank / run.architecture.num_layers)
    return max(layer.elements for layer in run.architecture.kinds)
