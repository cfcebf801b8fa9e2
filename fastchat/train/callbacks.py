"""`metrics.jsonl` and `samples.jsonl`, what a run measured and trained, a JSON object per line; and what it says."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from fastchat.errors import say

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_SPEED = ("runtime", "samples_per_second", "steps_per_second")


class MetricsFile(TrainerCallback):
    """Appends a row for every logged step and every evaluation; only global rank 0 writes.

    Training rows: step, epoch, loss, grad_norm, learning_rate, num_tokens, num_supervised_tokens. `loss` is the mean
    over the supervised tokens since the previous row, and the two counts belong to the same steps, over all
    processes; `aux_loss` is the part of it that the model adds to the cross-entropy, where it adds something (not in
    `eval_loss`, which does not depend on batches). Evaluation rows: step, epoch, eval_loss,
    eval_num_supervised_tokens. A number that is not finite is null: JSON has no NaN.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / METRICS

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            cut_back(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        row = {"step": state.global_step, "epoch": state.epoch}
        row.update({key: value for key, value in logs.items() if not key.endswith(_SPEED)})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({key: number(value) for key, value in row.items()}) + "\n")


class WarmupNote(TrainerCallback):
    """Says so where the run ends before the learning rate has risen to what was asked for."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The number of steps is known by now."""
        steps, asked = state.max_steps, args.warmup_steps or args.warmup_ratio
        if not asked or args.lr_scheduler_type in _WITHOUT_WARMUP:
            return
        if steps == 1:
            say("warmup: none, the run has one step only")
        elif (warmup := args.get_warmup_steps(steps)) >= steps:
            reached = args.learning_rate * (steps - 1) / warmup
            say(
                f"warning: the warmup takes {warmup:,} steps and the run has {steps:,}: the learning rate only reaches "
                f"{reached:.3g} of --learning_rate {args.learning_rate:g}; lower --warmup_steps or --warmup_ratio"
            )


class SamplesFile(TrainerCallback):
    """Appends, for every step and rank, which input rows it trained: {"step", "rank", "samples"}. `--log_samples`."""

    def __init__(self, folder: str | Path, rows_of: Callable[[int, int], list[list[int]]]) -> None:
        self.path, self.rows_of = Path(folder) / SAMPLES, rows_of

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            cut_back(self.path, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            for rank in range(args.world_size):
                rows = [row for micro in self.rows_of(state.global_step - 1, rank) for row in micro]
                file.write(json.dumps({"step": state.global_step, "rank": rank, "samples": rows}) + "\n")


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own, which says so when it stops. The Trainer keeps its counter in checkpoints."""

    said = False

    @property
    def exhausted(self) -> bool:
        """Whether so many evaluations in a row have not been better than the best."""
        return self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if self.exhausted and not self.said:
            self.said = True
            say(
                f"--early_stopping_patience {self.early_stopping_patience}: stopping after step {state.global_step}, "
                f"the best eval loss is still {state.best_metric:.4f}"
            )


def cut_back(path: Path, step: int) -> None:
    """Leaves only the rows up to `step` in a file of one JSON object per line; a torn last line goes too.

    The new file replaces the old one in one step.
    """
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if step and path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with open(staged, "w", encoding="utf-8") as file:
        file.write("".join(kept))
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def number(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
