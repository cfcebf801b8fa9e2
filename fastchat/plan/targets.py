"""What an adapter trains in each layer, by the names that training would find in the loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fastchat.errors import SettingsError, nearest
from fastchat.plan.architecture import Architecture, Layer, Linear
from fastchat.settings.targets import ALL_LINEAR, EXPERT_NAMES, LORA_TARGETS, is_pattern, matches, seven_fit

Names = tuple[str, ...]


@lru_cache(maxsize=256)
def adapted_by_layer(
    a: Architecture, modules: Names | None, parameters: Names, layers: tuple[int, ...]
) -> tuple[tuple[Linear, ...], ...]:
    """For every layer, in order, its matrices with an adapter. `modules`: None for the default targets; `layers`: the
    numbers of the adapted layers, empty for all. Raises SettingsError for a target or a layer that does not exist; in
    a model with unknown names, modules that do not exist stand for all matrices."""
    if not a.known and modules and not _matched(a, modules):
        modules = None
    _check_names(a, modules if a.known else None, parameters)
    if beyond := [index for index in layers if index >= a.num_layers]:
        raise SettingsError(
            f"--lora_layers_to_transform: {a.name} has the layers 0 to {a.num_layers - 1}, not {beyond[0]}"
        )
    wanted = modules if modules is not None else LORA_TARGETS if _seven(a) else (ALL_LINEAR,)
    by_kind = [_adapted(a, kind, wanted, parameters, "") for kind in a.kinds]
    exact = any(is_pattern(target) for target in (*wanted, *parameters))
    found = []
    for index, kind in enumerate(a.order):
        if layers and index not in layers:
            found.append(())
        elif exact:
            found.append(_adapted(a, a.kinds[kind], wanted, parameters, f"model.layers.{index}."))
        else:
            found.append(by_kind[kind])
    return tuple(found)


def _matched(a: Architecture, modules: Names) -> bool:
    names = [linear.name for linear in (*a.linears, *tables_of(a))]
    return all(t == ALL_LINEAR or is_pattern(t) or any(matches(t, name) for name in names) for t in modules)


def tables_of(a: Architecture) -> tuple[Linear, Linear]:
    """The embedding and the output matrix."""
    return Linear("embed_tokens", a.vocab, a.hidden), Linear("lm_head", a.hidden, a.vocab)


@dataclass(frozen=True)
class Copies:
    """What `--lora_modules_to_save` trains: copies of whole modules. `tables`: those of embedding and output matrix.
    `unknown`: names that the planner does not know."""

    elements: int = 0
    largest: int = 0  # elements of the largest matrix
    tables: frozenset[str] = frozenset()
    unknown: Names = ()


@lru_cache(maxsize=64)
def copied_modules(a: Architecture, names: Names) -> Copies:
    """The copies of the modules that are called `names`, or whose names end in them."""
    embedding, head = tables_of(a)
    found: dict[str, tuple[int, int]] = {}  # name -> elements, number of layers
    tables, unknown = set(), []
    for name in names:
        before = len(found) + len(tables)
        tables |= {table.name for table in (embedding, head) if matches(name, f"model.{table.name}")}
        for kind, n in a.kind_counts:
            for linear in (x for x in kind.linears if _inside(name, x.name)):
                found[f"{id(kind)} {linear.name}"] = linear.elements + linear.bias_elements, n
        if "norm" in name:
            last = name.rpartition(".")[2] == "norm"
            found[name] = a.hidden * a.family.norm_weights, 1 if last else a.num_layers
        if len(found) + len(tables) == before:
            unknown.append(name)
    kept = sum(1 for table in tables if not (a.tied and table == head.name and embedding.name in tables))
    largest = max([each for each, _ in found.values()] + [embedding.elements] * bool(tables), default=0)
    total = sum(each * n for each, n in found.values()) + kept * embedding.elements
    return Copies(total, largest, frozenset(tables), tuple(unknown))


def _inside(module: str, linear: str) -> bool:
    """Whether `module` is that Linear layer or holds it.

    >>> _inside("mlp", "mlp.up_proj"), _inside("up_proj", "mlp.up_proj"), _inside("proj", "mlp.up_proj")
    (True, True, False)
    """
    return f".{module}." in f".{linear}."


def _seven(a: Architecture) -> bool:
    return seven_fit([linear.name for linear in kind.linears] for kind in a.kinds)


def _adapted(a: Architecture, layer: Layer, modules: Names, parameters: Names, prefix: str) -> tuple[Linear, ...]:
    taken = EXPERT_NAMES.get(a.model_type, ()) if layer.experts or any(kind.experts for kind in a.kinds) else ()
    linears = [
        linear
        for linear in layer.linears
        if any(_means(target, linear, layer, prefix) for target in modules) and linear.leaf not in taken
    ]
    stacks = layer.experts.stacks if layer.experts else ()
    return (*linears, *(s for s in stacks if any(matches(target, prefix + s.name) for target in parameters)))


def _means(target: str, linear: Linear, layer: Layer, prefix: str) -> bool:
    if target == ALL_LINEAR:
        return linear not in layer.routing
    return matches(target, prefix + linear.name)


def _check_names(a: Architecture, modules: Names | None, parameters: Names) -> None:
    """Every target matches something."""
    spots = [(index, a.kinds[kind]) for index, kind in enumerate(a.order)]
    if not any(is_pattern(target) for target in (*(modules or ()), *parameters)):
        spots = [(a.order.index(index), kind) for index, kind in enumerate(a.kinds)]
    linears = [f"model.layers.{index}.{linear.name}" for index, kind in spots for linear in kind.linears]
    stacks = [f"model.layers.{i}.{s.name}" for i, kind in spots if kind.experts for s in kind.experts.stacks]
    linears += [f"model.{table.name}" if table.name != "lm_head" else table.name for table in tables_of(a)]
    for flag, asked, existing in (
        ("lora_target_modules", modules or (), linears),
        ("lora_target_parameters", parameters, stacks),
    ):
        missing = [t for t in asked if t != ALL_LINEAR and not any(matches(t, name) for name in existing)]
        if missing:
            raise _no_match(flag, missing, existing)


def _no_match(flag: str, missing: list[str], existing: list[str]) -> SettingsError:
    if not existing:
        return SettingsError(f"--{flag}: this model has no fused experts, so {', '.join(missing)} match nothing")
    leaves = sorted({name.rpartition(".")[2] for name in existing})
    close = nearest(missing[0].rpartition(".")[2], leaves, n=1)
    return SettingsError(
        f"--{flag}: {', '.join(missing)} match nothing in this model, which has "
        f"{', '.join(leaves)}" + (f"; did you mean {close[0]}?" if close else "")
    )
