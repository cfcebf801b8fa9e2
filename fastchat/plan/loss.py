"""What the output matrix and the loss need, in bytes.

V is the vocabulary, N the number of positions that are supervised: all of them, at worst.
"""

from __future__ import annotations

from fastchat.plan.run import Run

CHUNK = 1024  # positions that the chunked head works on at a time


def loss_of(run: Run) -> int:
    """At most, from the last hidden state to the start of the backward pass through the layers."""
    a, n = run.architecture, run.tokens
    hidden = n * a.hidden * run.weight_bytes  # the last hidden state
    if not run.chunked_head:
        return hidden + n * a.vocab * _per_logit(run)
    # The supervised hidden states and their gradients, and one chunk of logits.
    return 2 * hidden + min(n, CHUNK) * a.vocab * _per_logit(run)


def _per_logit(run: Run) -> int:
    """Bytes for each of [N, V]: float32 log-probabilities, their gradient, and the gradient of the logits; Gemma 2
    keeps the tanh of the logits too."""
    return 12 + (run.compute_bytes if run.architecture.softcap else 0)
