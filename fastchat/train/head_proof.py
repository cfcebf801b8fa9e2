"""Before the first step: does the chunked head give the plain loss, for this model, on this data?

A model whose own `forward` does something unforeseen would otherwise train on a wrong loss without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from fastchat.errors import brief, say
from fastchat.streams import detail
from fastchat.train.auxiliary import HALF_TOLERANCE, TOLERANCE, AuxiliaryLoss, loss_sums
from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.loss import count_tokens, loss_sum, sample

CHUNKS = 3


@dataclass(frozen=True)
class HeadProof:
    """Both losses, per token, on a few tokens of the training data; `reason` where the chunked one could not be had."""

    num_tokens: int
    plain: float
    chunked: float
    tolerance: float
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Not where either is NaN."""
        return not self.reason and bool(abs(self.chunked - self.plain) <= self.tolerance * abs(self.plain))

    @property
    def line(self) -> str:
        """What the run says."""
        if self.agrees:
            off = abs(self.chunked - self.plain) / abs(self.plain) if self.plain else 0.0
            return (
                f"the head runs on learned tokens only, in chunks: on {self.num_tokens} tokens of this data the "
                f"loss is {self.chunked:.4f}, off by {off:.0e} from that of all logits"
            )
        why = (
            self.reason
            or f"on {self.num_tokens} tokens of this data the loss is {self.chunked:.6f}, not {self.plain:.6f}"
        )
        return plain_line(f"the chunked head is not right for this model ({why})")


def plain_line(reason: str) -> str:
    """What is said where the plain path has to be taken although the other was asked for."""
    return f"WARNING: {reason}: the loss is computed from all logits, which takes more memory"


def prove_head(
    head: ChunkedCrossEntropy,
    model: Any,
    dataset: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    context: Callable[[], Any],
    auxiliary: AuxiliaryLoss | None = None,
) -> bool:
    """Whether the chunked head is right, agreed among all processes; says it in one line. A collective operation.

    `dataset`: of input_ids and labels. `dtype`: what the model computes in. `context`: makes the autocast that
    training runs under. `auxiliary`: what the model adds to the loss, which then has to be the same both ways.
    Weights, gradients, random numbers and the model's mode stay as they are.
    """
    batch = sample(dataset)
    if batch is None:
        return True  # there is no loss to compare
    batch = {name: ids.to(device) for name, ids in batch.items()}
    num = int(count_tokens([batch])[0])
    rows, head.rows = head.rows, max(1, -(-num // CHUNKS))
    training, reason, chunked = model.training, "", float("nan")
    model.eval()
    try:
        with torch.no_grad(), context():
            plain = _total(model, batch, auxiliary) / num
            try:
                chunked = _total(model, batch, auxiliary, chunked=True) / num
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a model of somebody else's does, there is another way
                reason = f"{type(error).__name__}: {brief(error)}"
    finally:
        head.rows = rows
        model.train(training)
    proof = HeadProof(num, plain, chunked, TOLERANCE.get(dtype, HALF_TOLERANCE), reason)
    (detail if proof.agrees else say)(proof.line)
    return everywhere(proof.agrees, device)


def _total(
    model: Any, batch: dict[str, torch.Tensor], auxiliary: AuxiliaryLoss | None, *, chunked: bool = False
) -> float:
    if auxiliary is None:
        return float(loss_sum(model, batch, chunked=chunked))
    return float(sum(loss_sums(model, batch, auxiliary, chunked=chunked)))


def everywhere(agrees: bool, device: torch.device) -> bool:
    if not dist.is_initialized():
        return agrees
    flag = torch.tensor(int(agrees), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())
