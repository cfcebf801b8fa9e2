"""What a run needs before its first step: the text side (tokenizer, template, tokens) and the model side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from fastchat.checkpoint.digests import check_result
from fastchat.checkpoint.record import TrainingRecord
from fastchat.checkpoint.trained_model import find_trained
from fastchat.conversation import Template, use_template_file
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.properties import prove
from fastchat.data.encoding.saved_template import install_template
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate
from fastchat.data.rows.fingerprint import state_of
from fastchat.data.tokens.known import remembered
from fastchat.errors import CheckpointError, SettingsError, say
from fastchat.model.attention import FLASH, check_named, choose_attention, why_not_named
from fastchat.model.loading import count_parameters, load_base_model
from fastchat.model.multimodal import freeze_idle, is_multimodal, say_idle
from fastchat.model.rope import RopeChoice, apply_rope, choose_rope, context_length
from fastchat.model.tokenizer import choose_pad, load_tokenizer
from fastchat.model.tokenizer_files import other_class_line
from fastchat.processes import rank
from fastchat.streams import detail
from fastchat.train.engine import Engine
from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.head_proof import plain_line


@dataclass
class SavedText:
    """The saved tokenizer that was read back last, and found to be that of training.

    files: {name: sha256} as `loaded_files` gives them. compared: dialogues on which its chat template gave the ids of
    training.
    """

    files: dict[str, str | None] = field(default_factory=dict)
    compared: int = 0


@dataclass(frozen=True)
class Text:
    """The text side of a run: the tokenizer, with the template written into it, and both tied together."""

    tokenizer: Any
    pad_token_id: int
    chat_encoder: ChatEncoder
    saved: SavedText = field(default_factory=SavedText)


@dataclass(frozen=True)
class Loading:
    """How the base will be loaded, known before it is.

    dtype: what to load the weights as, "auto" for the checkpoint's own. half: the 16-bit dtype that forward and
    backward compute in, None where it is the weights' own. attention: the kernel; line: says why; falls_back: it is
    not the one that the settings ask for. proposed: the kernel that takes its place once it is proven (speed.py).
    """

    dtype: str | torch.dtype
    half: torch.dtype | None
    attention: str
    line: str
    falls_back: bool
    proposed: str | None = None

    @property
    def intended(self) -> str:
        """The kernel that is expected to be used."""
        return self.proposed or self.attention


def prepare_text(
    base: str,
    *,
    template: str | None,
    template_file: str | None,
    train_on: str,
    padding_side: str,
    use_class: bool,
    cache_dir: str | None,
    trust_remote_code: bool,
    token_cache: Path,
) -> Text:
    """The tokenizer of `base`, its template and its padding, proven on each other. `template` None: that of the model.

    `train_on`, `padding_side`, `use_class`: the settings `train_on`, `padding_side`, `use_tokenizer_class`.
    `token_cache`: the folder of the token cache.
    """
    tokenizer, _ = load_tokenizer(
        base,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
        padding_side=padding_side,
        use_class=use_class,
    )
    if rank() == 0 and not use_class and (line := _other_class_line(base, tokenizer, cache_dir, token_cache)):
        say(line)
    encoder = TextEncoder.from_tokenizer(tokenizer)
    chosen = encoder.choose(use_template_file(template_file, template), model_name=Path(base).name)
    chat_encoder = encoder.bind(chosen, train_on)
    detail(prove(chat_encoder))
    pad = choose_pad(tokenizer, stop_ids=chat_encoder.stop_ids)
    (detail if pad.is_own else say)(pad.line)
    install_template(tokenizer, chat_encoder)
    return Text(tokenizer, pad.id, chat_encoder)


def _other_class_line(base: str, tokenizer: Any, cache_dir: str | None, token_cache: Path) -> str:
    """`other_class_line`, which loads the tokenizer a second time: for the files of a folder once."""

    def find() -> str:
        return other_class_line(base, tokenizer, cache_dir=cache_dir)

    folder = Path(base)
    if not folder.is_dir():
        return find()
    states = {path.name: state_of(str(path)) for path in sorted(folder.iterdir()) if path.is_file()}
    return remembered(token_cache, "other class", states, find)


def check_sources(base: str, adapter_path: str | None, template: Template | TokenizerTemplate, *, q_lora: bool) -> None:
    """CheckpointError where what the run starts from is damaged, or the adapter to continue is none of `base`.

    Another template or another kind of base than that adapter was trained with is said. First process.
    """
    if not adapter_path:
        check_result(base)
        return
    tuned = find_trained(adapter_path, base)
    other = tuned.other_base()
    if other:
        raise CheckpointError(f"--lora_weight_path: {other}; name the right one with --model_name_or_path")
    tuned.say_other_template(template)
    tuned.say_other_base_format(q_lora)


def rope_for_data(
    config: Any, record: TrainingRecord | None, *, longest: int, model_max_length: int
) -> RopeChoice | None:
    """The RoPE scaling of a run where none was asked for: that of the adapter to continue, whose `record` it is, or
    what the longest dialogue needs.

    `longest`: its tokens as trained on. The length of a pack does not matter, since positions restart in it.
    """
    if record and record.rope_parameters and record.max_position_embeddings:
        return _of_adapter(config, RopeChoice(record.rope_parameters, record.max_position_embeddings), longest)
    rope = choose_rope(config, model_max_length=longest)
    context = context_length(config)
    if rope is None and context and longest <= context < model_max_length:
        say(f"RoPE is not scaled: the longest dialogue has {longest} tokens, the model's context is {context}")
    return rope


def say_rope_differs(rope: RopeChoice, record: TrainingRecord | None, adapter_path: str | None) -> None:
    """Says where the adapter to continue was trained without a scaling of RoPE."""
    if record and record.rope_parameters is None:
        scaling = f"{rope.type}, factor {rope.factor:g}"
        say(f"RoPE: {scaling}, although the adapter {adapter_path} was trained without scaling")


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


def choose_loading(
    config: Any,
    *,
    dtype: str,
    bf16: bool,
    fp16: bool,
    scales_gradients: bool,
    flash_attn: bool,
    named: str | None,
    packing: bool,
    device: torch.device,
    trust_remote_code: bool,
) -> Loading:
    """How to load the base that `config` describes. `scales_gradients`: full fine-tuning under --fp16
    that scales gradients needs float32 weights, so those are loaded where the setting `dtype` is "auto". `named`: the
    setting `attn_implementation`."""
    half = torch.bfloat16 if bf16 else torch.float16 if fp16 else None
    asked: str | torch.dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    if scales_gradients and asked == "auto":
        say("--fp16: the weights are loaded as float32, computing is in float16")
        asked = torch.float32
    runs_in = half or (asked if isinstance(asked, torch.dtype) else config.get_text_config().dtype)
    if named is not None:
        check_named(named, trust_remote_code=trust_remote_code)
    lack = why_not_named(named, config, runs_in, device) if named is not None else None
    proposed = named if lack is None else None
    packing = packing and proposed is None  # a kernel that was chosen only needs one to be compared with
    attention, line = choose_attention(flash_attn, config=config, dtype=runs_in, device=device, packing=packing)
    if proposed is not None:
        return Loading(asked, half, attention, line, False, None if proposed == attention else proposed)
    if lack is not None:
        return Loading(asked, half, attention, f"--attn_implementation {named}: {lack}. {line}", falls_back=True)
    return Loading(asked, half, attention, line, falls_back=flash_attn and attention != FLASH)


def prepare_model(
    base: str,
    config: Any,
    loading: Loading,
    rope: RopeChoice | None,
    engine: Engine,
    *,
    quantized: bool,
    add_adapter: Callable[[Any, Callable[[], Any]], Any] | None,
    decomposes: bool = False,
    seed: int,
    device: torch.device,
    cache_dir: str | None,
    trust_remote_code: bool,
) -> tuple[Any, torch.dtype]:
    """(the model to train, the dtype its base was loaded as).

    `add_adapter`: freezes the base and gives it its adapter; None for full fine-tuning. It is called with the base and
    a function that loads it again without quantisation. `decomposes`: the adapter starts from the weights or their
    inputs, which is a lot to compute.
    """
    (say if loading.falls_back else detail)(loading.line)
    set_seed(seed)  # the adapter starts from random numbers: the same ones in every process

    def load(quantized: bool) -> Any:
        """The base, in nf4 or not, as the run's settings say."""
        return load_base_model(
            base,
            dtype=loading.dtype,
            attn_implementation=loading.attention,
            rope=rope,
            quantization=quantized,
            compute_dtype=loading.half,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            device=device if quantized and device.type != "cpu" else None,
            partitioned=engine.loading(),
        )

    loaded = load(quantized)
    loaded_as = loaded.dtype
    wanted = loading.dtype if isinstance(loading.dtype, torch.dtype) else config.get_text_config().dtype
    if wanted is not None and loaded_as != wanted:  # ZeRO-3 partitions weights in the dtype it computes in
        say(f"ZeRO-3 loads the weights as {_short(loaded_as)}, not as {_short(wanted)}")
    if engine.loading() is None and (is_multimodal(config) or (decomposes and not quantized)):
        loaded.to(device)  # as the Trainer would a moment later: a few tokens are sent through it now
    with engine.weights_in_reach(loaded):
        if add_adapter is not None:
            loaded = add_adapter(loaded, lambda: load(False))
        else:
            say_idle(freeze_idle(loaded, engine.numel))
    engine.divide(loaded, device)
    if add_adapter is None and not engine.casts_weights and loaded_as in (torch.bfloat16, torch.float16):
        say(
            f"the weights are trained in {_short(loaded_as)} without a float32 copy, so small "
            "updates round away: --dtype float32 or --deepspeed keeps one"
        )
    return loaded, loaded_as


def check_trained(model: Any, engine: Engine) -> None:
    """Raises SettingsError if no parameter of `model` would be trained."""
    if not count_parameters(model, engine.numel)[0]:
        raise SettingsError("no parameter would be trained; check --lora_target_modules and the model")


def prepare_head(model: Any, engine: Engine, *, adapter: bool) -> ChunkedCrossEntropy | None:
    """The model's chunked head, before an engine takes the model; None, with a line, where all logits are needed."""
    try:
        head = ChunkedCrossEntropy(model.get_base_model() if adapter else model)
    except LookupError as error:
        say(plain_line(str(error)))
        return None
    if next(head.head.children(), None) is not None:
        engine.gather_as_one(head.head)  # an adapter's parts, not each of them for each chunk
    return head


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
