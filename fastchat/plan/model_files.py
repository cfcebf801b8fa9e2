"""Reads a model folder without torch: config.json and the headers of its safetensors files. Nothing is downloaded."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError
from fastchat.files import JsonError, parse_json, read_object
from fastchat.plan.architecture import Architecture
from fastchat.plan.families import architecture_from_config
from fastchat.plan.known import SIZES, architecture_of_hub_name

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LARGEST_HEADER = 100 * 1024**2  # the format's own limit


def read_architecture(model: str, cache_dir: str | None = None) -> Architecture:
    """The shape of the model `model`: a folder, or a hub name that is in the cache or a known one.

    Read from config.json and checked against the weight files, if there are any: tensors outside the decoder are added
    as `other`. Raises SettingsError if there is no config.json or the two contradict each other.
    """
    folder = find_folder(model, cache_dir)
    if folder is None:
        return _without_files(model)
    architecture = architecture_from_config(_read_json(folder / "config.json"), model)
    tensors = _decoder_tensors(stored_tensors(folder), architecture.num_layers)
    if not tensors:
        return architecture
    if architecture.packed:
        how = f"the weights are stored in {architecture.packed} and counted as they are loaded, in 16 bits"
        return replace(architecture, notes=(*architecture.notes, how))
    kinds: Counter[str] = Counter()
    for dtype, elements in tensors.values():
        kinds[dtype] += elements
    stored = sum(elements for _, elements in tensors.values())
    if architecture.tied and "lm_head.weight" in tensors:  # some checkpoints also store a tied head
        stored -= tensors["lm_head.weight"][1]
    dtype = architecture.dtype or _DTYPES.get(kinds.most_common(1)[0][0])
    extra = stored - architecture.parameters
    if extra < 0 and not architecture.notes:
        raise SettingsError(
            f"{model}: config.json describes {architecture.parameters:,} parameters, but the weight files have "
            f"{stored:,}; they belong to different models, or files are missing"
        )
    notes = architecture.notes
    if extra > 0:
        notes = (*notes, f"{extra:,} weights outside the decoder (for example a vision tower): counted as frozen")
    return replace(architecture, dtype=dtype, other=max(extra, 0), notes=notes)


_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def _decoder_tensors(tensors: dict[str, tuple[str, int]], num_layers: int) -> dict[str, tuple[str, int]]:
    """Without further layers, which predict more tokens (DeepSeek, GLM) and are not loaded for training."""

    def loaded(name: str) -> bool:
        match = _LAYER.match(name)
        return match is None or int(match[1]) < num_layers

    return {name: entry for name, entry in tensors.items() if loaded(name)}


def stored_tensors(folder: Path) -> dict[str, tuple[str, int]]:
    """{name: (dtype, number of elements)} from the headers of all safetensors files; empty if there are none."""
    found: dict[str, tuple[str, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _read_header(path).items():
            if name != "__metadata__":
                elements = 1
                for size in entry["shape"]:
                    elements *= size
                found[name] = (entry["dtype"], elements)
    return found


def find_folder(model: str, cache_dir: str | None = None) -> Path | None:
    """The folder of `model`: itself, or the newest snapshot of a hub name in the cache; None if there is neither.

    Never downloads. Raises SettingsError for a folder without config.json.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SettingsError(f"--model_name_or_path {model}: not a model folder, it has no config.json")
        return folder
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(cache_dir or os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    snapshots = sorted(cache.glob(f"models--{model.replace('/', '--')}/snapshots/*/config.json"), key=_changed)
    return snapshots[-1].parent if snapshots and not model.startswith((".", "/", "~")) else None


def _without_files(model: str) -> Architecture:
    known = architecture_of_hub_name(model)
    if known is None:
        raise SettingsError(
            f"--model_name_or_path {model}: no such folder, and not in the cache (the planner downloads nothing); "
            f"give a folder, or --model_size {'|'.join(SIZES)}"
        )
    return known


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError(f"its header claims {length:,} bytes")
            header = parse_json(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
    except (OSError, struct.error, ValueError) as problem:
        raise SettingsError(f"{path} is not a readable safetensors file: {problem}") from None
    return header


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, constants=True)
    except (OSError, JsonError) as problem:
        raise SettingsError(f"{path} cannot be read: {problem}") from None
