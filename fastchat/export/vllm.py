"""The command that serves a result with vLLM, from its files alone. Nothing is started and, unless asked, written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastchat.checkpoint.trained_model import TrainedModel, find_trained
from fastchat.errors import SettingsError, say
from fastchat.files import read_object, write_json, write_text
from fastchat.model.source import check_model_directory
from fastchat.model.vllm_limits import cannot_apply, max_rank, serving_dtype

# Files that apply_chat_template needs; without them vLLM would use the base's own template.
_TEMPLATE, _GENERATION = "chat_template.jinja", "generation_config.json"


def commands(model: str, *, write: str | None = None, base_model_path: str | None = None) -> list[str]:
    """The lines to run, in order; what vLLM cannot do, and what differs from training, is said.

    `write`: a folder for `generation_config.json` (with the ids that end an answer) and `serve.sh`.
    Raises SettingsError for a folder that is not a result, CheckpointError if its files have changed.
    """
    if not Path(model).expanduser().is_dir():
        raise SettingsError(f"{model}: there is no such folder")
    tuned = find_trained(model, base_model_path)
    if not tuned.is_adapter:
        check_model_directory(tuned.path)
        lines = [_join(["vllm", "serve", *_full(Path(tuned.path).expanduser().resolve())])]
    elif why := _cannot(tuned):
        say(f"vLLM cannot apply this adapter: {'; '.join(why)}. Merge it first.")
        merged = f"{Path(tuned.path).expanduser().resolve()}-merged"
        merge = ["fastchat", "merge", "--lora-path", str(Path(tuned.path).expanduser().resolve())]
        merge += ["--target-model-path", merged]
        lines = [_join(merge), _join(["fastchat", "export", "vllm", merged])]
    else:
        lines = [_join(["vllm", "serve", *_adapter(tuned, write)])]
    if write is not None:
        folder = Path(write).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "serve.sh", "\n".join(["#!/bin/sh", "set -e", *lines, ""]))
        say(f"written: {folder / 'serve.sh'}")
    return lines


def _cannot(tuned: TrainedModel) -> list[str]:
    config = read_object(Path(tuned.path).expanduser() / "adapter_config.json")
    return cannot_apply(config, _dtype(tuned))


def _dtype(tuned: TrainedModel) -> str:
    return serving_dtype(_base_config(tuned), tuned.record.dtype if tuned.record else None)


def _base_config(tuned: TrainedModel) -> dict[str, Any]:
    """The base's config.json; {} if it is on the hub."""
    base = Path(tuned.base).expanduser()
    return read_object(base / "config.json", constants=True) if base.is_dir() else {}


def _full(folder: Path) -> list[str]:
    config = read_object(folder / "config.json", constants=True)
    words = [str(folder), "--served-model-name", folder.name, "--dtype", serving_dtype(config)]
    words += _context(config)
    if (folder / _TEMPLATE).is_file():
        words += ["--chat-template", str(folder / _TEMPLATE)]
    if (folder / _GENERATION).is_file():
        words += ["--generation-config", str(folder)]
    return words


def _adapter(tuned: TrainedModel, write: str | None) -> list[str]:
    folder = Path(tuned.path).expanduser().resolve()
    config = read_object(folder / "adapter_config.json")
    base = Path(tuned.base).expanduser()
    local = base.is_dir()
    words = [str(base.resolve()) if local else tuned.base, "--enable-lora"]
    words += ["--lora-modules", _module(folder), "--max-lora-rank", str(max_rank(config))]
    if (folder / "tokenizer.json").is_file():
        words += ["--tokenizer", str(folder)]
    if (folder / _TEMPLATE).is_file():
        words += ["--chat-template", str(folder / _TEMPLATE)]
    record = tuned.record
    words += ["--dtype", _dtype(tuned)]
    base_config = _base_config(tuned)
    if record and record.rope_parameters:
        changed = {"rope_parameters": record.rope_parameters}
        changed |= {"max_position_embeddings": record.max_position_embeddings}
        words += ["--hf-overrides", json.dumps(changed)]
        base_config |= changed
    words += _context(base_config)
    if tuned.quantised:
        words += ["--quantization", "bitsandbytes"]
        say(
            "The adapter was trained on the base in 4 bits (nf4), and vLLM quantises it in the same way: it needs "
            "bitsandbytes, and its newest versions vllm-bnb-plugin. `fastchat merge` gives a model that needs neither."
        )
    words += _generation(tuned, base if local else None, write)
    return words


def _module(folder: Path) -> str:
    """The value of `--lora-modules`; as JSON where the form name=path would be misread."""
    plain = f"{folder.name}={folder}"
    if plain.count("=") == 1 and "," not in plain:
        return plain
    return json.dumps({"name": folder.name, "path": str(folder)}, ensure_ascii=False)


def _generation(tuned: TrainedModel, base: Path | None, write: str | None) -> list[str]:
    """`--generation-config`, so that answers end where training ended them; written only if asked for."""
    template = tuned.record.template if tuned.record else None
    stops = list((template or {}).get("stop_token_ids") or [])
    path = base / _GENERATION if base else None
    own = read_object(path, constants=True) if path and path.is_file() else {}
    known = own.get("eos_token_id")
    known = known if isinstance(known, list) else [] if known is None else [known]
    missing = [stop for stop in stops if stop not in known]
    if not missing:
        return ["--generation-config", str(base)] if base and own else []
    if write is None:
        say(
            f"The base's generation config does not end answers at the token ids {missing}, where training did: use "
            f"--write DIR for one that does, or send stop_token_ids {missing} with every request."
        )
        return []
    folder = Path(write).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _GENERATION, {**own, "eos_token_id": _unique([*known, *stops])}, indent=2, constants=True)
    say(f"written: {folder / _GENERATION}")
    return ["--generation-config", str(folder)]


def _unique(ids: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(ids))


def _context(config: dict[str, Any]) -> list[str]:
    """The context of a model as `--max-model-len`, if its configuration has it."""
    text = config.get("text_config") or config
    length = text.get("max_position_embeddings")
    return ["--max-model-len", str(length)] if length else []


def _join(words: list[str]) -> str:
    return shlex.join(words)
