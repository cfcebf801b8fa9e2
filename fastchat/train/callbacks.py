"""`metrics.jsonl`: what the run measured, one JSON object per line, at full precision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

METRICS = "metrics.jsonl"
_SPEED = ("runtime", "samples_per_second", "steps_per_second")


class MetricsFile(TrainerCallback):
    """Appends a row for every logged step and every evaluation; only global rank 0 writes.

    Training rows: step, epoch, loss, grad_norm, learning_rate, num_tokens, num_supervised_tokens. `loss` is the mean
    over the supervised tokens since the previous row, and the two counts belong to the same steps, over all
    processes. Evaluation rows: step, epoch, eval_loss, eval_num_supervised_tokens. A number that is not finite is
    null: JSON has no NaN.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / METRICS

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step == 0:
            self.path.write_text("", encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        row = {"step": state.global_step, "epoch": state.epoch}
        row.update({key: value for key, value in logs.items() if not key.endswith(_SPEED)})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({key: number(value) for key, value in row.items()}) + "\n")


def number(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
