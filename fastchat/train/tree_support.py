"""Which models can be trained on rows that are prefix trees, as far as their configuration and their code tell."""

from __future__ import annotations

import sys
from typing import Any

from fastchat.data.batches.tree_mask import KERNELS
from fastchat.model.multimodal import auto_class


def why_no_tree(config: Any, attention: str) -> str | None:
    """Why rows of this model cannot be prefix trees, or None if they can. `attention`: the kernel that it will use."""
    text = config.get_text_config()
    if attention not in KERNELS:
        return f"{attention} cannot leave out what is on another branch"
    if getattr(text, "output_router_logits", False):
        return f"{text.model_type} adds a loss over all tokens of a row, in which each prefix has to count again"
    from transformers import AutoModelForCausalLM

    classes = (
        auto_class(config)._model_mapping.get(type(config), None),
        AutoModelForCausalLM._model_mapping.get(type(text), None),
    )
    if not any(_masks_by_functions(found) for found in classes if found is not None):
        return f"the code of {text.model_type} makes its attention mask itself"
    return None


def _masks_by_functions(found: Any) -> bool:
    """Whether the module of a model's class uses the functions of transformers that make masks."""
    names = vars(sys.modules[found.__module__]).values()
    return any(callable(value) and getattr(value, "__module__", "") == "transformers.masking_utils" for value in names)
