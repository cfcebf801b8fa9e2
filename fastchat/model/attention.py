"""Choosing the attention kernel, and reporting which one is used."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from fastchat.errors import SettingsError

FLASH = "flash_attention_2"
FLEX = "flex_attention"
SDPA = "sdpa"
EAGER = "eager"
_FLEX_HEAD_DIM = 16  # its kernel (torch 2.11) does not compile for smaller ones


def choose_attention(
    flash_attn: bool, *, config: Any = None, dtype: Any = None, device: Any = None, packing: bool = False
) -> tuple[str, str]:
    """The `attn_implementation` to load with, and a message that says why.

    `flash_attn`: the user asked for FlashAttention. `config`: the model's config, to know what its class supports.
    `dtype`, `device`: of the forward pass (None: half precision; the GPU if there is one).
    `packing`: several dialogues share a pack. Then kernels that skip the masked blocks are preferred, FlashAttention
    or torch's flex attention; others compute all of the T x T scores, which is correct but slower.

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
            return FLEX, f"Attention: {FLEX}, torch's own kernel that skips the other dialogues of a pack ({lack})."
        lack = f"{lack}; {no_flex}" if _on_gpu(device) else lack
    asked = f" ({lack})" if wanted else ""
    if model_class is not None and not model_class._supports_sdpa:
        return EAGER, f"Attention: {EAGER}, because {model_class.__name__} does not support {SDPA}{asked}."
    return SDPA, f"Attention: {SDPA}, torch's own fused kernels{asked}."


def wants_one_row(attention: str) -> bool:
    """Whether packs are concatenated for this kernel into a single row, without padding.

    flash_attention_2 separates dialogues only in batches of one row, and would silently mix them in larger ones
    (`_is_packed_sequence` in transformers); flex_attention skips the blocks between them. The others compute all T x T
    scores of a row, so they get one row per pack.
    """
    return attention in (FLASH, FLEX)


def one_flex_kernel() -> None:
    """Makes flex attention use the same kernel for rows of every length, in all models loaded from now on.

    For rows of fewer than 128 tokens torch chooses another one, meant for generation, and cannot compile it if the
    query heads that share a key have more than 128 tokens together: NoValidChoicesError (torch 2.11 on an H100).
    """
    from transformers import AttentionInterface
    from transformers.integrations.flex_attention import flex_attention_forward

    options = {"FORCE_USE_FLEX_ATTENTION": True}
    AttentionInterface.register(FLEX, functools.partial(flex_attention_forward, kernel_options=options))


def used_attention(model: Any) -> str:
    """The implementation that the loaded `model` uses, from its text config."""
    return model.config.get_text_config()._attn_implementation


def check_attention(model: Any, asked: str) -> str:
    """Return the implementation in use; raise SettingsError if it is not `asked`."""
    used = used_attention(model)
    if used != asked:
        raise SettingsError(f"{type(model).__name__} runs {used} attention although {asked} was chosen for it.")
    return used


def _why_no_flash(model_class: Any, dtype: Any, device: Any) -> str | None:
    """Why FlashAttention 2 cannot be used here, or None if it can."""
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
    """Why torch's flex attention cannot be used here, or None if it can. On a CPU it has no backward pass."""
    if not _on_gpu(device):
        return f"{FLEX} needs a GPU"
    if importlib.util.find_spec("triton") is None:
        return f"{FLEX} needs the package triton, which is not installed"
    if model_class is None or not model_class._supports_flex_attn:
        return f"the model's class does not support {FLEX}"
    text = config.get_text_config()
    if getattr(text, "attention_dropout", 0.0):
        return f"{FLEX} does not support the dropout of the model's attention"
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head_dim < _FLEX_HEAD_DIM:
        return f"{FLEX} needs a head dimension of at least {_FLEX_HEAD_DIM}, and the model's is {head_dim}"
    return None


def _on_gpu(device: Any) -> bool:
    import torch

    return torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"


def _model_class(config: Any) -> Any:
    """The class that `config` builds, or None if it is unknown (remote code)."""
    if config is None:
        return None
    from fastchat.model.multimodal import auto_class

    return auto_class(config)._model_mapping.get(type(config), None)
