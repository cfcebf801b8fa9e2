"""The decoder layers of a causal language model: which are recomputed in the backward pass, and compiling them.

Both act on the layers where they are: no parameter gets another name, and an engine wraps them as before.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from fastchat.errors import SettingsError, brief, say

_CHECKPOINTING = "forward_with_checkpointing"  # transformers' wrapper around the forward of every layer class


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of `model` (with or without peft's wrapper), in order. LookupError for a model without such a list."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    number = inner.config.get_text_config().num_hidden_layers
    for module in (inner.get_decoder() or inner).modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise LookupError(f"{type(inner).__name__} has no list of its {number} decoder layers")


def check_divisible(model: Any, number: int) -> None:
    """SettingsError for a model whose first `number` decoder layers cannot be checkpointed without the others."""
    try:
        layers = decoder_layers(model)
    except LookupError as error:
        raise SettingsError(f"--gradient_checkpointing {number}: {error}; use full") from None
    if any(not hasattr(layer, "gradient_checkpointing") for layer in layers):
        raise SettingsError(
            f"--gradient_checkpointing {number}: the layers of this model ({type(layers[0]).__name__}) can only be "
            "checkpointed all together; use full"
        )


def checkpoint_first(model: Any, number: int) -> None:
    """Where gradient checkpointing is on, it stays on in the first `number` decoder layers only.

    The first ones, because the backward pass comes to them last: by then the activations of all others are gone, so the
    peak, at the end of the forward pass, has no recomputed layer in it.
    """
    layers: list[Any] = decoder_layers(model)
    on = any(layer.gradient_checkpointing for layer in layers)
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = on and index < number


def checkpointed_layers(model: Any) -> int:
    """How many decoder layers are checkpointed."""
    layers: list[Any] = decoder_layers(model)
    if any(hasattr(layer, "gradient_checkpointing") for layer in layers):
        return sum(bool(layer.gradient_checkpointing) for layer in layers)
    return len(layers) if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()) else 0


class CompiledLayers:
    """torch.compile for the training passes of the decoder layers: one graph for all layers of a class.

    Layers get a subclass of their class, whose forward is compiled. So transformers' checkpointing is around the
    compiled code and not in it, and checkpointed layers share the graph of the others. Shapes are dynamic: one graph
    for batches of all lengths. Dropout draws the random numbers that it draws uncompiled. Evaluation and generation are
    not compiled: with a cache each layer would be a graph of its own.

    A graph that cannot be compiled later, such as the first with a padding mask, runs uncompiled from then on, and that
    is said.
    """

    def __init__(self, model: Any, backend: Any = "inductor") -> None:
        self.layers = decoder_layers(model)
        self.backend = backend
        self.failed = ""  # why a graph could not be compiled
        self._hook: Any = None
        self._before = [type(layer) for layer in self.layers]
        self._embedding = model.get_input_embeddings()

    def apply(self) -> None:
        compiled = {kind: self._subclass(kind) for kind in dict.fromkeys(self._before)}
        for layer, kind in zip(self.layers, self._before, strict=True):
            layer.__class__ = compiled[kind]
        # Whether its input has a gradient is part of a graph: without this the first layer would need its own.
        self._hook = self._embedding.register_forward_hook(_requires_grad)

    def undo(self) -> None:
        for layer, kind in zip(self.layers, self._before, strict=True):
            layer.__class__ = kind
        if self._hook is not None:
            self._hook.remove()

    def _subclass(self, kind: type[nn.Module]) -> type[nn.Module]:
        from torch._dynamo.exc import TorchDynamoException  # seconds to import

        plain = _without_checkpointing(kind.forward)
        # Random numbers as in eager mode: then a compiled run is the same run.
        options: Any = {"fallback_random": True} if self.backend == "inductor" else None
        compiled = torch.compile(plain, backend=self.backend, dynamic=True, options=options)

        def forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.failed or not (layer.training and torch.is_grad_enabled()):
                return plain(layer, *args, **kwargs)
            try:
                return compiled(layer, *args, **kwargs)
            except TorchDynamoException as error:
                self.failed = f"{type(error).__name__}: {brief(error)}"
                say(f"WARNING: --torch_compile: a graph cannot be compiled ({self.failed}): the layers run uncompiled")
                return plain(layer, *args, **kwargs)

        return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _without_checkpointing(forward: Any) -> Callable[..., Any]:
    while isinstance(forward, FunctionType) and forward.__code__.co_name == _CHECKPOINTING:
        forward = forward.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    return forward


def _requires_grad(_: nn.Module, args: Any, output: torch.Tensor) -> None:
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_(True)
