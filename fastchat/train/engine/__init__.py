"""The engine of a run: where its weights, gradients and optimizer state are kept, and what follows from that.

    base.py    the interface, with the answers of an engine that keeps everything whole in every process
    plain.py   one process; torch's DistributedDataParallel
    zero.py    DeepSpeed with ZeRO stage 0 to 3
    zero3.py   forward and backward through partitioned weights before DeepSpeed's engine exists
    fsdp.py    torch's `fully_shard` (FSDP2)
    shards.py  its checkpoints, which any number of processes can load

`choose_engine` makes the one engine of a run before its model loads. The Trainer prepares and attaches it; everything
else asks it, and only this package knows the libraries behind it. Another engine is one class more and one line here.
What the settings ask for is decided in `settings/engines.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from fastchat.settings.engines import FsdpOptions
from fastchat.train.engine.base import Engine
from fastchat.train.engine.plain import DDP, Plain
from fastchat.train.engine.zero import ZeRO

__all__ = ["DDP", "Engine", "Plain", "ZeRO", "choose_engine"]


def choose_engine(
    deepspeed_config: dict[str, Any] | None,
    world_size: int,
    fsdp: FsdpOptions | None = None,
    *,
    bf16: bool = False,
) -> Engine:
    """The engine of a run with `world_size` processes. `deepspeed_config`: what `load_deepspeed` gave, None without;
    `fsdp`: the options of FSDP, None without; `bf16`: the setting.

    >>> choose_engine({"zero_optimization": {"stage": 2}}, 4).name, choose_engine(None, 4).name
    ('zero2', 'ddp')
    """
    if deepspeed_config is not None:
        return ZeRO(deepspeed_config, world_size)
    if fsdp is not None:
        from fastchat.train.engine.fsdp import FSDP

        return FSDP(fsdp, world_size, torch.bfloat16 if bf16 else None)
    launched = dist.is_initialized()  # torchrun with one process: accelerate wraps the model all the same
    return DDP(world_size) if world_size > 1 or launched else Plain(world_size)
