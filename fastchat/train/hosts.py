"""What the machines of a run must have in common once tokenizer, model, data and folder are known. On one machine
nothing is read or compared. (Settings and versions are compared before: see `joining`.)"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastchat.checkpoint.manifest import MANIFEST
from fastchat.checkpoint.record import read_status
from fastchat.data.rows.fingerprint import KnownSums
from fastchat.data.rows.sources import Source
from fastchat.data.tokens.cache import cache_folder
from fastchat.errors import DataError, SettingsError, say
from fastchat.files import sha256_of, sha256_of_json
from fastchat.machines import named
from fastchat.processes import (
    gather,
    on_all_processes,
    on_local_main_process,
    on_main_process,
    places,
    several_machines,
)
from fastchat.train.agreement import Reports, differences
from fastchat.train.engine import Engine
from fastchat.train.prepare import Loading, Text
from fastchat.train.resuming import base_fingerprint, digest

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_SEEN_S = 10.0  # for what one client of a network file system writes to be seen by another

_WAY_OUT = (
    "give a folder that all hosts share (NFS, for example), or train without checkpoints: --save_strategy no leaves "
    "the result on the host of rank 0"
)


def check_same_model(
    base: str, config: Any, text: Text, loading: Loading, engine: Engine, *, adapter: str | None
) -> None:
    """SettingsError where tokenizer, template, base model, or what follows from them, differ between machines.

    `adapter`: the folder of the adapter to continue. Every process calls it.
    """
    if not several_machines():
        return
    settings = {f"config.json, {key}": value for key, value in config.to_dict().items() if key != "_name_or_path"}
    facts = {
        "the tokenizer": digest(text.tokenizer.backend_tokenizer.to_str()),
        "the template": digest(text.chat_encoder.template.to_dict()),
        "the pad token": text.pad_token_id,
        **settings,
        "the attention kernel": loading.attention,
        "the dtype": str(loading.dtype),
        "the engine": engine.name,
    }
    facts |= on_local_main_process(lambda: _files_of_model(base, config, adapter))
    if reports := _differing(facts):
        raise SettingsError(differences(reports))


def _files_of_model(base: str, config: Any, adapter: str | None) -> dict[str, Any]:
    found = {"the base model's weights": base_fingerprint(base, config)}
    for name in _ADAPTER_FILES if adapter else ():
        path = Path(str(adapter)).expanduser() / name
        found[f"--lora_weight_path, {name}"] = sha256_of(path) if path.is_file() else None
    return found


def check_same_data(name: str, sources: Sequence[Source], output_dir: str) -> None:
    """DataError where the files of the train or eval data (`name`) differ between machines; before they are tokenised.

    Every process calls it.
    """
    if not several_machines():
        return
    mine = on_local_main_process(lambda: _described(sources, output_dir))
    reports = _differing({"files": mine})
    if not reports:
        return
    files = [(place, facts["files"]) for place, facts in reports]
    first = files[0][1]
    if len({len(found) for _, found in files}) > 1:
        number = f"the number of files of {', '.join(source.name for source in sources)}"
        named = [(place, {number: len(found)}) for place, found in files]
    else:  # a path may be another one on each machine
        named = [(p, {first[at][0]: what for at, (_, what) in enumerate(found)}) for p, found in files]
    line = differences(named).partition(": ")[2].partition(". Start it")[0]
    raise DataError(f"the {name} data is not the same on every machine: {line}. Copy it again, or use a shared folder")


def _described(sources: Sequence[Source], output_dir: str) -> list[tuple[str, str]]:
    """(path, what is in it) of every file."""
    sum_of = KnownSums(cache_folder(output_dir) / "sums")
    files = [file for source in sources for file in source.files]
    return [(file, f"{os.path.getsize(file):,} bytes (sha256 {sum_of(file)[:12]}…)") for file in files]


def _differing(facts: dict[str, Any]) -> Reports:
    """The facts of all processes where they differ; empty where they do not."""
    if len(set(gather(sha256_of_json(facts)))) == 1:
        return []
    return list(zip(places(), gather(facts), strict=True))


# ---- the output folder ----


def check_checkpoint_seen(path: Path) -> None:
    """SettingsError where a machine does not see the checkpoint that rank 0 resumes from. Every process calls it."""
    if not several_machines():
        return
    wanted = on_main_process(lambda: _digest_of(path / MANIFEST))

    def look() -> None:
        if _digest_of(path / MANIFEST) != wanted:
            raise SettingsError(f"{path}, which rank 0 resumes from, is not the same here, or is not there; {_WAY_OUT}")

    on_all_processes(look)


def _digest_of(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def claim_on_all(folder: Path, save_strategy: str) -> bool:
    """Whether all machines share the output folder that rank 0 has just claimed. Every process calls it.

    SettingsError where they do not and checkpoints, of which every process writes a part, were asked for.
    """
    if not several_machines():
        return True
    run = on_main_process(lambda: read_status(folder).get("run"))
    seen = gather(_sees(folder, run))
    missing = [place for place, sees in zip(places(), seen, strict=True) if not sees]
    if not missing:
        return True
    line = f"--output_dir {folder} is not shared: {named(missing)} cannot write where {named(places()[:1])} does"
    if save_strategy != "no":
        raise SettingsError(f"{line}, and every process writes its part of a checkpoint; {_WAY_OUT}")
    say(f"WARNING: {line}. The result is saved by rank 0 alone; a run that is stopped before is lost")
    return False


def _sees(folder: Path, run: str | None) -> bool:
    """Whether this process can write into the folder that rank 0 has claimed for `run`."""
    until = time.monotonic() + _SEEN_S
    while True:
        try:
            with tempfile.TemporaryFile(dir=folder):  # first: it makes a network file system look again
                pass
        except OSError:
            found = None
        else:
            found = read_status(folder).get("run")
        if found == run or time.monotonic() > until:
            return found == run
        time.sleep(0.5)
