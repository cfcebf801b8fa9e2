"""Activations that the forward pass keeps for the backward pass, in bytes: one transformer layer, part by part.

Symbols, per token: H hidden width, Q width of the queries, K of the keys, I of the MLP, r LoRA rank; c bytes of a
computed number, s bytes of one in the residual stream, a bytes of an adapter weight. Derived from the code of
transformers, peft and DeepSpeed, and compared in tests/plan with the tensors that this code saves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastchat.plan.architecture import Linear
from fastchat.plan.run import Run


@dataclass(frozen=True)
class Activations:
    """Bytes per microbatch."""

    kept: int  # at the end of the forward pass
    backward: int  # during the backward pass of the last layer (recomputed with checkpointing)
    casts: int  # 16-bit copies of weights that autocast holds during the forward pass; not part of the others
    temporary: int  # gradients of activations, in addition, in the backward pass
    dequantised: int  # the 16-bit copy of one nf4 matrix, in addition

    @property
    def saved(self) -> int:
        """The size of the tensors that the real code saves: the larger of the two."""
        return max(self.kept, self.backward)


def activations_of(run: Run) -> Activations:
    """The activations of a microbatch in which every dialogue has the maximum length."""
    a, tokens = run.architecture, run.tokens
    last_norm = tokens * _norm(run, a.hidden)
    temporary, matrix = tokens * _backward_per_token(run), _dequantised(run)
    casts = _cast_copies(run)
    if run.gradient_checkpointing:
        inputs = a.num_layers * tokens * a.hidden * run.weight_bytes + _rotary(run)  # the input of every layer
        recomputed = layer_bytes(run) + math.ceil(casts / a.num_layers)
        return Activations(inputs + last_norm, inputs + recomputed, casts, temporary, matrix)
    first = tokens * _skipped_in_first_layer(run) if run.lora else 0
    layers = a.num_layers * layer_bytes(run) - first + _rotary(run)
    return Activations(layers + casts + last_norm, layers + casts, 0, temporary, matrix)


def layer_bytes(run: Run) -> int:
    """Everything that one layer keeps without recomputation."""
    a = run.architecture
    norms = a.family.norms * _norm(run, a.hidden)
    per_token = norms + _attention(run) + _mlp(run)
    return run.tokens * per_token + _attention_squares(run)


# ---- norms ----


def _norm(run: Run, width: int) -> int:
    """One norm over `width` channels, per token.

    RMSNorm works on a float32 copy, which both its square and its product save, and saves 1/rms. A trained weight
    also saves the other factor: in the input's dtype for Llama, in float32 for Gemma-like models.
    """
    kind, s, full = run.architecture.family.norm, run.weight_bytes, not run.lora
    if kind == "layer":
        return width * s + 8  # the fused kernel: its input, mean and 1/std
    saved = 4 * width + 4
    if kind == "cohere":
        saved += 4 * width  # x - mean is computed twice
    if full:
        saved += width * (s if kind == "llama" else 4)
    return saved


def _rotary(run: Run) -> int:
    """The tables of cosines and sines: one row of positions, shared by all layers."""
    return 2 * run.model_max_length * run.architecture.head_dim * run.weight_bytes


# ---- matrices ----


def _inputs(run: Run, linears: Sequence[Linear], *, computed: bool = False, saved_already: bool = False) -> int:
    """The bytes that the matrices with the same input x keep for it, per token.

    A frozen matrix needs only its weight. A trained one, and LoRA's A, need x. With dropout every adapter has its own
    copy of x after dropout, and a mask; without it, x is shared, unless a change of dtype makes a copy for each.
    LoRA's B needs the output of A: r numbers. `computed`: x has the compute dtype, not that of the residual stream;
    `saved_already`: another operation keeps x anyway.
    """
    c, width = run.compute_bytes, linears[0].inputs
    x = c if computed else run.weight_bytes
    adapted = [linear for linear in linears if linear in run.adapted]
    kept = 0
    shared = False
    if not run.lora:
        copies = run.autocast and x != c  # autocast casts x again for each matrix
        kept += len(linears) * width * c if copies else 0
        shared = not copies
    elif adapted:
        d = c if run.autocast else run.adapter_bytes
        kept += len(adapted) * run.lora_r * d
        if run.lora_dropout:
            kept += len(adapted) * width * (d + run.dropout_mask_bytes)
        elif _peft_casts(run, x):
            kept += len(adapted) * width * d
        else:
            shared = True
    if run.zero is not None and run.zero.stage == 3 and not run.q_lora:
        shared = True  # DeepSpeed's own linear function saves x even where the weight is frozen
    return kept + (width * c if shared and not saved_already else 0)


def _peft_casts(run: Run, x: int) -> bool:
    """Whether an x of `x` bytes is converted for each adapter: peft casts it to the adapter's dtype (but not on an
    nf4 layer under autocast), autocast back to 16 bits."""
    if run.autocast:
        return x != run.compute_bytes or not run.q_lora
    return x != run.adapter_bytes


def _attention(run: Run) -> int:
    """Projections and kernel, per token; without the terms that grow with the square of the length."""
    a, c = run.architecture, run.compute_bytes
    f = a.family
    projections = _inputs(run, a.attention_linears[:-1])
    # The kernel keeps q and k (after the rotation), v, its output, and a float32 per head: the log of the softmax sum.
    kernel_keeps_output = run.attention != "eager"
    keys = a.queries if _expands_keys(run) else a.keys
    values = a.queries + 2 * a.keys if f.fused and not _expands_keys(run) else keys  # v is a slice of the fused output
    kernel = c * (a.queries + keys + values)
    if kernel_keeps_output:
        kernel += c * a.queries + 4 * a.num_heads
    if f.qk_norm:
        heads = (a.num_heads + a.num_kv_heads) if f.qk_norm == "head" else 2
        channels = a.queries + a.keys
        kernel += _qk_norm(run, channels, heads)
    output = _inputs(run, a.attention_linears[-1:], computed=True, saved_already=kernel_keeps_output)
    return projections + kernel + output


def _qk_norm(run: Run, channels: int, rows: int) -> int:
    """Like `_norm`, on the queries and keys: `rows` root mean squares per token, inputs in the compute dtype."""
    saved = 4 * channels + 4 * rows
    kind = run.architecture.family.norm
    if kind == "cohere":
        saved += 4 * channels
    if not run.lora:
        saved += channels * (run.compute_bytes if kind == "llama" else 4)
    return saved


def _masked(run: Run) -> bool:
    """Whether torch's fused kernel gets a mask: dialogues of different length are padded or packed."""
    return run.attention == "sdpa" and (run.per_device_train_batch_size > 1 or run.packing)


def _expands_keys(run: Run) -> bool:
    """Whether grouped keys are copied to every head, because the kernel cannot share them."""
    grouped = run.architecture.num_kv_heads < run.architecture.num_heads
    return grouped and (run.attention == "eager" or _masked(run))


def _attention_squares(run: Run) -> int:
    """The terms that grow with the square of the length, per layer and microbatch.

    sdpa with padding or packing: the mask in the compute dtype, [B, 1, T, T]. eager: the softmax in float32 and a
    copy of it in the compute dtype, [B, heads, T, T].
    """
    square = run.per_device_train_batch_size * run.model_max_length**2
    if run.attention == "eager":
        c = run.compute_bytes
        return square * run.architecture.num_heads * (4 if c == 4 else 4 + c)
    return square * run.compute_bytes if _masked(run) else 0


def _mlp(run: Run) -> int:
    """Per token: with a gate, the output of its matrix (for the activation function), the activated gate and the output
    of the other matrix (for their product), then the part of the product that the last matrix keeps."""
    a, c = run.architecture, run.compute_bytes
    between = 3 if a.family.gated else 1
    outer = _inputs(run, a.mlp_linears[:-1]) if a.family.norms > 1 else _parallel_inputs(run)
    return outer + between * c * a.intermediate + _inputs(run, a.mlp_linears[-1:], computed=True)


def _parallel_inputs(run: Run) -> int:
    """Cohere's MLP and attention read the same normed input, so a shared one is not kept twice."""
    return _inputs(run, run.architecture.mlp_linears[:-1], saved_already=True)


def _skipped_in_first_layer(run: Run) -> int:
    """The input of the first layer, from the frozen embedding, has no gradient, so the part of that layer before its
    first adapter keeps nothing, nor is that adapter's mask kept. Per token."""
    a = run.architecture
    norm = 0 if a.family.qk_norm == "full" and a.family.norm == "gemma" else _norm(run, a.hidden)
    readers = _first_readers(run)
    if any(linear in run.adapted for linear in readers):
        return norm + _masks(run, readers)
    before = norm + _attention(run)
    if a.attention_linears[-1] in run.adapted:
        own = _inputs(run, a.attention_linears[-1:], computed=True)
        return before - own + _masks(run, a.attention_linears[-1:])
    before += norm
    if any(linear in run.adapted for linear in a.mlp_linears[:-1]):
        return before + _masks(run, a.mlp_linears[:-1])
    return before + _mlp(run) - _inputs(run, a.mlp_linears[-1:], computed=True) + _masks(run, a.mlp_linears[-1:])


def _first_readers(run: Run) -> tuple[Linear, ...]:
    """The matrices that read a layer's input: with a parallel MLP (Cohere) also the first ones of the MLP."""
    a = run.architecture
    return a.attention_linears[:-1] + (a.mlp_linears[:-1] if a.family.norms == 1 else ())


def _masks(run: Run, linears: Sequence[Linear]) -> int:
    """The dropout masks of the inputs of all adapted matrices."""
    inputs = sum(linear.inputs for linear in linears if linear in run.adapted)
    return inputs * run.dropout_mask_bytes if run.lora_dropout else 0


# ---- copies and temporaries ----


def _cast_copies(run: Run) -> int:
    """Copies of weights in the compute dtype that autocast makes because they are stored in another dtype.

    A copy is kept for the gradient of its input; matrices that read the first layer's input need none.
    """
    a, c = run.architecture, run.compute_bytes
    if not run.autocast:
        return 0
    readers = _first_readers(run) if run.lora else ()
    adapter = c * (run.trained - run.lora_r * sum(x.inputs for x in readers if x in run.adapted)) if run.lora else 0
    if not run.casts_weights or run.q_lora:
        return adapter
    return adapter + c * (a.linear_elements - sum(x.elements for x in readers))


def _dequantised(run: Run) -> int:
    """The largest matrix in 16 bits: nf4 is dequantized for every product."""
    if not run.q_lora:
        return 0
    largest = max(linear.elements for linear in run.architecture.layer_linears)
    return math.ceil(largest * (run.compute_bytes + 8 / 64))  # and its scales in float32, twice


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
    norm = 22.5 * h if a.family.norms == 4 or not run.gradient_checkpointing else 0
    return math.ceil(wide * max(mlp, norm))
