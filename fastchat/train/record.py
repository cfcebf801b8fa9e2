"""The record of a training run: `training.json` with what the running engine was seen to use."""

from __future__ import annotations

from dataclasses import dataclass

from fastchat.checkpoint.record import TrainingRecord


@dataclass
class RunRecord(TrainingRecord):
    """Adds `optimizer`, the class that made the steps, and `device`, the kind it ran on."""

    optimizer: str | None = None
    device: str | None = None
