"""The first weights of a new adapter: peft's PiSSA, OLoRA and EVA, and LoftQ for a base that is in nf4 already.

In peft, PiSSA and OLoRA take what the adapter starts with out of the base's weights, rounded to their dtype; the
adapter then fits no other base. Here the base keeps its weights, and a second, frozen adapter subtracts the start
(see adapter_parts.py): what is saved fits the original base, in any dtype and also in nf4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastchat.bars import each
from fastchat.errors import SettingsError, counted, say
from fastchat.model.adapter_parts import START, TRAINED
from fastchat.model.loading import dequantised_weight, linear4bit_layers
from fastchat.settings.lora_options import DEFAULT, EVA, LOFTQ, OLORA, subtracts_start

Whole = Callable[[torch.Tensor], AbstractContextManager[Any]]
_MOST_BATCHES = 256


@dataclass(frozen=True)
class FirstWeights:
    """How the adapter starts, and what that needs.

    init: the setting `lora_init`. batches: input_ids, attention_mask and labels of the training data, each [B, T],
    again and again; needed for EVA. original: the base before it was quantised; needed for LoftQ. known: whether the
    values follow from a checkpoint, so that none have to be computed.
    """

    init: str = DEFAULT
    batches: Callable[[], Iterable[dict[str, torch.Tensor]]] = field(default=lambda: ())
    original: Callable[[], nn.Module] | None = None
    known: bool = False


@torch.no_grad()
def set_first_weights(model: Any, first: FirstWeights, whole: Whole = lambda _: nullcontext()) -> None:
    """Sets the weights of the new adapter of `model`, a PeftModel; the same in every process, which all call it.

    `whole`: a context in which a parameter has all its values. SettingsError where peft has no such start for one of
    the layers, or the rank is too large.
    """
    if subtracts_start(first.init):
        _add_start(model)
        rank = 2 * model.peft_config[TRAINED].r
        say(f"--lora_init {first.init}: the adapter starts as a part of each weight, and is saved with rank {rank}")
    if not first.known:
        if subtracts_start(first.init):
            _decompose(model, first.init, whole)
        elif first.init == EVA:
            _from_activations(model, first)
        elif first.init == LOFTQ:
            _correct_quantisation(model, first, whole)
        else:
            return
        _agree(model)


def _add_start(model: Any) -> None:
    """The frozen adapter that subtracts; like the trained one, but without dropout and anything else that trains."""
    config = copy.copy(model.peft_config[TRAINED])
    config.lora_dropout, config.bias, config.init_lora_weights = 0.0, "none", True
    config.modules_to_save = config.trainable_token_indices = config.modules_to_tie = None
    config.ensure_weight_tying = False
    trained = [p for p in model.parameters() if p.requires_grad]
    model.add_adapter(START, config)
    model.base_model.set_adapter([TRAINED, START])
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def _decompose(model: Any, init: str, whole: Whole) -> None:
    """PiSSA: the largest singular values; OLoRA: the first columns of a QR decomposition; of each layer's weight."""
    for name, layer in each(_layers(model, init), f"--lora_init {init}", "layer"):
        with _in_place_of_base(layer, whole) as weight:
            _check_rank(name, layer, min(weight.shape))
            if init == OLORA:
                layer.olora_init(TRAINED)
            else:
                layer.pissa_init(TRAINED, init)
        layer.lora_A[START].weight.data = layer.lora_A[TRAINED].weight.data.clone()
        layer.lora_B[START].weight.data = -layer.lora_B[TRAINED].weight.data


@contextmanager
def _in_place_of_base(layer: Any, whole: Whole) -> Iterator[torch.Tensor]:
    """Within it the base layer of `layer` is a plain one with a float32 copy of its weight, [out, in], for peft to take
    the start out of."""
    base, transposed = layer.get_base_layer(), layer.fan_in_fan_out
    with whole(base.weight):
        weight = dequantised_weight(base).detach().to(torch.float32, copy=True)
    plain = nn.Linear(1, 1, bias=False, device="meta")
    plain.weight = nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False)
    layer.base_layer, layer.fan_in_fan_out = plain, False
    try:
        yield plain.weight
    finally:
        layer.base_layer, layer.fan_in_fan_out = base, transposed


def _from_activations(model: Any, first: FirstWeights) -> None:
    """EVA: the main directions of each layer's inputs on supervised tokens, the same rank in every layer."""
    from peft import EvaConfig, initialize_lora_eva_weights

    for name, layer in _layers(model, EVA):
        _check_rank(name, layer, layer.in_features)
    config = model.peft_config[TRAINED]
    targets = config.target_modules
    config.eva_config, config.init_lora_weights = EvaConfig(rho=1.0), EVA
    batches = _Batches(first.batches, config.r)

    def forward(peft_model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        return peft_model(**{name: ids for name, ids in inputs.items() if name != "labels"}, use_cache=False)

    initialize_lora_eva_weights(
        model, batches, forward_fn=forward, gather_distributed_inputs=False, show_progress_bar=False
    )
    config.eva_config, config.init_lora_weights, config.target_modules = None, True, targets
    used = counted(batches.given, "batch")
    say(f"--lora_init eva: the A matrices are the main directions of the layers' inputs in {used}")


class _Batches:
    """The data as peft wants it: it asks until the directions of every layer have settled."""

    def __init__(self, batches: Callable[[], Iterable[dict[str, torch.Tensor]]], r: int) -> None:
        self.batches, self.r, self.given = batches, r, 0

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.batches():
            if int((batch["labels"] != -100).sum()) < self.r:
                raise SettingsError(
                    f"--lora_init eva needs at least --lora_r {self.r} learned tokens, and the data has fewer"
                )
            if self.given == _MOST_BATCHES:
                raise SettingsError(
                    f"--lora_init eva: the main directions of the layers' inputs have not settled after {self.given} "
                    "batches of the training data: lower --lora_r, or choose another --lora_init"
                )
            self.given += 1
            yield batch


def _correct_quantisation(model: Any, first: FirstWeights, whole: Whole) -> None:
    """LoftQ, one step: the adapter starts as the best approximation, of its rank, of what nf4 has changed."""
    assert first.original is not None
    original = first.original()
    quantised = {id(layer) for layer in linear4bit_layers(model).values()}
    plain = 0
    for name, layer in each(_layers(model, LOFTQ), f"--lora_init {LOFTQ}", "layer"):
        base = layer.get_base_layer()
        if id(base) not in quantised:
            plain += 1
            continue
        wanted = original.get_parameter(f"{name}.weight")
        with whole(base.weight), whole(wanted):
            error = wanted.detach().to(base.weight.device, torch.float32) - dequantised_weight(base).float()
        _check_rank(name, layer, min(error.shape))
        r, scaling = layer.r[TRAINED], layer.scaling[TRAINED]
        u, s, vh = torch.linalg.svd(error, full_matrices=False)
        root = (s[:r] / scaling).sqrt()
        layer.lora_A[TRAINED].weight.data = (root[:, None] * vh[:r]).contiguous()
        layer.lora_B[TRAINED].weight.data = (u[:, :r] * root).contiguous()
    if plain:
        say(f"--lora_init loftq: {plain} layers with an adapter are not in 4 bits; theirs starts at zero")


def _layers(model: Any, init: str) -> list[tuple[str, Any]]:
    """The layers with an adapter, by their names in the base. SettingsError for one that is not linear."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    base = model.get_base_model()
    found = [(name, m) for name, m in base.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in found:
        if isinstance(layer, ParamWrapper) or TRAINED not in layer.lora_A:
            raise SettingsError(
                f"--lora_init {init}: peft starts only adapters of linear layers this way, and {name} is none: "
                "leave it out of the adapter, or use --lora_init default"
            )
    return found


def _check_rank(name: str, layer: Any, most: int) -> None:
    if layer.r[TRAINED] > most:
        raise SettingsError(
            f"--lora_init needs a --lora_r of at most {most}, the size of {name}, not {layer.r[TRAINED]}"
        )


def _agree(model: Any) -> None:
    """Every process takes the first one's values: a decomposition may round differently on another machine."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                dist.broadcast(parameter.data, 0)
