"""Collecting the trained tensors, complete and on the CPU of global rank 0, under every engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fastchat.bars import bar, each
from fastchat.errors import CheckpointError, NumericError
from fastchat.model.adapter_parts import adapter_parts


class WeightAccess:
    """Access to weights. Here each process has all of them; an engine that partitions weights overrides this."""

    def whole(self, tensor: Any, *, write: bool = False) -> AbstractContextManager[Any]:
        """A context that gives a tensor with all its values; every process must enter it. With `write`, changes that
        global rank 0 makes to those of a partitioned tensor reach every process."""
        return nullcontext(tensor)

    def at_rest(self) -> AbstractContextManager[None]:
        """A context in which no parameter is being transferred between processes; enter it to gather many."""
        return nullcontext()


IN_PLACE = WeightAccess()  # for a model that no engine holds


def gather_trained(model: torch.nn.Module, weights: WeightAccess) -> dict[str, torch.Tensor]:
    """The parameters of a PeftModel's adapter, by name. Every process must call it; all except global rank 0 get {}."""
    return gather(adapter_parameters(model).items(), weights)


def adapter_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that `gather_trained` collects, as they are in the model: all trained ones, and those of the
    adapter that are not trained (an adapter that also has layers for images may be continued on text; one may subtract
    its beginning).
    """
    saved = {name for names in adapter_parts(model).values() for name in names}
    return {name: p for name, p in model.named_parameters() if p.requires_grad or name in saved}


def gather_all(model: torch.nn.Module, weights: WeightAccess) -> dict[str, torch.Tensor]:
    """The whole model's state, by name. A weight with two names (tied embeddings) is there under each of them."""
    return gather(model.state_dict(keep_vars=True).items(), weights)


def gather(named: Iterable[tuple[str, torch.Tensor]], weights: WeightAccess) -> dict[str, torch.Tensor]:
    """Copies of the named tensors. Partitioned ones are collected from all processes, one at a time."""
    found: dict[str, torch.Tensor] = {}
    first = not dist.is_initialized() or dist.get_rank() == 0
    copies: dict[int, torch.Tensor] = {}  # tied weights stay one tensor, so that they are saved as one
    for name, tensor in each(list(named), "collecting the weights", "tensor"):
        with weights.whole(tensor) as values:
            if first:
                if id(tensor) not in copies:
                    copies[id(tensor)] = values.detach().to("cpu", copy=True)
                found[name] = copies[id(tensor)]
    return found


def check_finite(tensors: dict[str, torch.Tensor]) -> None:
    """NumericError naming the first tensor with NaN or infinity: such weights are never saved."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise NumericError(
                f"the trained weights are not finite ({name}): nothing was saved; lower --learning_rate, check the data"
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity: by its extremes, twenty times faster than value by value."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return bool(torch.isfinite(tensor).all())
    low, high = torch.aminmax(tensor)  # NaN where any value is NaN
    return bool(torch.isfinite(low) and torch.isfinite(high))


def compare_files(files: Iterable[Path], expected: dict[str, torch.Tensor]) -> None:
    """CheckpointError unless the safetensors files have exactly `expected`: every name, shape, dtype and bit."""
    left = dict(expected)
    with bar("reading back", sum(tensor.nbytes for tensor in expected.values())) as progress:
        for name, stored in stored_tensors(files):
            if name not in left:
                raise CheckpointError(
                    f"the saved file has {name}, which was not trained here; the result was not saved"
                )
            tensor = left.pop(name)
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise CheckpointError(
                    f"{name}: saved {stored.dtype} {tuple(stored.shape)}, trained {tensor.dtype} {tuple(tensor.shape)}"
                )
            if not torch.equal(_bits(stored), _bits(tensor)):
                raise CheckpointError(f"{name} read back from disk differs from what was trained; check the disk")
            progress.advance(tensor.nbytes)
    if left:
        raise CheckpointError(
            f"{len(left)} trained tensors are missing from the saved file, such as {next(iter(left))}"
        )


def stored_tensors(files: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything in some safetensors files, one at a time."""
    from safetensors import safe_open

    for path in files:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                yield name, file.get_tensor(name)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
