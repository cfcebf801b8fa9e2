"""The loss of every supervised token, and whether the model's most likely token is the right one.

Shape letters: B examples, T tokens, K positions that predict a supervised token of any of them, V vocabulary,
N supervised tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastchat.data.batches.collate import collate
from fastchat.data.encoding.examples import IGNORED
from fastchat.eval.batching import halving
from fastchat.eval.examples import Evaluated
from fastchat.eval.generation import DEPENDS_ON_LENGTH
from fastchat.eval.loading import Loaded
from fastchat.model.rope import rope_type

MOST_LOGITS = 1 << 26  # numbers that are float32 at a time


@dataclass(frozen=True)
class TokenScores:
    """Of one example. `losses`: [N] of its supervised tokens, in nats; `right`: [N]; `answer_of`: [N], see
    `Evaluated`."""

    losses: list[float]
    right: list[bool]
    answer_of: list[int]


def score_tokens(
    loaded: Loaded, examples: Sequence[Evaluated], *, batch_size: int, on_done: Callable[[int], None] = lambda num: None
) -> list[TokenScores]:
    """The scores of each example, in their order. `on_done` is called with the number of examples of each batch.

    Each example is a row of its own, also for a run that trained on packs: the loss is the same. Raises ResourceError if
    a single example does not fit into the memory.
    """
    found: dict[int, TokenScores] = {}
    if rope_type(loaded.model.config) in DEPENDS_ON_LENGTH:
        batch_size = 1
    longest_first = sorted(range(len(examples)), key=lambda number: -len(examples[number].input_ids))
    batches = [longest_first[at : at + batch_size] for at in range(0, len(examples), batch_size)]

    def work(batch: list[int]) -> None:
        with loaded.computing():
            for number, scores in zip(batch, _scores(loaded, [examples[number] for number in batch]), strict=True):
                found[number] = scores

    def too_small(number: int) -> str:
        return f"for the example of {len(examples[number].input_ids)} tokens at {examples[number].place}"

    for batch in halving(batches, work, too_small):
        on_done(len(batch))
    return [found[number] for number in range(len(examples))]


def _scores(loaded: Loaded, examples: list[Evaluated]) -> list[TokenScores]:
    rows = [{"input_ids": one.input_ids, "labels": one.labels} for one in examples]
    batch = {name: tensor.to(loaded.model.device) for name, tensor in collate(rows, pad_token_id=loaded.pad_id).items()}
    targets_BT = batch.pop("labels")[:, 1:]
    supervised_BT = targets_BT != IGNORED
    places_K = supervised_BT.any(dim=0).nonzero()[:, 0]
    logits_BKV = _logits(loaded, batch, places_K)
    kept_BK = supervised_BT[:, places_K]
    logits_NV, targets_N = logits_BKV[kept_BK], targets_BT[supervised_BT]
    losses, right = [], []
    rows_at_once = max(1, MOST_LOGITS // logits_NV.shape[-1])
    for logits_nV, targets_n in zip(logits_NV.split(rows_at_once), targets_N.split(rows_at_once), strict=True):
        logits_nV = logits_nV.float()
        losses += F.cross_entropy(logits_nV, targets_n, reduction="none").tolist()
        right += (logits_nV.argmax(dim=-1) == targets_n).tolist()
    ends = supervised_BT.sum(dim=1).cumsum(0).tolist()
    made = []
    for example, start, end in zip(examples, [0, *ends], ends, strict=False):
        pairs = zip(example.answer_of[1:], example.labels[1:], strict=True)
        owners = [number for number, label in pairs if label != IGNORED]
        made.append(TokenScores(losses[start:end], right[start:end], owners))
    return made


def _logits(loaded: Loaded, batch: dict[str, torch.Tensor], places_K: torch.Tensor) -> torch.Tensor:
    """[B, K, V]: what the model gives at some positions; where it can, the others are not computed."""
    model = loaded.model
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        logits_BKV = model(**batch, use_cache=False, logits_to_keep=places_K).logits
        if logits_BKV.shape[1] == len(places_K):
            return logits_BKV
    return model(**batch, use_cache=False).logits[:, places_K]
