"""Multimodal models (Gemma 3, Qwen2.5-VL, Llama 3.2 Vision, Qwen2-Audio): which of their modules text can train.

The modules are not known by name. A few tokens are sent through the model, and modules that they do not pass through
(vision and audio towers, projectors, layers that attend to images only) are left alone: they would not get a
gradient, and data parallelism waits for the gradient of every trainable parameter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import nn

from fastchat.errors import say

_TOKENS = 4


def auto_class(config: Any) -> Any:
    """The transformers class that loads the model of `config`, including its vision or audio towers.

    The class for causal language models supports only some of those, and of others only the language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    brings_code = bool(getattr(config, "auto_map", None))
    whole = is_multimodal(config) and type(config) in AutoModelForMultimodalLM._model_mapping
    if whole and not brings_code and not getattr(config, "is_encoder_decoder", False):
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def is_multimodal(config: Any) -> bool:
    """Whether a config also has configs of parts other than the language model."""
    from transformers import PreTrainedConfig

    text = config.get_text_config()
    return any(isinstance(part, PreTrainedConfig) and part is not text for part in vars(config).values())


def modules_of_text(model: nn.Module) -> set[str]:
    """Names of the modules that text passes through; of all modules if `model` is not multimodal.

    Under ZeRO-3 its weights have to be gathered. Every process must call it; the model is not changed.
    """
    names = {name for name, _ in model.named_modules()}
    if not is_multimodal(model.config):
        return names
    called: set[str] = set()

    def note(name: str) -> Any:
        return lambda *_: called.add(name)

    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            _forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return called


def freeze_idle(model: nn.Module, numel: Callable[[torch.Tensor], int] = torch.Tensor.numel) -> dict[str, int]:
    """Freezes the parameters of a multimodal `model` that get no gradient from text; their number by part of the model.

    `numel`: the size of a whole parameter, which an engine may have partitioned. Conditions as for `modules_of_text`.
    {} if nothing had to be frozen.
    """
    if not is_multimodal(model.config):
        return {}
    with torch.enable_grad():
        reached = _leaves(_forward(model))
    idle = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in reached}
    for parameter in idle.values():
        parameter.requires_grad_(False)
    busy = [name for name, p in model.named_parameters() if id(p) in reached]
    parts: Counter[str] = Counter()
    for name, parameter in idle.items():
        part = _largest_part(name, busy).removeprefix("base_model.model.")  # peft's, around the model
        parts[part] += numel(parameter)
    return dict(parts)


def say_idle(parts: dict[str, int]) -> None:
    """Reports the frozen parameters, if any."""
    if parts:
        listed = ", ".join(f"{name} ({number:,})" for name, number in sorted(parts.items()))
        say(f"Frozen, because text does not pass through it: {sum(parts.values()):,} parameters of {listed}.")


def idle_parts(names: Iterable[str], busy: Collection[str]) -> list[str]:
    """The largest parts of the model that contain modules `names` and none of the modules `busy`.

    >>> idle_parts(["model.vision.0.q", "model.vision.1.q"], {"model.text.0.q"})
    ['model.vision']
    """
    return sorted({_largest_part(name, busy) for name in names})


def exclusion(parts: Iterable[str]) -> str | None:
    """The `exclude_modules` of a peft config that excludes these parts and everything in them."""
    names = "|".join(map(re.escape, parts))
    return rf"({names})(\..*)?" if names else None


def _largest_part(name: str, busy: Collection[str]) -> str:
    steps = name.split(".")
    for end in range(1, len(steps)):
        part = ".".join(steps[:end])
        if not any(other.startswith(part + ".") or other == part for other in busy):
            return part
    return name


def _forward(model: Any) -> torch.Tensor:
    """Logits of a few tokens, none of which is an image or audio placeholder, without dropout."""
    meant = {v for k, v in model.config.to_dict().items() if "token" in k and isinstance(v, int)}
    size = model.config.get_text_config().vocab_size
    ids = [i for i in range(min(size, len(meant) + _TOKENS)) if i not in meant][:_TOKENS]
    ids_BT = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    training = model.training
    model.eval()
    try:
        return model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
    finally:
        model.train(training)


def _leaves(result: torch.Tensor) -> set[int]:
    """The ids of the trainable parameters that a tensor was computed from."""
    found, seen, todo = set(), set(), [result.grad_fn]
    while todo:
        step: Any = todo.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if hasattr(step, "variable"):
            found.add(id(step.variable))
        todo += [before for before, _ in step.next_functions]
    return found
