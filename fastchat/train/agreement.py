"""What has to be the same in every process of a run, and how a difference is named.

Settings, versions of libraries and the program are compared before there is a process group (`settings_facts`);
template, tokenizer, base model and data as soon as they are known, see `hosts`. Paths may differ between machines: what
is read there is compared instead.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fastchat
from fastchat.errors import SettingsError, brief, values_without_secrets
from fastchat.files import parse_json, sha256_of_blocks
from fastchat.machines import Place, named
from fastchat.settings.engines import FsdpOptions
from fastchat.settings.values import Values

# How one machine does its own part, whatever the others do.
OWN = (
    *("local_rank", "hub_token", "overwrite_cache", "preprocessing_num_workers", "dataloader_num_workers"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_multiprocessing_context", "log_level", "log_level_replica", "disable_tqdm"),
)
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes", "tokenizers", "safetensors")
_MOST = 6  # differences that are named
_WIDTH = 60  # characters of a value

Reports = Sequence[tuple[Place, dict[str, Any]]]


def settings_facts(values: Values, deepspeed: dict[str, Any] | None, fsdp: FsdpOptions | None = None) -> dict[str, Any]:
    """What is known before anything is loaded. `deepspeed`: its configuration, `fsdp`: its options; None without."""
    own = {*OWN, *(option.name for option in values.options if option.path)}
    settings = {f"--{name}": values[name] for name in values.names() if name not in own}
    content = {f"--deepspeed, {name}": value for name, value in (deepspeed or {}).items()}
    content |= {f"FSDP, {name}": value for name, value in (asdict(fsdp) if fsdp else {}).items()}
    return _json({**settings, "--deepspeed": deepspeed is not None, **content, **_versions(), "fastchat": _program()})


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def _program() -> str:
    """A digest of this program's own code."""
    root = Path(fastchat.__file__).parent
    files = sorted(root.rglob("*.py"))
    return sha256_of_blocks(block for file in files for block in (str(file.relative_to(root)).encode(), _read(file)))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _json(value: Any) -> Any:
    """As it arrives in another process, without secrets."""
    return parse_json(json.dumps(values_without_secrets(value), sort_keys=True, default=str))


def differences(reports: Reports) -> str:
    """What differs between the processes, in one sentence; "" where nothing does.

    >>> a, b = Place(0, 0, 1, "node-a", "x"), Place(1, 0, 1, "node-b", "y")
    >>> print(differences([(a, {"--seed": 1, "torch": "2.13.0"}), (b, {"--seed": 2, "torch": "2.13.0"})]))
    the hosts of this run differ: --seed is 1 on node-a (rank 0) and 2 on node-b (rank 1). Start it everywhere with the\
 same settings, program and files
    """
    names = {name: None for _, facts in reports for name in facts}
    found = [line for name in names if (line := _difference(name, reports))]
    if not found:
        return ""
    more = [f"{len(found) - _MOST} more"] if len(found) > _MOST else []
    listed = "; ".join([*found[:_MOST], *more])
    return f"the hosts of this run differ: {listed}. Start it everywhere with the same settings, program and files"


def _difference(name: str, reports: Reports) -> str:
    """The values of one fact and where each is found."""
    groups: dict[str, list[Place]] = {}
    for place, facts in reports:
        value = json.dumps(facts[name], sort_keys=True, ensure_ascii=False) if name in facts else "not there"
        groups.setdefault(value, []).append(place)
    if len(groups) == 1:
        return ""
    parts = [f"{_shown(value)} on {named(places)}" for value, places in groups.items()]
    return f"{name} is {', '.join(parts[:-1])} and {parts[-1]}"


def _shown(value: str) -> str:
    """A digest by its beginning, text without quotes."""
    text = value.strip('"')
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f"{text[:12]}…"
    return "not given" if text == "null" else brief(text, _WIDTH)


def check_same(reports: Reports) -> None:
    """SettingsError where facts differ."""
    if found := differences(reports):
        raise SettingsError(found)
