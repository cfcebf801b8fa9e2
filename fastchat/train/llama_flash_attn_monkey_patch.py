"""Upstream's patch of Llama's attention; transformers brings the kernels itself."""

from __future__ import annotations

from fastchat.errors import say
from fastchat.upstream_names import refuse


def replace_llama_attn_with_flash_attn() -> None:
    """Changes nothing, and says what does: attention gives the same numbers under every kernel."""
    say(
        "replace_llama_attn_with_flash_attn changes nothing: pass attn_implementation='flash_attention_2' to "
        "from_pretrained where flash-attn is installed (training: --flash_attn True)"
    )


__getattr__ = refuse(__name__)
