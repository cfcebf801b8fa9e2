"""Activations that one transformer layer keeps for the backward pass, in bytes per token, part by part.

Symbols: H hidden width, Q width of the queries, K of the keys, I of the MLP, r LoRA rank; c bytes of a computed number,
s bytes of one in the residual stream, a bytes of an adapter weight. Derived from the code of transformers, peft and
DeepSpeed, and compared in tests/plan with the tensors that this code saves.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastchat.plan.architecture import Latent, Linear, Recurrent
from fastchat.plan.run import Group, Run


def group_bytes(run: Run, group: Group) -> int:
    """What one layer of `group` keeps, per microbatch, if it is not recomputed."""
    if not group.differentiated and not group.adapted:
        return 0
    skipped = 0 if group.differentiated else _skipped(run, group)
    return run.tokens * (_layer(run, group) - skipped) + _attention_squares(run, group) + _new_weights(run, group)


def _layer(run: Run, group: Group) -> int:
    a = run.architecture
    f = a.family
    after = f.norms if f.post_norm else 2 if f.norms == 4 else 0
    norms = (f.norms - after) * norm_bytes(run, a.hidden) + after * norm_bytes(run, a.hidden, computed=True)
    masks = 2 * a.hidden if a.residual_dropout else 0
    dora = 0  # the output of the base and that of the adapter, which the trained lengths scale
    if run.use_dora:
        dora = 2 * run.compute_bytes * sum(linear.outputs for linear in group.adapted)
    return norms + masks + dora + _mixer(run, group) + _mlp(run, group)


# ---- norms ----


def norm_bytes(run: Run, width: int, *, computed: bool = False) -> int:
    """One norm over `width` channels; `computed`: its input has the compute dtype, not that of the residual stream.

    RMSNorm works on a float32 copy, which both its square and its product save, and saves 1/rms. A trained weight
    also saves the other factor: in the input's dtype for Llama, in float32 for Gemma-like models.
    """
    kind, full = run.architecture.family.norm, not run.lora
    s = run.compute_bytes if computed else run.weight_bytes
    if kind in ("layer", "plain"):
        return width * (4 if kind == "plain" else s) + 8  # the fused kernel: its input, mean and 1/std
    saved = 4 * width + 4
    if kind == "cohere":
        saved += 4 * width  # x - mean is computed twice
    if full:
        saved += width * (s if kind == "llama" else 4)
    return saved


def _qk_norm(run: Run, channels: int, rows: int) -> int:
    """Like `norm_bytes`, on the queries and keys: `rows` root mean squares per token, inputs in the compute dtype."""
    saved = 4 * channels + 4 * rows
    kind = run.architecture.family.norm
    if kind == "cohere":
        saved += 4 * channels
    if not run.lora and run.architecture.family.qk_norm != "l2":
        saved += channels * (run.compute_bytes if kind == "llama" else 4)
    return saved


# ---- matrices ----


def _inputs(
    run: Run, group: Group, linears: Sequence[Linear], *, computed: bool = False, saved_already: bool = False
) -> int:
    """The bytes that the matrices with the same input x keep for it.

    A frozen matrix needs only its weight. A trained one, and LoRA's A, need x. With dropout every adapter has its own
    copy of x after dropout, and a mask; without it, x is shared, unless a change of dtype makes a copy for each.
    LoRA's B needs the output of A: r numbers. `computed`: x has the compute dtype, not that of the residual stream;
    `saved_already`: another operation keeps x anyway.
    """
    c, width = run.compute_bytes, linears[0].inputs
    x = c if computed else run.weight_bytes
    adapted = [linear for linear in linears if linear in group.adapted]
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


# ---- attention ----


def _mixer(run: Run, group: Group) -> int:
    """Projections and kernel; without the terms that grow with the square of the length."""
    a = run.architecture
    if group.layer.recurrent and a.recurrent:
        return _recurrent(run, group, a.recurrent)
    if a.latent:
        return _latent(run, group, a.latent)
    return _attention(run, group)


def _attention(run: Run, group: Group) -> int:
    a, c = run.architecture, run.compute_bytes
    f = a.family
    # The kernel keeps q and k (after the rotation), v, its output, and a float32 per head: the log of the softmax sum.
    kernel_keeps_output = run.attention != "eager"
    keys = a.queries if _expands_keys(run) else a.keys
    whole = f.fused_qkv and not _expands_keys(run)
    values = a.queries + 2 * a.keys if whole else keys  # v is a slice of the fused output
    kernel = c * (a.queries + keys + values)
    if kernel_keeps_output:
        kernel += c * a.queries + 4 * a.num_heads
    if f.qk_norm:
        heads = 2 if f.qk_norm == "full" else a.num_heads + a.num_kv_heads
        kernel += _qk_norm(run, a.queries + a.keys, heads)
    if f.attention_gate:  # the sigmoid, and the attention's output if the kernel does not keep it
        kernel += c * a.queries * (2 if kernel_keeps_output else 3)
    computed = _inputs(
        run, group, (group.layer.out,), computed=True, saved_already=kernel_keeps_output and not f.attention_gate
    )
    return _inputs(run, group, group.layer.readers) + kernel + computed


def _latent(run: Run, group: Group, wide: Latent) -> int:
    """Multi-head latent attention: two norms of compressed vectors, whose expansions are the heads of the kernel."""
    a, c = run.architecture, run.compute_bytes
    kept = _inputs(run, group, group.layer.readers)
    for linear, rank in zip(reversed(group.layer.inner), (wide.kv_rank, wide.q_rank), strict=False):
        kept += norm_bytes(run, rank) + _inputs(run, group, (linear,))
    queries, values = a.num_heads * (wide.nope + wide.rope), a.num_heads * wide.value
    expanded = a.num_heads * (wide.nope + wide.value)  # v is a slice of it
    kept += c * (2 * queries + expanded)
    if run.attention != "eager":
        kept += c * values + 4 * a.num_heads
    return kept + _inputs(run, group, (group.layer.out,), computed=True, saved_already=run.attention != "eager")


def _recurrent(run: Run, group: Group, wide: Recurrent) -> int:
    """A gated delta net with transformers' own code, which computes in float32: products of a chunk's keys, queries and
    keys repeated to the heads of the values, values, and a state per chunk; then a norm with a gate."""
    c, heads = run.compute_bytes, wide.value_heads
    channels = 2 * wide.keys + wide.values
    convolved = 2 * c * channels  # its input, and its output before the activation
    rule = 4 * heads * (5 * _CHUNK + 8 * wide.key_dim + 3 * wide.value_dim + 10)
    states = 4 * heads * wide.key_dim * wide.value_dim // _CHUNK
    gated_norm = (12 + (c if run.lora else 2 * c)) * wide.values
    inputs = _inputs(run, group, group.layer.readers) + _inputs(run, group, (group.layer.out,), computed=True)
    return inputs + convolved + rule + states + gated_norm


_CHUNK = 64  # tokens that the delta rule computes together


def _masked(run: Run) -> bool:
    """Whether torch's fused kernel gets a mask: dialogues of different length are padded or packed."""
    return run.attention == "sdpa" and (run.per_device_train_batch_size > 1 or run.packing)


def _expands_keys(run: Run) -> bool:
    """Whether grouped keys are copied to every head, because the kernel cannot share them."""
    grouped = run.architecture.num_kv_heads < run.architecture.num_heads
    return grouped and (run.attention == "eager" or _masked(run))


def _attention_squares(run: Run, group: Group) -> int:
    """The terms that grow with the square of the length, per layer and microbatch.

    sdpa with padding or packing: the mask in the compute dtype, [B, 1, T, T]. eager: the softmax in float32 and a
    copy of it in the compute dtype, [B, heads, T, T].
    """
    if group.layer.recurrent:
        return 0
    square = run.per_device_train_batch_size * run.model_max_length**2
    if run.attention == "eager":
        c = run.compute_bytes
        return square * run.architecture.num_heads * (4 if c == 4 else 4 + c)
    return square * run.compute_bytes if _masked(run) else 0


# ---- MLP and experts ----


def _mlp(run: Run, group: Group) -> int:
    """With a gate, the output of its matrix (for the activation function), the activated gate and the output of the
    other matrix (for their product), then the part of the product that the last matrix keeps."""
    layer, c, family = group.layer, run.compute_bytes, run.architecture.family
    # Cohere's MLP and attention read the same normed input, so a shared one is not kept twice.
    kept = _mlp_inputs(run, group, saved_already=family.norms == 1)
    if layer.mlp:
        width = layer.mlp[-1].inputs
        kept += (3 if family.gated else 1) * c * width + _inputs(run, group, layer.mlp[-1:], computed=True)
    if layer.shared_gate:  # the shared experts' output, and the sigmoid that scales it
        kept += c * (run.architecture.hidden + 1)
    return kept + (_experts(run, group) if layer.experts else 0)


def _mlp_inputs(run: Run, group: Group, *, saved_already: bool = False) -> int:
    layer = group.layer
    hidden, trained = run.architecture.hidden, not run.lora
    own = trained and layer.experts is not None and layer.experts.float32_router
    kept = 4 * hidden if own else 0  # the router's copy, for the gradient of its weight
    if readers := layer.mlp_readers:
        return kept + _inputs(run, group, readers, saved_already=saved_already)
    return kept + (run.compute_bytes * hidden if trained and not own and not saved_already else 0)


def _experts(run: Run, group: Group) -> int:
    """Routed experts, as one grouped product per matrix: every token is copied to each of its experts.

    These products are not under autocast: they compute in the dtype of the weights, w bytes. A trained or adapted
    matrix keeps its input; the routing weights always need the output of the second one.
    """
    e, w = group.layer.experts, run.weight_bytes
    assert e is not None
    up, down = e.stacks
    hidden, width, rows = up.inputs, down.inputs, e.rows
    kept = rows * w * e.between * width
    if not run.lora or up in group.adapted:
        kept += rows * w * hidden
    if not run.lora or down in group.adapted:
        kept += rows * w * width
    if e.every:  # the input times its score needs both; the outputs are only added up
        return kept + (rows + 1) * w * hidden + 4 * e.num
    kept += rows * w * hidden
    return kept + 4 * e.num + rows * _INDICES  # the scores of all experts, in float32


_INDICES = 40  # bytes per row: the experts and the order of rows in int64, routing weights in float32


def _new_weights(run: Run, group: Group) -> int:
    """Copies of weights that the backward pass needs: peft adds the product of an expert adapter to one of the experts,
    some routers compute in float32, and DoRA with dropout multiplies again, with weights that it dequantizes and
    that autocast casts. Per layer."""
    e = group.layer.experts
    stacks = sum(linear.elements for linear in group.adapted if linear.stacked) * run.weight_bytes
    if run.use_dora and run.lora_dropout and (run.q_lora or run.autocast):
        stacks += sum(linear.elements for linear in group.adapted if not linear.stacked) * run.compute_bytes
    if e is None or not e.float32_router or run.weight_bytes == 4:
        return stacks
    return stacks + 4 * (e.router - e.fixed)


# ---- the first layer with an adapter ----


def _skipped(run: Run, group: Group) -> int:
    """The input of the first trained layer, from frozen parts, has no gradient, so the part of that layer before its
    first adapter keeps nothing, nor is that adapter's mask kept."""
    layer, hidden = group.layer, run.architecture.hidden
    norm = 0 if run.architecture.family.post_norm else norm_bytes(run, hidden)
    readers = first_readers(run, group)
    # Frozen experts with an input without a gradient keep nothing.
    experts = _experts(run, group) if layer.experts and not any(x.stacked for x in group.adapted) else 0
    if any(linear in group.adapted for linear in readers):
        parallel = run.architecture.family.norms == 1
        return norm + (experts if parallel else 0) + _masks(run, group, readers)
    before = norm + _mixer(run, group)
    if layer.out in group.adapted:
        own = _inputs(run, group, (layer.out,), computed=True)
        return before - own + _masks(run, group, (layer.out,))
    before += norm
    if any(linear in group.adapted for linear in layer.mlp_readers):
        return before + experts + _masks(run, group, layer.mlp_readers)
    if not layer.mlp or layer.mlp[-1] not in group.adapted:
        return before  # only experts are adapted
    own = _inputs(run, group, layer.mlp[-1:], computed=True)
    return before + _mlp(run, group) - own + _masks(run, group, layer.mlp[-1:])


def first_readers(run: Run, group: Group) -> tuple[Linear, ...]:
    """The matrices that read a layer's input: with a parallel MLP (Cohere) also the first ones of the MLP."""
    return group.layer.readers + (group.layer.mlp_readers if run.architecture.family.norms == 1 else ())


def _masks(run: Run, group: Group, linears: Sequence[Linear]) -> int:
    """The dropout masks of the inputs of all adapted matrices."""
    inputs = sum(linear.inputs for linear in linears if linear in group.adapted)
    return inputs * run.dropout_mask_bytes if run.lora_dropout else 0
