"""Attention in rows that are prefix trees: each token sees what comes before it in its examples, and nothing else.

transformers makes the masks of a model's layers (full, sliding, chunked) from functions of two places in the row. For a
tree those functions get the positions of the two tokens in place of their places, so that a window of 4096 is one of
4096 tokens of the example, and what is not before the query in the tree is taken out. That holds for all kernels whose
masks are made from these functions: SDPA, eager and flex attention. flash_attention_2 has no mask.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastchat.model.attention import EAGER, FLEX, SDPA

if TYPE_CHECKING:
    import torch

_KERNELS = (SDPA, EAGER, FLEX)


def why_no_tree(config: Any, attention: str) -> str | None:
    """Why rows of this model cannot be prefix trees, or None if they can. `attention`: the kernel that it will use."""
    text = config.get_text_config()
    if attention not in _KERNELS:
        return f"{attention} cannot leave out what is on another branch"
    if getattr(text, "output_router_logits", False):
        return f"{text.model_type} adds a loss over all tokens of a row, in which each prefix has to count again"
    from transformers import AutoModelForCausalLM

    from fastchat.model.multimodal import auto_class

    classes = (
        auto_class(config)._model_mapping.get(type(config), None),
        AutoModelForCausalLM._model_mapping.get(type(text), None),
    )
    if not any(_masks_by_functions(found) for found in classes if found is not None):
        return f"the code of {text.model_type} makes its attention mask itself"
    return None


@contextmanager
def tree_masks(ends_BT: torch.Tensor, positions_BT: torch.Tensor) -> Iterator[None]:
    """Within it, a model that is called with an attention mask of ones attends along prefix trees.

    `ends_BT`, `positions_BT`: as in `PrefixTree`, [B, T] on the device of the model.
    """
    from transformers import masking_utils

    made_by = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    before = {kernel: made_by[kernel] for kernel in _KERNELS}
    local = dict(made_by._local_mapping)
    for kernel, make in before.items():
        made_by[kernel] = _of_tree(make, ends_BT, positions_BT)
    try:
        yield
    finally:
        made_by._local_mapping = local


def _of_tree(make: Callable[..., Any], ends_BT: torch.Tensor, positions_BT: torch.Tensor) -> Callable[..., Any]:
    """A function that makes masks as `make` does, for trees."""

    def made(*args: Any, mask_function: Callable[..., Any], attention_mask: Any = None, **more: Any) -> Any:
        def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
            before = (key <= query) & (query < ends_BT[batch, key])
            return before & mask_function(batch, head, positions_BT[batch, query], positions_BT[batch, key])

        return make(*args, mask_function=visible, attention_mask=None, **more | {"allow_is_causal_skip": False})

    return made


def _masks_by_functions(found: type) -> bool:
    """Whether the module of a model's class uses the functions of transformers that make masks."""
    names = vars(sys.modules[found.__module__]).values()
    return any(callable(value) and getattr(value, "__module__", "") == "transformers.masking_utils" for value in names)
