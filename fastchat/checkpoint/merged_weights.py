"""The weights of base plus adapter, merged one tensor at a time.

The base is a plain model whose weights are views of its files; a layer with an adapter is merged when one of its
tensors is asked for, and what was handed out is given up. So the memory is that of the largest layer and of the adapter
where the weights are used as the files have them. A base that transformers rearranges while loading (experts of a
mixture in one tensor) or that was dequantised is in memory as a whole; its result is not there a second time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from fastchat.checkpoint.gather import is_finite
from fastchat.errors import CheckpointError, brief, is_out_of_memory, say
from fastchat.model.mapped import MappedFiles


class MergedWeights:
    """The tensors of a merged model by the names in its files. Takes the PeftModel apart.

    Attributes:
        model: the base as a plain model, with trained modules in their places; its weights are given up on the way.
        planned: for every tensor to save one without memory (device "meta"), in the order of saving.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """CheckpointError for an adapter that cannot be merged. `dtype`: of the result."""
        from peft.tuners.lora import LoraLayer
        from peft.tuners.trainable_tokens import TrainableTokensLayer

        layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        _untie_if_adapted(model.get_base_model(), layers)
        _check_one_adapter_each(layers)
        self._waiting: dict[int, list[Any]] = defaultdict(list)  # layers to merge, by their weight and their bias
        for layer in [*layers, *(m for m in model.modules() if isinstance(m, TrainableTokensLayer))]:
            for parameter in (_adapted_weight(layer), getattr(layer.get_base_layer(), "bias", None)):
                if parameter is not None:
                    self._waiting[id(parameter)].append(layer)
        self.model = model.unload()
        self._dtype, self._files = dtype, MappedFiles()
        self._parameters = _kept(self.model)
        self.num_parameters = self.model.num_parameters()
        shapes = {name: self._shape(parameter) for name, parameter in self._parameters.items()}
        self.planned, self._sources = _plan(self.model, shapes)
        self._ready: dict[str, torch.Tensor] = {}  # made and not yet taken
        self._handed: list[torch.Tensor] = []  # whose pages are given back when the next tensor is taken
        self._done: set[int] = set()

    @torch.no_grad()
    def take(self, name: str) -> torch.Tensor:
        """The tensor `name` of `planned`, on the CPU; only once, and valid until the next one is taken.

        CheckpointError if it is not finite, or if peft cannot merge an adapter of this kind.
        """
        if name not in self._ready:
            while self._handed:
                self._files.release(self._handed.pop())
            sources = self._sources[name]
            tensors = {source: self._merged(source) for source in sources}
            self._ready |= tensors if sources == [name] else dict(revert_weight_conversion(self.model, tensors))
        return self._ready.pop(name)

    def _merged(self, name: str) -> torch.Tensor:
        """One tensor of the model, merged; the model gives it up."""
        parameter = self._parameters.pop(name)
        layers = self._waiting.pop(id(parameter), [])
        for layer in layers:
            self._merge(layer)
        self._handed.append(parameter.data)
        tensor = parameter.data.to("cpu", self._dtype if parameter.is_floating_point() else parameter.dtype)
        parameter.data = parameter.data.new_empty(0)
        if not is_finite(tensor):
            why = "The adapter has values that are not finite, or too large" if layers else "The base is not finite"
            raise CheckpointError(f"{why} ({name}, {tensor.dtype}): nothing was saved")
        return tensor

    def _merge(self, layer: Any) -> None:
        """Adds a layer's low-rank product to its weight, in float32, rounding once; or puts its trained rows in."""
        if id(layer) in self._done:
            return
        self._done.add(id(layer))
        weight = _adapted_weight(layer)
        before = weight.data
        weight.data = before.to(torch.float32, copy=True)  # peft adds in place, and these may be views of a file
        plain = not getattr(layer, "lora_variant", None) and not any(getattr(layer, "lora_bias", {}).values())
        try:
            layer.merge(safe_merge=not plain)
        except ValueError as problem:
            raise CheckpointError(f"The adapter has values that are not finite: {problem}") from None
        except RuntimeError as problem:  # peft cannot merge each of its kinds; NotImplementedError is one of these
            if is_out_of_memory(problem):
                raise
            raise CheckpointError(
                f"peft cannot merge an adapter of this kind ({brief(problem, 300)}): use base and adapter unmerged"
            ) from None
        weight.data = weight.data.to(self._dtype)
        self._files.release(before)

    def _shape(self, parameter: torch.Tensor) -> torch.Tensor:
        dtype = self._dtype if parameter.is_floating_point() else parameter.dtype
        return torch.empty(parameter.shape, dtype=dtype, device="meta")


def _kept(model: Any) -> dict[str, torch.Tensor]:
    """The parameters and buffers to save, by name: tied ones once, under the names used in published checkpoints."""
    state = model.state_dict(keep_vars=True)
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    kept = {name: tensor for name, tensor in state.items() if name not in tied}
    known = {id(tensor) for tensor in kept.values()}
    return {name: tensor for name, tensor in state.items() if name in kept or id(tensor) not in known}


def _plan(model: Any, shapes: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """(the tensors to save, for each of them the names of the model's tensors it is made of).

    Models whose weights transformers rearranges while loading are saved as they were. What one block's files have comes
    from that block; where this does not hold, everything is made at once.
    """
    planned = dict(revert_weight_conversion(model, dict(shapes)))
    if planned.keys() == shapes.keys() and all(planned[name] is shapes[name] for name in shapes):
        return planned, {name: [name] for name in planned}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        groups[_block(name)].append(name)
    sources = {
        made: names
        for names in groups.values()
        for made in revert_weight_conversion(model, {name: shapes[name] for name in names})
    }
    if sources.keys() != planned.keys():
        sources = dict.fromkeys(planned, list(shapes))
    # Parts of one tensor share its memory, by which shards are divided: each is counted for itself.
    return {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in planned.items()}, sources


def _block(name: str) -> str:
    """The part of a name up to its first number: the block; the whole name of what is in none.

    >>> _block("model.layers.10.mlp.experts.down_proj"), _block("model.norm.weight")
    ('model.layers.10', 'model.norm.weight')
    """
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found[0] if found else name


def _adapted_weight(layer: Any) -> torch.nn.Parameter:
    return getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))  # experts use other names


def _check_one_adapter_each(layers: list[Any]) -> None:
    """Raise CheckpointError if two layers with an adapter each share one weight, as Zamba's blocks do."""
    if len({id(_adapted_weight(layer)) for layer in layers}) < len(layers):
        raise CheckpointError(
            "Some layers of this architecture share one weight and have an adapter each, so these cannot be merged "
            "into it: use base and adapter unmerged"
        )


def _untie_if_adapted(base: Any, layers: list[Any]) -> None:
    """Give the head a weight of its own if only one of two tied layers has an adapter."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = any(layer is head or layer is embedding for layer in layers)
    own = [layer.get_base_layer() if layer in layers else layer for layer in (head, embedding)]
    if not adapted or own[0].weight is not own[1].weight:
        return
    own[0].weight = torch.nn.Parameter(own[0].weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
    say("The adapter changes only one of the tied head and embedding: they are untied in the merged model.")
