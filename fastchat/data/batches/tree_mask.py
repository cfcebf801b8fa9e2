"""Attention in rows that are prefix trees: each token sees what comes before it in its examples, and nothing else.

transformers makes the masks of a model's layers (full, sliding, chunked) from functions of two places in the row. For a
tree those functions get the positions of the two tokens in place of their places, so that a window of 4096 is one of
4096 tokens of the example, and what is not before the query in the tree is taken out. That holds for all kernels whose
masks are made from these functions: SDPA, eager and flex attention. flash_attention_2 has no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KERNELS = ("sdpa", "eager", "flex_attention")


@contextmanager
def tree_masks(ends_BT: torch.Tensor, positions_BT: torch.Tensor) -> Iterator[None]:
    """Within it, a model that is called with an attention mask of ones attends along prefix trees.

    `ends_BT`, `positions_BT`: as in `PrefixTree`, [B, T] on the device of the model.
    """
    from transformers import masking_utils

    made_by = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    before = {kernel: made_by[kernel] for kernel in KERNELS}
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
