"""FSDP2: torch's `fully_shard`. Weights, gradients and optimizer state divided among the processes, weight by weight.

The model is divided here, on a CPU and on GPUs alike, as soon as it is complete (accelerate's FSDP silently runs DDP
on a CPU). Every decoder layer is a unit whose weights are gathered together, and the rest (embedding, last norm, head)
is another one, so that an embedding and a head that share their matrix are in the same unit.

In half precision a unit is gathered in it, while gradients are summed and weights updated in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from fastchat.errors import SettingsError
from fastchat.processes import rank
from fastchat.settings.engines import FsdpOptions
from fastchat.train.engine import shards
from fastchat.train.engine.plain import Plain

# Bytes per trained number in addition to the weights: two float32 moments, and a float32 copy where files are in half.
_STATE_BYTES = 12


class FSDP(Plain):
    """`fully_shard` over all processes."""

    name = "fsdp"
    partitions = True
    casts_weights = True
    library = "fsdp"

    def __init__(self, options: FsdpOptions, world_size: int, half: torch.dtype | None) -> None:
        super().__init__(world_size)
        self.options, self.half = options, half
        self.units = 0
        self._files_as: dict[str, torch.dtype] = {}  # weights that are held in another dtype than files have, by name
        self._names: dict[int, str] = {}

    # ---- weights ----

    def divide(self, model: Any, device: torch.device) -> None:
        """Every process keeps its rows of each weight from now on."""
        inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        blocks = _blocks(inner, self.options.units)
        _check(model)
        policy = MixedPrecisionPolicy(param_dtype=self.half, reduce_dtype=torch.float32 if self.half else None)
        mesh = init_device_mesh(device.type, (self.world_size,))
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        for module in (*blocks, inner):
            self._widen(module)
            reshard = self.options.reshard_after_forward
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
        self.units = len(blocks) + 1
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._files_as = {n: dtypes[n] for n, p in model.named_parameters() if p.dtype != dtypes[n]}
        self._check_divided(model)

    def _widen(self, module: torch.nn.Module) -> None:
        """In half precision what trains is kept in float32; unit by unit, so that it is never whole in float32."""
        for parameter in module.parameters():
            if self.half and parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.float()

    def _check_divided(self, model: Any) -> None:
        """AssertionError unless this process holds exactly its rows of every weight, and no other."""
        for name, parameter in model.named_parameters():
            divided = isinstance(parameter, DTensor) and parameter.placements == (Shard(0),)
            assert divided, f"{name} is not divided among the processes"
            first, end = shards.rows_of(parameter.shape[0], self.world_size, rank())
            held = parameter.to_local().shape[0]
            assert held == end - first, f"{name}: rank {rank()} holds {held} of {parameter.shape[0]} rows"

    def held(self, model: torch.nn.Module) -> tuple[int, int]:
        """(numbers that this process holds, numbers of the whole model)."""
        parameters: Any = list(model.parameters())
        return sum(p.to_local().numel() for p in parameters), sum(p.numel() for p in parameters)

    @contextmanager
    def whole(self, tensor: Any, *, write: bool = False) -> Iterator[torch.Tensor]:
        if not isinstance(tensor, DTensor):
            yield tensor
            return
        divided: Any = tensor.detach()
        full = divided.full_tensor()
        as_file = self._files_as.get(self._names.get(id(tensor), ""))
        full = full if as_file is None else full.to(as_file)
        yield full
        if write:
            dist.broadcast(full, src=0)
            first, end = shards.rows_of(tensor.shape[0], self.world_size, rank())
            divided.to_local().copy_(full[first:end])

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Without `reshard_after_forward` a forward pass leaves weights whole, which training does not update."""
        _divide_again(self.wrapped)
        yield

    def gradients(self, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> Sequence[torch.Tensor | None]:
        """Divided as the weights are: autograd itself only knows the gathered ones."""
        loss.backward()
        found = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return found

    # ---- training ----

    def prepare(self, trainer: Any) -> None:
        """accelerate takes the model as it is."""
        super().prepare(trainer)
        _divide_again(trainer.model)
        trainer.model._is_accelerate_prepared = True

    def attach(self, trainer: Any) -> None:
        super().attach(trainer)
        self._check_divided(self.wrapped)
        ours = {id(p) for p in self.wrapped.parameters()}
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        assert all(id(p) in ours for p in trained), "the optimizer does not have the divided weights"

    def _is_running(self) -> bool:
        return any(isinstance(module, FSDPModule) for module in self.wrapped.modules())

    def casts_by_itself(self, weights: torch.dtype, half: torch.dtype) -> bool:
        return True

    def compute_dtype(self, weights: torch.dtype) -> torch.dtype:
        return self.half or weights

    def line(self) -> str:
        held, numbers = self.held(self.wrapped)
        return f"fsdp: each process holds {100 * held / numbers:.1f} % of the weights, in {self.units} units"

    def settings(self) -> dict[str, Any]:
        held, numbers = self.held(self.wrapped)
        return {**asdict(self.options), "gathered_together": self.units, "share_of_rank_0": round(held / numbers, 4)}

    def norm(self, norm: Any) -> Any:
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    # ---- checkpoints ----

    def state_bytes(self, numbers: int, weight_bytes: int) -> int:
        return numbers * _STATE_BYTES

    def save(self, folder: Path, *, adapter: bool) -> None:
        """One file per process: its rows of the optimizer state, and of the weights that files have in half only."""
        _divide_again(self.wrapped)
        wide = {n: p for n, p in self.wrapped.named_parameters() if n in self._files_as}
        shards.save(folder, self._inner_optimizer().state_dict(), wide)

    def load(self, folder: Path, *, adapter: bool) -> None:
        """Whatever the number of processes that saved it."""
        _divide_again(self.wrapped)
        parameters = dict(self.wrapped.named_parameters())
        optimizer = self._inner_optimizer()
        order = [p for group in optimizer.param_groups for p in group["params"]]
        state, wide = shards.load(folder, order, parameters)
        optimizer.load_state_dict(state)
        with torch.no_grad():
            for name, rows in wide.items():
                parameters[name].to_local().copy_(rows)


def _blocks(model: Any, names: tuple[str, ...]) -> list[torch.nn.Module]:
    """The modules that are gathered one after the other, inner ones first. SettingsError where there is none."""
    wanted = set(names or getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in wanted]
    missing = sorted(set(names) - {type(module).__name__ for module in found})
    if missing or not found:
        lists = {type(m[0]).__name__ for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1}
        which = f"{missing[0]!r} is no class of a module in" if missing else "no decoder layer is known of"
        raise SettingsError(
            f"fsdp: {which} {type(model).__name__}; name its layers in --fsdp_config as transformer_layer_cls_to_wrap: "
            f"{', '.join(sorted(lists)) or 'none repeats'}"
        )
    return found[::-1]


def _check(model: torch.nn.Module) -> None:
    """SettingsError for weights that `fully_shard` cannot take."""
    parameters = list(model.named_parameters())
    for name, parameter in parameters:
        if not parameter.dim():
            raise SettingsError(f"fsdp: {name} is a single number, which cannot be divided: use --engine zero3")
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, p in parameters if p.requires_grad})
    if len(dtypes) > 1:
        raise SettingsError(
            f"fsdp: the trained weights are of {' and '.join(dtypes)}, which it cannot gather together: add --bf16 "
            "True (they are then kept in float32) or --dtype float32"
        )


def _divide_again(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
