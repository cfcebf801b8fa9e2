"""Activations of a whole model, in bytes: what the forward pass keeps for the backward pass, and temporary tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastchat.plan.architecture import Linear
from fastchat.plan.layer_memory import first_readers, group_bytes, norm_bytes
from fastchat.plan.run import Run


@dataclass(frozen=True)
class Activations:
    """Bytes per microbatch."""

    kept: int  # at the end of the forward pass
    backward: int  # during the backward pass of the last layer (recomputed with checkpointing)
    casts: int  # 16-bit copies of weights that autocast holds during the forward pass; not part of the others
    temporary: int  # gradients of activations, in addition, in the backward pass
    rebuilt: int  # whole weights that DoRA and trained rows make in the forward pass, also a repeated one
    dequantised: int  # the 16-bit copy of one nf4 matrix, in addition

    @property
    def saved(self) -> int:
        """The size of the tensors that the real code saves: the larger of the two."""
        return max(self.kept, self.backward)


def activations_of(run: Run) -> Activations:
    """The activations of a microbatch in which every dialogue has the maximum length."""
    a, tokens = run.architecture, run.tokens
    last_norm = tokens * norm_bytes(run, a.hidden)
    temporary = max(tokens * _backward_per_token(run), _experts_backward(run))
    matrix = _dequantised(run)
    casts = _cast_copies(run)
    n = run.checkpointed_layers
    inputs = n * tokens * a.hidden * run.weight_bytes + _rotary(run)  # the input of every checkpointed layer
    recomputed = layer_bytes(run) + math.ceil(casts / a.num_layers) if n else 0
    # The other layers are the last ones: their activations are gone before the first layer is recomputed.
    layers = sum(group.count * group_bytes(run, group) for group in run.groups_from(n))
    kept_casts = math.ceil(casts * (a.num_layers - n) / a.num_layers)
    kept = inputs + layers + kept_casts
    backward = inputs + max(layers + kept_casts, recomputed)
    held = math.ceil(_cached_casts(run) * n / a.num_layers)
    return Activations(kept + last_norm, backward, held, temporary, _rebuilt(run), matrix)


def layer_bytes(run: Run) -> int:
    """The most that one layer keeps without recomputation."""
    return max(group_bytes(run, group) for group in run.groups)


def _rotary(run: Run) -> int:
    """The tables of cosines and sines: one row of positions, shared by all layers."""
    a = run.architecture
    return 2 * run.model_max_length * (a.latent.rope if a.latent else a.head_dim) * run.weight_bytes


# ---- copies and temporaries ----


def _cast_copies(run: Run) -> int:
    """Copies of weights in the compute dtype that autocast makes because they are stored in another dtype.

    A copy is kept for the gradient of its input; matrices that read the first trained layer's input need none.
    """
    if not run.autocast:
        return 0
    adapter = _adapter_casts(run)
    if not run.casts_weights or run.q_lora:
        return adapter
    return adapter + run.compute_bytes * (run.architecture.linear_elements - sum(x.elements for x in _readers(run)))


def _cached_casts(run: Run) -> int:
    """Those that autocast itself holds until the end of the forward pass: of trained weights."""
    return _cast_copies(run) if not run.lora or not run.autocast else _adapter_casts(run)


def _adapter_casts(run: Run) -> int:
    if not run.lora:
        return 0
    first = sum(x.inputs for x in _readers(run) if x in run.adapted)
    return run.compute_bytes * (run.trained - run.lora_r * first)


def _readers(run: Run) -> tuple[Linear, ...]:
    """The matrices that read the input of the first trained layer."""
    first = next((group for group in run.groups if group.adapted), None)
    return tuple(first_readers(run, first)) if first else ()


def _rebuilt(run: Run) -> int:
    """DoRA computes the length of every row of W + BA: BA from a unit matrix, and the sum with the weight, one layer at
    a time. Trained rows of the embedding and the output matrix are put into a copy of the whole matrix."""
    a, b, c = run.architecture, run.adapter_bytes, run.compute_bytes
    dora = 0
    if run.use_dora:
        sizes = (x.inputs * x.inputs * b + x.elements * (b + 2 * c) for x, _ in run.adapters if not x.stacked)
        dora = max(sizes, default=0)
    return max(dora, a.embedding_elements * run.weight_bytes if run.trained_rows else 0)


def _dequantised(run: Run) -> int:
    """The largest matrix in 16 bits: nf4 is dequantized for every product."""
    if not run.q_lora:
        return 0
    largest = max(linear.elements for linear in run.architecture.linears)
    return math.ceil(largest * (run.compute_bytes + 8 / 64))  # and its scales in float32, twice


def _experts_backward(run: Run) -> int:
    """The most in the backward pass of the experts: gradients of their weighted outputs, with the gradient of the copy
    that peft makes of an adapted stack, or gradients around the gate.

    The factors were measured with tests/plan/counting.py.
    """
    most = 0.0
    for group in run.groups:
        if (e := group.layer.experts) is None:
            continue
        (up, h), (down, i) = ((s.elements if s in group.adapted else 0, s.inputs) for s in e.stacks)
        # The second matrix is first in the backward pass, and when it is done, its copy is gone.
        outputs = h * (3.5 * e.rows + 3) * run.tokens + max(down, up - down)
        gate = (4 if e.between > 3 else 2) - (1 if down else 0)
        most = max(most, outputs, run.tokens * (e.rows * (gate * i + 1.6 * h) + 2 * h))
    return math.ceil(most * run.weight_bytes)


def _backward_per_token(run: Run) -> int:
    """The maximum of gradients of activations that exist at the same time, in addition to the kept activations.

    Linear in H and I; the factors were measured with tests/plan/counting.py on twenty shapes. The peak is at one of two
    moments: the norm before the head (float32 copies of the gradient), or the last matrix of an MLP, where float32
    adapters make float32 gradients.
    """
    a, wide = run.architecture, run.compute_bytes / 2
    h, i = a.hidden, a.intermediate
    if a.family.norm == "layer":  # torch's fused norm makes no float32 copies
        h = h / 3
    if not run.lora:
        norm, mlp = (24 if run.weight_bytes == 2 else 18) * h, 4 * i + 14 * h
        return math.ceil(wide * max(norm, mlp))
    float32 = run.adapter_bytes == 4 and run.autocast and not run.q_lora
    if run.lora_dropout:
        mlp = (10 if float32 else 2) * i + 10.5 * h
    else:
        mlp = 6 * i + 10.5 * h if float32 else 4 * i + 2.5 * h
    norm = 22.5 * h if a.family.norms == 4 or run.checkpointed_layers < a.num_layers else 0
    return math.ceil(wide * max(mlp, norm))
