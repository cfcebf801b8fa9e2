"""The loss: the sum over supervised tokens, to be divided by their number over all processes and accumulation steps.

Shape letters: B dialogues, T tokens, V vocabulary, N supervised tokens of this batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fastchat.data.batches.tree_mask import tree_masks

IGNORED = -100
BEFORE, LENGTH = 32, 128  # tokens of context and in all of a sample: few, because all their logits are made


def count_tokens(batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """[2] int64: (supervised tokens, tokens) of some micro-batches.

    The first token of a row is predicted by nothing; the tokens of a row in which nothing is supervised (a dummy) do
    not count. Packed rows have no attention_mask but `seq_lengths`, tokens of each dialogue: [B, D]. In prefix trees a
    token is supervised as often as examples do it, but computed, and counted as a token, once.

    >>> count_tokens([{"labels": torch.tensor([[-100, 5, 6, -100]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}])
    tensor([2, 3])
    """
    counts = torch.zeros(2, dtype=torch.int64)
    for batch in batches:
        learned = batch["counts"] if "counts" in batch else batch["labels"][:, 1:] != IGNORED
        supervised = learned.sum(dim=1)
        counts[0] += supervised.sum().cpu()
        lengths = batch["seq_lengths"] if "seq_lengths" in batch else batch["attention_mask"]
        counts[1] += lengths[supervised > 0].sum().cpu()
    return counts


def loss_sum(
    model: Callable[..., Any], batch: dict[str, torch.Tensor], label_smoothing: float = 0.0, *, chunked: bool = False
) -> torch.Tensor:
    """Scalar, float32: the summed cross-entropy of the supervised tokens of a batch.

    `batch`: input_ids, labels and whatever else the model takes, [B, T] each. Zero, with a gradient of zero, where
    nothing is supervised. `chunked`: the model has a `ChunkedCrossEntropy` and gives the sum itself. Rows that are
    prefix trees have `parents`, `counts` and `ends` in addition (see `PrefixTree`).
    """
    if "ends" in batch:
        return _tree_loss_sum(model, batch, label_smoothing, chunked=chunked)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    targets_BT = batch["labels"][:, 1:]
    if chunked:
        return model(**inputs, use_cache=False, targets=targets_BT, label_smoothing=label_smoothing).loss
    return plain_loss(model(**inputs, use_cache=False).logits, targets_BT, label_smoothing)


def _tree_loss_sum(
    model: Callable[..., Any], batch: dict[str, torch.Tensor], label_smoothing: float, *, chunked: bool
) -> torch.Tensor:
    """`loss_sum` of rows that are prefix trees."""
    ids_BT, labels_BT, positions_BT = batch["input_ids"], batch["labels"], batch["position_ids"]
    parents_BT, counts_BT = batch["parents"], batch["counts"]
    inputs = {"input_ids": ids_BT, "position_ids": positions_BT, "attention_mask": torch.ones_like(ids_BT)}
    with tree_masks(batch["ends"], positions_BT):
        if chunked:
            more = {"targets": labels_BT, "label_smoothing": label_smoothing, "tree": (parents_BT, counts_BT)}
            return model(**inputs, use_cache=False, **more).loss
        logits_BTV = model(**inputs, use_cache=False).logits
    states_NV, targets_N2 = tree_pairs(logits_BTV, labels_BT, parents_BT, counts_BT)
    return cross_entropy_sum(states_NV.float(), targets_N2, label_smoothing)


def plain_loss(logits_BTV: torch.Tensor, targets_BT: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Scalar, float32: the summed cross-entropy. `targets_BT`: [B, T - 1], the labels from the second one on."""
    supervised_BT = targets_BT != IGNORED
    logits_NV = logits_BTV[:, :-1][supervised_BT].float()
    return F.cross_entropy(logits_NV, targets_BT[supervised_BT], reduction="sum", label_smoothing=label_smoothing)


def tree_pairs(
    states_BTX: torch.Tensor, labels_BT: torch.Tensor, parents_BT: torch.Tensor, counts_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What predicts the supervised tokens of prefix trees, and what they are.

    Returns:
        [N, X], of `states_BTX` that of the parent of each supervised token: several may have the same;
        [N, 2] int64, each token's id and how often it counts.
    """
    rows_N, places_N = (labels_BT != IGNORED).nonzero(as_tuple=True)
    targets_N2 = torch.stack([labels_BT[rows_N, places_N], counts_BT[rows_N, places_N]], dim=1)
    return states_BTX[rows_N, parents_BT[rows_N, places_N]], targets_N2


def cross_entropy_sum(logits_NV: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Scalar: the summed cross-entropy. `targets`: ids, [N] int64; or [N, 2], each with how often it counts."""
    if targets.ndim == 1:
        return F.cross_entropy(logits_NV, targets, reduction="sum", label_smoothing=label_smoothing)
    ids_N, counts_N = targets.unbind(dim=1)
    losses_N = F.cross_entropy(logits_NV, ids_N, reduction="none", label_smoothing=label_smoothing)
    return (losses_N * counts_N).sum()


def sample(dataset: Any) -> dict[str, torch.Tensor] | None:
    """[1, T] each, at most LENGTH tokens: those around the first supervised one of the data. None where there is none.

    >>> sample([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}])["labels"]
    tensor([[-100, -100,    7]])
    """
    for i in range(len(dataset)):
        example = dataset[i]
        if "tree" in example:  # its tokens as one row: any text will do
            example = {"input_ids": example["tree"].ids, "labels": example["tree"].labels}
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
