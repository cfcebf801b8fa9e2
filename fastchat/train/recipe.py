"""The recipe, LoRA and full fine-tuning alike: settings, tokenizer, template, data, model, training, saving,
evaluation, record.

Every process runs all of it. What can be wrong with settings or data is found before the model loads, and nothing is
written into `--output_dir` before the model stands.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from fastchat.checkpoint.save import Companions, save_result
from fastchat.conversation import choose_template, load_template_file
from fastchat.data.binding import BoundEncoder
from fastchat.data.collate import collate
from fastchat.data.encoder import TextEncoder
from fastchat.data.saved_template import install_template
from fastchat.errors import say
from fastchat.model.attention import choose_attention, used_attention
from fastchat.model.loading import count_parameters, describe_quantization, load_base_model, load_config
from fastchat.model.lora import add_lora
from fastchat.model.rope import RopeChoice, choose_rope
from fastchat.model.tokenizer import PadChoice, choose_pad, load_tokenizer
from fastchat.train.callbacks import MetricsFile
from fastchat.train.processes import barrier, rank, world_size
from fastchat.train.record import RunRecord
from fastchat.train.settings import Settings
from fastchat.train.status import RunStatus, check_output_dir, clear_results
from fastchat.train.tokens import Corpus, read_corpus, share
from fastchat.train.trainer import ChatTrainer

_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "fschat",
)


def train(settings: Settings, status: RunStatus) -> None:
    """Runs one training from checked settings to the files in `--output_dir`. Raises UserErrors."""
    output_dir = Path(str(settings.training.output_dir))
    overwrite, resume = settings.training.overwrite_output_dir, settings.training.resume_from_checkpoint
    check_output_dir(output_dir, overwrite=overwrite, resume=bool(resume))

    tokenizer, pad, bound = _prepare_text(settings)
    config = load_config(
        _base(settings), cache_dir=settings.training.cache_dir, trust_remote_code=settings.model.trust_remote_code
    )
    rope = _choose_rope(settings, config)
    corpora = _read_data(settings, bound)

    model = _load_model(settings, config, rope)
    if settings.lora is not None:
        model = _add_adapter(settings, model)
    trainable, total = count_parameters(model)

    status.claim(output_dir)
    if rank() == 0 and not resume:
        clear_results(output_dir)
    share(list(corpora.values()), output_dir)
    writer = functools.partial(_save, settings, tokenizer, bound, None)
    trainer = _make_trainer(settings, model, corpora, pad, writer)
    say(f"training {trainable:,} of {total:,} parameters on {len(corpora['train'].dataset):,} dialogues")
    torch.manual_seed(settings.training.seed + rank())  # dropout differs between processes, as it does between rows
    result = trainer.train(resume_from_checkpoint=resume)

    record = _record(settings, trainer, bound, rope, corpora, trainable)
    record.metrics = _measured(trainer, result.metrics)
    say(
        f"really used: {record.engine}, {record.world_size} process(es), attention {record.attention}, "
        f"dtype {record.dtype}, "
        f"quantisation {(record.quantization or {}).get('type') or 'none'}, optimizer {record.optimizer}"
    )
    _save(settings, tokenizer, bound, record, trainer, str(output_dir))
    if "eval" in corpora:
        record.metrics.update(_final_evaluation(trainer))
        if rank() == 0:
            record.write(output_dir)
    _summary(settings, trainer, record, output_dir)


# ---- text ----


def _base(settings: Settings) -> str:
    name = str(settings.model.model_name_or_path)
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def _prepare_text(settings: Settings) -> tuple[Any, PadChoice, BoundEncoder]:
    """Tokenizer, pad token and template, with the template written into the tokenizer that will be saved."""
    model, data = settings.model, settings.data
    tokenizer, pad = load_tokenizer(
        _base(settings),
        cache_dir=settings.training.cache_dir,
        trust_remote_code=model.trust_remote_code,
        padding_side=model.padding_side,
    )
    if data.conv_template_file:
        load_template_file(str(Path(data.conv_template_file).expanduser()))
    own = tokenizer.chat_template
    template = choose_template(
        data.conv_template,
        vocabulary=set(tokenizer.get_vocab()),
        chat_template=own if isinstance(own, str) or own is None else str(own),
        model_name=Path(_base(settings)).name,
    )
    if settings.origin["conv_template"] == "default":
        settings.derive(data, "conv_template", template.name)
    bound = TextEncoder.from_tokenizer(tokenizer).bind(template)
    pad = choose_pad(tokenizer, stop_ids=bound.stop_ids, embedding_rows=None)
    say(pad.line)
    install_template(tokenizer, bound)
    return tokenizer, pad, bound


def _read_data(settings: Settings, bound: BoundEncoder) -> dict[str, Corpus]:
    """{"train": ..., "eval": ...}; the second only where an evaluation was asked for."""
    data, training = settings.data, settings.training
    read = functools.partial(
        read_corpus,
        bound=bound,
        max_length=training.model_max_length,
        overlong=data.overlong,
        on_bad_row=data.on_bad_row,
        lazy=data.lazy_preprocess,
        progress=not training.disable_tqdm,
    )
    corpora = {"train": read("train", list(data.data_path or []))}
    if data.eval_data_path and (training.do_eval or training.eval_on_start):
        corpora["eval"] = read("eval", list(data.eval_data_path))
    return corpora


# ---- model ----


def _choose_rope(settings: Settings, config: Any) -> RopeChoice | None:
    model = settings.model
    rope = choose_rope(
        config,
        type=model.rope_scaling_type,
        factor=model.rope_scaling_factor,
        model_max_length=settings.training.model_max_length,
    )
    if rope is not None:
        if model.rope_scaling_type is None:
            settings.derive(model, "rope_scaling_type", rope.type)
        if model.rope_scaling_factor is None:
            settings.derive(model, "rope_scaling_factor", rope.factor)
    return rope


def _load_model(settings: Settings, config: Any, rope: RopeChoice | None) -> Any:
    model, training, lora = settings.model, settings.training, settings.lora
    quantized = lora is not None and lora.q_lora
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    dtype = _weights_dtype(settings)
    runs_in = half or (dtype if isinstance(dtype, torch.dtype) else config.get_text_config().dtype)
    attention, line = choose_attention(model.flash_attn, config=config, dtype=runs_in, device=training.device)
    say(line)
    set_seed(training.seed)  # the adapter starts from random numbers: the same ones in every process
    loaded = load_base_model(
        _base(settings),
        dtype=dtype,
        attn_implementation=attention,
        rope=rope,
        quantization=quantized,
        compute_dtype=half,
        cache_dir=training.cache_dir,
        trust_remote_code=model.trust_remote_code,
        device=training.device if quantized and training.device.type != "cpu" else None,
    )
    if lora is None and settings.deepspeed_config is None and loaded.dtype in (torch.bfloat16, torch.float16):
        say(
            f"the weights are trained in {_name(loaded.dtype)} without a float32 copy, so small updates round away: "
            "--dtype float32 or --deepspeed keeps one"
        )
    return loaded


def _weights_dtype(settings: Settings) -> str | torch.dtype:
    """What to load the weights as. Full fine-tuning under --fp16 scales gradients, so it needs float32 weights."""
    asked = settings.model.dtype
    if settings.lora is None and settings.training.fp16 and asked == "auto" and settings.deepspeed_config is None:
        say("--fp16: the weights are loaded as float32, computing is in float16")
        settings.derive(settings.model, "dtype", "float32")
        return torch.float32
    return asked if asked == "auto" else getattr(torch, asked)


def _add_adapter(settings: Settings, model: Any) -> Any:
    lora = settings.lora
    assert lora is not None
    defaults = settings.origin["lora_target_modules"] == "default"
    adapted = add_lora(
        model,
        r=lora.lora_r,
        alpha=lora.lora_alpha,
        dropout=lora.lora_dropout,
        target_modules=None if defaults else lora.lora_target_modules,
        bias=lora.lora_bias,
        gradient_checkpointing=settings.training.gradient_checkpointing,
        weight_path=lora.lora_weight_path or None,
    )
    settings.derive(lora, "lora_target_modules", sorted(adapted.peft_config["default"].target_modules))
    settings.origin["lora_target_modules"] = "derived" if defaults or lora.lora_weight_path else "command line"
    return adapted


# ---- training ----


def _make_trainer(
    settings: Settings, model: Any, corpora: dict[str, Corpus], pad: PadChoice, writer: Any
) -> ChatTrainer:
    dataset = corpora["train"].dataset
    return ChatTrainer(
        model=model,
        args=settings.training,
        train_dataset=dataset,  # pyright: ignore[reportArgumentType]
        eval_dataset=corpora["eval"].dataset if "eval" in corpora else None,  # pyright: ignore[reportArgumentType]
        data_collator=functools.partial(collate, pad_token_id=pad.id, padding_side=settings.model.padding_side),
        callbacks=[MetricsFile(str(settings.training.output_dir))],
        write_weights=writer,
        dummy_token=pad.id,
        train_lengths=dataset.lengths if settings.training.train_sampling_strategy == "group_by_length" else None,
    )


def _final_evaluation(trainer: ChatTrainer) -> dict[str, Any]:
    """The evaluation of the final weights; not repeated where the last step was evaluated already."""
    for row in reversed(trainer.state.log_history):
        if "eval_loss" in row and row["step"] == trainer.state.global_step:
            break
    else:
        row = trainer.evaluate()
    return {key: row[key] for key in ("eval_loss", "eval_num_supervised_tokens")}


def _measured(trainer: ChatTrainer, metrics: dict[str, float]) -> dict[str, Any]:
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    first = {"eval_loss_before": rows[0]["eval_loss"]} if rows and rows[0]["step"] == 0 else {}
    kept = ("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    return {"steps": trainer.state.global_step, **{k: metrics[k] for k in kept if k in metrics}, **first}


def _save(
    settings: Settings, tokenizer: Any, bound: BoundEncoder, record: RunRecord | None, trainer: ChatTrainer, folder: str
) -> None:
    """Saves what is trained, with everything needed to use it, into `folder`: `--output_dir` or a checkpoint."""
    companions = Companions(tokenizer=tokenizer, stop_ids=bound.stop_ids, record=record)
    save_result(trainer.model, folder, companions, adapter=settings.lora is not None)


# ---- what is written down ----


@dataclass
class _Used:
    quantization: dict[str, Any] | None
    dtype: str


def _used(model: Any) -> _Used:
    """Read from the model itself, not from the settings."""
    found = describe_quantization(model)
    weights = [p for n, p in model.named_parameters() if p.is_floating_point() and "lora_" not in n]
    kinds = {p.dtype for p in weights}
    main = max(kinds, key=lambda kind: sum(getattr(p, "ds_numel", p.numel()) for p in weights if p.dtype == kind))
    return _Used(found if found["type"] else None, _name(main))


def _record(
    settings: Settings,
    trainer: ChatTrainer,
    bound: BoundEncoder,
    rope: RopeChoice | None,
    corpora: dict[str, Corpus],
    trainable: int,
) -> RunRecord:
    base = Path(_base(settings))
    model: Any = trainer.model
    used = _used(model)
    template = bound.template
    return RunRecord(
        base_model=str(base.resolve()) if base.is_dir() else str(base),
        settings=settings.record(),
        template={"name": template.name, "definition": template.to_dict(), "stop_token_ids": list(bound.stop_ids)},
        rope_parameters=rope.rope_parameters if rope else None,
        max_position_embeddings=model.config.get_text_config().max_position_embeddings,
        quantization=used.quantization,
        dtype=used.dtype,
        attention=used_attention(model),
        engine=trainer.engine(),
        optimizer=trainer.optimizer_name(),
        device=trainer.args.device.type,
        world_size=world_size(),
        data={name: corpus.record() for name, corpus in corpora.items()},
        versions=_versions(),
        trainable_parameters=trainable,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _summary(settings: Settings, trainer: ChatTrainer, record: RunRecord, output_dir: Path) -> None:
    barrier()
    metrics = record.metrics
    kind = "adapter" if settings.lora is not None else "model"
    line = (
        f"saved and verified: {kind} in {output_dir}, {metrics['steps']} steps, train loss {metrics['train_loss']:.4f}"
    )
    if "eval_loss" in metrics:
        before = f"{metrics['eval_loss_before']:.4f} -> " if "eval_loss_before" in metrics else ""
        line += f", eval loss {before}{metrics['eval_loss']:.4f}"
    say(line)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
