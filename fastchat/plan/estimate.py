"""The plan of one run: the parts of its memory, which of them exist at the same time, and whether they fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastchat.plan.activations import Activations, activations_of
from fastchat.plan.layer_memory import group_bytes
from fastchat.plan.loss import loss_of
from fastchat.plan.run import Run
from fastchat.plan.states import States, states_of
from fastchat.plan.units import GIB

# Memory outside torch's allocator. Estimates from published figures for A100 and H100, not measured here.
CONTEXT = round(0.6 * GIB)  # CUDA context with cuBLAS and the loaded kernels
NCCL = round(0.4 * GIB)  # communication buffers, with several GPUs
FRAGMENTATION = 0.04  # share of the allocated memory that is unusable between blocks
PROCESS = round(2.0 * GIB)  # host memory of one training process: Python, torch, CUDA's host side, the data loader


@dataclass(frozen=True)
class Plan:
    """Bytes per GPU, except for names with `host`. The parts add up to `total`.

    `loss` is the memory of the head in addition to the activations: with checkpointing, the layer that is recomputed
    later uses the same memory. `paged` is the part of `optimizer` that the driver moves to the host when the GPU runs
    out of memory: as much of it as fits on the GPU is counted here, the rest in `host_optimizer`. `reserve` is for
    temporary tensors, the CUDA context and fragmentation. `overlap` is zero, or negative if gradients and activations
    do not exist at the same time (full fine-tuning without accumulation).
    """

    run: Run
    weights: int
    gradients: int
    optimizer: int
    paged: int
    activations: int
    loss: int
    quantisation_overhead: int
    zero_buffers: int
    reserve: int
    overlap: int
    allocated: int  # expected torch.cuda.max_memory_allocated (without paged memory); on a CPU, the process growth
    loss_alone: int
    peak_at: str  # one of the moments in `moments_of`
    host_weights: int
    host_gradients: int
    host_optimizer: int
    host_processes: int

    @property
    def total(self) -> int:
        """Peak memory of one GPU."""
        parts = self.weights + self.gradients + self.optimizer + self.activations + self.loss
        return parts + self.quantisation_overhead + self.zero_buffers + self.reserve + self.overlap

    @property
    def host_total(self) -> int:
        """Peak memory of one host. Memory-mapped weight files are not counted: the system can drop them."""
        return self.host_weights + self.host_gradients + self.host_optimizer + self.host_processes

    @property
    def gpu_fits(self) -> bool | None:
        limit = self.run.machine.gpu_memory
        return None if limit is None or self.run.machine.on_cpu else self.total <= limit

    @property
    def host_fits(self) -> bool | None:
        limit = self.run.machine.cpu_memory
        return None if limit is None else self.host_total <= limit

    @property
    def fits(self) -> bool | None:
        """Whether the run fits; None if the memory of the GPU (on a CPU: of the host) is unknown."""
        if self.run.machine.on_cpu:
            return self.host_fits
        if self.gpu_fits is None:
            return None
        return self.gpu_fits and self.host_fits is not False


def estimate(run: Run) -> Plan:
    """The plan for `run`. Pure arithmetic, less than a millisecond."""
    states, acts, loss = states_of(run), activations_of(run), loss_of(run)
    standing = states.weights + states.scales + states.optimizer + states.buffers
    moments = moments_of(run, states, acts, loss)
    at = max(moments, key=lambda name: moments[name])
    allocated = standing + moments[at]
    on_top = max(0, acts.kept + loss - acts.saved)
    rest = allocated - standing - states.gradients - acts.saved - on_top
    matrix = min(acts.dequantised, max(rest, 0)) if at == "backward" else 0
    outside = cuda_of(run) + math.ceil(FRAGMENTATION * allocated)
    paged = min(states.paged, _room(run, allocated + outside))
    processes = run.machine.gpus_per_host
    own = PROCESS + (allocated + outside if run.machine.on_cpu else 0)
    return Plan(
        run=run,
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer + paged,
        paged=paged,
        activations=acts.saved,
        loss=on_top,
        quantisation_overhead=states.scales + matrix,
        zero_buffers=states.buffers,
        reserve=max(rest, 0) - matrix + outside,
        overlap=min(rest, 0),
        allocated=allocated,
        loss_alone=loss,
        peak_at=at,
        host_weights=processes * states.host_weights,
        host_gradients=processes * states.host_gradients,
        host_optimizer=processes * (states.host_optimizer + states.paged - paged),
        host_processes=processes * own,
    )


def _room(run: Run, needed: int) -> int:
    """Bytes of a GPU that remain for paged memory; without a known limit there is room for everything.

    torch keeps memory that it once allocated, so paged memory gets what the peak leaves, also during the step.
    """
    limit = run.machine.gpu_memory
    return 1 << 62 if limit is None else max(0, limit - needed)


def cuda_of(run: Run) -> int:
    """Bytes of a GPU that CUDA and NCCL use in addition to the tensors."""
    if run.machine.on_cpu:
        return 0
    return CONTEXT + (NCCL if run.machine.gpus > 1 else 0)


def moments_of(run: Run, states: States, acts: Activations, loss: int) -> dict[str, int]:
    """Bytes in addition to the permanent ones, at the moments that can be the peak."""
    gradients = states.gradients
    # Without accumulation, gradients grow while activations are freed, so the two are never complete at the same time.
    # An adapter's gradients are too small to matter, and DeepSpeed's buffers are permanent.
    accumulates = run.lora or not run.whole or run.gradient_accumulation_steps > 1
    before = gradients if accumulates else 0
    moments = {
        "forward": before + acts.kept + acts.casts + acts.rebuilt,
        "loss": before + acts.kept + loss,
        "backward": before + acts.backward + max(acts.temporary, acts.rebuilt) + acts.dequantised,
        "step": gradients + states.stepping,
        "loading": states.loading - states.optimizer - states.buffers,
    }
    if not run.lora and run.fsdp is None:
        moments |= _late_moments(run, gradients, acts)
    return moments


def _late_moments(run: Run, gradients: int, acts: Activations) -> dict[str, int]:
    """Full fine-tuning peaks at the end of the backward pass, when nearly all gradients exist.

    The embedding's gradient is a full table and is made last; if it is added to an existing one, both exist.
    """
    a = run.architecture
    table = a.embedding_elements * run.trained_bytes
    added = a.tied or run.gradient_accumulation_steps > 1
    layer, experts = a.kinds[0].elements * run.trained_bytes, a.kinds[0].expert_elements * run.trained_bytes
    missing = layer + (0 if added else table)
    activations = group_bytes(run, run.groups[0])
    return {
        "first layer": gradients - missing + activations + acts.temporary,
        "experts": gradients - missing + experts + activations if experts else 0,
        "end": gradients + (table if added else 0),
    }
