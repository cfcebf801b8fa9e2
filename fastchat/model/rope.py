"""Longer contexts by scaling RoPE: which scaling, written into the config before the model is built.

A RoPE table is computed once, when the model is constructed; changing the config afterwards has no effect. So the
scaling is chosen from the config alone, and `apply_rope` writes it there before any weight is read. The same dictionary
is recorded in `training.json`, from which chats and merges read it.

What `max_position_embeddings` means depends on the type, and other programs rely on it: for "linear" and "dynamic" it
stays the length the base was trained with (transformers computes the dynamic base from it; serving engines multiply it
by the factor), for "yarn" and "llama3" it is the new length, with the old one in `original_max_position_embeddings`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from fastchat.errors import SettingsError, nearest, say

ROPE_TYPES = ("linear", "dynamic", "yarn", "llama3")
KEEPS_ORIGINAL_LENGTH = ("linear", "dynamic")
LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # the values of Llama 3.1's own config


@dataclass(frozen=True)
class RopeChoice:
    """What `apply_rope` writes into a config: its whole `rope_parameters` and its `max_position_embeddings`."""

    rope_parameters: dict[str, Any]
    max_position_embeddings: int
    line: str = ""

    @property
    def type(self) -> str:
        """The scaling type, such as "linear"."""
        return _scaled_entry(self.rope_parameters)["rope_type"]

    @property
    def factor(self) -> float:
        """The factor by which the base's trained context is extended."""
        return _scaled_entry(self.rope_parameters)["factor"]


def choose_rope(
    config: Any, *, type: str | None = None, factor: float | None = None, model_max_length: int
) -> RopeChoice | None:
    """The RoPE scaling that `model_max_length` tokens need, or None if the config stays unchanged; logs the choice.

    `type`: linear, dynamic, yarn or llama3; by default linear if the length or `factor` requires scaling.
    `factor`: new length / trained length; by default `float(ceil(model_max_length / max_position_embeddings))`.
    Raises SettingsError for an unknown type, a factor below 1, a model without RoPE, or a base whose own scaling
    cannot be combined with the one asked for.

    >>> choose_rope(llama2_config, model_max_length=8192).rope_parameters      # doctest: +SKIP
    {'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 2.0}
    """
    _check_request(type, factor)
    text = config.get_text_config()
    parameters = None if getattr(text, "alibi", False) else getattr(text, "rope_parameters", None)
    if not parameters or max_positions(config) is None:
        _check_without_rope(text, type, factor, model_max_length)
        return None
    entry = _scaled_entry(parameters)
    if entry.get("rope_type", "default") == "default":
        choice = _first_scaling(text, entry, type, factor, model_max_length)
    else:
        choice = _second_scaling(text, entry, type, factor, model_max_length)
    if choice is not None:
        apply_rope(copy.deepcopy(config), choice)  # some architectures refuse some types: find out before loading
        say(choice.line)
    return choice


def apply_rope(config: Any, choice: RopeChoice) -> None:
    """Write `choice` into `config`, which a model is then built from. Raises SettingsError if it is refused."""
    text = config.get_text_config()
    text.rope_parameters = copy.deepcopy(choice.rope_parameters)
    text.max_position_embeddings = choice.max_position_embeddings
    try:
        text.standardize_rope_params()
        text.validate_rope()
    except (KeyError, ValueError) as problem:
        raise SettingsError(
            f"{text.model_type} does not accept RoPE scaling {choice.type!r}: {problem}. Choose another "
            "--rope_scaling_type, or lower --model_max_length to the model's own context."
        ) from None


def rope_type(config: Any) -> str | None:
    """The RoPE type that `config` builds, such as "default" or "yarn"; None for a model without RoPE."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None)
    return _scaled_entry(parameters).get("rope_type", "default") if parameters else None


def context_length(config: Any) -> int | None:
    """The context length in tokens of the model that `config` builds; None if it has no limit."""
    text = config.get_text_config()
    length = max_positions(config)
    if length and rope_type(config) in KEEPS_ORIGINAL_LENGTH:
        length = int(length * _scaled_entry(text.rope_parameters)["factor"])
    return length


def max_positions(config: Any) -> int | None:
    """The number of positions in `config`; None for an architecture without (ALiBi, state space models)."""
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    return found or getattr(text, "max_seq_len", None)  # the length of MPT's table of ALiBi biases


def _check_request(type: str | None, factor: float | None) -> None:
    if type is not None and type not in ROPE_TYPES:
        close = nearest(type, ROPE_TYPES) or list(ROPE_TYPES)
        raise SettingsError(f"Unknown --rope_scaling_type {type!r}. Did you mean {' or '.join(close)}?")
    if factor is not None and not (math.isfinite(factor) and factor >= 1.0):
        raise SettingsError(
            f"--rope_scaling_factor {factor} must be a number of at least 1.0 (2.0 doubles the context)."
        )


def _check_without_rope(text: Any, type: str | None, factor: float | None, length: int) -> None:
    """Refuse RoPE scaling for a model with learned or ALiBi positions."""
    positions = max_positions(text)
    rope = positions is None and getattr(text, "rope_parameters", None)
    lacks = "has no context length that could be scaled" if rope else "has no RoPE to scale"
    if type is not None or factor is not None:
        raise SettingsError(
            f"--rope_scaling_type/--rope_scaling_factor: {text.model_type} {lacks}. Leave them out"
            + (f" and keep --model_max_length within {positions}." if positions else ".")
        )
    if positions and length > positions and not getattr(text, "alibi", False):
        learned = "learned positions" if hasattr(text, "max_position_embeddings") else "positions"
        raise SettingsError(
            f"--model_max_length {length}: {text.model_type} has {positions} {learned} and no RoPE to scale. "
            f"Use --model_max_length {positions}."
        )


def _first_scaling(text: Any, entry: dict, type: str | None, factor: float | None, length: int) -> RopeChoice | None:
    """Scaling for a base that has none yet."""
    trained = text.max_position_embeddings
    if type is None and factor is None and length <= trained:
        return None
    needed = max(1.0, float(math.ceil(length / trained)))
    asked = factor
    factor = needed if factor is None else float(factor)
    kind = type or "linear"
    if factor == 1.0:
        say(f"RoPE scaling {kind} has no effect: {length} tokens fit into the base's context of {trained}.")
        return None
    why = "" if type else " (no --rope_scaling_type given)"
    line = f"RoPE scaling: {kind}, factor {factor:g}{why}: context {trained} -> {int(trained * factor)} tokens."
    if asked is not None and factor * trained < length:
        line += f" That is less than --model_max_length {length}; factor {needed:g} would cover it."
    new = {"rope_type": kind, "factor": factor}
    if kind not in KEEPS_ORIGINAL_LENGTH:
        new["original_max_position_embeddings"] = trained
    if kind == "llama3":
        new.update(LLAMA3_BANDS)
    return _choice(text, entry, new, factor, line)


def _second_scaling(text: Any, entry: dict, type: str | None, factor: float | None, length: int) -> RopeChoice | None:
    """Scaling for a base that was already trained with one: the same type can be extended, no other can be added."""
    kind, old = entry["rope_type"], float(entry.get("factor") or 1.0)
    stretched = text.max_position_embeddings
    original = stretched if kind in KEEPS_ORIGINAL_LENGTH else entry.get("original_max_position_embeddings", stretched)
    reach = max(stretched, int(original * old))
    has = f"The base scales RoPE itself ({kind}, factor {old:g}, context {reach})"
    if type is not None and type != kind or type is None and factor is not None:
        raise SettingsError(
            f"{has}. It cannot be combined with --rope_scaling_type {type or 'linear'}, and replacing it would undo "
            f"what the weights were trained with: leave the flag out"
            + (f", or use --rope_scaling_type {kind} with a larger factor." if kind in ROPE_TYPES else ".")
        )
    if length <= reach and factor is None:
        if type is not None or length > stretched:
            say(f"{has}; that covers {length} tokens and is kept.")
        return None
    if type is None:
        raise SettingsError(
            f"--model_max_length {length}: {has[0].lower()}{has[1:]}. "
            + (f"Pass --rope_scaling_type {kind} to extend it further, or " if kind in ROPE_TYPES else "")
            + f"lower --model_max_length to {reach}."
        )
    new = old * math.ceil(length / reach) if factor is None else float(factor)
    if new <= old:
        raise SettingsError(f"--rope_scaling_factor {new:g}: {has}; a smaller or equal factor would undo it.")
    line = f"RoPE scaling: {kind}, factor {old:g} of the base -> {new:g}: context {reach} -> {int(reach * new / old)}."
    return _choice(text, entry, {"rope_type": kind, "factor": new}, new / old, line)


def _choice(text: Any, entry: dict, new: dict, stretch: float, line: str) -> RopeChoice:
    """The config's whole rope_parameters, with `new` merged into `entry`."""
    parameters = copy.deepcopy(text.rope_parameters)
    _scaled_entry(parameters).update(new)
    length = text.max_position_embeddings
    if new["rope_type"] not in KEEPS_ORIGINAL_LENGTH:
        length = int(max(length, entry.get("original_max_position_embeddings", 0)) * stretch)
    return RopeChoice(rope_parameters=parameters, max_position_embeddings=length, line=line)


def _scaled_entry(parameters: dict) -> dict:
    """The dictionary that scaling changes: the only one, or that of the full-attention layers.

    Layers with a sliding window never attend beyond the window, so their RoPE is kept (as in Gemma 3 itself).
    """
    if not any(isinstance(value, dict) for value in parameters.values()):
        return parameters
    for name, value in parameters.items():
        if isinstance(value, dict) and "sliding" not in name and "chunked" not in name:
            return value
    raise SettingsError(f"No full-attention layers among {sorted(parameters)}: RoPE scaling would change nothing.")
