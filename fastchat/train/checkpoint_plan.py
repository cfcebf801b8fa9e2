"""The checkpoints of a run as a whole: what they hold, how large they are, whether they fit, which go at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer_utils import SaveStrategy

from fastchat.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from fastchat.checkpoint.space import bytes_in, check_space, copies_at_once
from fastchat.checkpoint.staging import checkpoints_in, remove_checkpoint
from fastchat.model.adapter_parts import file_bytes
from fastchat.model.loading import count_parameters
from fastchat.processes import on_main_process
from fastchat.train.checkpointing import RunCheckpoints
from fastchat.train.engine import Engine
from fastchat.train.resuming import Identity, Resume, differing
from fastchat.train.startup import Start, outdated


def plan_checkpoints(trainer: Any, start: Start, *, adapter: bool, hold: Callable[[], None]) -> RunCheckpoints:
    """What the Trainer has to know about its checkpoints. ResourceError where the disk has no room for them.

    `adapter`: whether only an adapter is trained. `hold`: `RunStatus.hold`.
    """
    training, identity, resume = trainer.args, start.identity, start.resume
    output_dir = Path(str(training.output_dir))
    engine: Engine = trainer.engine
    trained = bytes_of(trainer.model, engine, trained=True)
    result = file_bytes(trainer.model, engine.numel) if adapter else bytes_of(trainer.model, engine, trained=False)
    more = engine.state_bytes(count_parameters(trainer.model, engine.numel)[0], trained)
    size = result + (0 if training.save_only_model else more)

    def work() -> None:
        replaced, later = outdated(output_dir, resume)
        there = len([path for _, path in checkpoints_in(output_dir) if path not in (*replaced, *later)])
        copies = copies_at_once(_saves_to_come(trainer, resume), training.save_total_limit)
        freed = sum(bytes_in(path) for path in replaced)
        check_space(output_dir, size, max(copies - there, min(copies, 1)), result, freed)

    on_main_process(work)
    changed = differing(resume.manifest, identity.settings) if resume.manifest else []
    return RunCheckpoints(
        output_dir, resume, adapter, lambda t: current_manifest(t, identity), changed, size, result, hold
    )


def bytes_of(model: Any, engine: Engine, *, trained: bool) -> int:
    """Bytes that the model's weights take in a file, or those that train; whole also where the engine partitions."""
    parameters = (p for p in model.parameters() if p.requires_grad or not trained)
    return sum(engine.numel(p) * p.element_size() for p in parameters)


def _saves_to_come(trainer: Any, resume: Resume) -> int:
    training = trainer.args
    strategy = SaveStrategy(training.save_strategy).value
    per_epoch = max(1, math.ceil(len(trainer.train_batches()) / training.gradient_accumulation_steps))
    steps = training.max_steps if training.max_steps > 0 else math.ceil(per_epoch * training.num_train_epochs)
    steps -= resume.manifest.step if resume.manifest else 0
    if strategy == "no" or steps <= 0:
        return 0
    if strategy != "steps":
        return math.ceil(steps / per_epoch)
    every = training.save_steps if training.save_steps >= 1 else max(1, math.ceil(steps * training.save_steps))
    return math.ceil(steps / every)


def current_manifest(trainer: Any, identity: Identity) -> Manifest:
    """The manifest of this moment, without its files. Every process calls it."""
    supervised, tokens = trainer.tokens_seen()
    state = trainer.state
    return Manifest(
        step=state.global_step,
        epoch=float(state.epoch or 0),
        samples=trainer.dialogues_seen(),
        tokens=tokens,
        supervised_tokens=supervised,
        world_size=trainer.engine.world_size,
        engine=trainer.engine.name,
        fingerprints=identity.fingerprints,
        settings=identity.settings,
    )


def remove_stops(output_dir: Path, save_strategy: str) -> None:
    """After the end: checkpoints that a stop made where none were asked for. First process."""
    if SaveStrategy(save_strategy) != SaveStrategy.NO:
        return
    for _, path in checkpoints_in(output_dir):
        if (path / MANIFEST).is_file() and read_manifest(path).settings.get("save_strategy") == "no":
            remove_checkpoint(path)
