"""Where a run starts: whose folder this is, what makes a run the same run, and which checkpoint it resumes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fastchat.checkpoint.staging import checkpoints_in, recover, set_aside
from fastchat.errors import say
from fastchat.processes import on_all_processes, on_main_process
from fastchat.train.checkpointing import RunCheckpoints
from fastchat.train.datasets import Data
from fastchat.train.engine import Engine
from fastchat.train.hosts import check_checkpoint_seen, claim_on_all
from fastchat.train.resuming import (
    AUTO,
    NEVER,
    Identity,
    Resume,
    base_fingerprint,
    digest,
    is_done,
    plan_resume,
    refuse_other_run,
)
from fastchat.train.status import check_output_dir, clear_results, existing_results


@dataclass(frozen=True)
class OutputFolder:
    """The output folder, and what the settings say about what it may hold.

    resume: `--resume_from_checkpoint`. weights_only: `--resume_weights_only`. overwrite: `--overwrite_output_dir`.
    """

    path: Path
    resume: str | None
    weights_only: bool
    overwrite: bool


@dataclass(frozen=True)
class Start:
    """Where a run starts, and what makes it the same run when it is resumed."""

    resume: Resume
    identity: Identity


def check_folder(folder: OutputFolder) -> None:
    """Refuses, before anything is read, a folder with a result that is certainly not to be continued."""
    if folder.resume == NEVER or not _may_continue(folder.path):
        check_output_dir(folder.path, overwrite=folder.overwrite)


def _may_continue(output_dir: Path) -> bool:
    return bool(checkpoints_in(output_dir)) or (output_dir / "training.json").is_file() or is_done(output_dir)


def identify(
    folder: OutputFolder,
    base: str,
    config: Any,
    engine: Engine,
    *,
    tokenizer: Any,
    template: dict[str, Any],
    adapter: bool,
    global_batch: int,
    settings: dict[str, dict[str, Any]],
    undecided: tuple[str, ...],
) -> Identity:
    """What makes this run the same run, except for its data. SettingsError where the output folder is certainly another
    run's: before the data is read, which can take long. First process.

    `template`: its definition. `settings`: as in training.json; `undecided`: names of those that follow from the data.
    """
    fingerprints = {
        "template": digest(template),
        "tokenizer": digest(tokenizer.backend_tokenizer.to_str()),
        "base_model": base_fingerprint(base, config),
        "training": "adapter" if adapter else "whole model",
        "global_batch": global_batch,
    }
    identity = Identity(
        fingerprints,
        {name: entry["value"] for name, entry in settings.items() if name not in undecided},
        engine.world_size,
        engine.name,
        {name: entry["from"] for name, entry in settings.items()},
    )
    if folder.resume in (None, AUTO) and not folder.overwrite:
        refuse_other_run(folder.path, identity)
    return identity


def choose_start(
    folder: OutputFolder,
    identity: Identity | None,
    data: Data,
    *,
    settings: dict[str, dict[str, Any]],
) -> Start:
    """Decides where the run starts, once its data is known, and says so. Every process calls it; the first decides.

    `identity`: what `identify` gave; `settings`: as in training.json, now with those that follow from the data.
    """

    def work() -> Start:
        """Reads and cleans the folder; for the first process."""
        assert identity is not None
        whole = replace(
            identity,
            fingerprints=_with_data(identity.fingerprints, data),
            settings={name: entry["value"] for name, entry in settings.items()},
            origins={name: entry["from"] for name, entry in settings.items()},
        )
        for line in recover(folder.path):
            say(line)
        resume = plan_resume(
            folder.path, folder.resume, whole, overwrite=folder.overwrite, weights_only=folder.weights_only
        )
        own = resume.checkpoint is not None and resume.checkpoint.parent.resolve() == folder.path.resolve()
        if not own and not resume.finished:
            check_output_dir(folder.path, overwrite=folder.overwrite)
        return Start(resume, whole)

    start = on_main_process(work)
    assert start is not None
    if start.resume.checkpoint is not None:
        check_checkpoint_seen(start.resume.checkpoint)
    for line in start.resume.lines:
        say(line)
    if start.resume.manifest is not None:
        say(f"resuming from {start.resume.checkpoint}: step {start.resume.manifest.step}")
    return start


def _with_data(fingerprints: dict[str, Any], data: Data) -> dict[str, Any]:
    train, packs = data.corpora["train"], data.packs.get("train")
    found = {"data": train.fingerprint, "num_dialogues": len(train.dataset), **fingerprints}
    return found if packs is None else found | {"packs": packs.fingerprint}


def outdated(output_dir: Path, resume: Resume) -> tuple[list[Path], list[Path]]:
    """(the earlier run's result and checkpoints, to be removed where this one starts over; the checkpoints of later
    steps, to be set aside where it resumes from an older one)."""
    if resume.checkpoint is None or resume.manifest is None:
        return existing_results(output_dir), []
    own = resume.checkpoint.parent.resolve() == output_dir.resolve()
    fell_back = any(line.startswith("WARNING") for line in resume.lines)  # the damaged ones are replaced in time
    if not own or fell_back:
        return [], []
    return [], [path for step, path in checkpoints_in(output_dir) if step > resume.manifest.step]


def clear_folder(output_dir: Path, resume: Resume) -> None:
    """Removes or sets aside what is `outdated`. First process."""
    replaced, later = outdated(output_dir, resume)
    if replaced:
        clear_results(output_dir)
    for path in later:
        say(f"{path.name} is newer than the checkpoint to resume from: renamed to {set_aside(path).name}")


class FolderClaim(TrainerCallback):
    """Makes the output folder this run's, and clears it, after all that may still refuse the run.

    `claim`: `RunStatus.claim` of the folder. `plan`: of the checkpoints in it.
    """

    def __init__(self, claim: Callable[[], None], plan: RunCheckpoints) -> None:
        self.claim, self.plan = claim, plan

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called in every process."""
        on_all_processes(self.claim)
        self.plan.shared = claim_on_all(self.plan.folder, args.save_strategy)
        on_main_process(lambda: clear_folder(self.plan.folder, self.plan.resume))
