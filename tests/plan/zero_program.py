"""A training command that also writes what its engine holds and sends, per process: for test_launched.py.

Started through tests/train/warm.py. SCRIPT in the environment names the command; the sizes, in bytes, go into the
file that STATES names, with the rank behind it.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable
from typing import Any

import torch


def main(words: list[str]) -> None:
    """Runs the command; its second step is looked at right before it is made, when every state is there."""
    from fastchat.train.checkpointing import CheckpointTrainer

    real = CheckpointTrainer._prepare_for_training

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = real(self, *args, **kwargs)
        if self.engine.name == "fsdp":
            watch_fsdp(self.model, self.optimizer)
        else:
            watch(self.model_wrapped)
        return prepared

    CheckpointTrainer._prepare_for_training = prepare  # pyright: ignore
    count_collectives()
    importlib.import_module(f"fastchat.train.{os.environ['SCRIPT']}").main(words)


SENT: list[float] = []  # bytes that this process sent in each collective


def count_collectives() -> None:
    """Counts what NCCL's rings would send: (N - 1) / N of the whole tensor, and twice that for an all-reduce."""
    import torch.distributed as dist

    passes = {"all_reduce": 2, "all_gather_into_tensor": 1, "all_gather": 1, "reduce_scatter_tensor": 1}
    for name, times in passes.items():
        real = getattr(dist, name)

        def counted(*given: Any, _real: Any = real, _times: int = times, **named: Any) -> Any:
            tensors = [
                t for value in (*given, *named.values()) for t in (value if isinstance(value, list) else [value])
            ]
            sizes = [t.nbytes for t in tensors if isinstance(t, torch.Tensor)]
            whole = sum(sizes[:-1]) if _real.__name__ == "all_gather" else max(sizes)
            SENT.append(_times * whole * (dist.get_world_size() - 1) / dist.get_world_size())
            return _real(*given, **named)

        setattr(dist, name, counted)


def watch(engine: Any) -> None:
    """Puts the look in front of the optimizer's step."""
    optimizer, steps, buckets = engine.optimizer, [], [0]
    step, reduce = optimizer.step, optimizer.reduce_ipg_grads if engine.zero_optimization_stage() == 2 else None

    def looked(*args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        if len(steps) == 1:
            SENT.clear()
        if len(steps) == 2:
            found = sizes_3(engine, optimizer) if reduce is None else sizes_2(engine, optimizer, max(buckets))
            found["sent"] = round(sum(SENT))  # from the first step to before the second one: a whole step
            with open(f"{os.environ['STATES']}.{os.environ['RANK']}", "w", encoding="utf-8") as file:
                json.dump(found, file)
        return step(*args, **kwargs)

    def reduced(*args: Any, **kwargs: Any) -> Any:
        buckets.append(total(buffer for bucket in optimizer.ipg_buckets.values() for buffer in bucket.buffer))
        return reduce(*args, **kwargs)  # pyright: ignore[reportOptionalCall]

    optimizer.step = looked
    if reduce is not None:
        optimizer.reduce_ipg_grads = reduced


def watch_fsdp(model: Any, optimizer: Any) -> None:
    """The same for FSDP, whose optimizer is torch's own."""
    steps, step = [], optimizer.step

    def looked(*args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        if len(steps) == 2:
            parameters = list(model.parameters())
            found = {
                "weights": total(p.to_local() for p in parameters),
                "gradients": total(p.grad.to_local() for p in parameters if p.grad is not None),
                "optimizer": total(
                    value.to_local()
                    for state in optimizer.optimizer.state.values()
                    for name, value in state.items()
                    if name.startswith("exp_avg")
                ),
            }
            with open(f"{os.environ['STATES']}.{os.environ['RANK']}", "w", encoding="utf-8") as file:
                json.dump(found, file)
        return step(*args, **kwargs)

    optimizer.step = looked


def total(tensors: Iterable[Any]) -> int:
    """Bytes; None counts nothing."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def moments(optimizer: Any) -> int:
    """Of Adam's two moments; its counters of steps are left out."""
    states = optimizer.optimizer.state.values()
    return total(value for state in states for name, value in state.items() if name.startswith("exp_avg"))


def sizes_2(engine: Any, optimizer: Any, buckets: int) -> dict[str, int]:
    """ZeRO-2: weights whole, the rest divided. `buckets`: bytes that gradients were collected in."""
    return {
        "weights": total(engine.module.parameters()),
        "gradients": total(g for group in optimizer.averaged_gradients.values() for g in group),
        "optimizer": total(optimizer.single_partition_of_fp32_groups) + moments(optimizer),
        "zero_buffers": buckets,
    }


def sizes_3(engine: Any, optimizer: Any) -> dict[str, int]:
    """ZeRO-3: everything divided."""
    return {
        "weights": total(parameter.ds_tensor for parameter in engine.module.parameters()),
        "gradients": total([optimizer.grad_partitions_flat_buffer]),
        "optimizer": total(optimizer.fp32_partitioned_groups_flat) + moments(optimizer),
    }
