"""The settings that say which engine trains: `--engine`, and FSDP as transformers spells it (with `--deepspeed`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastchat.settings.fields import FREE, setting

_engine = partial(setting, group="Precision and memory", resume=FREE, memory=True)


@dataclass
class EngineArguments:
    """What this project and transformers add to `--deepspeed`."""

    engine: Literal["auto", "ddp", "zero2", "zero3", "fsdp"] = _engine(
        "auto",
        "how several processes train one model: ddp (whole copies), zero2, zero3 (DeepSpeed) or fsdp (FSDP2 of torch); "
        "auto is what --deepspeed or --fsdp say, otherwise ddp",
        common=True,
    )
    fsdp: list[str] | None = _engine(
        None, "the same as --engine fsdp: full_shard, or shard_grad_op to keep weights whole until the backward pass"
    )
    fsdp_config: dict[str, Any] | str | None = _engine(
        None,
        "options of FSDP: a JSON file, or a mapping in a recipe, with reshard_after_forward or "
        "transformer_layer_cls_to_wrap",
        path=True,
    )
