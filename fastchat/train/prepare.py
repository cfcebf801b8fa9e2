"""What a run needs before its first step: the text side (tokenizer, template, tokens) and the model side."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import set_seed

from fastchat.checkpoint.record import read_training_record
from fastchat.conversation import use_template_file
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.properties import prove
from fastchat.data.encoding.saved_template import install_template
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.errors import SettingsError, say
from fastchat.model.attention import choose_attention
from fastchat.model.loading import load_base_model
from fastchat.model.lora import add_lora
from fastchat.model.multimodal import freeze_idle, is_multimodal, say_idle
from fastchat.model.rope import RopeChoice, apply_rope, choose_rope, context_length
from fastchat.model.tokenizer import choose_pad, load_tokenizer
from fastchat.model.tokenizer_files import other_class_line
from fastchat.processes import rank
from fastchat.train.engine import Engine
from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.head_proof import plain_line
from fastchat.train.record import base_name
from fastchat.train.settings import Settings


def prepare_text(settings: Settings) -> tuple[Any, int, ChatEncoder]:
    """(tokenizer, pad token id, tokenizer and template tied together). The template is written into the tokenizer."""
    model, data = settings.model, settings.data
    base = base_name(str(model.model_name_or_path))
    tokenizer, _ = load_tokenizer(
        base,
        cache_dir=settings.training.cache_dir,
        trust_remote_code=model.trust_remote_code,
        padding_side=model.padding_side,
        use_class=model.use_tokenizer_class,
    )
    if rank() == 0 and not model.use_tokenizer_class:
        line = other_class_line(base, tokenizer, cache_dir=settings.training.cache_dir)
        if line:
            say(line)
    name = use_template_file(data.conv_template_file, data.conv_template)
    encoder = TextEncoder.from_tokenizer(tokenizer)
    template = encoder.choose(name, model_name=Path(base).name)
    if data.conv_template is None:
        settings.derive(data, "conv_template", template.name)
    chat_encoder = encoder.bind(template, data.train_on)
    say(prove(chat_encoder))
    pad = choose_pad(tokenizer, stop_ids=chat_encoder.stop_ids)
    say(pad.line)
    install_template(tokenizer, chat_encoder)
    return tokenizer, pad.id, chat_encoder


def prepare_rope(settings: Settings, config: Any, longest: int | None = None) -> RopeChoice | None:
    """The RoPE scaling of the run; what followed from the lengths goes into the record.

    One that was asked for is known before the data is read. Otherwise the longest dialogue decides, of `longest`
    tokens as trained on: the length of a pack does not matter, since positions restart in it. None before it is known.
    """
    model, longest_allowed = settings.model, settings.training.model_max_length
    asked = {"type": model.rope_scaling_type, "factor": model.rope_scaling_factor}
    path = settings.lora.lora_weight_path if settings.lora else None
    record = read_training_record(path) if path else None
    if rope_asked(settings):
        rope = choose_rope(config, **asked, model_max_length=longest_allowed)
    elif longest is None:
        return None
    elif record and record.rope_parameters and record.max_position_embeddings:
        rope = _of_adapter(config, RopeChoice(record.rope_parameters, record.max_position_embeddings), longest)
    else:
        rope = choose_rope(config, model_max_length=longest)
        context = context_length(config)
        if rope is None and context and longest <= context < longest_allowed:
            say(f"RoPE is not scaled: the longest dialogue has {longest} tokens, the model's context is {context}")
    if rope is not None:
        if record and record.rope_parameters is None:
            say(f"RoPE: {rope.type}, factor {rope.factor:g}, although the adapter {path} was trained without scaling")
        if model.rope_scaling_type is None:
            settings.derive(model, "rope_scaling_type", rope.type)
        if model.rope_scaling_factor is None:
            settings.derive(model, "rope_scaling_factor", rope.factor)
    return rope


def rope_asked(settings: Settings) -> bool:
    """Whether the user chose a RoPE scaling, which does not depend on the data then."""
    names = ("rope_scaling_type", "rope_scaling_factor")
    return any(getattr(settings.model, name) is not None and settings.origin[name] != "derived" for name in names)


def _of_adapter(config: Any, rope: RopeChoice, longest: int) -> RopeChoice:
    """The scaling that the adapter to continue was trained with. SettingsError where `longest` tokens exceed it."""
    scaled = copy.deepcopy(config)
    apply_rope(scaled, rope)
    context = context_length(scaled)
    if context and longest > context:
        raise SettingsError(
            f"--lora_weight_path was trained with RoPE scaling {rope.type}, factor {rope.factor:g}, a context of "
            f"{context} tokens, and the longest dialogue has {longest}: use --model_max_length {context}"
        )
    say(f"RoPE scaling: {rope.type}, factor {rope.factor:g}, as the adapter was trained: context {context} tokens.")
    return rope


def attention_for(settings: Settings, config: Any, engine: Engine) -> tuple[str, str]:
    """(the attention kernel that this run loads with, the line that says why)."""
    training, asked = settings.training, _weights_dtype(settings, engine)
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    runs_in = half or (asked if isinstance(asked, torch.dtype) else config.get_text_config().dtype)
    flash, packing = settings.model.flash_attn, settings.data.packing
    return choose_attention(flash, config=config, dtype=runs_in, device=training.device, packing=packing)


def prepare_model(settings: Settings, config: Any, rope: RopeChoice | None, engine: Engine) -> tuple[Any, torch.dtype]:
    """(the model to train, the dtype its base was loaded as). With LoRA the base is frozen and has its adapter."""
    model, training, lora = settings.model, settings.training, settings.lora
    quantized = lora is not None and lora.q_lora
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    dtype = _weights_dtype(settings, engine)
    attention, line = attention_for(settings, config, engine)
    say(line)
    bars = transformers.utils.logging
    (bars.disable_progress_bar if training.disable_tqdm or rank() else bars.enable_progress_bar)()
    set_seed(training.seed)  # the adapter starts from random numbers: the same ones in every process
    loaded = load_base_model(
        base_name(str(model.model_name_or_path)),
        dtype=dtype,
        attn_implementation=attention,
        rope=rope,
        quantization=quantized,
        compute_dtype=half,
        cache_dir=training.cache_dir,
        trust_remote_code=model.trust_remote_code,
        device=training.device if quantized and training.device.type != "cpu" else None,
        partitioned=engine.loading(),
    )
    loaded_as = loaded.dtype
    wanted = dtype if isinstance(dtype, torch.dtype) else config.get_text_config().dtype
    if wanted is not None and loaded_as != wanted:  # ZeRO-3 partitions weights in the dtype it computes in
        say(f"ZeRO-3 loads the weights as {_short(loaded_as)}, not as {_short(wanted)}")
    if is_multimodal(config) and not engine.partitions:
        loaded.to(training.device)  # as the Trainer would a moment later: a few tokens are sent through it now
    with engine.weights_in_reach(loaded):
        if lora is not None:
            return _add_adapter(settings, loaded, engine), loaded_as
        say_idle(freeze_idle(loaded, engine.numel))
    if not engine.casts_weights and loaded_as in (torch.bfloat16, torch.float16):
        say(
            f"the weights are trained in {_short(loaded_as)} without a float32 copy, so small "
            "updates round away: --dtype float32 or --deepspeed keeps one"
        )
    return loaded, loaded_as


def prepare_head(settings: Settings, model: Any, engine: Engine) -> ChunkedCrossEntropy | None:
    """The model's chunked head, before an engine takes the model; None where all logits are wanted or needed."""
    if not settings.training.chunked_head:
        return None
    try:
        head = ChunkedCrossEntropy(model.get_base_model() if settings.lora is not None else model)
    except LookupError as error:
        say(plain_line(str(error)))
        return None
    if next(head.head.children(), None) is not None:
        engine.gather_as_one(head.head)  # an adapter's parts, not each of them for each chunk
    return head


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weights_dtype(settings: Settings, engine: Engine) -> str | torch.dtype:
    """What to load the weights as. Full fine-tuning under --fp16 scales gradients, so it needs float32 weights."""
    asked = settings.model.dtype
    if settings.lora is None and settings.training.fp16 and asked == "auto" and not engine.casts_weights:
        say("--fp16: the weights are loaded as float32, computing is in float16")
        settings.derive(settings.model, "dtype", "float32")
        return torch.float32
    return asked if asked == "auto" else getattr(torch, asked)


def _add_adapter(settings: Settings, model: Any, engine: Engine) -> Any:
    lora = settings.lora
    assert lora is not None
    chosen = settings.origin["lora_target_modules"] != "default"
    adapted = add_lora(
        model,
        r=lora.lora_r,
        alpha=lora.lora_alpha,
        dropout=lora.lora_dropout,
        target_modules=lora.lora_target_modules if chosen else None,
        bias=lora.lora_bias,
        gradient_checkpointing=settings.training.gradient_checkpointing,
        weight_path=lora.lora_weight_path or None,
        numel=engine.numel,
    )
    if not chosen or lora.lora_weight_path:
        settings.derive(lora, "lora_target_modules", sorted(adapted.peft_config["default"].target_modules))
    return adapted
