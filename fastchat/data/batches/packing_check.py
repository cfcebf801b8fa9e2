"""Does packing change the results of this model? Measured on the model itself; nothing else would report it.

Two questions, with dropout off and no optimizer step:

    leakage      if the first dialogue of a pack changes, do the logits of the second one? Not at all, if it is correct
    difference   the summed loss and its gradients, for packed dialogues against the same dialogues one by one

and for packs that are prefix trees, whether a branch sees what it branches off from, and no other branch.

Both need the model before an engine wraps it, with all its weights available (through `train/partitioned.py` if ZeRO-3
has partitioned them; all processes then have to call).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastchat.data.batches.collate import collate
from fastchat.data.batches.packing import PackedDataset, Packs, pack_collate, plan_packs
from fastchat.data.batches.prefix_tree import grow
from fastchat.data.batches.tree_mask import tree_masks
from fastchat.errors import SettingsError, counted

if TYPE_CHECKING:
    import torch

    Batch = dict[str, torch.Tensor]

LossSum = Callable[[Any, "Batch"], "torch.Tensor"]
GradientsOf = Callable[["torch.Tensor", "Sequence[torch.nn.Parameter]"], "Sequence[torch.Tensor | None]"]
# In float32 a larger error is one of the method; in half precision, summing in another order alone gives this much.
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
_LEAK = 10  # times the rounding noise, which is zero in most models


@dataclass(frozen=True)
class PackingReport:
    """How packed training differs from unpacked, relative to the unpacked loss and the norm of its gradient."""

    num_dialogues: int
    num_packs: int
    loss_error: float
    gradient_error: float
    tolerance: float

    @property
    def exact(self) -> bool:
        """Whether both errors are within what the dtype allows; False if one of them is NaN."""
        return bool(self.loss_error <= self.tolerance and self.gradient_error <= self.tolerance)

    @property
    def line(self) -> str:
        """One line for the log."""
        examples, packs = counted(self.num_dialogues, "example"), counted(self.num_packs, "pack")
        return f"packing verified on {examples} in {packs}: {self.numbers}"

    @property
    def numbers(self) -> str:
        """The errors, and the tolerance."""
        errors = f"loss off by {self.loss_error:.1e}, gradient by {self.gradient_error:.1e}"
        return f"{errors} (allowed: {self.tolerance:.0e})"


def check_no_leak(model: Any, *, vocab_size: int, flat: bool = False, length: int = 32) -> float:
    """Raise SettingsError if a dialogue sees the one packed before it. Takes three forward passes of `2 * length`.

    The first dialogue never sees the second one, so any change of its logits when the second one changes is due to
    rounding: none, except in models that then sum in another order (mixtures of experts).
    Returns the change of the second dialogue's logits when the first one changes, relative to that of the first one's.
    """
    import torch

    rng = np.random.default_rng(0)
    a, b, other = rng.integers(0, vocab_size, (3, length))
    with _evaluating(model), torch.no_grad():
        base, first_changed, second_changed = (_logits(model, pair, flat) for pair in ((a, b), (other, b), (a, other)))
    own, leaked = _moved(base, first_changed, length)
    noise, _ = _moved(base, second_changed, length)
    assert own > 0, "two dialogues gave the same logits"
    if not leaked <= _LEAK * noise:
        raise SettingsError(
            f"--packing: {type(model).__name__} lets a dialogue see the one packed before it (its logits change by "
            f"{leaked:.1e}). Do not use --packing with this model, or choose another attention kernel."
        )
    return leaked / own


def check_tree(model: Any, *, vocab_size: int, dtype: torch.dtype | None = None, length: int = 24) -> float:
    """Raise SettingsError if a prefix tree does not give the logits of separate rows. Four passes of `3 * length`.

    A root with two branches: the second must not see the first (see `check_no_leak` on rounding), and must get the
    logits, but for rounding in `dtype`, that it gets in a row of its own. Returns their difference, relative to the
    largest logit.
    """
    import torch

    root, one, two, other = np.random.default_rng(0).integers(0, vocab_size, (4, length))
    one[0], other[0], two[0] = 0, 0, 1  # their order in the tree
    with _evaluating(model), torch.no_grad():
        base, first_changed, second_changed = (
            _tree_logits(model, [np.concatenate([root, branch]) for branch in pair])
            for pair in ((one, two), (other, two), (one, np.concatenate([two[:1], other[1:]])))
        )
        row = _logits(model, [np.concatenate([root, two])], False)
    _, leaked = _moved(base, first_changed, 2 * length)
    noise, _ = _moved(base, second_changed, 2 * length)
    in_tree = torch.cat([base[:, :length], base[:, 2 * length :]], dim=1)
    off = (in_tree - row).abs().max().item() / row.abs().max().item()
    if not leaked <= _LEAK * noise or not off <= TOLERANCE[str(dtype or _dtype(model)).removeprefix("torch.")]:
        raise SettingsError(
            f"--packing: in rows that are prefix trees {type(model).__name__} does not compute what it computes in "
            f"separate rows (logits off by {off:.1e}; those of a branch change by {leaked:.1e} with another branch). "
            "Use --packing_prefix_tree False."
        )
    return off


def compare_packing(
    model: Any,
    examples: Sequence[Mapping[str, Any]],
    loss_sum: LossSum,
    *,
    pad_token_id: int,
    capacity: int,
    packs: Packs | None = None,
    flat: bool = False,
    batch_size: int = 1,
    dtype: torch.dtype | None = None,
    checkpointing: bool = False,
    gradients_of: GradientsOf | None = None,
) -> PackingReport:
    """Compare loss and gradients of `examples` packed and one by one. Does not change the parameters' `grad`.

    Args:
        model: with at least one trainable parameter.
        examples: with input_ids, labels and index, such as the first entries of the training data.
        loss_sum: (model, batch) -> summed loss, the one that training uses.
        packs: which of `examples` share a row; None: as `plan_packs` says.
        batch_size: packs per batch.
        dtype: what the forward pass computes in, which determines the tolerance; None: the dtype of the weights.
        checkpointing: keep the activations of one layer only, as training with gradient checkpointing does.
        gradients_of: the gradient of a loss by each of some parameters, None where it has none; by default autograd's.
    """
    packed = PackedDataset(examples, packs or plan_packs([len(e["input_ids"]) for e in examples], capacity))
    starts = range(0, len(packed), batch_size)
    batches = [[packed[p] for p in range(at, min(at + batch_size, len(packed)))] for at in starts]
    gradients = GradientSum(model, gradients_of)
    with _evaluating(model), _checkpointing(model, checkpointing):
        unpacked_loss = packed_loss = 0.0
        for example in examples:
            unpacked_loss += gradients.add(loss_sum, collate([example], pad_token_id=pad_token_id), 1.0)
        norm = gradients.norm()
        for items in batches:
            batch = pack_collate(items, pad_token_id=pad_token_id, flat=flat)
            del batch["seq_lengths"]
            packed_loss += gradients.add(loss_sum, batch, -1.0)
        difference = gradients.norm()  # unpacked minus packed gradients: a single sum in memory
    tolerance = TOLERANCE[str(dtype or _dtype(model)).removeprefix("torch.")]
    loss_error = abs(packed_loss - unpacked_loss) / abs(unpacked_loss) if unpacked_loss else float("nan")
    return PackingReport(len(examples), len(packed), loss_error, difference / norm if norm else float("nan"), tolerance)


class GradientSum:
    """A signed sum of gradients, separate from the parameters' own `grad`, which is not changed.

    The parameters themselves may be empty by then: ZeRO-3 has released the gathered weights.
    """

    def __init__(self, model: Any, gradients_of: GradientsOf | None = None) -> None:
        self.model, self.gradients_of = model, gradients_of or _autograd
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.sums: list[torch.Tensor | None] = [None] * len(self.trained)

    def add(self, loss_sum: LossSum, batch: Batch, sign: float) -> float:
        """Adds `sign` times the gradient of a batch; returns its loss."""
        loss = loss_sum(self.model, {name: tensor.to(self.model.device) for name, tensor in batch.items()})
        for i, gradient in enumerate(self.gradients_of(loss, self.trained)):
            if gradient is not None:
                before = self.sums[i]
                self.sums[i] = gradient * sign if before is None else before.add_(gradient, alpha=sign)
        return float(loss.detach())

    def norm(self) -> float:
        """Euclidean, over all parameters."""
        return sum(float(total.double().pow(2).sum()) for total in self.sums if total is not None) ** 0.5


def _autograd(loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> Sequence[torch.Tensor | None]:
    import torch

    return torch.autograd.grad(loss, parameters, allow_unused=True)


def _logits(model: Any, dialogues: Sequence[np.ndarray], flat: bool) -> torch.Tensor:
    """[1, T, V] in float32 for dialogues packed into one row."""
    ids = np.concatenate(dialogues)
    pack = {"input_ids": ids, "labels": ids, "lengths": [len(d) for d in dialogues]}
    batch = pack_collate([pack], pad_token_id=0, flat=flat)
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "position_ids")}
    return model(**inputs, use_cache=False).logits.float()


def _tree_logits(model: Any, rows: Sequence[np.ndarray]) -> torch.Tensor:
    """[1, T, V] in float32 for the prefix tree of some rows, depth first."""
    import torch

    items = [{"tree": grow([{"input_ids": row, "labels": row} for row in rows])}]
    batch = {name: tensor.to(model.device) for name, tensor in pack_collate(items, pad_token_id=0).items()}
    ids, positions = batch["input_ids"], batch["position_ids"]
    with tree_masks(batch["ends"], positions):
        output = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False)
    return output.logits.float()


def _moved(before: torch.Tensor, after: torch.Tensor, length: int) -> tuple[float, float]:
    """The largest change of the logits of the first `length` tokens, and of those of the rest."""
    moved = (after - before).abs()
    return moved[:, :length].max().item(), moved[:, length:].max().item()


def _dtype(model: Any) -> torch.dtype:
    """What the forward pass computes in: the dtype of most weights (norms are sometimes kept in float32)."""
    sizes: dict[torch.dtype, int] = {}
    for p in model.parameters():
        if p.is_floating_point():
            sizes[p.dtype] = sizes.get(p.dtype, 0) + p.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


@contextmanager
def _evaluating(model: Any):
    """Turn dropout off; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _checkpointing(model: Any, wanted: bool):
    """Checkpoint the activations of the layers. Only layers in training mode do so: the layers alone are set to it, not
    their submodules, so that dropout stays off; a model with dropout in the layers themselves is not checkpointed."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    drops = {name for name, rate in model.config.to_dict().items() if name.endswith(("dropout", "pdrop")) and rate}
    if not wanted or drops:
        yield
        return
    before = model.is_gradient_checkpointing
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
    try:
        yield
    finally:
        if not before:
            model.gradient_checkpointing_disable()
