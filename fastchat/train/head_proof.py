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
from fastchat.train.head import ChunkedHead
from fastchat.train.loss import IGNORED, count_tokens, loss_sum

# Of the loss. In half precision a logit of 20 is rounded to an eighth, and not alike in products of different sizes.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
HALF_TOLERANCE = 1e-2
BEFORE, LENGTH, CHUNKS = 32, 128, 3  # tokens of context and in all: few, because the plain path has all their logits


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
                f"the head runs on supervised tokens only, in chunks: on {self.num_tokens} tokens of this data the "
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
    head: ChunkedHead, model: Any, dataset: Any, *, dtype: torch.dtype, device: torch.device, context: Callable[[], Any]
) -> bool:
    """Whether the chunked head is right, agreed among all processes; says it in one line. A collective operation.

    `dataset`: of input_ids and labels. `dtype`: what the model computes in. `context`: makes the autocast that
    training runs under. Weights, gradients, random numbers and the model's mode stay as they are.
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
            plain = float(loss_sum(model, batch)) / num
            try:
                chunked = float(loss_sum(model, batch, chunked=True)) / num
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a model of somebody else's does, there is another way
                reason = f"{type(error).__name__}: {brief(error)}"
    finally:
        head.rows = rows
        model.train(training)
    proof = HeadProof(num, plain, chunked, TOLERANCE.get(dtype, HALF_TOLERANCE), reason)
    say(proof.line)
    return _everywhere(proof.agrees, device)


def sample(dataset: Any) -> dict[str, torch.Tensor] | None:
    """[1, T] each, at most LENGTH tokens: those around the first supervised one of the data. None where there is none.

    >>> sample([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}])["labels"]
    tensor([[-100, -100,    7]])
    """
    for i in range(len(dataset)):
        example = dataset[i]
        labels = torch.tensor(example["labels"])
        found = (labels[1:] != IGNORED).nonzero()
        if len(found):
            start = max(0, int(found[0]) + 1 - BEFORE)
            ids = torch.tensor(example["input_ids"])[start : start + LENGTH].long()
            return {
                "input_ids": ids[None],
                "labels": labels[start : start + LENGTH].long()[None],
                "attention_mask": torch.ones_like(ids)[None],
            }
    return None


def _everywhere(agrees: bool, device: torch.device) -> bool:
    if not dist.is_initialized():
        return agrees
    flag = torch.tensor(int(agrees), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())
