"""What the output matrix and the loss need, in bytes; and how many positions the chunked head takes at a time.

V is the vocabulary, N the number of positions that are supervised: all of them, at worst.
"""

from __future__ import annotations

from fastchat.plan.run import Run

# Float32 logits of one chunk, whatever the vocabulary. About three such tensors live at once, so the loss costs 0.8 GiB
# however long the dialogues are; and with 256k tokens in the vocabulary a chunk still has 262 rows, enough to keep a
# GPU's matrix units busier than its memory.
CHUNK_BYTES = 2**28


def rows_per_chunk(vocab: int) -> int:
    """Positions that the chunked head works on at a time.

    >>> rows_per_chunk(256_000), rows_per_chunk(32_000)
    (262, 2097)
    """
    return max(1, CHUNK_BYTES // (4 * vocab))


def loss_of(run: Run) -> int:
    """At most, from the last hidden state to the start of the backward pass through the layers."""
    a, n = run.architecture, run.tokens
    hidden = n * a.hidden * run.weight_bytes  # the last hidden state
    if not run.chunked_head:
        return hidden + n * a.vocab * _per_logit(run)
    rows = rows_per_chunk(a.vocab)
    # The supervised hidden states and their gradients, one chunk of logits, and what a trained matrix' gradient is
    # added up in.
    adding = a.vocab * a.hidden * (4 + run.weight_bytes) if not run.lora and n > rows else 0
    return 2 * hidden + min(n, rows) * a.vocab * _per_logit(run) + adding


def _per_logit(run: Run) -> int:
    """Bytes for each of [N, V]: float32 log-probabilities, their gradient, and the gradient of the logits; Gemma 2
    keeps the tanh of the logits too."""
    return 12 + (run.compute_bytes if run.architecture.softcap else 0)
