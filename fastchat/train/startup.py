"""The beginning of a run: whose folder this is, where to go on from, and whether the disk has room for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.trainer_utils import SaveStrategy

from fastchat.checkpoint.digests import check_result
from fastchat.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from fastchat.checkpoint.space import check_space, copies_at_once
from fastchat.checkpoint.staging import checkpoints_in, recover, remove_checkpoint
from fastchat.checkpoint.trained_model import find_trained
from fastchat.data.batches.packing import Packs
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.errors import CheckpointError, SettingsError, say
from fastchat.model.loading import count_parameters
from fastchat.processes import on_main_process
from fastchat.train.checkpointing import RunCheckpoints
from fastchat.train.datasets import Corpus
from fastchat.train.engine import Engine
from fastchat.train.prepare import rope_asked
from fastchat.train.resuming import (
    AUTO,
    NEVER,
    Identity,
    Resume,
    base_fingerprint,
    differing,
    digest,
    is_done,
    plan_resume,
    refuse_other_run,
    set_aside_later,
)
from fastchat.train.settings import Settings
from fastchat.train.status import check_output_dir, clear_results


def check_folder_early(settings: Settings) -> None:
    """Refuses, before anything is read, a folder with a result that is certainly not to be continued."""
    output_dir, training = Path(str(settings.training.output_dir)), settings.training
    if training.resume_from_checkpoint == NEVER or not _may_continue(output_dir):
        check_output_dir(output_dir, overwrite=training.overwrite_output_dir)


def check_sources(settings: Settings, base: str, chat_encoder: ChatEncoder) -> None:
    """CheckpointError where what the run starts from is damaged, or the adapter to continue is none of `base`.

    Another template or another kind of base than that adapter was trained with is said.
    """
    if settings.lora is None or not settings.lora.lora_weight_path:
        check_result(base)
        return
    tuned = find_trained(settings.lora.lora_weight_path, base)
    other = tuned.other_base()
    if other:
        raise CheckpointError(f"--lora_weight_path: {other}; name the right one with --model_name_or_path")
    tuned.say_other_template(chat_encoder.template)
    tuned.say_other_base_format(settings.lora.q_lora)


def _may_continue(output_dir: Path) -> bool:
    return bool(checkpoints_in(output_dir)) or (output_dir / "training.json").is_file() or is_done(output_dir)


def identify(
    settings: Settings, config: Any, base: str, tokenizer: Any, chat_encoder: ChatEncoder, engine: Engine
) -> Identity:
    """What this run stands on, but for its data. SettingsError where the output folder is certainly another run's:
    before the data is read, which can take long."""
    training, values = settings.training, settings.record()
    fingerprints = {
        "template": digest(chat_encoder.template.to_dict()),
        "tokenizer": digest(tokenizer.backend_tokenizer.to_str()),
        "base_model": base_fingerprint(base, config),
        "training": "adapter" if settings.lora is not None else "whole model",
        "global_batch": engine.global_batch(training.per_device_train_batch_size, training.gradient_accumulation_steps),
    }
    open_yet = () if rope_asked(settings) else ("rope_scaling_type", "rope_scaling_factor")  # the data decides
    identity = Identity(
        fingerprints,
        {name: entry["value"] for name, entry in values.items() if name not in open_yet},
        engine.world_size,
        engine.name,
        {name: entry["from"] for name, entry in values.items()},
    )
    if training.resume_from_checkpoint in (None, AUTO) and not training.overwrite_output_dir:
        refuse_other_run(Path(str(training.output_dir)), identity)
    return identity


def with_data(identity: Identity, settings: Settings, train: Corpus, packs: Packs | None) -> Identity:
    """The same with its data, and with the settings that follow from it. For the process that has read it."""
    found = {"data": train.fingerprint, "num_dialogues": len(train.dataset), **identity.fingerprints}
    return replace(
        identity,
        fingerprints=found if packs is None else found | {"packs": packs.fingerprint},
        settings={name: entry["value"] for name, entry in settings.record().items()},
        origins={name: entry["from"] for name, entry in settings.record().items()},
    )


def choose_checkpoint(settings: Settings, identity: Identity | None) -> Resume:
    """Where the run begins, decided by the first process, which brings the `identity`, and told to all."""
    training = settings.training
    output_dir = Path(str(training.output_dir))

    def work() -> Resume:
        assert identity is not None
        choice = training.resume_from_checkpoint
        for line in recover(output_dir):
            say(line)
        resume = plan_resume(
            output_dir,
            choice,
            identity,
            overwrite=training.overwrite_output_dir,
            weights_only=training.resume_weights_only,
        )
        own = resume.checkpoint is not None and resume.checkpoint.parent.resolve() == output_dir.resolve()
        if not own and not resume.finished:
            check_output_dir(output_dir, overwrite=training.overwrite_output_dir)
        return resume

    resume = on_main_process(work)
    assert resume is not None
    for line in resume.lines:
        say(line)
    if resume.manifest is not None:
        say(f"going on from {resume.checkpoint}: step {resume.manifest.step}")
    return resume


def clear_folder(output_dir: Path, resume: Resume) -> None:
    """Removes what an earlier run left where this one starts anew; or what no longer belongs to it. First process."""
    if resume.checkpoint is None or resume.manifest is None:
        clear_results(output_dir)
        return
    own = resume.checkpoint.parent.resolve() == output_dir.resolve()
    fell_back = any(line.startswith("WARNING") for line in resume.lines)  # the damaged ones are replaced in time
    if own and not fell_back:
        set_aside_later(output_dir, resume.manifest.step)


def check_enough(settings: Settings, num_rows: int, engine: Engine) -> None:
    """SettingsError where `--dataloader_drop_last` would leave nothing of `num_rows` dialogues or packs."""
    training = settings.training
    batch = engine.global_batch(training.per_device_train_batch_size, training.gradient_accumulation_steps)
    if training.dataloader_drop_last and num_rows < batch:
        raise SettingsError(
            f"--dataloader_drop_last: there are {num_rows} rows to train on, less than one global batch of {batch}, so "
            "nothing would be trained; leave it out or lower the batch"
        )


def remove_stops(output_dir: Path, settings: Settings) -> None:
    """After the end: checkpoints that a stop made where none were asked for. First process."""
    if _strategy(settings.training) != "no":
        return
    for _, path in checkpoints_in(output_dir):
        if (path / MANIFEST).is_file() and read_manifest(path).settings.get("save_strategy") == "no":
            remove_checkpoint(path)


def plan_checkpoints(settings: Settings, identity: Identity, resume: Resume, trainer: Any) -> RunCheckpoints:
    """What the Trainer has to know about its checkpoints. ResourceError where the disk has no room for them."""
    training = settings.training
    output_dir = Path(str(training.output_dir))
    adapter = settings.lora is not None
    engine: Engine = trainer.engine
    trained = bytes_of(trainer.model, engine, trained=True)
    result = trained if adapter else bytes_of(trainer.model, engine, trained=False)
    more = engine.state_bytes(count_parameters(trainer.model, engine.numel)[0], trained)
    size = result + (0 if training.save_only_model else more)

    def work() -> None:
        there = len(checkpoints_in(output_dir))
        copies = copies_at_once(_saves_to_come(training, trainer, resume), training.save_total_limit)
        check_space(output_dir, size, max(copies - there, min(copies, 1)), result)

    on_main_process(work)
    changed = differing(resume.manifest, identity.settings) if resume.manifest else []
    return RunCheckpoints(output_dir, resume, adapter, lambda t: describe(t, identity), changed, size, result)


def bytes_of(model: Any, engine: Engine, *, trained: bool) -> int:
    """Bytes that the model's weights take in a file, or those that train; whole also where the engine partitions."""
    parameters = (p for p in model.parameters() if p.requires_grad or not trained)
    return sum(engine.numel(p) * p.element_size() for p in parameters)


def _saves_to_come(training: Any, trainer: Any, resume: Resume) -> int:
    strategy = _strategy(training)
    per_epoch = max(1, math.ceil(len(trainer.train_batches()) / training.gradient_accumulation_steps))
    steps = training.max_steps if training.max_steps > 0 else math.ceil(per_epoch * training.num_train_epochs)
    steps -= resume.manifest.step if resume.manifest else 0
    if strategy == "no" or steps <= 0:
        return 0
    if strategy != "steps":
        return math.ceil(steps / per_epoch)
    every = training.save_steps if training.save_steps >= 1 else max(1, math.ceil(steps * training.save_steps))
    return math.ceil(steps / every)


def _strategy(training: Any) -> str:
    return SaveStrategy(training.save_strategy).value


def describe(trainer: Any, identity: Identity) -> Manifest:
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
