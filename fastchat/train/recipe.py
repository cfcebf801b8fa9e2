"""The recipe, LoRA and full fine-tuning alike: tokenizer, template, data, model, training, saving, evaluation, record.

Every process runs all of it. What can be wrong with settings or data is found before the model loads, and
`--output_dir` is neither made nor written to before every check has passed. Only this module takes the settings apart;
what follows from model or data is written back into them here (`settings.derive`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.record import TrainingRecord
from fastchat.data.batches.packing import PackedDataset
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.rows.columns import Columns
from fastchat.data.tokens.cache import cache_folder
from fastchat.data.tokens.prepare import TokenSettings
from fastchat.errors import say
from fastchat.model.loading import load_config
from fastchat.model.rope import RopeChoice, choose_rope
from fastchat.processes import on_all_processes, on_main_process, world_size
from fastchat.settings.lora_options import DEFAULT, GAUSSIAN
from fastchat.train import packed, speed, startup
from fastchat.train.adapter import adapter_of, adapter_record, derived_targets, token_ids
from fastchat.train.callbacks import MetricsFile, SamplesFile, WarmupNote
from fastchat.train.checkpoint_plan import plan_checkpoints, remove_stops
from fastchat.train.checkpointed import plan_run
from fastchat.train.checkpointing import StopCallback
from fastchat.train.datasets import Corpus, Data, Named, check_enough, longest, read_corpora
from fastchat.train.ending import LESS_MEMORY
from fastchat.train.engine import Engine, choose_engine
from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.hosts import check_same_model
from fastchat.train.lifeline import LIFELINE
from fastchat.train.memory import MemoryWatch
from fastchat.train.planning import advice, say_lost
from fastchat.train.prepare import (
    Loading,
    Text,
    check_sources,
    check_trained,
    choose_loading,
    prepare_head,
    prepare_model,
    prepare_text,
    rope_for_data,
    say_rope_differs,
)
from fastchat.train.record import Run, base_name, make_record
from fastchat.train.rehearsal import RecordRehearsal, rehearse_saving
from fastchat.train.result import save, train_and_finish
from fastchat.train.resuming import Identity
from fastchat.train.settings import Settings, global_batch
from fastchat.train.status import RunStatus, end_now
from fastchat.train.stopping import STOPPING
from fastchat.train.trainer import ChatTrainer
from fastchat.train.untrained import warn_untrained

_ROPE = ("rope_scaling_type", "rope_scaling_factor")


def train(settings: Settings, status: RunStatus) -> None:
    """Runs one training from checked settings to the files in `--output_dir`. Raises UserErrors."""
    training, lora = settings.training, settings.lora

    # 1. The output folder holds no result that must stay, and no other run uses it.
    folder = output_folder(settings)
    LIFELINE.watch(lambda ended: end_now(status, ended), STOPPING.follow)
    startup.check_folder(folder)
    on_all_processes(lambda: status.lock(folder.path))

    # 2. Tokenizer and template; the base and the adapter to continue are what was saved.
    base = base_name(str(settings.model.model_name_or_path))
    text = read_text(settings, base)

    # 3. The engine: who holds weights and optimizer state, and what a global batch is.
    engine = choose_engine(settings.deepspeed_config, world_size(), settings.fsdp, bf16=settings.training.bf16)

    # 4. What the base's configuration decides: the kernel, the memory to expect, the RoPE scaling if one was asked for.
    config = load_config(base, cache_dir=training.cache_dir, trust_remote_code=settings.model.trust_remote_code)
    loading = decide_loading(settings, config, engine)
    plan = plan_run(settings.values, training, config, lora=lora is not None, attention=loading.intended)
    status.advise = lambda: advice(plan, LESS_MEMORY)
    rope = rope_as_asked(settings, config)

    # 5. All hosts start from the same, and the folder is not another run's: before the data is read, which takes long.
    check_same_model(base, config, text, loading, engine, adapter=getattr(settings.lora, "lora_weight_path", None))
    identity = on_main_process(lambda: identify_run(settings, folder, base, config, text, engine))

    # 6. The data, tokenized; the RoPE scaling that its longest dialogue needs; which dialogues share a row.
    corpora = read_corpora_of(settings, text.chat_encoder)
    say_lost(plan, corpora["train"].lost, training.model_max_length)
    if not rope_asked(settings):
        rope = rope_as_needed(settings, config, corpora)
    data = pack(settings, corpora, config, loading, engine)

    # 7. Where the run starts: at step 0, from a checkpoint, or not at all because it is finished.
    start = startup.choose_start(folder, identity, data, settings=settings.record())
    if start.resume.finished:
        return

    # 8. The model, and its adapter; memory is measured from here.
    memory = MemoryWatch(plan, training.device)
    model, weights_dtype = load_model(settings, base, config, loading, rope, engine, text, data, start)
    memory.built()

    # 9. What only the model can tell: untrained tokens, leaks between packed dialogues, files that cannot be saved.
    head, faster = try_model(settings, model, text, data, loading, weights_dtype, engine)

    # 10. The Trainer; whether its checkpoints have room on the disk.
    run = Run(settings.record(), base, text, rope, weights_dtype, corpora, start.identity.fingerprints)
    trainer = make_trainer(run, settings, data, model, head, faster, memory, engine)
    trainer.plan = plan_checkpoints(trainer, start, adapter=lora is not None, hold=status.hold)

    # 11. The folder is this run's as soon as training begins: the engine and the reports are ready by then.
    claim = startup.FolderClaim(lambda: status.claim(folder.path), trainer.plan)
    trainer.begin_with(RecordRehearsal(lambda: make_record(run, trainer)), claim)

    # 12. All steps; then the result saved and verified, evaluated, and the record of it all.
    train_and_finish(run, trainer, start.resume.checkpoint)
    on_main_process(lambda: remove_stops(folder.path, training.save_strategy))


# ---- the steps in their order: which settings each takes, and what it adds to them ----


def output_folder(settings: Settings) -> startup.OutputFolder:
    """Step 1. The folder, and what the settings say about what it may hold."""
    training = settings.training
    return startup.OutputFolder(
        Path(str(training.output_dir)),
        resume=training.resume_from_checkpoint,
        weights_only=training.resume_weights_only,
        overwrite=training.overwrite_output_dir,
    )


def read_text(settings: Settings, base: str) -> Text:
    """Step 2. The template is a setting that may follow from the model."""
    model, data, lora = settings.model, settings.data, settings.lora
    text = prepare_text(
        base,
        template=data.conv_template,
        template_file=data.conv_template_file,
        train_on=data.train_on,
        padding_side=model.padding_side,
        use_class=model.use_tokenizer_class,
        cache_dir=settings.training.cache_dir,
        trust_remote_code=model.trust_remote_code,
        token_cache=cache_folder(settings.training.output_dir),
    )
    template = text.chat_encoder.template
    if data.conv_template is None:
        settings.derive(data, "conv_template", template.name)
    if lora is not None:
        token_ids(text.tokenizer, lora.trainable_tokens)  # raises for a token that is not there
    adapter, q_lora = (lora.lora_weight_path, lora.q_lora) if lora is not None else (None, False)
    on_main_process(lambda: check_sources(base, adapter, template, q_lora=q_lora))
    return text


def decide_loading(settings: Settings, config: Any, engine: Engine) -> Loading:
    """Step 4. The dtype is a setting that may follow from others."""
    model, training = settings.model, settings.training
    loading = choose_loading(
        config,
        dtype=model.dtype,
        bf16=training.bf16,
        fp16=training.fp16,
        scales_gradients=settings.lora is None and training.fp16 and not engine.casts_weights,
        flash_attn=model.flash_attn,
        named=model.attn_implementation,
        packing=settings.data.packing,
        device=training.device,
        trust_remote_code=model.trust_remote_code,
    )
    if model.dtype == "auto" and loading.dtype != "auto":
        settings.derive(model, "dtype", str(loading.dtype).removeprefix("torch."))
    return loading


def rope_asked(settings: Settings) -> bool:
    """Whether the user chose a RoPE scaling, which does not depend on the data then."""
    return any(getattr(settings.model, name) is not None and settings.origin[name] != "derived" for name in _ROPE)


def rope_as_asked(settings: Settings, config: Any) -> RopeChoice | None:
    """Step 4. The RoPE scaling that the settings ask for; None where they do not, and the data decides."""
    model = settings.model
    adapter = adapter_record(settings.lora)
    rope = None
    if rope_asked(settings):
        kind, factor = model.rope_scaling_type, model.rope_scaling_factor
        rope = choose_rope(config, type=kind, factor=factor, model_max_length=settings.training.model_max_length)
    accept_rope(settings, config, rope, adapter)
    return rope


def rope_as_needed(settings: Settings, config: Any, corpora: dict[str, Corpus]) -> RopeChoice | None:
    """Step 6. The RoPE scaling of the adapter to continue, or what the longest dialogue needs."""
    training, adapter = settings.training, adapter_record(settings.lora)
    rope = rope_for_data(config, adapter, longest=longest(corpora), model_max_length=training.model_max_length)
    accept_rope(settings, config, rope, adapter)
    return rope


def accept_rope(settings: Settings, config: Any, rope: RopeChoice | None, adapter: TrainingRecord | None) -> None:
    """What follows from a RoPE scaling, for the settings and for packing."""
    model = settings.model
    if rope is not None:
        say_rope_differs(rope, adapter, settings.lora.lora_weight_path if settings.lora is not None else None)
        if model.rope_scaling_type is None:
            settings.derive(model, "rope_scaling_type", rope.type)
        if model.rope_scaling_factor is None:
            settings.derive(model, "rope_scaling_factor", rope.factor)
    if settings.data.packing:
        packed.check_config(config, settings.training.model_max_length, rope)


def identify_run(
    settings: Settings, folder: startup.OutputFolder, base: str, config: Any, text: Text, engine: Engine
) -> Identity:
    """Step 5, in the first process."""
    return startup.identify(
        folder,
        base,
        config,
        engine,
        tokenizer=text.tokenizer,
        template=text.chat_encoder.template.to_dict(),
        adapter=settings.lora is not None,
        global_batch=global_batch(settings, engine),
        settings=settings.record(),
        undecided=() if rope_asked(settings) else _ROPE,
    )


def read_corpora_of(settings: Settings, chat_encoder: ChatEncoder) -> dict[str, Corpus]:
    """Step 6. The dialogues to train and to evaluate on."""
    data, training = settings.data, settings.training
    assert data.data_path is not None and training.data_seed is not None
    if data.lazy_preprocess:
        say("--lazy_preprocess: data is always streamed and tokenised once, with or without it")
    evaluation = data.eval_data_path
    return read_corpora(
        Named("data_path", data.data_path, data.data_split, data.data_revision),
        Named("eval_data_path", evaluation, data.eval_data_split, data.data_revision) if evaluation else None,
        chat_encoder,
        TokenSettings(
            max_length=training.model_max_length,
            overlong=data.overlong,
            on_bad_row=data.on_bad_row,
            columns=Columns(data.data_columns, data.data_roles),
            workers=data.preprocessing_num_workers,
            overwrite=data.overwrite_cache,
        ),
        proportions=[float(share) for share in data.data_proportions or []],
        val_set_size=float(data.val_set_size),
        evaluates=bool(training.do_eval or training.eval_on_start),
        seed=training.data_seed,
        cache_dir=training.cache_dir,
        output_dir=str(training.output_dir),
    )


def pack(settings: Settings, corpora: dict[str, Corpus], config: Any, loading: Loading, engine: Engine) -> Data:
    """Step 6. The dialogues in their packs, with `--packing`."""
    training, packs = settings.training, {}
    assert training.data_seed is not None
    if settings.data.packing:
        trees = (config, loading.intended) if settings.data.packing_prefix_tree else None
        packs = packed.plan(corpora, training.model_max_length, training.data_seed, trees)
    data = Data(corpora, packs)
    if training.dataloader_drop_last:
        check_enough(data, global_batch(settings, engine))
    return data


def load_model(
    settings: Settings,
    base: str,
    config: Any,
    loading: Loading,
    rope: RopeChoice | None,
    engine: Engine,
    text: Text,
    data: Data,
    start: startup.Start,
) -> tuple[Any, torch.dtype]:
    """Step 8. Which modules have an adapter is a setting that may follow from the model."""
    training, lora = settings.training, settings.lora
    usual = settings.origin.get("lora_target_modules") == "default"
    add_adapter = None
    if lora is not None:
        more: dict[str, Any] = {"usual_targets": usual, "checkpointing": bool(training.gradient_checkpointing)}
        more |= {"device": training.device, "resumes": start.resume.checkpoint is not None}
        add_adapter = adapter_of(lora, text.tokenizer, data.corpora["train"].dataset, engine, **more)
    model, weights_dtype = prepare_model(
        base,
        config,
        loading,
        rope,
        engine,
        quantized=lora is not None and lora.q_lora,
        add_adapter=add_adapter,
        decomposes=lora is not None and lora.lora_init not in (DEFAULT, GAUSSIAN),
        seed=training.seed,
        device=training.device,
        cache_dir=training.cache_dir,
        trust_remote_code=settings.model.trust_remote_code,
    )
    if lora is not None and (usual or lora.lora_weight_path):
        for name, value in derived_targets(lora, model).items():
            settings.derive(lora, name, value)
    return model, weights_dtype


def try_model(
    settings: Settings,
    model: Any,
    text: Text,
    data: Data,
    loading: Loading,
    weights_dtype: torch.dtype,
    engine: Engine,
) -> tuple[ChunkedCrossEntropy | None, speed.Speed]:
    """Step 9. Gives the chunked head, None where the loss is computed from all logits, and what made layers faster."""
    training, adapter, train = settings.training, settings.lora is not None, data.corpora["train"]
    check_trained(model, engine)
    if adapter:
        warn_untrained(model, text.tokenizer, text.chat_encoder.stop_ids, train.dataset, engine)
    head = prepare_head(model, engine, adapter=adapter) if training.chunked_head else None
    computing = packed.Computing(training.device, loading.half, weights_dtype, bool(training.tf32))
    asked = speed.Asked.of(settings.values, loading.proposed)
    more: dict[str, Any] = {"packed": bool(data.packs), "pad_token_id": text.pad_token_id, "chunked": head is not None}
    more |= {"padding_side": settings.model.padding_side}
    faster = speed.speed_up(model, asked, train.dataset, computing, engine, **more)
    rows = data.rows("train")
    if isinstance(rows, PackedDataset):
        packed.check_model(
            model,
            rows,
            computing,
            engine,
            verify=settings.data.verify_packing,
            chunked=head is not None,
            pad_token_id=text.pad_token_id,
            capacity=training.model_max_length,
            batch_size=training.per_device_train_batch_size,
            checkpointing=bool(training.gradient_checkpointing),
        )
    on_main_process(lambda: rehearse_saving(model, text, train.sample, adapter=adapter))
    return head, faster


def make_trainer(
    run: Run,
    settings: Settings,
    data: Data,
    model: Any,
    head: ChunkedCrossEntropy | None,
    faster: speed.Speed,
    memory: MemoryWatch,
    engine: Engine,
) -> ChatTrainer:
    """Step 10. Checkpoints that the Trainer saves on the way are as complete as the final result."""
    training = settings.training
    grouped = training.train_sampling_strategy == "group_by_length"
    pad, side = run.text.pad_token_id, settings.model.padding_side
    trainer = ChatTrainer(
        model=model,
        args=training,
        train_dataset=data.rows("train"),
        eval_dataset=data.rows("eval") if "eval" in data.corpora else None,
        data_collator=packed.collator(model, packed=bool(data.packs), pad_token_id=pad, padding_side=side),
        callbacks=[MetricsFile(str(training.output_dir)), WarmupNote()],
        engine=engine,
        on_nonfinite=training.on_nonfinite,
        write_weights=lambda trainer, folder: save(run, make_record(run, trainer), trainer, folder, checkpoint=True),
        dummy_token=pad,
        memory=memory,
        head=head,
        speed=faster,
        train_lengths=data.corpora["train"].dataset.lengths if grouped else None,
        loraplus_lr_ratio=settings.lora.loraplus_lr_ratio if settings.lora is not None else None,
    )
    if settings.data.log_samples:
        trainer.add_callback(SamplesFile(str(training.output_dir), trainer.rows_of))
    trainer.add_callback(StopCallback(trainer))
    return trainer
