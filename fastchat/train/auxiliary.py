"""What a model's own `forward(labels=...)` adds to the cross-entropy: the load balancing of experts, a z-loss.

It is had from that forward itself, so that no family and no coefficient has to be known here: while the model's
`loss_function` gives zero, the loss in its output is what it adds. Before the first step the sum of both is compared
with the model's own loss, and what cannot be told apart is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from fastchat.errors import brief, say
from fastchat.train.loss import IGNORED, count_tokens, loss_sum, plain_loss, sample

# Of the loss. In half precision a logit of 20 is rounded to an eighth, and not alike in products of different sizes.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
HALF_TOLERANCE = 1e-2


class AuxiliaryLoss:
    """The part of a model's loss that is not the cross-entropy.

    `model`: the causal language model itself, without a peft or engine wrapper. Modules inside that have a loss of
    their own (the language model of a multimodal one) are meant as well.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.models = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
        self.asked = False  # whether the model has ever asked for the cross-entropy

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it the model's own loss has no cross-entropy, also where its logits are only a placeholder."""

        def zero(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.asked = True
            logits = args[0] if args else kwargs["logits"]
            return logits.new_zeros((), dtype=torch.float32)

        before = [vars(model).get("_loss_function") for model in self.models]
        for model in self.models:
            model.loss_function = zero
        try:
            yield
        finally:
            for model, function in zip(self.models, before, strict=True):
                if function is None:
                    del model._loss_function
                else:
                    model.loss_function = function


def loss_sums(
    model: Callable[..., Any],
    batch: dict[str, torch.Tensor],
    auxiliary: AuxiliaryLoss,
    label_smoothing: float = 0.0,
    *,
    chunked: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(summed cross-entropy, what the model adds times the number of supervised tokens), scalars, float32.

    Both are to be divided by the supervised tokens of the step: then a step of one micro-batch has the model's own
    loss, and one of several their mean, weighted by supervised tokens.
    """
    labels_BT = batch["labels"]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    targets_BT = labels_BT[:, 1:]
    with auxiliary.alone():
        if chunked:
            more = {"targets": targets_BT, "label_smoothing": label_smoothing}
            output = model(**inputs, use_cache=False, labels=labels_BT, **more)
            entropy, added = output.loss, output.aux_loss
        else:
            output = model(**inputs, use_cache=False, labels=labels_BT)
            entropy, added = plain_loss(output.logits, targets_BT, label_smoothing), output.loss
    return entropy, added.float() * (targets_BT != IGNORED).sum()


@dataclass(frozen=True)
class OwnLoss:
    """The model's own loss on some tokens of the data, and its parts; all per supervised token.

    `own` and `added` belong to `entropy`, without dropout; `trained` is what is added in training mode. `reason`: why
    the own loss could not be had.
    """

    num_tokens: int
    entropy: float = float("nan")
    own: float = float("nan")
    added: float = 0.0
    trained: float = 0.0
    tolerance: float = 1e-5
    reason: str = ""

    @property
    def adds(self) -> bool:
        return self.added != 0 or self.trained != 0

    @property
    def agrees(self) -> bool:
        """Whether cross-entropy and addition are all of it. Not where one of them is NaN."""
        off = abs(self.own - self.entropy - self.added)
        return not self.reason and bool(off <= self.tolerance * max(abs(self.own), abs(self.entropy)))

    @property
    def line(self) -> str:
        """What the run says; "" where the model's own loss is the cross-entropy."""
        if self.reason:
            return (
                f"WARNING: the model does not compute a loss of its own ({self.reason}): the cross-entropy of its "
                "logits is trained, and nothing that it may add"
            )
        if not self.agrees:
            return (
                f"WARNING: on {self.num_tokens} tokens of this data the model's own loss is {self.own:.6f}, the "
                f"cross-entropy of its logits {self.entropy:.6f}"
                + (f" and what it adds {self.added:.6f}" if self.adds else "")
                + ": the difference is not trained"
            )
        if self.adds:
            return (
                f"the model adds a loss of its own to the cross-entropy, {self.trained:.6f} on {self.num_tokens} "
                "tokens of this data: it is trained, and logged as aux_loss"
            )
        return ""


def find_auxiliary(
    model: Any, dataset: Any, *, dtype: torch.dtype, device: torch.device, context: Callable[[], Any]
) -> AuxiliaryLoss | None:
    """What the model adds, None where it adds nothing; says what was found. A collective operation.

    `model`: with peft's wrapper, if any. `dataset`, `dtype`, `context`: as for `prove_head`. Weights, gradients, random
    numbers and the model's mode stay as they are.
    """
    batch = sample(dataset)
    if batch is None:
        return None
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    auxiliary = AuxiliaryLoss(inner)
    found = _measured(model, auxiliary, {k: v.to(device) for k, v in batch.items()}, dtype, device, context)
    if found.line:
        say(found.line)
    return auxiliary if _anywhere(found.adds, device) else None


def _measured(
    model: Any,
    auxiliary: AuxiliaryLoss,
    batch: dict[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
    context: Callable[[], Any],
) -> OwnLoss:
    num, training = int(count_tokens([batch])[0]), model.training
    devices = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), context(), torch.random.fork_rng(devices=devices):
            entropy = float(loss_sum(model, batch)) / num
            own = float(model(**batch, use_cache=False).loss)
            added = float(loss_sums(model, batch, auxiliary)[1]) / num
            model.train()  # some add only then
            trained = float(loss_sums(model, batch, auxiliary)[1]) / num
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a model of somebody else's does with labels
        return OwnLoss(num, reason=f"{type(error).__name__}: {brief(error)}")
    finally:
        model.train(training)
    if not auxiliary.asked:  # it computes its cross-entropy itself: nothing can be told apart
        added = trained = 0.0
    return OwnLoss(num, entropy, own, added, trained, TOLERANCE.get(dtype, HALF_TOLERANCE))


def _anywhere(adds: bool, device: torch.device) -> bool:
    if not dist.is_initialized():
        return adds
    flag = torch.tensor(int(adds), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
