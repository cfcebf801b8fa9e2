"""The loss without the logits: the output matrix runs on supervised positions only, a chunk of them at a time.

For 4096 tokens and a vocabulary of 256k, the float32 logits, their log-softmax and its gradient are 12 GiB; those of
one chunk are less than 1 GiB. Loss and gradients are the plain path's, but for the order in which they are added up.

What a family does to its logits (a cap, a scale) is not known here: for every chunk the model's own `forward` does it,
with the decoder and the head replaced by what they have computed already.

Shape letters: B rows, T tokens, H hidden size, V vocabulary, N supervised tokens of a batch, n those of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from fastchat.plan.loss import rows_per_chunk
from fastchat.train.loss import IGNORED, cross_entropy_sum, tree_pairs


class ChunkedCrossEntropy:
    """Teaches a causal language model to give a summed loss in place of logits.

    After `ChunkedCrossEntropy(model)`, `model(**inputs, targets=labels[:, 1:]).loss` is the cross-entropy, summed over
    the targets that are not -100; with `label_smoothing=0.1` smoothed. With `labels` as well, `.aux_loss` is the
    loss that the model itself then gives (see auxiliary.py). With `tree=(parents, counts)`, [B, T] each, the rows are
    prefix trees, and `targets` all labels, [B, T]. Without `targets` the model is what it was. The call may
    come through whatever wraps the model (peft, DDP, DeepSpeed), and calls decoder and head once each, however many
    chunks there are: under ZeRO-3 all processes gather the same weights the same number of times.

    `model`: the causal language model itself, without a peft or engine wrapper, before an engine takes it. `rows`:
    positions of a chunk. Raises LookupError for a model that does not say what its decoder and its head are.
    """

    def __init__(self, model: Any, rows: int | None = None) -> None:
        self.model, self.head, decoder = model, model.get_output_embeddings(), model.get_decoder()
        if self.head is None or decoder is None or decoder is model:
            raise LookupError(f"{type(model).__name__} does not say what its decoder and its output matrix are")
        self._at_head = _Place(model, self.head)
        # Multimodal models call what holds their decoder, others the decoder in it: none of them may compute again.
        self._at_decoder = [_Place(model, decoder)]
        if model.base_model not in (model, decoder):
            self._at_decoder.append(_Place(model, model.base_model))
        self.rows = rows or rows_per_chunk(model.config.get_text_config().vocab_size)
        self._model_forward, self._head_forward = model.forward, self.head.forward
        self._take_over()

    def _take_over(self) -> None:
        @functools.wraps(type(self.model).forward)  # generation looks at the signature
        def of_model(
            _: Any, *args: Any, targets: Any = None, label_smoothing: float = 0.0, tree: Any = None, **inputs: Any
        ) -> Any:
            if targets is None:
                return self._model_forward(*args, **inputs)
            hidden_BTH, added = self._last_hidden(*args, **inputs)
            loss = self._loss(*_pairs(hidden_BTH, targets, tree), label_smoothing)
            return MoeCausalLMOutputWithPast(loss=loss, aux_loss=added)  # pyright: ignore

        def of_head(_: Any, hidden: Any, *args: Any, targets: Any = None, label_smoothing: float = 0.0) -> Any:
            if targets is None:
                return self._head_forward(hidden, *args)
            return self._sum(hidden, targets, label_smoothing)

        self.model.forward = MethodType(of_model, self.model)
        self.head.forward = MethodType(of_head, self.head)

    def _last_hidden(self, *args: Any, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, T, H], what the model gives to its head; and the loss in its output, None without `labels`."""
        given: list[torch.Tensor] = []

        def keep(hidden_BTH: torch.Tensor) -> torch.Tensor:
            given.append(hidden_BTH)
            return hidden_BTH.new_zeros(1, 1, 1)

        with self._at_head.taken_by(keep):
            output = self._model_forward(*args, **inputs)
        (hidden_BTH,) = given
        return hidden_BTH, output.loss

    def _loss(self, hidden_NH: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        if torch.is_grad_enabled() and not hidden_NH.requires_grad:
            hidden_NH.requires_grad_()  # ZeRO-3 learns from this gradient that the head's own are complete
        # Called as a module, so that ZeRO-3 brings its weights; positional, since its hooks only see such tensors.
        return self.head(hidden_NH, targets=targets, label_smoothing=label_smoothing)

    def _sum(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        """Scalar, float32. The head's weights are in place. `targets_N`: as for `cross_entropy_sum`."""

        def of_chunk(hidden_nH: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
            return cross_entropy_sum(self._finished(self._head_forward(hidden_nH)).float(), targets_n, label_smoothing)

        if torch.is_grad_enabled():
            trained = [p for p in self.head.parameters() if p.requires_grad]
            return _SumOfChunks.apply(of_chunk, self.rows, targets_N, hidden_NH, *trained)  # pyright: ignore
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        for hidden_nH, targets_n in _chunks(self.rows, hidden_NH, targets_N):
            total += of_chunk(hidden_nH, targets_n)
        return total

    def _finished(self, logits_nV: torch.Tensor) -> torch.Tensor:
        """[n, V]: what the model makes of the head's output."""
        nothing = _Decoded(logits_nV.new_zeros(1, 1, 1))
        with ExitStack() as stack:
            for place in self._at_decoder:
                stack.enter_context(place.taken_by(lambda *_, **__: nothing))
            stack.enter_context(self._at_head.taken_by(lambda _: logits_nV[None]))
            return self._model_forward().logits[0]


def _pairs(hidden_BTH: torch.Tensor, targets_BT: torch.Tensor, tree: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden state that predicts each supervised token, [N, H], and the targets, as for `cross_entropy_sum`.

    `targets_BT`: [B, T - 1], the labels from the second one on; with a `tree` (parents and counts) all labels, [B, T].
    """
    if tree is not None:
        return tree_pairs(hidden_BTH, targets_BT, *tree)
    supervised_BT = targets_BT != IGNORED
    return hidden_BTH[:, :-1][supervised_BT], targets_BT[supervised_BT]


class _SumOfChunks(torch.autograd.Function):
    """The sum of a loss over chunks of rows. Each chunk's gradient is taken right after its loss, so nothing of
    [N, V] is ever kept and no matrix product is made twice.

    That gradient does not know yet what the loss will be multiplied with. Below a frozen head it is taken of BOOST
    times the loss, so that in float16 the small probabilities of a large vocabulary are not lost. Where the head
    trains, a sum over many rows could overflow: there it is the loss' own, O(1) per token, as loss scales make it.
    """

    BOOST = 1024.0

    @staticmethod
    def forward(
        ctx: Any, of_chunk: Callable[..., torch.Tensor], rows: int, targets: Any, hidden: Any, *trained: Any
    ) -> torch.Tensor:
        """The sum of `of_chunk` over chunks of `rows` rows; the gradients are kept in `ctx`."""
        most = int(targets[:, 1].max()) if targets.ndim == 2 and len(targets) else 1  # how often a token counts
        ctx.boost = (1.0 if trained else _SumOfChunks.BOOST) / (1 << (most - 1).bit_length())
        ctx.dtypes = [hidden.dtype, *(p.dtype for p in trained)]
        total, of_hidden = hidden.new_zeros((), dtype=torch.float32), torch.zeros_like(hidden)
        # In float32: in bfloat16 many chunks would round away what one product over all rows keeps.
        of_trained = [torch.zeros_like(p, dtype=torch.float32) for p in trained]
        for at, (part, wanted) in enumerate(_chunks(rows, hidden, targets)):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = of_chunk(part, wanted)
                boosted = loss * ctx.boost
            with torch.autocast(hidden.device.type, enabled=False):  # as in any other backward pass
                mine, *theirs = torch.autograd.grad(boosted, (part, *trained), allow_unused=True)
            total += loss.detach()
            of_hidden[at * rows : at * rows + len(part)] = mine
            for sum_so_far, more in zip(of_trained, theirs, strict=True):
                if more is not None:
                    sum_so_far += more
        ctx.found = [of_hidden, *of_trained]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (found, ctx.found), factor = (ctx.found, None), grad / ctx.boost
        # In place: one of them is as large as the matrix.
        scaled = [one.mul_(factor).to(dtype) for one, dtype in zip(found, ctx.dtypes, strict=True)]
        return None, None, None, *scaled


def _chunks(rows: int, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> Any:
    """[n, H] and [n] by turns; nothing at all where N is 0."""
    return zip(hidden_NH.split(rows), targets_N.split(rows), strict=True) if len(targets_N) else ()


class _Place:
    """Where a module sits in a model, so that something else can take its place for a while.

    Not registered as a module: no hook of an engine sees it, and none is called for it.
    """

    def __init__(self, model: torch.nn.Module, module: torch.nn.Module) -> None:
        self.module = module
        name = next((name for name, found in model.named_modules() if found is module), "")
        above, _, self.leaf = name.rpartition(".")
        if not name:
            raise LookupError(f"{type(model).__name__} has its {type(module).__name__} outside of its modules")
        self.parent = model.get_submodule(above)

    @contextmanager
    def taken_by(self, function: Callable[..., Any]) -> Iterator[None]:
        """Within it the model calls `function`; what else it asks of the module, the module still answers."""
        self.parent._modules[self.leaf] = _Substitute(self.module, function)  # pyright: ignore[reportArgumentType]
        try:
            yield
        finally:
            self.parent._modules[self.leaf] = self.module


class _Substitute:
    def __init__(self, module: torch.nn.Module, function: Callable[..., Any]) -> None:
        self._module, self._function = module, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Decoded:
    """A decoder's output of which nothing is known but the last hidden state."""

    def __init__(self, last_hidden_state: torch.Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None
