"""Choosing the attention kernel, and reporting which one is used."""

from __future__ import annotations

import functools
import importlib.util
import re
from typing import Any

from fastchat.errors import SettingsError, nearest, not_among

FLASH = "flash_attention_2"
FLEX = "flex_attention"
SDPA = "sdpa"
EAGER = "eager"
TRUSTED = "kernels-community/"  # the only kernels of the hub that are loaded without --trust_remote_code
_OWN_PACKAGES = {FLASH: "flash_attn", "flash_attention_3": "flash_attn_interface", "flash_attention_4": "flash_attn"}
_PUBLISHED = tuple(TRUSTED + name for name in ("flash-attn2", "flash-attn3", "flash-attn4", "vllm-flash-attn3"))
_HUB = re.compile(r"[^/:@\s]+/[^/:@\s]+(@[^/:@\s]+)?(:[^/:@\s]+)?")  # owner/name@revision:function
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
    return attention == FLEX or is_flash(attention)


def is_flash(attention: str) -> bool:
    """Whether transformers calls this kernel as it calls FlashAttention: by the name, and every kernel of the hub."""
    return "flash" in attention or "/" in attention


def check_named(attention: str, *, trust_remote_code: bool) -> None:
    """SettingsError for a value of `--attn_implementation` that transformers does not know.

    A kernel of the hub is code: only those of kernels-community are loaded, unless `trust_remote_code`.
    """
    from transformers import AttentionInterface

    known = [EAGER, *(name for name in AttentionInterface().valid_keys() if "|" not in name and "/" not in name)]
    if attention in known:
        return
    if "/" not in attention:
        raise not_among("--attn_implementation", attention, (*known, *_PUBLISHED))
    if not _HUB.fullmatch(attention):
        raise SettingsError(
            f"--attn_implementation {attention}: a kernel of the hub is owner/name, owner/name@revision or "
            "owner/name:function"
        )
    if not attention.startswith(TRUSTED) and not trust_remote_code:
        close = nearest(attention, _PUBLISHED, n=1, cutoff=0.8)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(
            f"--attn_implementation {attention} would run code from the hub: only kernels of {TRUSTED[:-1]} are loaded "
            f"without --trust_remote_code True{hint}"
        )


def why_not_named(attention: str, config: Any, dtype: Any, device: Any) -> str | None:
    """Why the kernel `attention` cannot be used here, None where it can be tried; the rest as in `choose_attention`."""
    import torch

    model_class = _model_class(config)
    if attention == FLEX:
        return _why_no_flex(model_class, config, device)
    if attention == SDPA:
        if model_class is None or model_class._supports_sdpa:
            return None
        return f"{model_class.__name__} does not support {SDPA}"
    if attention == EAGER or not is_flash(attention):
        return None  # the proof before the first step says
    if not _on_gpu(device):
        return "it needs a GPU"
    packages = [_OWN_PACKAGES[attention], "kernels"] if attention in _OWN_PACKAGES else ["kernels"]
    if all(importlib.util.find_spec(name) is None for name in packages):
        return "it needs the package kernels (pip install kernels)"  # transformers takes them from there too
    if dtype not in (None, torch.float16, torch.bfloat16):
        return f"it needs bf16 or fp16, not {dtype}"
    if model_class is not None and not model_class._supports_flash_attn:
        return f"{model_class.__name__} does not support FlashAttention"
    return None


class NamedAttention:
    """Lets a loaded model use another attention kernel, and its own again."""

    def __init__(self, model: Any, attention: str, *, trust_remote_code: bool = False) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.attention, self.trust_remote_code = attention, trust_remote_code
        self.before = used_attention(self.model)

    def apply(self) -> None:
        """Raises whatever transformers raises for a kernel that it cannot load; SettingsError where it took another."""
        if self.attention == FLEX:
            one_flex_kernel()
        self._set(self.attention)
        check_attention(self.model, self.attention)

    def undo(self) -> None:
        self._set(self.before)

    def _set(self, attention: str) -> None:
        more = {"allow_all_kernels": True} if self.trust_remote_code and "/" in attention else {}
        self.model.set_attn_implementation(attention, **more)


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
