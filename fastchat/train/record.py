"""The record of a training run: `training.json`, with what the engine was seen to use, not what was asked for."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.record import TrainingRecord
from fastchat.errors import brief, counted, say
from fastchat.model.attention import used_attention
from fastchat.model.decoder_layers import checkpointed_layers
from fastchat.model.loading import count_parameters, describe_quantization
from fastchat.model.rope import RopeChoice, max_positions
from fastchat.processes import world_size
from fastchat.train.datasets import Corpus
from fastchat.train.prepare import Text
from fastchat.train.trainer import ChatTrainer

_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "numpy",
    "fschat",
)


@dataclass
class RunRecord(TrainingRecord):
    """Adds what only training knows.

    optimizer: class that makes the steps; device: the kind it ran on; compute_dtype: what forward and backward
    compute in (`dtype` is what the weights were loaded as); head: "chunked" or "plain", how the loss was computed;
    checkpointed_layers: decoder layers with gradient checkpointing; speed: {setting: "on" or "off: why"} of what was
    asked for to make the layers faster, None for nothing;
    deepspeed, fsdp: the configuration that this engine really got, None without it; memory: the measured peak next to
    the planned one (`MemoryWatch.record`), None where unknown; packing: how many dialogues are in how many packs, by
    data set, None without it.
    """

    optimizer: str | None = None
    device: str | None = None
    compute_dtype: str | None = None
    head: str | None = None
    checkpointed_layers: int | None = None
    speed: dict[str, str] | None = None
    deepspeed: dict[str, Any] | None = field(default=None)
    fsdp: dict[str, Any] | None = None
    memory: dict[str, Any] | None = field(default=None)
    packing: dict[str, Any] | None = None


@dataclass
class Run:
    """What is known of a run before its first step, and is recorded and saved with its weights.

    settings: {name: {"value", "from"}}. weights_dtype: as loaded; DeepSpeed casts its own copy. fingerprints: see
    `Identity`.
    """

    settings: dict[str, dict[str, Any]]
    base_model: str
    text: Text
    rope: RopeChoice | None
    weights_dtype: torch.dtype
    corpora: dict[str, Corpus]
    fingerprints: dict[str, Any]
    unknown: set[str] = field(default_factory=set)  # fields of the record that could not be found out


def make_record(run: Run, trainer: ChatTrainer) -> RunRecord:
    """What is known once training has begun. Metrics are added by the caller.

    Never raises: weights must not be lost because one value is unknown. What cannot be found out stays at its empty
    value, and that is said, for the first time before step 1 (`RecordRehearsal`).
    """
    model: Any = trainer.model

    def template() -> dict[str, Any]:
        found = run.text.chat_encoder.template
        return {
            "name": found.name,
            "definition": found.to_dict(),
            "stop_token_ids": list(run.text.chat_encoder.stop_ids),
        }

    def quantization() -> dict[str, Any] | None:
        found = describe_quantization(model)
        return found if found["type"] else None

    parts: dict[str, Callable[[], Any]] = {
        "settings": lambda: run.settings,
        "template": template,
        "rope_parameters": lambda: run.rope.rope_parameters if run.rope else None,
        "max_position_embeddings": lambda: max_positions(model.config),
        "quantization": quantization,
        "dtype": lambda: _name(run.weights_dtype),
        "compute_dtype": lambda: _name(trainer.engine.compute_dtype(run.weights_dtype)),
        "attention": lambda: used_attention(model),
        "head": lambda: "plain" if trainer.head is None else "chunked",
        "checkpointed_layers": lambda: checkpointed_layers(model),
        "speed": trainer.speed.record,
        "engine": lambda: trainer.engine.name,
        "optimizer": trainer.optimizer_name,
        "device": lambda: trainer.args.device.type,
        "world_size": world_size,
        "data": lambda: {name: corpus.record() for name, corpus in run.corpora.items()},
        "versions": _versions,
        "trainable_parameters": lambda: count_parameters(model, trainer.engine.numel)[0],
        "fingerprints": lambda: run.fingerprints,
        trainer.engine.library: trainer.engine.settings,
        "memory": trainer.memory.record,
        "packing": trainer.packing,
    }
    record = RunRecord(base_model=run.base_model)
    for name, find in parts.items():
        try:
            value = find()
            json.dumps(value, allow_nan=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to lose the weights
            if name not in run.unknown:
                say(f"WARNING: training.json will not contain {name!r} ({type(error).__name__}: {brief(error)})")
            run.unknown.add(name)
        else:
            setattr(record, name, value)
    return record


def used_line(record: RunRecord) -> str:
    """One line for the log.

    >>> used_line(record)                                    # doctest: +SKIP
    'actually used: zero2 on 2 processes (cpu), attention sdpa, weights float32, computing in float32, ...'
    """
    quantization = record.quantization["type"] if record.quantization else "no quantisation"
    return (
        f"actually used: {record.engine}, {counted(record.world_size, 'process')} "
        f"({record.device}), attention {record.attention}, weights {record.dtype}, {quantization}, computing in "
        f"{record.compute_dtype}, {record.head} head, optimizer {record.optimizer}"
    )


def base_name(model_name_or_path: str) -> str:
    """A local folder as an absolute path, a hub name as it is."""
    path = Path(model_name_or_path).expanduser()
    return str(path.resolve()) if path.is_dir() else model_name_or_path


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
