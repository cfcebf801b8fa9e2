"""The settings of an adapter as the planner counts them: those given, or those of an adapter to train further."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError
from fastchat.files import JsonError, read_object
from fastchat.settings.lora_options import UNTRAINED, parse_layers, subtracts_start
from fastchat.settings.targets import LORA_TARGETS, read_targets


def adapter_settings(s: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Run` for the adapter. Raises SettingsError for a value that cannot be read."""
    if s["lora_weight_path"]:
        return _continued(str(s["lora_weight_path"]))
    modules = tuple(read_targets(s["lora_target_modules"] or LORA_TARGETS))
    parameters = s["lora_target_parameters"]
    return {
        "lora_r": int(s["lora_r"]),
        "lora_bias": str(s["lora_bias"]),
        "lora_target_modules": None if modules == LORA_TARGETS else modules,
        "lora_target_parameters": tuple(read_targets(parameters, "--lora_target_parameters")) if parameters else (),
        "lora_layers_to_transform": tuple(parse_layers(s["lora_layers_to_transform"])),
        "lora_modules_to_save": tuple(s["lora_modules_to_save"]),
        "trainable_tokens": _tokens(s["trainable_tokens"]),
        "use_dora": bool(s["use_dora"]),
        "subtracts_start": subtracts_start(str(s["lora_init"])),
    }


_UNTRAINED = 256  # rows that `untrained` stands for: their number is in the weights, and even many take little memory


def _tokens(values: list[str]) -> int:
    """The number of trained tokens, at most."""
    return sum(_UNTRAINED if value == UNTRAINED else 1 for value in values)


def _continued(path: str) -> dict[str, Any]:
    """The settings of the adapter in the folder `path`."""
    file = Path(path).expanduser() / "adapter_config.json"
    try:
        config = read_object(file, constants=True)
    except (OSError, JsonError) as error:
        raise SettingsError(f"--lora_weight_path {path}: {file.name} cannot be read: {error}") from None
    modules, parameters = config.get("target_modules"), config.get("target_parameters") or []
    if not isinstance(modules, list | str) or not isinstance(parameters, list):
        raise SettingsError(f"--lora_weight_path {path}: {file.name} lists no target_modules")
    rows = config.get("trainable_token_indices") or []
    layers = config.get("layers_to_transform") or []
    return {
        "lora_r": int(config.get("r") or 8),
        "lora_bias": str(config.get("bias") or "none"),
        "lora_target_modules": (modules,) if isinstance(modules, str) else tuple(modules),
        "lora_target_parameters": tuple(parameters),
        "lora_layers_to_transform": (layers,) if isinstance(layers, int) else tuple(layers),
        "lora_modules_to_save": tuple(config.get("modules_to_save") or ()),
        "trainable_tokens": max(map(len, rows.values()), default=0) if isinstance(rows, dict) else len(rows),
        "use_dora": bool(config.get("use_dora")),
    }
