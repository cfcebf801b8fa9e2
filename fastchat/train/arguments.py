"""The settings of a training run as dataclasses, for code that imports them and for HfArgumentParser.

The fields are defined in `fastchat/settings/`. Importing this module imports transformers (5 to 12 s).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import transformers

from fastchat.errors import values_without_secrets
from fastchat.settings.arguments import DataArguments, LoraArguments, ModelArguments, RunArguments

__all__ = ["DataArguments", "LoraArguments", "ModelArguments", "TrainingArguments"]


@dataclass
class TrainingArguments(RunArguments, transformers.TrainingArguments):  # pyright: ignore[reportIncompatibleVariableOverride]
    """transformers' own training arguments, with this project's defaults, and the names that scripts still use and
    transformers 5 dropped.

    Differs from transformers' defaults where the documents do: one log row per step, evaluation and checkpoints only
    when asked for, no loss ever replaced because it is NaN.
    """

    def __post_init__(self) -> None:
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]

    def to_dict(self) -> dict[str, Any]:
        """What reports (wandb, TensorBoard, ...) are given, and write into files of their own: without secrets."""
        return values_without_secrets(super().to_dict())

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Number of optimizer steps over which the learning rate rises; `--warmup_steps` below 1 is a share too.

        The first of them has learning rate 0: a run of one step has none, or it would train nothing.
        """
        if num_training_steps == 1:
            return 0
        if self.warmup_ratio and not self.warmup_steps:
            return math.ceil(num_training_steps * self.warmup_ratio)
        return super().get_warmup_steps(num_training_steps)
