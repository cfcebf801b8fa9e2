"""The state of weights that are divided by rows, one file per process; loaded by any number of processes.

    fsdp_0.pt, fsdp_1.pt, ...     {"processes", "groups", "state": {index: {name: value}}, "weights": {name: rows}}

A value of the state is {"rows": the rows of this process} where the optimizer keeps one number per weight, and a plain
tensor or number elsewhere (the number of steps). Nothing in the files is code: they are read with `weights_only`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from fastchat.checkpoint.resume_state import load_tensors
from fastchat.errors import CheckpointError
from fastchat.processes import rank

_ROWS = "rows"


def file_of(process: int) -> str:
    """The file with the rows of one process."""
    return f"fsdp_{process}.pt"


def rows_of(rows: int, processes: int, process: int) -> tuple[int, int]:
    """(first, end) of a process's share of the rows, as `torch.chunk` and `fully_shard` divide them.

    >>> [rows_of(5, 4, process) for process in range(4)]
    [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    each = -(-rows // processes)
    return min(rows, process * each), min(rows, (process + 1) * each)


def save(folder: Path, state: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Writes this process's rows of an optimizer's `state_dict()` and of `weights`. Every process calls it."""
    mine = {
        "processes": torch.distributed.get_world_size(),
        "groups": state["param_groups"],
        "state": {
            index: {name: _mine(value) for name, value in values.items()} for index, values in state["state"].items()
        },
        "weights": {name: _own(weight) for name, weight in weights.items()},
    }
    torch.save(mine, folder / file_of(rank()))


def load(
    folder: Path, order: Sequence[Any], parameters: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(a state for `load_state_dict` of the optimizer, this process's rows of the saved weights by name).

    `order`: the optimizer's parameters in the order of its groups; `parameters`: by name, as they are divided now.
    CheckpointError where a file is missing, or is of other weights.
    """
    first = load_tensors(folder / file_of(0), lazily=True)
    files = [first, *(load_tensors(folder / file_of(i), lazily=True) for i in range(1, first["processes"]))]

    def collect(what: str, like: Any, part: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """The rows of this process's `like`, wherever they are."""
        first_row, end = rows_of(like.shape[0], torch.distributed.get_world_size(), rank())
        found, at = [], 0
        for file in files:
            rows = part(file)
            begin, stop = max(first_row - at, 0), min(end - at, len(rows))
            if begin < stop:
                found.append(rows[begin:stop])
            at += len(rows)
        mine = torch.cat(found) if found else part(first)[:0].clone()
        if at != like.shape[0] or mine.shape[1:] != like.shape[1:]:
            raise CheckpointError(f"{folder}: {what} is of {at} rows there, and {tuple(like.shape)} in this run")
        return mine.to(like.to_local().device)

    def value_of(index: int, name: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        like = order[index]
        rows = collect(f"{name} of parameter {index}", like, lambda file: file["state"][index][name][_ROWS])
        return DTensor.from_local(
            rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    state = {
        index: {name: value_of(index, name, value) for name, value in values.items()}
        for index, values in first["state"].items()
    }
    weights = {name: collect(name, parameters[name], lambda file: file["weights"][name]) for name in first["weights"]}  # noqa: B023
    return {"state": state, "param_groups": first["groups"]}, weights


def _mine(value: Any) -> Any:
    return {_ROWS: _own(value)} if isinstance(value, DTensor) else value


def _own(value: Any) -> torch.Tensor:
    """Only what is this process's, on the CPU: the storage may have padding and other weights."""
    return value.detach().to_local().to("cpu", copy=True)
