"""The memory of the output matrix and the loss, in bytes, and the chunk size of the chunked head.

V is the vocabulary, N the number of supervised tokens: all tokens, in the worst case.
"""

from __future__ import annotations

from fastchat.plan.run import Run

# Size of the float32 logits of one chunk, for any vocabulary. About three such tensors exist at the same time, so the
# loss needs 0.8 GiB for dialogues of any length; and with a vocabulary of 256k a chunk still has 262 positions, enough
# for the matrix product to be bound by compute, not by memory bandwidth.
CHUNK_BYTES = 2**28


def rows_per_chunk(vocab: int) -> int:
    """The number of positions in one chunk of the chunked head.

    >>> rows_per_chunk(256_000), rows_per_chunk(32_000)
    (262, 2097)
    """
    return max(1, CHUNK_BYTES // (4 * vocab))


def loss_of(run: Run) -> int:
    """The peak from the last hidden state to the start of the backward pass through the layers."""
    a, n = run.architecture, run.tokens
    hidden = n * a.hidden * run.weight_bytes  # the last hidden state
    if not run.chunked_head:
        return hidden + n * a.vocab * _per_logit(run)
    rows = rows_per_chunk(a.vocab)
    # The supervised hidden states and their gradients, one chunk of logits, and the accumulated gradient of a trained
    # matrix.
    trained = not run.lora or "lm_head" in run.copied.tables
    adding = a.vocab * a.hidden * (4 + run.trained_bytes) if trained and n > rows else 0
    return 2 * hidden + min(n, rows) * a.vocab * _per_logit(run) + adding


def _per_logit(run: Run) -> int:
    """Bytes per element of [N, V]: float32 log-probabilities, their gradient, and the gradient of the logits; Gemma 2
    keeps the tanh of the logits too."""
    return 12 + (run.compute_bytes if run.architecture.softcap else 0)
