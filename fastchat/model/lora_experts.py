"""Mixtures of experts: their weights, which are 3-D parameters of no layer, and LoRA on such parameters.

transformers keeps the weights of all experts of a block in one parameter, [experts, outputs, inputs] or the transpose,
so neither `--lora_target_modules` nor bitsandbytes, which both go by layers, reaches them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fastchat.errors import SettingsError, nearest, say
from fastchat.settings.targets import as_names, matches, read_targets


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of experts by name: parameters with one matrix for each of the numbers of experts in the config."""
    values = getattr(model, "config", None)
    text = values.get_text_config().to_dict() if values is not None else {}
    counts = {n for key, n in text.items() if "expert" in key and isinstance(n, int) and n > 1}

    def holds_experts(name: str, parameter: nn.Parameter) -> bool:
        shape = whole_shape(parameter)
        named = any("experts" in part for part in name.split("."))
        return len(shape) == 3 and (shape[0] in counts or (named and shape[0] > 1))

    convolutions = {id(p) for m in model.modules() if isinstance(m, _ConvNd) for p in m.parameters(recurse=False)}
    found = model.named_parameters() if counts else ()
    return {name: p for name, p in found if holds_experts(name, p) and id(p) not in convolutions}


def routers(model: nn.Module, layers: Iterable[str]) -> set[str]:
    """Those linear `layers` that are routers: by their name, or as a gate next to the experts of a mixture, which has
    one output, or one for each expert."""
    mixtures = _mixtures(model)

    def gates(name: str, mixture: str, num_experts: int) -> bool:
        inner = name.removeprefix(mixture + ".").split(".")
        if mixture.rpartition(".")[2].isdigit():  # the experts are next to attention in the block, as in Gemma 4
            return "gate" in inner
        if any(part == "gate" or part.endswith("_gate") for part in inner):
            return True
        return len(inner) == 1 and getattr(model.get_submodule(name), "out_features", None) in (1, num_experts)

    def routes(name: str) -> bool:
        inside = (item for item in mixtures.items() if name.startswith(item[0] + "."))
        return "router" in name or any(gates(name, mixture, num_experts) for mixture, num_experts in inside)

    return {name for name in layers if routes(name)}


def _mixtures(model: nn.Module) -> dict[str, int]:
    """The modules that hold experts and their router, by name, with the number of experts."""
    found: dict[str, int] = {}
    for name, parameter in expert_parameters(model).items():
        owner = name.rpartition(".")[0]  # mlp.experts, or mlp.input_linear in JetMoe
        found[owner.rpartition(".")[0]] = whole_shape(parameter)[0]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("experts"):
            found[name.rpartition(".")[0]] = len(module)
    return found


def choose_parameters(
    model: nn.Module,
    asked: Sequence[str] | str | None,
    layers: Collection[str],
    text: Collection[str] | None = None,
    blocks: Collection[int] = (),
) -> list[str]:
    """The parameters to adapt, as peft takes them. Raises SettingsError for a target that matches nothing that can be
    adapted, with the list of what can, and where peft or bitsandbytes cannot do it.

    `asked`: as typed: ends of parameter names, or regular expressions. `layers`: full names of the layers that have an
    adapter. `text`: names of the modules that text passes through; None: all do. `blocks`: numbers of the blocks to
    adapt parameters in; empty: all.
    """
    if asked is None:
        return []
    label = "--lora_target_parameters"
    everything = dict(model.named_parameters())
    possible = {name for name in _adaptable(model) if text is None or name.rpartition(".")[0] in text}
    possible = {name for name in possible if not blocks or _block_number(name) in blocks}
    chosen: set[str] = set()
    targets = read_targets(asked, label)
    for target in targets:
        found = {name for name in everything if matches(target, name)}
        if quantised := sorted(name for name in found if type(everything[name]).__name__ == "Params4bit"):
            raise SettingsError(
                f"{label} {target}: {quantised[0]} is quantised, and peft cannot adapt a quantised parameter: leave "
                "out --q_lora, or this parameter."
            )
        if not found & possible:
            raise SettingsError(_nothing(model, label, target, possible))
        chosen |= found & possible
    both = sorted(name for name in chosen if name.rpartition(".")[0] in layers)
    if both:
        raise SettingsError(
            f"{label}: {both[0]} is the weight of a layer that --lora_target_modules adapts, and peft cannot do both: "
            "name it once."
        )
    return as_names(targets, chosen, everything)


def say_frozen_experts(model: Any, numel: Callable[[torch.Tensor], int], total: int) -> None:
    """Says how many of the `total` parameters are experts' and have no adapter. `model`: the PeftModel."""
    from peft.tuners.lora import ParamWrapper

    base = model.get_base_model()
    adapted = {
        id(getattr(layer.get_base_layer(), layer.parameter_name))
        for layer in base.modules()
        if isinstance(layer, ParamWrapper)
    }
    experts = expert_parameters(base)
    frozen = {name: parameter for name, parameter in experts.items() if id(parameter) not in adapted}
    if not frozen:
        return
    number = sum(numel(parameter) for parameter in frozen.values())
    names = " ".join(sorted({in_block(name.replace(".base_layer", "")) for name in frozen}))
    say(
        f"LoRA: {number:,} of {total:,} parameters are weights of experts and stay frozen; --lora_target_parameters "
        f"{names} adapts them."
    )


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of a parameter that ZeRO-3 may have partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _adaptable(model: nn.Module) -> Iterable[str]:
    """Names of the matrices, and stacks of them, that are multiplied with an input as far as their names tell."""
    for owner, module in model.named_modules():
        if owner and not isinstance(module, nn.Embedding | _ConvNd):
            for name, parameter in module.named_parameters(recurse=False):
                if len(whole_shape(parameter)) in (2, 3) and "bias" not in name:
                    yield f"{owner}.{name}"


def _nothing(model: nn.Module, label: str, target: str, possible: Collection[str]) -> str:
    experts = sorted({in_block(name) for name in expert_parameters(model) if name in possible})
    there = f"Weights of experts there: {', '.join(experts)}" if experts else "It has no weights of experts"
    close = nearest(target, experts, n=1)
    return (
        f"{label}: {target!r} matches no parameter that can be adapted in {type(model).__name__}. {there}; the weight "
        "of a layer is its name with .weight." + (f" Did you mean {close[0]}?" if close else "")
    )


def _block_number(name: str) -> int | None:
    """The number of the block in a full name: its first number, as in peft."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def in_block(name: str) -> str:
    """The name of a parameter from its block on.

    >>> in_block("model.layers.0.mlp.experts.down_proj")
    'mlp.experts.down_proj'
    """
    return re.sub(r"^.*?\.\d+\.", "", name)
