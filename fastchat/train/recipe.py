"""The recipe, LoRA and full fine-tuning alike: tokenizer, template, data, model, training, saving, evaluation, record.

Every process runs all of it. What can be wrong with settings or data is found before the model loads, and nothing is
written into `--output_dir` before the model stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.digests import mark_unusable
from fastchat.checkpoint.save import save_result
from fastchat.checkpoint.space import disk_errors
from fastchat.data.encoding.saved_template import compare_template
from fastchat.errors import CheckpointError, SettingsError, say
from fastchat.model.loading import count_parameters, load_config
from fastchat.model.tokenizer_files import reopened
from fastchat.processes import known_processes, on_all_processes, on_main_process, rank, world_size
from fastchat.train import packed
from fastchat.train.callbacks import LinesFile, MetricsFile, SamplesFile, WarmupNote, number
from fastchat.train.checkpointing import StopCallback
from fastchat.train.datasets import longest, read_corpora
from fastchat.train.ending import LESS_MEMORY
from fastchat.train.engine import Engine, choose_engine
from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.memory import MemoryWatch
from fastchat.train.planning import advice, announce, say_lost
from fastchat.train.prepare import attention_for, prepare_head, prepare_model, prepare_rope, prepare_text
from fastchat.train.record import Run, RunRecord, base_name, make_record, used_line
from fastchat.train.rehearsal import RecordRehearsal, rehearse_saving
from fastchat.train.settings import Settings
from fastchat.train.startup import (
    check_enough,
    check_folder_early,
    check_sources,
    choose_checkpoint,
    clear_folder,
    identify,
    plan_checkpoints,
    remove_stops,
    with_data,
)
from fastchat.train.status import RunStatus, end_with_dead_peer
from fastchat.train.stopping import STOPPING
from fastchat.train.trainer import ChatTrainer
from fastchat.train.untrained import warn_untrained


def train(settings: Settings, status: RunStatus) -> None:
    """Runs one training from checked settings to the files in `--output_dir`. Raises UserErrors."""
    training = settings.training
    output_dir = Path(str(training.output_dir))
    STOPPING.know_peers(known_processes(), lambda dead: end_with_dead_peer(status, dead))
    check_folder_early(settings)
    on_all_processes(lambda: status.lock(output_dir))

    tokenizer, pad_token_id, chat_encoder = prepare_text(settings)
    base = base_name(str(settings.model.model_name_or_path))
    on_main_process(lambda: check_sources(settings, base, chat_encoder))
    config = load_config(base, cache_dir=training.cache_dir, trust_remote_code=settings.model.trust_remote_code)
    engine = choose_engine(settings.deepspeed_config, world_size())
    plan = announce(settings, attention_for(settings, config, engine)[0])
    status.advise = lambda: advice(plan, LESS_MEMORY)
    rope = prepare_rope(settings, config)
    packed.check_config(settings, config, rope)
    itself = on_main_process(lambda: identify(settings, config, base, tokenizer, chat_encoder, engine))
    assert itself is not None
    corpora = read_corpora(settings, chat_encoder)
    say_lost(plan, corpora["train"].lost, training.model_max_length)
    if rope is None:
        rope = prepare_rope(settings, config, longest(corpora, training.model_max_length))
        packed.check_config(settings, config, rope)
    packs = packed.plan(settings, corpora)
    check_enough(settings, len(packs["train"] if packs else corpora["train"].dataset), engine)
    identity = on_main_process(lambda: with_data(itself, settings, corpora["train"], packs.get("train")))
    assert identity is not None
    resume = choose_checkpoint(settings, identity)
    if resume.finished:
        return
    memory = MemoryWatch(plan, training.device)
    model, weights_dtype = prepare_model(settings, config, rope, engine)
    memory.built()
    trainable, total = count_parameters(model, engine.numel)
    if not trainable:
        raise SettingsError("not one parameter would be trained; check --lora_target_modules and the model")
    run = Run(
        settings, base, tokenizer, pad_token_id, chat_encoder, rope, weights_dtype, corpora, memory, packs, identity
    )
    warn_untrained(run, model, engine)
    head = prepare_head(settings, model, engine)
    packed.check_model(run, model, head, engine)
    on_main_process(lambda: rehearse_saving(run, model))

    on_all_processes(lambda: status.claim(output_dir))
    on_main_process(lambda: clear_folder(output_dir, resume))
    trainer = make_trainer(run, model, head, engine)
    trainer.plan = plan_checkpoints(settings, identity, resume, trainer)
    trainer.plan.hold = status.hold
    trainer.add_callback(RecordRehearsal(lambda: make_record(run, trainer)))
    trainer.add_callback(StopCallback(trainer))
    say(f"training {trainable:,} of {total:,} parameters on {len(corpora['train'].dataset):,} dialogues")
    train_and_finish(run, trainer, resume.checkpoint)
    on_main_process(lambda: remove_stops(output_dir, settings))
    STOPPING.close()


def train_and_finish(run: Run, trainer: ChatTrainer, checkpoint: Path | None) -> None:
    """All steps, from `checkpoint` where there is one, and what follows the last."""
    training = run.settings.training
    torch.manual_seed(training.seed + rank())  # dropout differs between processes, as it does between rows
    if checkpoint is not None:
        training.eval_on_start = False  # it belongs to step 0
    try:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finish(run, trainer, result.metrics)
    finally:
        trainer.end_workers()


def finish(run: Run, trainer: ChatTrainer, metrics: dict[str, float]) -> None:
    """What follows the last step: the result saved and verified, evaluated, and the record of it all written."""
    output_dir = Path(str(run.settings.training.output_dir))
    on_main_process(trainer.plan.hold)
    for file in trainer.callback_handler.callbacks:
        if isinstance(file, LinesFile):
            file.finish()
    record = make_record(run, trainer)
    say(used_line(record))
    record.metrics = measured(trainer, metrics)
    with disk_errors(output_dir, trainer.plan.result_bytes, "result"):
        save(run, record, trainer, str(output_dir))
    if run.memory.found is not None:
        say(run.memory.found.line())
    if "eval" in run.corpora:
        record.metrics.update(final_evaluation(trainer))
        if rank() == 0:
            with disk_errors(output_dir, 0, "training.json"):
                record.write(output_dir)
    say(summary(record, output_dir))


def make_trainer(run: Run, model: Any, head: ChunkedCrossEntropy | None, engine: Engine) -> ChatTrainer:
    """The Trainer of a run. Checkpoints that it saves on the way are as complete as the final result."""
    settings, corpora = run.settings, run.corpora
    dataset = packed.dataset_of(run, "train")
    grouped = settings.training.train_sampling_strategy == "group_by_length"

    def write_weights(trainer: ChatTrainer, folder: str) -> None:
        save(run, make_record(run, trainer), trainer, folder, checkpoint=True)

    trainer = ChatTrainer(
        model=model,
        args=settings.training,
        train_dataset=dataset,
        eval_dataset=packed.dataset_of(run, "eval") if "eval" in corpora else None,
        data_collator=packed.collator(run, model),
        callbacks=[MetricsFile(str(settings.training.output_dir)), WarmupNote()],
        engine=engine,
        on_nonfinite=settings.training.on_nonfinite,
        write_weights=write_weights,
        dummy_token=run.pad_token_id,
        memory=run.memory,
        head=head,
        train_lengths=dataset.lengths if grouped else None,
    )
    if settings.data.log_samples:
        trainer.add_callback(SamplesFile(str(settings.training.output_dir), trainer.rows_of))
    return trainer


def save(run: Run, record: RunRecord, trainer: ChatTrainer, folder: str, *, checkpoint: bool = False) -> None:
    """Saves what is trained, with everything needed to use it, into `--output_dir` or a checkpoint."""
    save_result(
        trainer.model,
        folder,
        weights=trainer.engine,
        adapter=run.settings.lora is not None,
        tokenizer=run.tokenizer,
        stop_ids=run.chat_encoder.stop_ids,
        record=record,
        digests=not checkpoint,
    )
    on_main_process(lambda: check_saved(run, folder))


def check_saved(run: Run, folder: str) -> None:
    """Reads the saved tokenizer back as anybody would, and compares it and its chat template with training.

    Raises CheckpointError; what was saved stays, and its record says that it must not be used.
    """
    sample = run.corpora["train"].sample
    try:
        compared = compare_template(reopened(folder, run.tokenizer), run.chat_encoder, sample)
    except SettingsError as error:
        mark_unusable(Path(folder), str(error))
        raise CheckpointError(f"{folder}: the weights are saved, but its tokenizer is not usable: {error}") from error
    if Path(folder) == Path(str(run.settings.training.output_dir)):
        rest = f", {len(sample) - compared} with control look-alikes left out" if compared < len(sample) else ""
        say(f"the saved chat template gives the training ids of {compared} records, and their prompts{rest}")


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
    return {key: number(row[key]) for key in ("eval_loss", "eval_num_supervised_tokens")}


def summary(record: RunRecord, output_dir: Path) -> str:
    """The last line of a run."""
    metrics = record.metrics
    line = f"saved and verified in {output_dir}: {metrics['steps']} steps, train loss {shown(metrics['train_loss'])}"
    if "eval_loss" in metrics:
        before = f"{shown(metrics['eval_loss_before'])} -> " if "eval_loss_before" in metrics else ""
        line += f", eval loss {before}{shown(metrics['eval_loss'])}"
    return line


def shown(loss: float | None) -> str:
    """A loss for the screen; None is what a file holds for one that is not a number."""
    return "not a number" if loss is None else f"{loss:.4f}"
