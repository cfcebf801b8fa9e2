"""Counts memory by executing the real model code of transformers and peft on tensors without data.

The arithmetic of fastchat/plan is compared with it. A 7B model takes a few seconds on any machine. Imports torch,
transformers and peft inside its functions.

Three things stand in for a GPU: dropout is the fused kernel, which keeps a mask of a byte; the attention kernel keeps
what FlashAttention keeps (q, k, v, output, log-sum-exp), because scaled_dot_product_attention without data takes the
path that keeps T x T matrices; and autocast is the CPU's, which casts the same operations.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

ATTENTION = "counted_attention"


@dataclass(frozen=True)
class Counts:
    """Bytes found by running one forward and one backward pass."""

    weights: int
    trained: int  # number of trained parameters
    saved: int  # distinct tensors that autograd keeps at the end of the forward pass, weights not counted
    peak: int = 0  # everything alive at once, at most, beyond weights and gradients of earlier steps
    gradients: int = 0


def count(
    config: Any,
    *,
    batch: int,
    length: int,
    dtype: str = "bfloat16",
    lora: dict[str, Any] | None = None,
    q_lora: bool = False,
    adapter_dtype: str = "bfloat16",
    autocast: bool = False,
    checkpointing: bool | int = False,
    head: str = "none",
    backward: bool = True,
) -> Counts:
    """Runs the causal LM of `config` (a transformers config) on a [batch, length] input.

    `lora`: arguments of peft's LoraConfig; None trains everything. `q_lora`: the base is nf4, by
    bitsandbytes' own layers. `adapter_dtype`: of its weights. `head`: "none" sums
    the hidden states, "logits" computes the plain float32 loss of all positions. `backward`: False stops behind
    the forward pass, which takes a third of the time; peak and gradients are not counted then.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fastchat.model.decoder_layers import checkpoint_first

    model = _build(config, dtype, lora, q_lora)
    with as_on_a_gpu(), FakeTensorMode(allow_non_fake_inputs=True):
        _give_storage(model, getattr(torch, adapter_dtype) if lora else None)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
            if checkpointing is not True:
                checkpoint_first(model, checkpointing)
        model.train()
        ids = torch.zeros(batch, length, dtype=torch.int64)
        base = model.base_model.model if lora else model

        def forward() -> Any:
            cast = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
            with cast:
                hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
                return hidden if head == "none" else base.lm_head(hidden)

        saved = saved_bytes(model, forward)
        if not backward:
            tensors = list(model.parameters())
            trained = sum(p.numel() for p in tensors if p.requires_grad)
            return Counts(sum(p.nbytes for p in tensors), trained, saved)
        return _peak(model, forward, saved, _loss if head == "logits" else torch.sum)


def _loss(logits: Any) -> Any:
    """The plain loss of fastchat.train: float32 logits of all positions at once."""
    import torch

    flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(flat, torch.zeros(len(flat), dtype=torch.int64), reduction="sum")


def _build(config: Any, dtype: str, lora: dict[str, Any] | None, q_lora: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    config._attn_implementation = register_attention()
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        for parameter in model.parameters():  # as loading does, also with the weights of routers
            parameter.data = parameter.data.to(getattr(torch, dtype))
        model.config.use_cache = False
        if lora is None:
            return model
        from peft import LoraConfig, get_peft_model

        model.requires_grad_(False)
        if q_lora:
            _quantise(model, getattr(torch, dtype))
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora), autocast_adapter_dtype=False)


def _quantise(model: Any, dtype: Any) -> None:
    """Puts bitsandbytes' nf4 layers into all decoder layers, as loading a quantised model does."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    for name, layer in list(model.model.layers.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            sizes = (layer.in_features, layer.out_features, layer.bias is not None)
            quantised = Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4", device="meta")
            model.model.layers.set_submodule(name, quantised.requires_grad_(False))
    model.is_loaded_in_4bit = True


def _nf4_weight(layer: Any) -> Any:
    """The stored weight of one nf4 layer: half a byte per number, and the scales that its kernels read."""
    import torch
    from bitsandbytes.functional import QuantState

    number = layer.in_features * layer.out_features
    nested = QuantState(torch.empty(-(-number // 64 // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32)
    weight = torch.nn.Parameter(torch.empty(number // 2, 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = QuantState(  # pyright: ignore[reportAttributeAccessIssue]
        torch.empty(number // 64, dtype=torch.uint8),
        shape=torch.Size((layer.out_features, layer.in_features)),
        code=torch.empty(16),
        blocksize=64,
        quant_type="nf4",
        dtype=layer.compute_dtype,
        offset=torch.empty(()),
        state2=nested,
    )
    return weight


def _give_storage(model: Any, adapter_dtype: Any) -> None:
    """Replaces meta tensors by fake CPU ones, on which autocast works; tied weights stay tied."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        quantised = type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")
        for name, p in list(module._parameters.items()):
            if quantised and name == "weight":
                module._parameters[name] = _nf4_weight(module)
            elif p is not None:
                if id(p) not in made:
                    dtype = adapter_dtype if adapter_dtype is not None and p.requires_grad else p.dtype
                    made[id(p)] = torch.nn.Parameter(torch.empty(p.shape, dtype=dtype), requires_grad=p.requires_grad)
                module._parameters[name] = made[id(p)]
        for name, b in list(module._buffers.items()):
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


def saved_bytes(model: Any, forward: Callable[[], Any]) -> int:
    """Bytes of the distinct storages that autograd saves in one forward pass; weights themselves do not count."""
    import torch

    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def _peak(model: Any, forward: Callable[[], Any], saved: int, finish: Callable[[Any], Any]) -> Counts:
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    with live_bytes() as live:
        for parameter in model.parameters():
            live.see(parameter)
        weights = live.now
        live.peak = live.now
        finish(forward()).backward()
        torch.zeros(0)  # one more operation, so that the last state is seen
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    number = sum(p.numel() for p in trained)
    return Counts(weights, number, saved, live.peak - weights, gradients)


class Live:
    """Bytes of all storages that are alive, followed operation by operation."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def see(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@contextlib.contextmanager
def live_bytes() -> Iterator[Live]:
    """Follows every tensor made inside the block, with or without data."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    live = Live()

    class Follow(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    live.see(leaf)
            return result

    with Follow():
        yield live


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Dropout as the fused GPU kernel does it."""
    import torch

    original = torch.nn.functional.dropout

    def fused(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return torch.native_dropout(input, p, True)[0] if training and p > 0 else input

    torch.nn.functional.dropout = fused
    try:
        yield
    finally:
        torch.nn.functional.dropout = original


def register_attention() -> str:
    """Makes the counted attention known to transformers; its name."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    class Kernel(torch.autograd.Function):
        """Keeps what FlashAttention keeps; its output lies in memory as [B, T, heads, channels]."""

        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
            batch, heads, length, _ = q.shape
            output = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
            log_sums = q.new_empty(batch, heads, length, dtype=torch.float32)
            ctx.save_for_backward(q, k, v, output, log_sums)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            q, k, v, _, _ = ctx.saved_tensors
            return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return Kernel.apply(query, key, value).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS[ATTENTION] = attention
    return ATTENTION
