"""Choosing the next tokens: one rule for both of transformers' ways to generate.

Each job has its own random numbers, one per token, so its tokens depend on its seed and not on what else is in the
batch. The number picks a place in the cumulative probabilities, sorted from the most likely token on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from fastchat.serve.chat import GREEDY_BELOW
from fastchat.serve.engines.base import Job, Token


class Drawing:
    """A job's position in its sequence of random numbers."""

    def __init__(self, job: Job):
        self.sampling = job.sampling
        self._random = random.Random(job.sampling.seed)

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature < GREEDY_BELOW

    def next(self) -> float:
        """The next number in [0, 1)."""
        return self._random.random()


def next_tokens(logits: torch.Tensor, drawings: Sequence[Drawing]) -> list[Token | None]:
    """The next token of each job; None where the logits give no probabilities.

    Args:
        logits: [B, V], float32, of the model; they are not changed.
        drawings: B of them.

    >>> [token.id for token in next_tokens(torch.tensor([[0.0, 2.0]]), [Drawing(Job([1], 1, (), Sampling(0.0)))])]
    [1]
    """
    chosen = logits.argmax(dim=-1)
    rows = [k for k, drawing in enumerate(drawings) if not drawing.is_greedy]
    if rows:
        chosen[rows] = _drawn(logits[rows], [drawings[k] for k in rows])
    usable = logits.amax(dim=-1).isfinite().tolist()  # no NaN, no infinity, and not all of them masked
    reported = _with_logprobs(logits, chosen, drawings)
    ids = chosen.tolist()
    return [reported.get(k, Token(ids[k])) if usable[k] else None for k in range(len(ids))]


def _drawn(logits: torch.Tensor, drawings: Sequence[Drawing]) -> torch.Tensor:
    """[B] ids. A row is computed as it would be alone."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device).unsqueeze(1)

    scaled = logits / column([drawing.sampling.temperature for drawing in drawings])
    sorted_probs, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = sorted_probs.cumsum(dim=-1) - sorted_probs
    kept = sorted_probs.where(before < column([drawing.sampling.top_p for drawing in drawings]), 0.0)
    kept[:, 0] = sorted_probs[:, 0]
    reached = kept.cumsum(dim=-1)
    place = torch.searchsorted(reached, column([drawing.next() for drawing in drawings]) * reached[:, -1:], right=True)
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1  # rounding must not lead beyond what is kept
    return order.gather(1, place.minimum(last)).squeeze(1)


def _with_logprobs(logits: torch.Tensor, chosen: torch.Tensor, drawings: Sequence[Drawing]) -> dict[int, Token]:
    """The tokens of the rows that asked for log-probabilities."""
    rows = [k for k, drawing in enumerate(drawings) if drawing.sampling.logprobs is not None]
    if not rows:
        return {}
    logprobs = logits[rows].log_softmax(dim=-1)
    own = logprobs.gather(1, chosen[rows].unsqueeze(1)).squeeze(1).tolist()
    most = min(max(drawings[k].sampling.logprobs or 0 for k in rows), logits.shape[-1])
    values, ids = (found.tolist() for found in logprobs.topk(most, dim=-1))
    made = {}
    for at, k in enumerate(rows):
        wanted = drawings[k].sampling.logprobs
        top = tuple(zip(ids[at][:wanted], values[at][:wanted], strict=True))
        made[k] = Token(int(chosen[k]), own[at], top)
    return made
