"""Weights, gradients, optimizer states and communication buffers: the memory that does not depend on the tokens.

P is the number of trained parameters, N the number of GPUs. DeepSpeed's memory follows its source, version 0.19
(runtime/zero/stage_1_and_2.py, stage3.py); a test compares the result with two real processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastchat.plan.architecture import Linear
from fastchat.plan.nf4 import quantised_size
from fastchat.plan.optimizers import SMALLEST_PAGED, Optimizer, optimizer_of
from fastchat.plan.run import Run


@dataclass(frozen=True)
class States:
    """Bytes. Fields that start with host_ are per process, the others per GPU. `paged` may be on either."""

    weights: int
    scales: int  # of the quantized weights
    gradients: int
    optimizer: int
    buffers: int
    loading: int  # weights that exist while the model is loaded, before they are partitioned
    stepping: int  # temporary, during the optimizer step
    host_weights: int = 0
    host_gradients: int = 0
    host_optimizer: int = 0
    paged: int = (
        0  # of the optimizer, in memory that the driver moves: on the GPU while there is room, else on the host
    )


def states_of(run: Run) -> States:
    """The states of one configuration."""
    if run.fsdp is not None:
        from fastchat.plan.fsdp import fsdp_states  # which needs this module

        return fsdp_states(run)
    if run.zero is None:
        return _plain(run)
    return _zero3(run) if run.zero.stage == 3 else _zero12(run)


def base_weights(run: Run) -> tuple[int, int]:
    """(bytes of the whole base, bytes of the scales that quantization adds) before partitioning."""
    a = run.architecture
    if not run.q_lora:
        return a.parameters * run.weight_bytes, 0
    sizes = [(quantised_size(linear.elements), n) for kind, n in a.kind_counts for linear in kind.linears]
    codes, scales = sum(s.codes * n for s, n in sizes), sum(s.scales * n for s, n in sizes)
    return codes + a.unquantised_elements * run.weight_bytes, scales


def trained_weights(run: Run) -> int:
    """Bytes of the adapter; in full fine-tuning the trained weights are the base's own.

    An adapter that starts from parts of the base is kept twice: as it is, and as it began.
    """
    return (run.trained + (run.low_rank if run.subtracts_start else 0)) * run.adapter_bytes if run.lora else 0


# ---- without DeepSpeed ----


def _plain(run: Run) -> States:
    base, scales = base_weights(run)
    optimizer = optimizer_of(run.optim)
    gradients = run.trained * run.trained_bytes
    state, paged = _state(run, optimizer, run.trained, run.trained_bytes)
    # DistributedDataParallel copies all gradients into buckets, which exist during the whole run.
    buckets = gradients if run.machine.gpus > 1 else 0
    return States(
        weights=base + trained_weights(run),
        scales=scales,
        gradients=gradients,
        optimizer=state - paged,
        buffers=buckets,
        loading=0,
        stepping=_stepping(run, optimizer),
        paged=paged,
    )


def _stepping(run: Run, optimizer: Optimizer) -> int:
    """Copies during the step: on a GPU of all parameters at once, on a CPU two copies of one parameter at a time."""
    if run.machine.on_cpu:
        return 2 * _largest_trained(run) * run.trained_bytes if optimizer.copies else 0
    return optimizer.copies * run.trained * run.trained_bytes


# ---- ZeRO-1 and ZeRO-2 (and DeepSpeed without ZeRO, stage 0) ----


def _zero12(run: Run) -> States:
    zero, p = run.zero, run.trained
    assert zero is not None
    parts = run.machine.gpus if zero.stage else 1
    mine = math.ceil(p / parts)
    half = run.trained_bytes
    base, scales = base_weights(run)
    optimizer = optimizer_of(run.optim)
    state, paged = _state(run, optimizer, mine, 4)
    master = 4 * mine  # a float32 copy of this process's partition, even if the weights are float32
    # ZeRO-2 keeps this process's partition of the gradients; ZeRO-1 keeps all of them until the step.
    wide = zero.accumulates_in or half
    gradients = wide * (mine if zero.stage == 2 else p)
    if not zero.offload_optimizer:
        stepping = 4 * mine + optimizer.copies * 4 * mine  # float32 gradients of the partition, and optimizer copies
        return States(
            weights=base + trained_weights(run),
            scales=scales,
            gradients=gradients,
            optimizer=master + state - paged,
            buffers=_reduce_buckets(run),
            loading=0,
            stepping=stepping,
            paged=paged,
        )
    # Offloaded: gradients leave the GPU through a buffer as large as the largest parameter. On the host: float32
    # weights, two moments and gradients, the 16-bit copy to send back, and 16-bit gradients while accumulating.
    accumulated = wide * mine if run.gradient_accumulation_steps > 1 else 0
    return States(
        weights=base + trained_weights(run),
        scales=scales,
        gradients=0 if zero.stage == 2 else gradients,
        optimizer=0,
        buffers=_reduce_buckets(run) + half * _largest_trained(run),
        loading=0,
        stepping=0,
        host_gradients=4 * mine + accumulated,
        host_optimizer=master + 8 * mine + half * mine,
    )


def _reduce_buckets(run: Run) -> int:
    """Gradient buckets for the reduction; two of them if it overlaps with the backward pass."""
    zero = run.zero
    assert zero is not None
    if zero.stage == 0 or not zero.contiguous:
        return 0
    return run.trained_bytes * zero.reduce_bucket * (2 if zero.overlap and zero.stage < 3 else 1)


def _largest_trained(run: Run) -> int:
    a = run.architecture
    if not run.lora:
        return max(a.embedding_elements, max(linear.elements for linear in (*a.linears, *a.stacks)))
    matrices = (max(1, m.stacked) * max(m.inputs, m.outputs) for m, _ in run.adapters)
    return max(run.lora_r * max(matrices, default=0), run.copied.largest)


# ---- ZeRO-3 ----


def _zero3(run: Run) -> States:
    zero, n, p = run.zero, run.machine.gpus, run.trained
    assert zero is not None
    mine = math.ceil(p / n)
    base, scales = base_weights(run)
    everything = base + trained_weights(run)
    part = math.ceil(everything / n)
    optimizer = optimizer_of(run.optim)
    state, paged = _state(run, optimizer, mine, 4)
    gradients = (zero.accumulates_in or run.trained_bytes) * mine
    gathered = _gathered(run, everything)
    group = min(zero.sub_group, mine)
    return States(
        weights=0 if zero.offload_params else part,
        scales=scales,  # quantization constants are not parameters, so they are not partitioned
        gradients=0 if zero.offload_optimizer else gradients,
        optimizer=0 if zero.offload_optimizer else 4 * mine + state - paged,
        buffers=gathered + _reduce_buckets(run),
        # A quantized model is first loaded completely on every GPU and then partitioned.
        loading=everything - (0 if zero.offload_params else part) if run.q_lora else 0,
        stepping=0 if zero.offload_optimizer else 4 * group * (1 + optimizer.copies),
        host_weights=part if zero.offload_params else 0,
        host_gradients=gradients + 4 * mine if zero.offload_optimizer else 0,
        host_optimizer=4 * mine + 8 * mine if zero.offload_optimizer else 0,
        paged=0 if zero.offload_optimizer else paged,
    )


def _gathered(run: Run, everything: int) -> int:
    """Gathered weights: up to `stage3_max_live_parameters`, and at least the largest layer, all experts included.

    Counted in stored elements: two nf4 weights are one. Prefetched weights are included.
    """
    zero, a = run.zero, run.architecture
    assert zero is not None
    if run.machine.gpus == 1 and not zero.offload_params:
        return 0  # the only partition is complete
    largest = max(a.embedding_elements * run.weight_bytes, _layer_bytes(run))
    each = 1 if run.q_lora else run.weight_bytes
    return min(everything, max(largest, zero.live_parameters * each))


def _layer_bytes(run: Run) -> int:
    """The stored weights of the largest layer."""
    each = 0.5 if run.q_lora else run.weight_bytes
    layers = run.architecture.kinds
    return round(max(layer.linear_elements * each + layer.expert_elements * run.weight_bytes for layer in layers))


# ---- optimizer ----


def _state(run: Run, optimizer: Optimizer, parameters: int, parameter_bytes: int) -> tuple[int, int]:
    """(bytes of the state, bytes of them that are paged) for this process's `parameters`."""
    a = run.architecture
    if optimizer.factored and run.zero is None:
        if run.lora:  # a matrix of r x n keeps r + n values
            return 4 * sum(n * _sides(linear, run.lora_r) for linear, n in run.adapters), 0
        linears = [(linear, n) for kind, n in a.kind_counts for linear in kind.linears]
        each = ((x, n * max(1, x.stacked)) for x, n in (*linears, *a.stack_counts))
        sides = sum((linear.inputs + linear.outputs) * n for linear, n in each)
        tables = (a.vocab + a.hidden) * (1 if a.tied else 2) + a.norm_elements + a.bias_elements
        return 4 * (sides + tables), 0
    if optimizer.bytes_each is not None and optimizer.bytes_each < 2 and run.zero is None and not run.lora:
        # bitsandbytes keeps 32 bits for embeddings (transformers overrides them), norms and biases
        small = a.embedding_elements + a.norm_elements + a.bias_elements
        state = optimizer.state_bytes(parameters - small, parameter_bytes) + 4 * optimizer.states * small
    else:
        state = optimizer.state_bytes(parameters, parameter_bytes)
    return round(state), round(state) if optimizer.paged and _pages(run) else 0


def _sides(linear: Linear, rank: int) -> int:
    """Rows and columns of A and of B; a stack has one A and one B, as wide as all its matrices."""
    return 2 * rank * max(1, linear.stacked) + linear.inputs + linear.outputs


def _pages(run: Run) -> bool:
    """Whether the state is paged: always for DeepSpeed's flat partition, not for small matrices, never on a CPU."""
    if run.machine.on_cpu:
        return False
    return run.zero is not None or _largest_trained(run) >= SMALLEST_PAGED
