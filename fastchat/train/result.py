"""All steps of a run, and what follows the last: the result saved and verified, evaluated, and the record written."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.card import try_write_card
from fastchat.checkpoint.digests import mark_unusable
from fastchat.checkpoint.save import save_result
from fastchat.checkpoint.space import disk_errors
from fastchat.errors import CheckpointError, SettingsError, counted, say
from fastchat.plan.units import human
from fastchat.processes import on_main_process, rank
from fastchat.streams import detail
from fastchat.train.callbacks import SPEED, LinesFile, number
from fastchat.train.checkpointing import RunCheckpoints
from fastchat.train.held_out import held_out_answers
from fastchat.train.overview import Overview
from fastchat.train.record import Run, RunRecord, make_record, used_line
from fastchat.train.rehearsal import check_text
from fastchat.train.run_report import RunReport
from fastchat.train.trainer import ChatTrainer


def train_and_finish(run: Run, trainer: ChatTrainer, checkpoint: Path | None) -> None:
    """All steps, from `checkpoint` where there is one, and what follows the last."""
    args: Any = trainer.args
    trainer.add_callback(Overview(run, trainer))
    trainer.answers = held_out_answers(args, run)
    report = RunReport(run, trainer, kind=args.run_report, number=args.sample_prompts)
    trainer.add_callback(report)
    torch.manual_seed(args.seed + rank())  # dropout differs between processes, as it does between rows
    if checkpoint is not None:
        args.eval_on_start = False  # it belongs to step 0
    try:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finish(run, trainer, result.metrics, report)
    except BaseException as error:
        report.end(error)
        raise
    finally:
        trainer.end_workers()
        trainer.end_reports()


def finish(run: Run, trainer: ChatTrainer, metrics: dict[str, float], report: RunReport) -> None:
    """What follows the last step: the result saved and verified, evaluated, and the record of it all written."""
    output_dir = trainer.plan.folder
    on_main_process(trainer.plan.hold)
    for file in trainer.callback_handler.callbacks:
        if isinstance(file, LinesFile):
            file.finish()
    record = make_record(run, trainer)
    detail(used_line(record))
    record.metrics = measured(trainer, metrics)
    with disk_errors(output_dir, trainer.plan.result_bytes, "result"):
        save(run, record, trainer, str(output_dir))
    if trainer.memory.found is not None:
        detail(trainer.memory.found.line())
    if "eval" in run.corpora:
        record.metrics.update(final_evaluation(trainer))
        if rank() == 0:
            with disk_errors(output_dir, 0, "training.json"):
                record.write(output_dir)
                try_write_card(output_dir, record)
    report.finish()
    say(summary(record, trainer.plan, trainer.state.log_history))
    say(next_steps(output_dir, adapter=trainer.plan.adapter, report=report.page))


def save(run: Run, record: RunRecord, trainer: ChatTrainer, folder: str, *, checkpoint: bool = False) -> None:
    """Saves what is trained, with everything needed to use it, into `--output_dir` or a checkpoint."""
    save_result(
        trainer.model,
        folder,
        weights=trainer.engine,
        adapter=trainer.plan.adapter,
        tokenizer=run.text.tokenizer,
        stop_ids=run.text.chat_encoder.stop_ids,
        record=record,
        digests=not checkpoint,
    )
    on_main_process(lambda: check_saved(run, folder, checkpoint=checkpoint))


def check_saved(run: Run, folder: str, *, checkpoint: bool) -> None:
    """Makes sure that the saved tokenizer is that of training, and its chat template gives the training ids.

    Raises CheckpointError; what was saved stays, and its record says that it must not be used.
    """
    sample = run.corpora["train"].sample
    try:
        compared = check_text(Path(folder), run.text, sample)
    except SettingsError as error:
        mark_unusable(Path(folder), str(error))
        raise CheckpointError(f"{folder}: the weights are saved, but its tokenizer is not usable: {error}") from error
    if not checkpoint:
        rest = f", {len(sample) - compared} with the text of a control token left out" if compared < len(sample) else ""
        detail(f"the saved chat template gives the training ids of {counted(compared, 'row')}, and their prompts{rest}")


def measured(trainer: ChatTrainer, metrics: dict[str, float]) -> dict[str, Any]:
    """Numbers of the whole run, for training.json; the loss before training where `--eval_on_start` measured it."""
    kept = ("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    found: dict[str, Any] = {"steps": trainer.state.global_step, **{k: number(metrics.get(k)) for k in kept}}
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    if rows and rows[0]["step"] == 0:
        found["eval_loss_before"] = number(rows[0]["eval_loss"])
    return found


def final_evaluation(trainer: ChatTrainer) -> dict[str, Any]:
    """The evaluation of the weights that were saved: of the last step, or the best. Made where it is not yet."""
    state = trainer.state
    step = state.best_global_step if trainer.args.load_best_model_at_end else state.global_step
    rows = [row for row in state.log_history if "eval_loss" in row and row["step"] == step]
    row = rows[-1] if rows else trainer.last_evaluation()
    return {key: number(row[key]) for key in row if key.startswith("eval_") and not key.endswith(SPEED)}


def summary(record: RunRecord, plan: RunCheckpoints, history: Sequence[dict[str, Any]]) -> str:
    """What was saved where, and the evaluation loss before and after; `history`: the Trainer's log."""
    metrics = record.metrics
    what = "adapter" if plan.adapter else "model"
    size = human(sum(file.stat().st_size for file in plan.folder.glob("*.safetensors")))
    steps = counted(metrics["steps"], "step")
    line = f"saved and verified in {plan.folder}: {what} ({size}), {steps}, train loss {shown(metrics['train_loss'])}"
    if "eval_loss" not in metrics:
        return line
    first = next((row for row in history if "eval_loss" in row), None)
    return f"{line}\nevaluation loss {evaluation_change(first, metrics['eval_loss'])}"


def evaluation_change(first: dict[str, Any] | None, after: float | None) -> str:
    """The loss of the first evaluation, where it is known and another one, and of the saved weights.

    >>> evaluation_change({"step": 0, "eval_loss": 4.12}, 3.9), evaluation_change({"step": 20, "eval_loss": 4.0}, 3.9)
    ('4.1200 before training -> 3.9000', '4.0000 after step 20 (the first evaluation) -> 3.9000')
    >>> evaluation_change(None, 3.9)
    '3.9000 (--eval_on_start True also measures it before training)'
    """
    loss = number(first["eval_loss"]) if first else None
    if first and first["step"] == 0:
        return f"{shown(loss)} before training -> {shown(after)}"
    if first and loss != after:
        return f"{shown(loss)} after step {first['step']:,} (the first evaluation) -> {shown(after)}"
    return f"{shown(after)} (--eval_on_start True also measures it before training)"


def next_steps(folder: Path, *, adapter: bool, report: Path | None = None) -> str:
    """The page to look at and the commands that a user may want now."""
    name = shlex.quote(str(folder))
    merged = shlex.quote(f"{str(folder).rstrip('/')}-merged")
    lines = [f"fastchat chat {name}"]
    merge, serve = f"fastchat merge --lora-path {name} --target-model-path {merged}", f"fastchat serve {name}"
    lines.append(merge if adapter else serve)
    shown_page = [f"report     {report}"] if report is not None else []
    return "\n".join([*shown_page, *(f"next       {line}" for line in [*lines, f"fastchat verify {name}"])])


def shown(loss: float | None) -> str:
    """A loss for the screen; None is what a file holds for one that is not a number."""
    return "not a number" if loss is None else f"{loss:.4f}"
