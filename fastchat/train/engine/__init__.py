"""The engine of a run: where its weights, gradients and optimizer state are kept, and what follows from that.

    base.py    the interface, with the answers of an engine that keeps everything whole in every process
    plain.py   one process; torch's DistributedDataParallel
    zero.py    DeepSpeed with ZeRO stage 0 to 3
    zero3.py   forward and backward through partitioned weights before DeepSpeed's engine exists

`choose_engine` makes the one engine of a run before its model loads. The Trainer prepares and attaches it; everything
else asks it, and only this package knows the libraries behind it. Another engine is one class more and one line here.
"""

from __future__ import annotations

from typing import Any

from fastchat.train.engine.base import Engine
from fastchat.train.engine.plain import DDP, Plain
from fastchat.train.engine.zero import ZeRO

__all__ = ["DDP", "Engine", "Plain", "ZeRO", "choose_engine"]


def choose_engine(deepspeed_config: dict[str, Any] | None, world_size: int) -> Engine:
    """The engine of a run with `world_size` processes. `deepspeed_config`: what `load_deepspeed` gave, None without.

    >>> choose_engine({"zero_optimization": {"stage": 2}}, 4).name, choose_engine(None, 4).name
    ('zero2', 'ddp')
    """
    if deepspeed_config is not None:
        return ZeRO(deepspeed_config, world_size)
    return DDP(world_size) if world_size > 1 else Plain(world_size)
