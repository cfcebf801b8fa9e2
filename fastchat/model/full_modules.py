"""What an adapter trains besides its low-rank matrices: whole modules, and single rows of the embedding and the output
matrix (peft's `modules_to_save` and `trainable_token_indices`).

Like the matrices they are float32 whatever the base's dtype, and compute with the base's activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastchat.errors import SettingsError, nearest
from fastchat.model.adapter_parts import TRAINED


def whole_modules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The full names of the modules that are called `names`, or whose names end in them.

    SettingsError for a name that matches nothing, a module that cannot be trained, or one inside another.
    """
    everything = dict(model.named_modules(remove_duplicate=False))
    found: list[str] = []
    for name in names:
        matching = [full for full in everything if full == name or full.endswith("." + name)]
        if not matching:
            with_weights = {
                n.rpartition(".")[2] for n, m in everything.items() if next(m.parameters(False), None) is not None
            }
            close = nearest(name, sorted(with_weights), n=1)
            raise SettingsError(
                f"--lora_modules_to_save: {name!r} matches no module of {type(model).__name__}. Modules with weights "
                f"there: {', '.join(sorted(with_weights))}." + (f" Did you mean {close[0]}?" if close else "")
            )
        found += [full for full in matching if full not in found]
    for full in found:
        parameters = list(everything[full].parameters())
        if not parameters or isinstance(everything[full], nn.ModuleList | nn.ModuleDict):
            raise SettingsError(
                f"--lora_modules_to_save: {full} has no weights of its own to train: name a layer in it"
            )
        if not all(p.is_floating_point() for p in parameters):
            raise SettingsError(
                f"--lora_modules_to_save: bitsandbytes keeps {full} in 4 bits, which cannot be trained: leave out "
                "--q_lora, or give that layer an adapter with --lora_target_modules"
            )
        if inside := [other for other in found if other.startswith(full + ".")]:
            raise SettingsError(f"--lora_modules_to_save: {inside[0]} is a part of {full}: name one of them")
    return found


def token_rows(model: Any, ids: Sequence[int]) -> dict[str, list[int]]:
    """peft's `trainable_token_indices` for tokens: the rows of the embedding and, where it is another, of the output
    matrix, by module name.

    SettingsError where a token has no row, or peft cannot train rows of this model.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    rows = embedding.weight.shape[0]
    if beyond := [i for i in ids if i >= rows]:
        raise SettingsError(
            f"--trainable_tokens: the model has {rows} rows of tokens, and none for id {beyond[0]}: add tokens with "
            "`fastchat prepare`"
        )
    layers = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    for layer, kind in ((embedding, nn.Embedding), (head, nn.Linear)):
        if layer is not None and (not isinstance(layer, kind) or getattr(layer, "bias", None) is not None):
            raise SettingsError(
                f"--trainable_tokens: peft cannot train single rows of {names[id(layer)]}, a {type(layer).__name__}"
                f"{' with a bias' if isinstance(layer, kind) else ''}: use --lora_modules_to_save "
                f"{' '.join(names[id(one)].rpartition('.')[2] for one in layers)}"
            )
    return {names[id(layer)]: sorted(set(ids)) for layer in layers}


def layers_of(model: Any, numbers: Sequence[int]) -> list[int]:
    """`numbers`, as a list. SettingsError for the number of a decoder layer that the model does not have."""
    there = model.config.get_text_config().num_hidden_layers
    if beyond := [number for number in numbers if number >= there]:
        raise SettingsError(
            f"--lora_layers_to_transform: there is no layer {beyond[0]}: this model has the layers 0 to {there - 1}"
        )
    return list(numbers)


def check_tied(model: Any, tied: bool) -> None:
    """Raises SettingsError where embedding and output matrix of the base are one (`tied`), and with the adapter are not
    any more, because peft does not know this model's names for them."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not tied or head is None:
        return
    wrapped = [layer for layer in (embedding, head) if hasattr(layer, "modules_to_save") or _rows_of(layer) is not None]
    if not wrapped:
        return
    if len(wrapped) < 2 or _weight(embedding) is not _weight(head):
        raise SettingsError(
            "peft does not keep this model's embedding and output matrix tied when one of them is trained: use "
            "train.py, which trains all weights, or leave out --lora_modules_to_save and --trainable_tokens"
        )


def widen(model: Any) -> None:
    """Makes the copies of modules and rows that train float32."""
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and TRAINED in module.modules_to_save:
            copied: Any = module.modules_to_save[TRAINED]
            before = next(module.original_module.parameters()).dtype  # the copy may be tied to one that is float32 now
            if before in (torch.bfloat16, torch.float16):
                for parameter in copied.parameters():
                    parameter.data = parameter.data.float()  # in place: tied weights stay tied
                _compute_between(copied, before)
        elif (rows := _rows_of(module)) is not None:
            rows.data = rows.data.float()


def is_of_copies(name: str) -> bool:
    """Whether a parameter of this name is of such a copy."""
    return ".modules_to_save." in name or ".trainable_tokens_delta." in name


def trained_rows(layer: Any) -> list[int]:
    """The ids of the tokens whose rows of `layer`, an embedding or an output matrix, are trained one by one."""
    return list(layer.token_adapter.token_indices[TRAINED]) if _rows_of(layer) is not None else []


def _rows_of(module: Any) -> nn.Parameter | None:
    adapter = getattr(module, "token_adapter", None)
    return None if adapter is None else adapter.trainable_tokens_delta[TRAINED]


def _weight(layer: Any) -> Any:
    rows = _rows_of(layer)
    return layer.modules_to_save[TRAINED].weight if rows is None else rows


def _compute_between(module: nn.Module, outside: torch.dtype) -> None:
    """Lets a float32 module work between layers that compute in `outside`."""

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        if isinstance(value, tuple):
            return tuple(cast(one, dtype) for one in value)
        return value

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        own = next(module.parameters()).dtype  # an engine may have cast it
        return cast(args, own), {name: cast(value, own) for name, value in kwargs.items()}

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(lambda module, args, output: cast(output, outside))
