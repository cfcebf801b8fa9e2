"""Choosing the attention kernel, and saying which one is really used."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from fastchat.errors import SettingsError

FLASH = "flash_attention_2"
FLEX = "flex_attention"
SDPA = "sdpa"
EAGER = "eager"
_FLEX_HEAD_DIM = 16  # its kernel (torch 2.11) is compiled for no smaller ones


def choose_attention(
    flash_attn: bool, *, config: Any = None, dtype: Any = None, device: Any = None, packing: bool = False
) -> tuple[str, str]:
    """The `attn_implementation` to load with, and the one line that says why.

    `flash_attn`: the user asked for FlashAttention. `config`: the model's config, to know what its class supports.
    `dtype`, `device`: what the forward pass will run in and on (None: the GPU if there is one; half precision).
    `packing`: several dialogues share a row. Then kernels that skip what a dialogue may not see come first,
    FlashAttention or torch's flex attention; others compute the whole square, as right but slower.

    >>> choose_attention(False)[0]
    'sdpa'
    """
    model_class = _model_class(config)
    wanted = flash_attn or packing
    lack = _why_no_flash(model_class, dtype, device) if wanted else "--flash_attn was not asked for"
    if lack is None:
        return FLASH, f"Attention: {FLASH}."
    if packing:
        no_flex = _why_no_flex(model_class, config, device)
        if no_flex is None:
            return FLEX, f"Attention: {FLEX}, torch's own kernel that skips what other dialogues hold ({lack})."
        lack = f"{lack}; {no_flex}" if _on_gpu(device) else lack
    asked = f" ({lack})" if wanted else ""
    if model_class is not None and not model_class._supports_sdpa:
        return EAGER, f"Attention: {EAGER}, because {model_class.__name__} does not support {SDPA}{asked}."
    return SDPA, f"Attention: {SDPA}, torch's own fused kernels{asked}."


def wants_one_row(attention: str) -> bool:
    """Whether packs go to this kernel one after the other in a single row, without padding.

    flash_attention_2 tells dialogues apart in batches of one row only, and would mix them in larger ones without a
    word (`_is_packed_sequence` in transformers); flex_attention skips the blocks between them. The others compute the
    whole T x T square of a row, so they get one row per pack.
    """
    return attention in (FLASH, FLEX)


def one_flex_kernel() -> None:
    """Makes flex attention take the same kernel for rows of every length, in all models loaded from now on.

    For rows of fewer than 128 tokens torch chooses another one, made for generating, and cannot build that where the
    query heads that share a key have more than 128 tokens together: NoValidChoicesError (torch 2.11 on an H100).
    """
    from transformers import AttentionInterface
    from transformers.integrations.flex_attention import flex_attention_forward

    options = {"FORCE_USE_FLEX_ATTENTION": True}
    AttentionInterface.register(FLEX, functools.partial(flex_attention_forward, kernel_options=options))


def used_attention(model: Any) -> str:
    """The implementation the loaded `model` really runs, read from its text config."""
    return model.config.get_text_config()._attn_implementation


def check_attention(model: Any, asked: str) -> str:
    """Return the implementation in use; raise SettingsError when it is not the one `asked` for."""
    used = used_attention(model)
    if used != asked:
        raise SettingsError(f"{type(model).__name__} runs {used} attention although {asked} was chosen for it.")
    return used


def _why_no_flash(model_class: Any, dtype: Any, device: Any) -> str | None:
    """What FlashAttention 2 lacks here, or None when it can be used."""
    import torch

    if not _on_gpu(device):
        return "flash_attention_2 needs a GPU"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash_attention_2 needs the package flash-attn, which is not installed"
    if dtype not in (None, torch.float16, torch.bfloat16):
        return f"flash_attention_2 needs bf16 or fp16, not {dtype}"
    if model_class is not None and not model_class._supports_flash_attn:
        return f"{model_class.__name__} does not support flash_attention_2"
    return None


def _why_no_flex(model_class: Any, config: Any, device: Any) -> str | None:
    """What torch's flex attention lacks here, or None when it can be used. On a CPU it has no backward pass."""
    if not _on_gpu(device):
        return f"{FLEX} needs a GPU"
    if importlib.util.find_spec("triton") is None:
        return f"{FLEX} needs the package triton, which is not installed"
    if model_class is None or not model_class._supports_flex_attn:
        return f"the model's class does not support {FLEX}"
    text = config.get_text_config()
    if getattr(text, "attention_dropout", 0.0):
        return f"{FLEX} has no dropout, which the model's attention asks for"
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head_dim < _FLEX_HEAD_DIM:
        return f"{FLEX} needs heads of {_FLEX_HEAD_DIM} and more, and the model's are of {head_dim}"
    return None


def _on_gpu(device: Any) -> bool:
    import torch

    return torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"


def _model_class(config: Any) -> Any:
    """The class that `config` builds, or None when it is unknown (remote code)."""
    if config is None:
        return None
    from fastchat.model.multimodal import auto_class

    return auto_class(config)._model_mapping.get(type(config), None)
