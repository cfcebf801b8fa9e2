"""`metrics.jsonl` and `samples.jsonl`, what a run measured and trained, a JSON object per line; and what it says."""

from __future__ import annotations

import functools
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from fastchat.checkpoint.record import METRICS_NAME
from fastchat.errors import SettingsError, brief, counted, say
from fastchat.files import JsonError, atomic, parse_json
from fastchat.processes import on_all_processes
from fastchat.streams import detail
from fastchat.train.answer_reports import SENDERS

SAMPLES_NAME = "samples.jsonl"
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 16 << 20  # bytes of a line; a longer one is damage
SPEED = ("runtime", "samples_per_second", "steps_per_second")


class LinesFile(TrainerCallback):
    """A file of one JSON object per line, which only global rank 0 writes. It never ends a run: what the disk refuses
    waits in memory and is tried again with the next lines, and that is said once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []
        self.refused = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            cut_back(self.path, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.add([])

    def finish(self) -> None:
        """The last attempt; what the disk refuses now is lost, and that is said."""
        self.add([])
        if self.waiting:
            say(f"WARNING: the last {counted(len(self.waiting), 'row')} of {self.path} could not be written")

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows, or none of them."""
        self.waiting += [json.dumps(row) + "\n" for row in rows]
        if not self.waiting:
            return
        try:
            _append(self.path, "".join(self.waiting).encode())
        except OSError as error:
            if not self.refused:
                say(f"WARNING: {self.path} cannot be written ({error.strerror}): training continues, its rows wait")
            self.refused = True
        else:
            self.waiting, self.refused = [], False


class MetricsFile(LinesFile):
    """Appends a row for every logged step and every evaluation; only global rank 0 writes.

    Training rows: step, epoch, loss, grad_norm, learning_rate, num_tokens, num_supervised_tokens, tokens_per_second
    (of all processes, without evaluation and saving). `loss` is the mean
    over the supervised tokens since the previous row, and the two counts belong to the same steps, over all
    processes; `aux_loss` is the part of it that the model adds to the cross-entropy, where it adds something (not in
    `eval_loss`, which does not depend on batches). Evaluation rows: step, epoch, eval_loss,
    eval_num_supervised_tokens, and with --eval_generate what is measured of the answers. A number that is not finite is
    null: JSON has no NaN.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(Path(folder) / METRICS_NAME)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        row = {"step": state.global_step, "epoch": state.epoch}
        row.update({key: value for key, value in logs.items() if not key.endswith(SPEED)})
        self.add([{key: number(value) for key, value in row.items()}])


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
                f"warning: the warmup takes {counted(warmup, 'step')} and the run has {steps:,}: the learning rate "
                f"only reaches {reached:.3g} of --learning_rate {args.learning_rate:g}; lower --warmup_steps or "
                "--warmup_ratio"
            )


class SamplesFile(LinesFile):
    """Appends, for every step and rank, which input rows it trained: {"step", "rank", "samples"}. `--log_samples`."""

    def __init__(self, folder: str | Path, rows_of: Callable[[int, int], list[list[int]]]) -> None:
        super().__init__(Path(folder) / SAMPLES_NAME)
        self.rows_of = rows_of

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        lines = []
        for rank in range(args.world_size):
            rows = [row for micro in self.rows_of(state.global_step - 1, rank) for row in micro]
            lines.append({"step": state.global_step, "rank": rank, "samples": rows})
        self.add(lines)


def best_metric(args: Any) -> str:
    """What the best evaluation is chosen by, in words.

    >>> best_metric(SimpleNamespace(metric_for_best_model="exact_match"))
    'eval exact match'
    """
    return "eval " + args.metric_for_best_model.removeprefix("eval_").replace("_", " ")


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
                f"the best {best_metric(args)} is still {state.best_metric:.4f}"
            )


class Guarded:
    """A report to somewhere else (wandb, TensorBoard). Its failure is a SettingsError while training starts, in every
    process; later it is said, and ends the report instead of the run.

    in_output_dir: whether it writes into the run's output folder.

    `close` ends the report, not the end of training: the evaluation and the answers of the result come later.
    """

    def __init__(self, inner: Any) -> None:
        self._inner, self._failed = inner, False
        self.in_output_dir = type(inner).__name__ == "TensorBoardCallback"
        self._ending: Callable[[], Any] | None = None

    def send_answers(self, rows: Sequence[dict[str, Any]], step: int) -> None:
        """Adds rows of answers.jsonl, where it is known how."""
        send = SENDERS.get(type(self._inner).__name__)
        if send is not None:
            self._call("answers", send, self._inner, rows, step)

    def close(self) -> None:
        """Ends the report, if training had ended."""
        if self._ending is not None:
            self._call("close", self._ending)
        self._ending = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return functools.partial(self._call, name, found) if name.startswith("on_") else found

    def _call(self, event: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if event == "on_train_begin":
            return on_all_processes(lambda: self._start(work, *args, **kwargs))
        if self._failed:
            return None
        if event == "on_train_end":
            self._ending = functools.partial(work, *args, **kwargs)
            return None
        try:
            return _silently(work, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - of a library that is not needed for training
            self._failed = True
            say(f"WARNING: {self._told(error)}; nothing more is reported there, training continues")
            return None

    def _start(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return _silently(work, *args, **kwargs)
        except Exception as error:  # noqa: BLE001
            raise SettingsError(f"--report_to: {self._told(error)}; --report_to none trains without it") from None

    def _told(self, error: Exception) -> str:
        report = type(self._inner).__name__.removesuffix("Callback")
        return f"{report}: {type(error).__name__}: {brief(error)}"


def _silently(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of `work`; what it prints, such as trackio's greeting in colours, is a detail."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            return work(*args, **kwargs)
    finally:
        for line in filter(None, _COLOUR.sub("", printed.getvalue()).splitlines()):
            detail(line)


def cut_back(path: Path, step: int) -> None:
    """Leaves only the rows up to `step` in a file of one JSON object per line; lines that are none go, which is said.

    The new file replaces the old one in one step.
    """
    kept, damaged = [], 0
    if step and path.is_file():
        with open(path, "rb") as file:
            while line := file.readline(_LONGEST):
                try:
                    if parse_json(line, constants=True)["step"] <= step:
                        kept.append(line.rstrip(b"\n") + b"\n")
                except (JsonError, KeyError, TypeError):
                    damaged += bool(line.strip())
    if damaged:
        say(f"{path}: {counted(damaged, 'damaged line')} left out (a run that was killed leaves such)")
    with atomic(path, "wb") as file:
        file.writelines(kept)


def _append(path: Path, data: bytes) -> None:
    """All of `data` or nothing. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def number(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
