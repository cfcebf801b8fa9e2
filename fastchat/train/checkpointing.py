"""The Trainer's checkpoints, saved and loaded through the checkpoint room; and how a run stops in the middle."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from fastchat.checkpoint import resume_state as files
from fastchat.checkpoint.discover import shorten
from fastchat.checkpoint.load import load_weights
from fastchat.checkpoint.manager import save_checkpoint
from fastchat.checkpoint.manifest import Manifest, find_problems
from fastchat.checkpoint.staging import checkpoint_path
from fastchat.errors import CheckpointError, say
from fastchat.processes import on_main_process
from fastchat.train.callbacks import best_metric
from fastchat.train.engine import Engine
from fastchat.train.other_processes import joined, new_random_state
from fastchat.train.resuming import Resume
from fastchat.train.stopping import STOPPING, Preempted


@dataclass
class RunCheckpoints:
    """What the Trainer needs to know about its checkpoints.

    folder: the run's output folder. resume: where the run starts. adapter: whether only an adapter is trained.
    describe(trainer): the manifest of this moment, without files. changed: settings that differ since the checkpoint.
    expected_bytes, result_bytes: about how large one checkpoint and the result will be. hold: `RunStatus.hold`.
    shared: whether all processes can write into the folder.
    """

    folder: Path
    resume: Resume
    adapter: bool
    describe: Callable[[Any], Manifest]
    changed: list[str]
    expected_bytes: int = 0
    result_bytes: int = 0
    hold: Callable[[], None] = lambda: None
    shared: bool = True


class EvaluationStopped(Exception):
    """An evaluation was left in the middle because the run was asked to stop; its argument says why."""


class CheckpointTrainer(Trainer):
    """A Trainer whose checkpoints are complete or absent, and that resumes exactly from one.

    `plan` is set before `train`, and `engine` by the subclass's constructor. Subclasses add `progress` and
    `set_progress`: what they count, per process; and raise EvaluationStopped between two batches of an evaluation
    where `stop_asked` says so.
    """

    plan: RunCheckpoints
    engine: Engine
    owed: dict[str, bool] | None = None  # an evaluation was left at this step; "save": whether a checkpoint was due

    def progress(self) -> dict[str, Any]:
        """What this process has counted and not yet logged; tensors and plain values."""
        return {}

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Takes up what `progress` gave."""

    # ---- saving ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.plan.shared:  # none was asked for, so this run is stopping
            raise Preempted("the hosts do not share --output_dir: no checkpoint could be saved")
        on_main_process(self.plan.hold)
        state = self.state
        if state.best_global_step:
            best = checkpoint_path(self.plan.folder, state.best_global_step)
            if best.is_dir() or state.best_global_step == state.global_step:
                state.best_model_checkpoint = str(best)
        save_checkpoint(
            self.plan.folder,
            self.plan.describe(self),
            self._write_checkpoint,
            keep=self.args.save_total_limit,
            protected=[Path(state.best_model_checkpoint)] if state.best_model_checkpoint else [],
            expected_bytes=self.plan.expected_bytes,
        )

    def _write_checkpoint(self, stage: Path) -> None:
        """Everything of this process; the folder is the same for all.

        What all processes do together comes first: one that fails by itself before would leave the others waiting.
        """
        self.save_model(str(stage))
        if not self.args.save_only_model:
            self.engine.save(stage, adapter=self.plan.adapter)
        rank = self.args.process_index
        if rank == 0:
            self.state.save_to_json(str(stage / files.STATE))
        if self.args.save_only_model:
            return
        mine = {"random": files.random_state(), "progress": self.progress(), "owed": self.owed}
        torch.save(mine, stage / files.rank_file(rank))
        if rank != 0:
            return
        scheduler: Any = self.lr_scheduler
        torch.save(scheduler.state_dict(), stage / files.SCHEDULER)

    # ---- loading ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The Trainer asks before the engine exists; `_prepare_for_training` loads everything at once."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        path = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        # The engine's own state has nothing of what is frozen, and that may be a part of the adapter.
        if path is not None and (
            self.plan.adapter or self.plan.resume.weights_only or not self.engine.restores_weights
        ):
            load_weights(self.model, path, adapter=self.plan.adapter, weights=self.engine)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.engine.attach(self)
        if path is None:
            return prepared
        if self.plan.resume.weights_only:
            self._advance_schedule()
            return prepared
        wanted = files.settings_of_groups(self.optimizer)
        self.engine.load(path, adapter=self.plan.adapter)
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(files.load_tensors(path / files.SCHEDULER))
        if self.plan.changed:
            files.apply_settings(self.optimizer, _inner_scheduler(scheduler), wanted)
        mine = self._own_state(path)
        self.set_progress(mine["progress"])
        self.owed = mine.get("owed")
        if self.owed is not None:  # it may save this step again, before the Trainer asks for the random numbers
            self._set_random(mine["random"])
        return prepared

    def _own_state(self, path: Path) -> dict[str, Any]:
        """What this process saved; of another number of processes what it goes on from, without random numbers."""
        manifest, rank = self.plan.resume.manifest, self.args.process_index
        saved = self.engine.world_size if manifest is None else manifest.world_size
        if saved == self.engine.world_size:
            return files.load_tensors(path / files.rank_file(rank))
        everyone = [files.load_tensors(path / files.rank_file(i)) for i in range(saved)]
        progress = joined([one["progress"] for one in everyone], first=rank == 0)
        return {**everyone[0], "progress": progress, "random": None}

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self.plan.resume.weights_only:
            self._set_random(self._own_state(Path(checkpoint))["random"])

    def _set_random(self, state: dict[str, Any] | None) -> None:
        if state is None:
            new_random_state(self.args.seed, self.state.global_step, self.args.process_index)
        else:
            files.set_random_state(state)

    def _advance_schedule(self) -> None:
        """Without its saved state the schedule is brought to its place."""
        scheduler: Any = self.lr_scheduler
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            with warnings.catch_warnings():  # torch warns of steps before the optimizer's, and of jumps
                warnings.simplefilter("ignore")
                scheduler.step(self.state.global_step)

    def _load_best_model(self) -> None:
        """The weights of the best checkpoint, whatever the engine; nothing else of it is needed any more."""
        path = Path(str(self.state.best_model_checkpoint))
        problems = on_main_process(lambda: find_problems(path))
        if problems:
            raise CheckpointError(f"the best checkpoint {path} is not what was saved: {shorten(problems)}")
        load_weights(self.model, path, adapter=self.plan.adapter, weights=self.engine)
        best = f"{best_metric(self.args)} {self.state.best_metric:.4f}"
        say(f"--load_best_model_at_end: the weights of {path.name} ({best})")

    # ---- stopping ----

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """One epoch; nothing where the checkpoint was the last step's (the Trainer would train one step more)."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def stop_asked(self) -> str | None:
        """Why the run should stop, agreed among all processes; None to continue. A collective operation."""
        mine = STOPPING.reason
        if not dist.is_initialized() or self.engine.world_size == 1:
            return mine
        flag = torch.tensor([int(mine is not None)], device=self.args.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return None if not flag.item() else mine or "another process of the run was asked to stop"

    def go_on(self) -> None:
        """Raises EvaluationStopped if the run was asked to stop. A collective operation."""
        if (reason := self.stop_asked()) is not None:
            raise EvaluationStopped(reason)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """An evaluation while training. One that is left in the middle is made first when the run is resumed."""
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationStopped as stop:
            step = self.state.global_step
            if step == 0:
                raise Preempted(f"{stop} before the first step: nothing was saved") from None
            say(f"{stop}: saving step {step}, then stopping")
            self.owed = {"save": self.control.should_save}
            self._save_checkpoint(self.model, None)
            raise Preempted(
                f"{stop}: step {step} of {self.state.max_steps} is saved; the same command resumes with its evaluation"
            ) from None

    def evaluate_owed(self) -> None:
        """Makes the evaluation that was left when the run stopped, as if it had not been, and saves what was due."""
        if self.owed is None:
            return
        control: Any = self.control
        model: Any = self.model
        control.should_log, control.should_evaluate, control.should_save = False, True, self.owed["save"]
        self.owed = None
        self._maybe_log_save_evaluate(torch.zeros(()), None, model, None, float(self.state.epoch or 0), None, 0.0)
        control.should_evaluate = control.should_save = False

    def last_evaluation(self) -> dict[str, float]:
        """The evaluation of the result, after it was saved. Where a stop is asked for, the next start makes it.

        That one resumes from a checkpoint of the last step; Preempted is raised here.
        """
        reason = self.stop_asked()
        if reason is None:
            try:
                return self.evaluate()
            except EvaluationStopped as stop:
                reason = str(stop)
        there = checkpoint_path(self.plan.folder, self.state.global_step).is_dir()
        if not there and not self.args.load_best_model_at_end:
            self._save_checkpoint(self.model, None)
        raise Preempted(f"{reason}: the result is saved; the same command makes the last evaluation")


class StopCallback(TrainerCallback):
    """Asks after every step whether to stop; then the step is saved and training ends.

    Saves that fall on the last step of an epoch wait until the epoch's evaluation is done, so that a run that is
    resumed from there has not missed it.
    """

    def __init__(self, trainer: CheckpointTrainer) -> None:
        self.trainer, self.waiting, self.reason = trainer, False, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        STOPPING.can_wait = True
        self.trainer.evaluate_owed()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reason = self.trainer.stop_asked()
        if self.reason is not None:
            say(f"{self.reason}: saving step {state.global_step}, then stopping")
            control.should_save = control.should_training_stop = True
        if control.should_save and float(state.epoch or 0).is_integer():
            self.waiting, control.should_save = True, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.waiting:
            self.waiting, control.should_save = False, True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reason is not None:
            raise Preempted(
                f"{self.reason}: step {state.global_step} of {state.max_steps} is saved; the same command resumes "
                "from there"
            )


def _inner_scheduler(scheduler: Any) -> Any:
    return getattr(scheduler, "scheduler", scheduler)
