"""Which layers and parameters of a model get an adapter.

Nothing here goes by the name of an architecture. The layers are found by structure: the linear layers in the decoder
blocks, without those that route tokens to experts and those that an adapter would not reach. They are given to peft as
the shortest names that mean exactly them, because peft reads regular expressions as other layers in some families.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fastchat.errors import SettingsError, counted, nearest, say
from fastchat.model.lora_experts import choose_parameters, in_block, routers
from fastchat.model.multimodal import exclusion, idle_parts
from fastchat.settings.targets import (
    ALL_LINEAR,
    LORA_TARGETS,
    NO_GRADIENT,
    as_names,
    matches,
    read_targets,
    seven_fit,
)

_ABOUT_A_WEIGHT = {"dtype", "device", "shape", "size", "data_ptr", "requires_grad"}


@dataclass(frozen=True)
class Targets:
    """What peft is given: `modules` and `parameters` as names, `exclude` as the regular expression of parts that have
    no adapters. `transposed`: all modules are Conv1D."""

    modules: list[str]
    parameters: list[str] = field(default_factory=list)
    exclude: str | None = None
    transposed: bool = False

    def options(self) -> dict[str, Any]:
        """For peft's LoraConfig."""
        return {
            "target_modules": self.modules,
            "target_parameters": self.parameters or None,
            "exclude_modules": self.exclude,
            "fan_in_fan_out": self.transposed,
        }


def choose_targets(
    model: nn.Module,
    modules: Sequence[str] | str | None,
    parameters: Sequence[str] | str | None = None,
    text: Collection[str] | None = None,
    blocks: Collection[int] = (),
) -> Targets:
    """The layers and parameters to adapt. Says what the default does not adapt, and what has no effect.

    `modules`: as typed: names, regular expressions, `all-linear`; None for the default. `parameters`: names or regular
    expressions; None for none. `text`: names of the modules that text passes through; None: all do. `blocks`: numbers
    of the blocks whose parameters are meant; empty: all. (peft itself picks the layers of these blocks.)
    Raises SettingsError for a target that matches nothing, listing what exists.
    """
    everything = adaptable_modules(model)
    layers = [name for name in everything if text is None or name in text]
    asked = None if modules is None else read_targets(modules)
    chosen = _default(model, layers) if asked is None else _asked(model, asked, layers, everything)
    weights = choose_parameters(model, parameters, chosen, text, blocks)
    if not chosen and not weights:
        raise SettingsError(_nothing(model, [], layers, everything))
    parts = _idle_parts(chosen, layers, everything)
    others = [name for name, _ in model.named_modules() if not any(_inside(name, part) for part in parts)]
    transposed = bool(chosen) and all(_is_conv1d(model, name) for name in chosen)
    return Targets(as_names(asked, chosen, others), weights, exclusion(parts), transposed)


def adaptable_modules(model: nn.Module) -> list[str]:
    """Full names of all layers that LoRA can adapt: linear (also nf4), GPT-2's Conv1D, embeddings."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Embedding) or is_linear(module)]


def is_linear(module: nn.Module) -> bool:
    """Whether `module` maps its input by its weight, [outputs, inputs], as peft assumes.

    A subclass of nn.Linear may not: routers return a tuple, grouped layers expect another shape.
    """
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, nn.Linear):
        return isinstance(module, Conv1D)
    if type(module).forward is nn.Linear.forward or type(module).__module__.startswith("bitsandbytes"):
        return True
    sizes = {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    weights = {name: torch.empty(sizes.get(name, p.shape), device="meta") for name, p in module.named_parameters()}
    try:
        result = torch.func.functional_call(module, weights, torch.empty((1, 3, module.in_features), device="meta"))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return isinstance(result, torch.Tensor) and result.shape == (1, 3, module.out_features)


def block_layers(model: nn.Module, layers: Iterable[str]) -> list[list[str]]:
    """The linear ones of `layers` by decoder block: an element of a module list that is in no other module list.

    Without any module list: all linear layers but the output layer, as one block.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    found = {name: model.get_submodule(name) for name in layers}
    linear = [name for name, module in found.items() if not isinstance(module, nn.Embedding) and module is not output]
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [name for name in lists if not any(_inside(name, other) for other in lists if other != name)]
    blocks: dict[str, list[str]] = {}
    for name in linear:
        for outer in outermost:
            index, _, inner = name.removeprefix(outer + ".").partition(".")
            if name.startswith(outer + ".") and inner:
                blocks.setdefault(f"{outer}.{index}", []).append(name)
    return list(blocks.values()) if outermost else [linear]


def _default(model: nn.Module, layers: list[str]) -> set[str]:
    """The usual seven in every block, or where a block has others, all linear layers of the blocks."""
    blocks = block_layers(model, layers)
    kind = type(model).__name__
    if seven_fit(blocks):
        chosen = [name for block in blocks for name in block if _leaf(name) in LORA_TARGETS]
        others = {name for block in blocks for name in block if _leaf(name) not in LORA_TARGETS}
        if others := others.difference(*_useless(model, others).values()):
            say(f"LoRA targets: the default seven. The blocks of {kind} also have {_listed(others)}.")
    else:
        chosen = _without_experts(model, _all_linear(model, blocks), refuse=False)
        say(f"LoRA targets: {_listed(chosen) or 'none'}, the linear layers in the blocks of {kind}.")
        return chosen
    return _without_experts(model, chosen, refuse=False)


def _asked(model: nn.Module, asked: list[str], layers: list[str], everything: list[str]) -> set[str]:
    chosen: set[str] = set()
    for target in asked:
        if target == ALL_LINEAR:
            found = _without_experts(model, _all_linear(model, block_layers(model, layers)), refuse=False)
            say(f"LoRA targets: {ALL_LINEAR} means {_listed(found)}.")
        else:
            found = {name for name in layers if matches(target, name)}
            for why, names in _useless(model, found).items():
                say(f"WARNING: adapters on {_listed(names)} may have no effect: {why}.")
        chosen |= found
    missing = [target for target in asked if target != ALL_LINEAR and not any(matches(target, n) for n in layers)]
    if missing:
        raise SettingsError(_nothing(model, missing, layers, everything))
    return _without_experts(model, chosen, refuse=ALL_LINEAR not in asked)


def _nothing(model: nn.Module, missing: list[str], layers: list[str], everything: list[str]) -> str:
    which = "nothing can be adapted in the blocks"
    if missing:
        which = f"{', '.join(map(repr, missing))} {'match' if len(missing) > 1 else 'matches'} nothing"
    if any(matches(target, name) for target in missing for name in everything):
        which += " that text passes through"
    leaves = sorted({_leaf(name) for name in layers})
    close = dict.fromkeys(near for target in missing for near in nearest(target, leaves, n=1))
    return (
        f"--lora_target_modules: {which} in {type(model).__name__}. Linear and embedding layers there: "
        f"{', '.join(leaves)}."
        + (f" Did you mean {', '.join(close)}?" if close else "")
        + f" {ALL_LINEAR} means all linear layers of the blocks."
    )


def _all_linear(model: nn.Module, blocks: list[list[str]]) -> list[str]:
    """The linear layers of `blocks` that an adapter reaches, without routers. Says which not."""
    layers = [name for block in blocks for name in block]
    left = _useless(model, layers)
    for why, names in left.items():
        say(f"LoRA: no adapter on {', '.join(sorted(set(map(in_block, names))))}: {why}.")
    return [name for name in layers if not any(name in names for names in left.values())]


def _useless(model: nn.Module, layers: Iterable[str]) -> dict[str, list[str]]:
    """The layers where an adapter is no use, by the reason."""
    layers = list(layers)
    routing = routers(model, layers)
    found: dict[str, list[str]] = {}
    for name in layers:
        why = "it is a router, or a gate of experts" if name in routing else _why_not(model, name)
        if why is not None:
            found.setdefault(why, []).append(name)
    return found


def _why_not(model: nn.Module, name: str) -> str | None:
    """Why an adapter on the layer `name` would not work; None where it does."""
    if any(part.endswith(NO_GRADIENT) for part in name.split(".")):
        return "it would get no gradient"
    owner, _, leaf = name.rpartition(".")
    if not isinstance(model.get_submodule(name), nn.Embedding) and _reads_weight(model.get_submodule(owner), leaf):
        return "the model's code reads the weight itself, without the adapter"
    return _refused_by_peft(model, leaf)


def _reads_weight(module: nn.Module, leaf: str) -> bool:
    """Whether the code of `module` multiplies with the weight of its layer `leaf` itself, as Mamba's kernels do.

    Not counted: a branch that a setting of the module switches off (BLOOM's `slow_but_exact`), initialisation, and
    attributes of the weight such as its dtype.
    """
    return any(
        name == leaf and all(getattr(module, switch, True) for switch in switches)
        for name, switches in _weights_read(type(module))
    )


@lru_cache
def _weights_read(kind: type[nn.Module]) -> list[tuple[str, tuple[str, ...]]]:
    """(layer, the attributes that must be true) for each place where the code of `kind` takes a layer's weight."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return []
    found: list[tuple[str, tuple[str, ...]]] = []

    def visit(node: ast.AST, switches: tuple[str, ...]) -> None:
        """Collect the weights that `node` reads while the attributes `switches` are true."""
        if isinstance(node, ast.FunctionDef) and "init" in node.name:
            return
        if isinstance(node, ast.Attribute) and node.attr in _ABOUT_A_WEIGHT:
            return
        if isinstance(node, ast.If):
            for child in node.body:
                visit(child, switches + _switches(node.test))
            for child in (node.test, *node.orelse):
                visit(child, switches)
            return
        if isinstance(node, ast.Attribute) and node.attr == "weight" and (name := _attribute_of_self(node.value)):
            found.append((name, switches))
        for child in ast.iter_child_nodes(node):
            visit(child, switches)

    visit(tree, ())
    return found


def _switches(test: ast.expr) -> tuple[str, ...]:
    """The attributes of self that a condition needs to be true."""
    parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
    return tuple(name for part in parts if (name := _attribute_of_self(part)))


def _attribute_of_self(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def _refused_by_peft(model: nn.Module, leaf: str) -> str | None:
    """Why peft raises for layers of this name in this architecture."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    try:
        _check_lora_target_modules_mamba(LoraConfig(target_modules=[leaf]), model, leaf)
    except ValueError:
        return "peft cannot adapt it in this architecture"
    return None


def _without_experts(model: nn.Module, chosen: Iterable[str], *, refuse: bool) -> set[str]:
    """`chosen` without layers whose names peft takes for the weights of experts in this architecture, fused into one
    parameter today: it would adapt that instead. Says so, or with `refuse` raises SettingsError."""
    chosen = set(chosen)
    taken = {leaf for leaf in {_leaf(name) for name in chosen} if not _is_layer_to_peft(model, leaf)}
    lost = {name for name in chosen if _leaf(name) in taken}
    if lost:
        layers: list[Any] = [model.get_submodule(name) for name in lost]
        numbers = sum(layer.in_features * layer.out_features for layer in layers)
        ways = " ".join(sorted({in_block(name) + ".weight" for name in lost}))
        quantised = any(type(layer) is not nn.Linear for layer in layers)
        way = "with --q_lora nothing reaches them" if quantised else f"--lora_target_parameters {ways} reaches them"
        line = (
            f"in {type(model).__name__}, peft applies the names {', '.join(sorted(taken))} to the fused weights of the "
            "experts, not to layers"
        )
        if refuse:
            raise SettingsError(f"--lora_target_modules: {line}: leave them out; {way}.")
        say(f"LoRA: {line}, so {counted(len(lost), 'layer')} ({numbers:,} parameters) get no adapter; {way}.")
    return chosen - lost


def _is_layer_to_peft(model: nn.Module, name: str) -> bool:
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of several that are fused
        return False
    return name in (config.target_modules or ())


def _idle_parts(chosen: set[str], layers: list[str], everything: list[str]) -> list[str]:
    """The parts of the model with layers named like the chosen ones that text does not pass through; says so."""
    reached = set(layers)
    leaves = {_leaf(name) for name in chosen}
    idle = [name for name in everything if name not in reached and _leaf(name) in leaves]
    parts = idle_parts(idle, layers)
    if idle:
        say(
            f"LoRA adapts {counted(len(chosen), 'layer')} of the language model. {counted(len(idle), 'layer')} with "
            f"the same names, in {', '.join(parts)}, are not adapted: text does not pass through them."
        )
    return parts


def _is_conv1d(model: nn.Module, name: str) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(model.get_submodule(name), Conv1D)


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _listed(names: Iterable[str]) -> str:
    """The last parts of full names; of numbers in a list with the list's name."""
    return ", ".join(sorted({".".join(name.split(".")[-2 if _leaf(name).isdigit() else -1 :]) for name in names}))
