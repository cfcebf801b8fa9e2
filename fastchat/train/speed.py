"""What makes the decoder layers faster: another attention kernel, liger's kernels, torch.compile. Each has to prove
itself before the first step, on the data, against the layers as they are without it.

The loss is the head's business (head_proof.py). Here the gradients are compared as well, in training mode: with the
same random numbers for dropout, the same gradient checkpointing, under the same autocast.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from fastchat.data.batches.collate import collate
from fastchat.data.batches.packing import pack_collate
from fastchat.data.batches.packing_check import TOLERANCE, GradientSum
from fastchat.errors import brief, say
from fastchat.model.attention import NamedAttention, used_attention, wants_one_row
from fastchat.model.decoder_layers import CompiledLayers, check_divisible, checkpoint_first
from fastchat.model.liger import LigerKernels, why_no_liger
from fastchat.settings.values import Values
from fastchat.streams import detail
from fastchat.train.checkpointed import layers_to_checkpoint
from fastchat.train.engine import Engine
from fastchat.train.head_proof import everywhere
from fastchat.train.loss import IGNORED, count_tokens, loss_sum, sample
from fastchat.train.packed import Computing, as_in_training

ON, ATTENTION = "on", "attn_implementation"
_SEEN = 50  # rows that are searched for supervised tokens and another length
_SHORTER = 3  # tokens that are cut off where there is none


class Change(Protocol):
    """Something that makes a loaded model compute in another way, and can be taken back."""

    def apply(self) -> None: ...
    def undo(self) -> None: ...


@dataclass(frozen=True)
class Asked:
    """The settings. checkpointed: the number of layers to checkpoint, None for all or none. attention: the kernel that
    takes the place of the loaded one."""

    torch_compile: bool = False
    use_liger_kernel: bool = False
    attention: str | None = None
    trust_remote_code: bool = False
    checkpointed: int | None = None

    @classmethod
    def of(cls, values: Values, attention: str | None) -> Asked:
        """From the settings by name; `attention`: where another kernel than the loaded one was asked for."""
        switches = {name: values[name] for name in ("torch_compile", "use_liger_kernel", "trust_remote_code")}
        return cls(**switches, attention=attention, checkpointed=layers_to_checkpoint(values))


@dataclass
class Speed:
    """What came of it. states: {setting: "on", or why it is off}."""

    checkpointed: int | None = None
    states: dict[str, str] = field(default_factory=dict)
    compiled: CompiledLayers | None = None
    attention: str | None = None

    def record(self) -> dict[str, str] | None:
        """For training.json: {setting: "on" or "off: why"}, None where nothing was asked for."""
        if self.compiled is not None and self.compiled.failed:
            self.states["torch_compile"] = self.compiled.failed
        return {name: ON if state == ON else f"off: {state}" for name, state in self.states.items()} or None

    @property
    def line(self) -> str:
        """For the overview."""
        named = {ATTENTION: f"attention {self.attention}"}
        return ", ".join(named.get(n, n) if state == ON else f"{n} off" for n, state in self.states.items())

    def limit(self, model: Any) -> None:
        """Gradient checkpointing has been switched on for all layers: leaves it to those that were asked for."""
        if self.checkpointed is not None:
            checkpoint_first(model, self.checkpointed)


@dataclass(frozen=True)
class Proof:
    """How far two ways of computing are apart on the same tokens, relative to the loss and the norm of its gradient."""

    num_tokens: int
    loss_error: float
    gradient_error: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Not where one of them is NaN."""
        return bool(self.loss_error <= self.tolerance and self.gradient_error <= self.tolerance)

    @property
    def numbers(self) -> str:
        errors = f"loss off by {self.loss_error:.0e}, gradient by {self.gradient_error:.0e}"
        return f"on {self.num_tokens} tokens of this data {errors} (allowed: {self.tolerance:.0e})"


def speed_up(
    model: Any,
    asked: Asked,
    dataset: Any,
    computing: Computing,
    engine: Engine,
    *,
    packed: bool,
    chunked: bool,
    pad_token_id: int,
    padding_side: Any,
) -> Speed:
    """Changes `model` as asked, as far as that is proven to compute the same. A collective operation.

    `dataset`: dialogues with input_ids and labels, not packed. `packed`: whether training packs them. `chunked`: the
    model has a chunked head. Weights, gradients, random numbers and the model's mode stay as they are.
    SettingsError where the layers to checkpoint cannot be chosen.
    """
    speed = Speed(asked.checkpointed, attention=asked.attention)
    if asked.checkpointed is not None:
        check_divisible(model, asked.checkpointed)
        speed.limit(model)
    rows = _rows(dataset)

    def batch(flat: bool) -> dict[str, torch.Tensor]:
        if not packed:
            return collate(rows, pad_token_id=pad_token_id, padding_side=padding_side)
        made = pack_collate([_pack(rows), *rows[:1]], pad_token_id=pad_token_id, flat=flat)
        del made["seq_lengths"]
        return made

    for name, lack, make in _changes(model, asked, computing.device, engine):
        if lack:
            say(f"--{name} is off: {lack}")
        else:
            change = make()
            flat = wants_one_row(asked.attention if name == ATTENTION and asked.attention else used_attention(model))
            with as_in_training(model, computing, engine) as dtype, engine.weights_in_reach(model):
                mine = _prove(model, name, change, batch(flat), _Way(dtype, chunked, engine))
            lack = _agreed(mine, name, change, computing.device)
            speed.compiled = change if isinstance(change, CompiledLayers) and not lack else None
        speed.states[name] = lack or ON
    return speed


def _changes(
    model: Any, asked: Asked, device: torch.device, engine: Engine
) -> list[tuple[str, str, Callable[[], Any]]]:
    """(setting, why it cannot be had here, what makes the change), in the order in which they build on each other."""
    found: list[tuple[str, str, Callable[[], Any]]] = []
    name = asked.attention
    if name is not None:
        found.append((ATTENTION, "", lambda: NamedAttention(model, name, trust_remote_code=asked.trust_remote_code)))
    if asked.use_liger_kernel:
        found.append(("use_liger_kernel", why_no_liger(device) or "", lambda: LigerKernels(model)))
    if asked.torch_compile:
        lack = _why_no_compiler(device)
        if engine.partitions:
            lack = f"{engine.name} gathers the weights of a layer while it computes, which cannot be compiled here"
        found.append(("torch_compile", lack, lambda: CompiledLayers(model)))
    return found


def _why_no_compiler(device: torch.device) -> str:
    """What torch's inductor lacks, "" where it has everything."""
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        return "on a GPU it needs the package triton (pip install triton)"
    names = (os.environ.get("CXX"), "c++", "g++", "clang++", os.environ.get("CC"), "gcc", "cc", "clang")
    if all(name is None or shutil.which(name) is None for name in names):
        return "it needs a C++ compiler (`apt install g++`, or set CXX)"
    return ""


# ---- the proof ----


@dataclass(frozen=True)
class _Way:
    """How the two passes are made. dtype: what they compute in; chunked: with the chunked head."""

    dtype: torch.dtype
    chunked: bool
    engine: Engine

    @property
    def training(self) -> bool:
        """Training mode. Weights that are gathered for a pass are gone when a checkpointed layer wants them again."""
        return not self.engine.partitions


def _prove(model: Any, name: str, change: Change, batch: dict[str, torch.Tensor], way: _Way) -> str:
    """Applies the change; why it must be undone, "" where it is right. Says what was found."""
    num = int(count_tokens([_counted(batch)])[0])
    was_training, gradients = model.training, GradientSum(model, way.engine.gradients)

    def loss(_: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)
        return loss_sum(model, inputs, chunked=way.chunked)

    devices = [model.device] if model.device.type == "cuda" else []
    model.train(way.training)
    try:
        with torch.random.fork_rng(devices=devices):
            plain = gradients.add(loss, batch, 1.0)
            norm = gradients.norm()
            try:
                change.apply()
                changed = gradients.add(loss, batch, -1.0)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - a library's kernels on a model that it may not know
                return f"{type(error).__name__}: {brief(error)}"
        off = gradients.norm()  # the difference
    finally:
        model.train(was_training)
    if not num:
        return ""  # nothing is trained on
    tolerance = TOLERANCE[str(way.dtype).removeprefix("torch.")]
    proof = Proof(num, _relative(abs(changed - plain), abs(plain)), _relative(off, norm), tolerance)
    if proof.agrees:
        detail(f"--{name}: {proof.numbers}")
        return ""
    return f"not right for this model: {proof.numbers}"


def _relative(off: float, to: float) -> float:
    """Where there is nothing, nothing may come of it."""
    return off / to if to else (0.0 if off == 0 else float("inf"))


def _agreed(mine: str, name: str, change: Change, device: torch.device) -> str:
    """The reason of this process, or that of another one; with any, the change is undone everywhere."""
    failed = change.failed if isinstance(change, CompiledLayers) else ""
    reason = mine or failed
    if not everywhere(not reason, device):
        reason = reason or "it failed in another process"
        change.undo()
        if not failed:
            say(f"WARNING: --{name} is off: {reason}")
    return reason


def _counted(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"labels": batch["labels"], "attention_mask": torch.ones_like(batch["labels"])}


def _rows(dataset: Any) -> list[dict[str, Any]]:
    """Two short pieces of the data with supervised tokens, of different lengths, so that a padded batch has padding."""
    found: list[dict[str, Any]] = []
    for index in range(min(len(dataset), _SEEN)):
        piece = sample([dataset[index]])
        if piece is not None:
            found.append({name: piece[name][0].numpy() for name in ("input_ids", "labels")})
        if len(found) > 1 and len(found[0]["labels"]) != len(found[-1]["labels"]):
            break
    if found and len(found[0]["labels"]) == len(found[-1]["labels"]):
        found.append({name: values[: max(1, len(values) - _SHORTER)] for name, values in found[-1].items()})
    nothing = {"input_ids": np.zeros(2, np.int64), "labels": np.full(2, IGNORED)}
    return [found[0], found[-1]] if found else [nothing]


def _pack(rows: list[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {name: np.concatenate([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return joined | {"lengths": [len(row["labels"]) for row in rows]}
