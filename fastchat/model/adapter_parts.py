"""Which parameters of a model with an adapter are in the adapter's file, under which names.

One tensor of the file is one parameter, except where the adapter began with parts of the base's own weights (PiSSA,
OLoRA): there a second, frozen adapter subtracts that beginning, and both are one adapter of twice the rank in the file.

    W x + s (B A - B0 A0) x  =  W x + s [B, -B0] [A; A0] x

So the base keeps its weights, and the file is an ordinary LoRA adapter for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

TRAINED, START = "default", "start"  # the names of the two adapters in the PeftModel


def adapter_parts(model: Any) -> dict[str, tuple[str, ...]]:
    """Name in the adapter's file -> names of the parameters, by `named_parameters`, that it is made of, in order.

    Tied weights are in the file under each of their names, as peft writes them.
    """
    from peft import get_peft_model_state_dict

    named = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, parameter in named.items():
        first.setdefault(id(parameter), name)
    tensors = get_peft_model_state_dict(model, state_dict=named, adapter_name=TRAINED, save_embedding_layers=False)
    found = {}
    for in_file, parameter in tensors.items():
        name = first[id(parameter)]
        start = name.replace(f".{TRAINED}.", f".{START}.")
        found[in_file] = (name, start) if start != name and start in named else (name,)
    return found


def joined(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The tensor `name` of the file: A matrices on top of each other, [2r, in]; B matrices next to each other,
    [out, 2r]."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=_axis(name))


def split(name: str, tensor: torch.Tensor, number: int) -> list[torch.Tensor]:
    """The reverse of `joined`."""
    return [tensor] if number == 1 else list(tensor.chunk(number, dim=_axis(name)))


def file_bytes(model: Any, numel: Callable[[torch.Tensor], int] = torch.Tensor.numel) -> int:
    """Bytes of the adapter's tensors in its file. `numel`: the size of a whole parameter."""
    named = dict(model.named_parameters())
    parts = [named[name] for names in adapter_parts(model).values() for name in names]
    return sum(numel(p) * p.element_size() for p in parts)


def file_config(model: Any) -> Any:
    """The peft config of the adapter as it is in the file: a copy, which describes what is saved and not how it
    began."""
    config = copy.copy(model.peft_config[TRAINED])
    config.init_lora_weights = True
    if tied := getattr(config, "modules_to_tie", None):  # peft leaves them out, and finds them again by name only
        config.modules_to_save = sorted({*config.modules_to_save, *tied})
    if START in model.peft_config:
        scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        alpha = scaling * 2 * config.r
        config.r, config.use_rslora = 2 * config.r, False
        config.lora_alpha = int(alpha) if alpha == int(alpha) else alpha
    return config


def unsaved(model: Any, parts: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Names of parameters that are trained but are in no tensor of the file."""
    saved = {name for names in parts.values() for name in names}
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in saved]


def _axis(name: str) -> int:
    return 1 if ".lora_B." in name else 0
