"""The layers of a decoder from the values of its config.json: which have experts, and all their matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from fastchat.errors import SettingsError
from fastchat.plan.architecture import Experts, Family, Latent, Layer, Linear, Recurrent

Values = Mapping[str, Any]
# The names that config.json has for the same size; transformers renames them in newer versions.
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
_NUM_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_SPARSE, _DENSE = "sparse", "dense"
_ATTENTION, _RECURRENT = "full_attention", "linear_attention"


def size(values: Values, key: str, name: str) -> int:
    """The positive integer `key`. Raises SettingsError that names the model `name`."""
    return number(values, key, name) or _refuse(values, key, name)


def number(values: Values, key: str, name: str) -> int:
    """The integer `key`, at least 0, and 0 if it is missing. Raises SettingsError for any other value."""
    value = values.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        _refuse(values, key, name)
    return value


def _indices(values: Values, key: str, name: str) -> list[int] | None:
    """The numbers of layers in `key`; None if it is missing."""
    value = values.get(key)
    if value is not None and not (isinstance(value, list) and all(isinstance(item, int) for item in value)):
        _refuse(values, key, name)
    return value


def _refuse(values: Values, key: str, name: str) -> NoReturn:
    raise SettingsError(
        f"{name}: {key} in config.json is {values.get(key)!r}, so its memory cannot be planned; training itself does "
        "not need a plan"
    )


def num_experts(values: Values) -> int:
    """The number of experts per layer; 0 for a dense model."""
    found = _first(values, _NUM_EXPERTS)
    return found if found > 1 else 0


def layers_of(family: Family, values: Values, name: str) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """(the kinds of layers, the kind of every layer as an index). Raises SettingsError if a size is missing."""
    count = size(values, "num_hidden_layers", name)
    mixers, mlps = _mixers(values, count, name), _mlps(values, count, name)
    kinds = list(dict.fromkeys(zip(mixers, mlps, strict=True)))
    made = tuple(_layer(family, values, name, *kind) for kind in kinds)
    return made, tuple(kinds.index(kind) for kind in zip(mixers, mlps, strict=True))


def latent_of(values: Values, name: str) -> Latent | None:
    """The widths of multi-head latent attention; None for other attention."""
    rank = number(values, "kv_lora_rank", name)
    if not rank:
        return None
    nope, rope, value = (size(values, key, name) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    return Latent(number(values, "q_lora_rank", name), rank, nope, rope, value)


def recurrent_of(values: Values, name: str) -> Recurrent | None:
    """The widths of the gated delta nets; None without them."""
    if not number(values, "linear_num_value_heads", name):
        return None
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    sizes = [size(values, f"linear_{key}", name) for key in names]
    return Recurrent(*sizes, fused=str(values.get("model_type", "")).startswith("qwen3_next"))


def _first(values: Values, keys: tuple[str, ...]) -> int:
    found = (values[key] for key in keys if isinstance(values.get(key), int))
    return next((value for value in found if value), 0)


# ---- which layers are which ----


def _mixers(values: Values, count: int, name: str) -> list[str]:
    """Attention or a gated delta net, per layer."""
    given = values.get("layer_types")
    if not number(values, "linear_num_value_heads", name):
        return [_ATTENTION] * count
    if isinstance(given, list) and len(given) == count:
        return [_RECURRENT if kind == _RECURRENT else _ATTENTION for kind in given]
    every = number(values, "full_attention_interval", name) or 4
    return [_ATTENTION if (index + 1) % every == 0 else _RECURRENT for index in range(count)]


def _mlps(values: Values, count: int, name: str) -> list[str]:
    """Dense or sparse, per layer, as each family's config says it."""
    if not num_experts(values):
        return [_DENSE] * count
    given = values.get("mlp_layer_types")
    if isinstance(given, list) and len(given) == count:
        return [_SPARSE if kind == _SPARSE else _DENSE for kind in given]
    return [_SPARSE if _is_sparse(values, index, count, name) else _DENSE for index in range(count)]


def _is_sparse(values: Values, index: int, count: int, name: str) -> bool:
    listed = _indices(values, "moe_layers", name)  # Llama 4
    if listed is not None:
        return index in listed
    if index in (_indices(values, "mlp_only_layers", name) or ()):  # Qwen
        return False
    first = max(number(values, key, name) for key in ("first_k_dense_replace", "num_dense_layers", _START))
    last = values.get("moe_layer_end_index")  # Ernie; -1: the last layer
    last = count - 1 if last in (None, -1) else number(values, "moe_layer_end_index", name)
    steps = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval")
    return first <= index <= last and (index + 1) % (_first(values, steps) or 1) == 0


_START = "moe_layer_start_index"


# ---- matrices ----


def _layer(family: Family, values: Values, name: str, mixer: str, mlp: str) -> Layer:
    hidden = size(values, "hidden_size", name)
    norms = family.norms * hidden * family.norm_weights
    if mixer == _RECURRENT:
        readers, inner, out, own, inside = _recurrent(values, hidden, name)
    elif latent_of(values, name):
        readers, inner, out, own, inside = _latent(family, values, hidden, name)
    else:
        readers, inner, out, own, inside = _attention(family, values, hidden, name)
    experts = _experts(family, values, hidden, name) if mlp == _SPARSE else None
    width = _shared_width(family, values, name) if experts else _dense_width(values, name)
    prefix = f"{family.prefix}.{family.shared}" if experts else family.prefix
    return Layer(
        readers=readers,
        inner=inner,
        out=out,
        mlp=_mlp(family, prefix, hidden, width) if width else (),
        router=(Linear(f"{family.prefix}.{family.router_name}", hidden, experts.num),)
        if experts and family.router_name
        else (),
        experts=experts,
        shared_gate=bool(experts and family.shared_gate and width),
        recurrent=mixer == _RECURRENT,
        own=own,
        norms=norms + inside,
    )


_Mixer = tuple[tuple[Linear, ...], tuple[Linear, ...], Linear, int, int]  # readers, inner, out, own elements, norms


def head_dim_of(values: Values, name: str) -> int:
    heads = size(values, "num_attention_heads", name)
    return number(values, "head_dim", name) or size(values, "hidden_size", name) // heads


def _attention(family: Family, values: Values, hidden: int, name: str) -> _Mixer:
    heads, dim = size(values, "num_attention_heads", name), head_dim_of(values, name)
    groups = number(values, "num_key_value_heads", name) or heads
    queries, keys = heads * dim, groups * dim
    out = Linear(f"self_attn.{family.o_name}", queries, hidden, family.o_bias)
    if family.fused_qkv:
        readers = (Linear("self_attn.qkv_proj", hidden, queries + 2 * keys, family.qkv_bias),)
    else:
        doubled = 2 * queries if family.attention_gate else queries
        widths = (("q_proj", doubled), ("k_proj", keys), ("v_proj", keys))
        readers = tuple(Linear(f"self_attn.{n}", hidden, width, family.qkv_bias) for n, width in widths)
    norms = {"head": 2 * dim, "full": queries + keys}.get(family.qk_norm or "", 0)
    return readers, (), out, heads if family.sinks else 0, norms


def _latent(family: Family, values: Values, hidden: int, name: str) -> _Mixer:
    wide, heads = latent_of(values, name), size(values, "num_attention_heads", name)
    assert wide is not None
    queries, bias = heads * (wide.nope + wide.rope), family.qkv_bias
    compressed = Linear("self_attn.kv_a_proj_with_mqa", hidden, wide.kv_rank + wide.rope, bias)
    expanded = Linear("self_attn.kv_b_proj", wide.kv_rank, heads * (wide.nope + wide.value))
    out = Linear("self_attn.o_proj", heads * wide.value, hidden, family.o_bias)
    if not wide.q_rank:
        return (Linear("self_attn.q_proj", hidden, queries), compressed), (expanded,), out, 0, wide.kv_rank
    readers = (Linear("self_attn.q_a_proj", hidden, wide.q_rank, bias), compressed)
    inner = (Linear("self_attn.q_b_proj", wide.q_rank, queries), expanded)
    return readers, inner, out, 0, wide.q_rank + wide.kv_rank


def _recurrent(values: Values, hidden: int, name: str) -> _Mixer:
    wide = recurrent_of(values, name)
    assert wide is not None
    channels = 2 * wide.keys + wide.values
    if wide.fused:
        widths = (("in_proj_qkvz", channels + wide.values), ("in_proj_ba", 2 * wide.value_heads))
    else:
        heads = wide.value_heads
        widths = (("in_proj_qkv", channels), ("in_proj_z", wide.values), ("in_proj_b", heads), ("in_proj_a", heads))
    readers = tuple(Linear(f"linear_attn.{n}", hidden, width) for n, width in widths)
    return readers, (), Linear("linear_attn.out_proj", wide.values, hidden), wide.own_elements, 0


def _mlp(family: Family, prefix: str, hidden: int, width: int) -> tuple[Linear, ...]:
    names, bias = family.mlp_names, family.mlp_bias
    last = Linear(f"{prefix}.{names[-1]}", width, hidden, bias)
    if family.fused_mlp:
        return Linear(f"{prefix}.gate_up_proj", hidden, 2 * width, bias), last
    return (*(Linear(f"{prefix}.{n}", hidden, width, bias) for n in names[:-1]), last)


def _dense_width(values: Values, name: str) -> int:
    return _first(values, ("intermediate_size_mlp",)) or size(values, "intermediate_size", name)


def _expert_width(values: Values, name: str) -> int:
    return _first(values, ("moe_intermediate_size",)) or size(values, "intermediate_size", name)


def _shared_width(family: Family, values: Values, name: str) -> int:
    """The width of the shared experts, which are one MLP; 0 without them."""
    if family.shared_always:
        return size(values, "intermediate_size", name)
    return _first(values, ("shared_expert_intermediate_size",)) or (
        _first(values, _NUM_SHARED) * _expert_width(values, name)
    )


def _experts(family: Family, values: Values, hidden: int, name: str) -> Experts:
    num, width, bias = num_experts(values), _expert_width(values, name), family.expert_bias
    active = _first(values, _ACTIVE)
    if not 1 <= active <= num:
        raise SettingsError(
            f"{name}: {' or '.join(_ACTIVE)} in config.json is {active or None}, not between 1 and the {num} experts, "
            "so its memory cannot be planned; training itself does not need a plan"
        )
    prefix = f"{family.prefix}.experts"
    stacks = (
        Linear(f"{prefix}.gate_up_proj", hidden, 2 * width, bias, stacked=num),
        Linear(f"{prefix}.down_proj", width, hidden, bias, stacked=num),
    )
    router = (0 if family.router_name else num * hidden) + (num if family.router_bias else 0)
    return Experts(
        num=num,
        active=active,
        router=router,
        stacks=stacks,
        fixed=num if family.router_fixed else 0,
        every=family.every_expert,
        float32_router=family.float32_router,
        between=family.expert_between,
    )
