"""Models with a shape that is known without a download: Llama-2 by size, and the hub models of recipes and scripts."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError
from fastchat.files import read_json
from fastchat.plan.architecture import Architecture
from fastchat.plan.families import architecture_from_config

# Values of the published config.json files. `parameters`: of the whole checkpoint, where it has more than the decoder.
# A test compares the sums with the published parameter counts.
_HUB: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("known_models.json"))
_BY_LOWER = {name.lower(): name for name in _HUB}

_SIZES = {size: f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b")}
SIZES = tuple(_SIZES)


def architecture_of_size(size: str) -> Architecture:
    """The Llama-2 of that size ("7b", "13b", "70b"), without a dtype. Raises SettingsError for any other size."""
    if size.lower() not in _SIZES:
        close = difflib.get_close_matches(size.lower(), SIZES, n=1, cutoff=0.3)
        hint = f" (nearest: {close[0]})" if close else ""
        raise SettingsError(
            f"--model_size {size} is not one of {', '.join(SIZES)}{hint}; for another model give --model_name_or_path"
        )
    name = _SIZES[size.lower()]
    return replace(architecture_from_config(_HUB[name], name), dtype=None)


def known_values(name: str) -> dict[str, Any]:
    """The config of a hub model of the recipes and scripts; empty for other models."""
    return dict(_HUB.get(_BY_LOWER.get(name.lower(), ""), {}))


def architecture_of_hub_name(name: str) -> Architecture | None:
    """The shape of a hub model of the recipes and scripts, with a note about its source; None for other models.

    >>> architecture_of_hub_name("google/gemma-2-9b-it").num_layers
    42
    """
    values = known_values(name)
    if not values:
        return None
    architecture = architecture_from_config(values, name)
    note = f"the built-in architecture of {_BY_LOWER[name.lower()]} was used; nothing was downloaded"
    other = max(0, values.get("parameters", 0) - architecture.parameters)
    return replace(architecture, other=other, notes=(note,))
