"""Weights that ZeRO-3 has spread over the processes: gathered one by one, and forward and backward through them before
DeepSpeed's engine exists.

Each module's own weights are collected when its forward begins and given back when it ends. What autograd saved of them
is remembered by name, and collected again for the backward pass, one weight at a time. Every process has to do the same
things in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

PARAM_WRAPPER = "ParamWrapper"


@contextmanager
def weights_in_reach(model: torch.nn.Module) -> Iterator[None]:
    """Within it `model` computes as if it were whole; nothing to do for one that is."""
    if not any(is_partitioned(p) for p in model.parameters()):
        yield
        return
    gatherer = Zero3Gatherer()
    handles = [  # on all modules: an adapter may add some meanwhile, and copies would keep hooks of their own
        register_module_forward_pre_hook(gatherer.gather),
        register_module_forward_hook(gatherer.release, always_call=True),
    ]
    try:
        with torch.autograd.graph.saved_tensors_hooks(gatherer.pack, gatherer.unpack):
            yield
    finally:
        for handle in handles:
            handle.remove()


class Zero3Gatherer:
    """Which weights are whole at the moment, by the address of their storage."""

    def __init__(self) -> None:
        self.gathered: dict[torch.nn.Module, ExitStack] = {}
        self.at: dict[int, torch.nn.Parameter] = {}

    def own(self, module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
        """What `module` needs: its own weights, and those of others that `Engine.reads` named. peft's adapter on a
        parameter changes that of the module inside it before that module's forward begins."""
        others: Any = getattr(module, "ds_external_parameters", tuple)
        own = module.parameters(recurse=type(module).__name__ == PARAM_WRAPPER)
        return itertools.chain(own, (parameter for _, parameter in others()))

    def __deepcopy__(self, memo: Any) -> Zero3Gatherer:
        return self

    def gather(self, module: torch.nn.Module, inputs: Any) -> None:
        """Forward begins: the module's own weights become whole. One that a parent holds already is left alone."""
        stack = self.gathered[module] = ExitStack()
        for parameter in self.own(module):
            if is_partitioned(parameter):
                stack.enter_context(whole(parameter))
                address = parameter.untyped_storage().data_ptr()
                self.at[address] = parameter
                stack.callback(self.at.pop, address, None)

    def release(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        """Forward ends."""
        stack = self.gathered.pop(module, None)
        if stack is not None:
            stack.close()

    def pack(self, tensor: torch.Tensor) -> Any:
        """What autograd keeps of a tensor: of a gathered weight only which one, and the view of it."""
        parameter = self.at.get(tensor.untyped_storage().data_ptr())
        if parameter is None:
            return tensor
        return parameter, tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(self, kept: Any) -> torch.Tensor:
        """The tensor again; a weight that is not gathered at the moment as a copy that lives as long as its use."""
        if isinstance(kept, torch.Tensor):
            return kept
        parameter, *view = kept
        if not is_partitioned(parameter):
            return parameter.detach().as_strided(*view)
        with whole(parameter):
            return parameter.detach().clone().as_strided(*view)


def is_partitioned(parameter: Any) -> bool:
    """Whether this process holds only a part of the weight at the moment. `ds_id` is DeepSpeed's mark on what it
    partitions."""
    return hasattr(parameter, "ds_id") and parameter.ds_status.name == "NOT_AVAILABLE"


@contextmanager
def whole(tensor: Any, *, write: bool = False) -> Iterator[Any]:
    """A context in which a partitioned tensor holds all its values; nothing to do for any other. It gives the tensor.

    With `write`, what global rank 0 writes into it reaches every process.
    """
    if not hasattr(tensor, "ds_id"):
        yield tensor
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0 if write else None):
        yield tensor
