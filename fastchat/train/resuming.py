"""Where a run starts: at step 0, from a checkpoint, or not at all because it is finished.

Decided before the model loads, from the output folder, `--resume_from_checkpoint` and what the run depends on: data,
template, tokenizer, base model, and the settings that decide which numbers are computed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastchat.checkpoint.discover import Found, check_checkpoint, newest_checkpoint, shorten
from fastchat.checkpoint.fingerprint import model_fingerprint
from fastchat.checkpoint.manifest import Manifest, file_problems, find_problems, read_manifest
from fastchat.checkpoint.record import RECORD_NAME, TrainingRecord, read_status, read_training_record
from fastchat.checkpoint.resume_state import STATE, rank_file
from fastchat.checkpoint.staging import checkpoints_in
from fastchat.errors import CheckpointError, SettingsError, counted, values_without_secrets
from fastchat.files import read_json, sha256_of_text
from fastchat.settings.fields import FIXED, FREE, TOLD
from fastchat.settings.readers import training_options
from fastchat.train.engine.base import find_mismatch
from fastchat.train.status import check_output_dir, existing_results

AUTO, NEVER = "auto", "never"
LENGTH = ("num_train_epochs", "max_steps")
_RESUME = {option.name: option.resume for option in training_options(lora=True)}
NAMES = {
    "data": "the training data",
    "num_dialogues": "the number of training examples",
    "template": "the conversation template",
    "tokenizer": "the tokenizer",
    "base_model": "the base model's weights",
    "training": "what is trained (adapter or whole model)",
    "packs": "which examples share a pack",
    "global_batch": "the global batch (per-device batch x accumulation x processes)",
}


@dataclass(frozen=True)
class Identity:
    """What a run depends on. `fingerprints`: digests and numbers by name; `settings`: name -> value."""

    fingerprints: dict[str, Any]
    settings: dict[str, Any]
    world_size: int
    engine: str
    origins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resume:
    """Where the run starts. `checkpoint` None: at step 0. `finished`: there is nothing left to do."""

    checkpoint: Path | None = None
    manifest: Manifest | None = None
    weights_only: bool = False
    finished: bool = False
    lines: tuple[str, ...] = ()


def digest(value: Any) -> str:
    """Hex digest of text, or of any JSON value."""
    return sha256_of_text(value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))


def base_fingerprint(name: str, config: Any) -> str | None:
    """Of a folder's weights; of a hub model the commit it was loaded at."""
    return model_fingerprint(name) or getattr(config, "_commit_hash", None)


def plan_resume(
    output_dir: Path, choice: str | None, identity: Identity, *, overwrite: bool, weights_only: bool
) -> Resume:
    """Decides where the run starts. Reads only.

    `choice`: "auto" (also None), "never" or a checkpoint folder. Raises CheckpointError where a checkpoint that should
    be used cannot be, SettingsError where the folder or the checkpoint belongs to another run.
    """
    choice = choice or AUTO
    if choice == NEVER or (choice == AUTO and overwrite):
        return Resume()
    damage: list[str] = []
    if choice == AUTO:
        finished, damage = _result(output_dir, identity)
        if finished:
            line = (
                f"{output_dir} holds the finished result of this run: nothing to do (--overwrite_output_dir redoes it)"
            )
            return Resume(finished=True, lines=(line,))
        found = _newest(output_dir, weights_only)
        if found is None and damage:
            raise CheckpointError(
                f"{output_dir} holds the result of a finished run, but not as it was saved: {shorten(damage)}. No "
                "checkpoint is there to restore it from: put it back from a copy, or train again with "
                "--overwrite_output_dir"
            )
    else:
        found = _named(Path(choice).expanduser(), weights_only)
    if found is None:
        if weights_only:
            raise CheckpointError(f"--resume_weights_only: {output_dir} holds no checkpoint")
        return Resume()
    lines = (*found.lines(), *compare(found, identity, weights_only=weights_only))
    if damage:
        again = f"the finished result in {output_dir} is not as it was saved ({shorten(damage)})"
        lines = (f"WARNING: {again}; restoring it from {found.path.name}", *lines)
        weights_only = weights_only or _weights_suffice(found, identity)
    return Resume(found.path, found.manifest, weights_only, lines=lines)


def refuse_other_run(output_dir: Path, identity: Identity) -> None:
    """SettingsError where the newest checkpoint or the result in the folder differs already in what `identity` holds,
    which may be a part of it.

    Only what no checkpoint of this run can have otherwise: digests are not checked yet, and where the engine differs,
    the run may be finished, or an older checkpoint may be the one to resume from.
    """
    try:
        if steps := checkpoints_in(output_dir):
            manifest = read_manifest(steps[-1][1])
            known = {name: old for name, old in manifest.fingerprints.items() if name in identity.fingerprints}
            settings = {name: old for name, old in manifest.settings.items() if name in identity.settings}
            part = replace(manifest, fingerprints=known, settings=settings)
            compare(Found(steps[-1][1], part), identity, weights_only=True)
        elif record := read_training_record(output_dir):
            found = identity.fingerprints.items()
            if any(record.fingerprints.get(name) != value for name, value in found):
                check_output_dir(output_dir, overwrite=False)
    except CheckpointError:
        return


def _newest(run: Path, weights_only: bool) -> Found | None:
    if not weights_only:
        return newest_checkpoint(run)
    steps = checkpoints_in(run)
    return _named(steps[-1][1], True) if steps else None


def _named(path: Path, weights_only: bool) -> Found:
    """The checkpoint at `path`; with `weights_only` just its weights, its position and its manifest must be right."""
    if not weights_only:
        return check_checkpoint(path)
    if not path.is_dir():
        raise CheckpointError(f"--resume_from_checkpoint {path}: there is no such folder")
    manifest = read_manifest(path)
    needed = tuple(name for name in manifest.files if name.endswith((".safetensors", ".json")) or name == STATE)
    wrong = [p for p in find_problems(path, manifest) if p.split(": ")[0] in needed]
    if wrong:
        raise CheckpointError(f"--resume_from_checkpoint {path} is not usable even for its weights: {'; '.join(wrong)}")
    return Found(path, manifest)


def compare(found: Found, identity: Identity, *, weights_only: bool) -> list[str]:
    """One line per setting that changed since. SettingsError where the run would not be the same run any more."""
    manifest, path = found.manifest, found.path
    changed = [
        f"{NAMES.get(name, name)} ({_short(old)} -> {_short(identity.fingerprints.get(name))})"
        for name, old in manifest.fingerprints.items()
        if identity.fingerprints.get(name) != old
    ]
    changed += [
        f"--{name} ({_short(old)} -> {_short(identity.settings.get(name))})"
        for name, old in manifest.settings.items()
        if _RESUME.get(name) == FIXED and not _same(old, identity.settings.get(name))
    ]
    mismatch = None if weights_only else find_mismatch(path, manifest.engine, identity.engine)
    if mismatch:
        raise SettingsError(mismatch)
    if changed:
        raise SettingsError(
            f"{path} belongs to another run, these differ: {', '.join(changed)}. Restore them, or name another "
            "--output_dir"
        )
    return _other_processes(manifest, identity) + [
        f"changed since {path.name}, now used: --{name} {_short(old)} -> {_short(identity.settings.get(name))}"
        for name, old in manifest.settings.items()
        if _RESUME.get(name, TOLD) == TOLD and not _same(old, identity.settings.get(name))
    ]


def _other_processes(manifest: Manifest, identity: Identity) -> list[str]:
    if manifest.world_size == identity.world_size:
        return []
    then, now = counted(manifest.world_size, "process"), counted(identity.world_size, "process")
    return [
        f"saved by {then} and resumed by {now}: the same global batch and order of dialogues, but new random numbers, "
        "so that dropout has other masks from here"
    ]


def differing(manifest: Manifest, settings: dict[str, Any]) -> list[str]:
    """Names of all settings, except those that do not matter, whose value changed since the checkpoint."""
    return [n for n, old in manifest.settings.items() if _RESUME.get(n) != FREE and not _same(old, settings.get(n))]


def is_done(output_dir: Path) -> bool:
    """Whether the run that the folder belongs to finished, by its `status.json`."""
    return read_status(output_dir).get("status") == "done"


def _result(output_dir: Path, identity: Identity) -> tuple[bool, list[str]]:
    """(whether the folder holds the whole result of a finished run with exactly this identity, what is wrong with it).

    (False, []) where there is no finished result, or that of another run.
    """
    if not is_done(output_dir) or not existing_results(output_dir):
        return False, []
    try:
        record = read_training_record(output_dir)
    except CheckpointError as error:
        return False, [str(error)]
    if record is None:
        return False, [f"{RECORD_NAME}: is missing"]
    if not _is_of(record, identity):
        return False, []
    damage = file_problems(output_dir, record.files, links=True)
    return not damage, damage


def _is_of(record: TrainingRecord, identity: Identity) -> bool:
    """Whether a result is that of a run with exactly this identity."""
    if record.fingerprints != identity.fingerprints:
        return False
    return all(
        _same(record.settings.get(name, {}).get("value"), value) or _both_derived(record, identity, name)
        for name, value in identity.settings.items()
        if _RESUME.get(name) != FREE
    )


def _weights_suffice(found: Found, identity: Identity) -> bool:
    """Whether a checkpoint without optimizer state (`--save_only_model`) is of the last step: no training is left."""
    if rank_file(0) in found.manifest.files:
        return False
    settings = found.manifest.settings
    if not all(_same(settings.get(name), identity.settings.get(name)) for name in ("num_train_epochs", "max_steps")):
        return False
    state = read_json(found.path / STATE, constants=True)
    return state["global_step"] >= state["max_steps"]


def _both_derived(record: TrainingRecord, identity: Identity, name: str) -> bool:
    """A value that only the model decides is not known yet when the next run asks."""
    was = record.settings.get(name, {}).get("from")
    return was == "derived" and identity.origins.get(name) in ("default", "derived")


def _same(old: Any, new: Any) -> bool:
    numbers = [value for value in (old, new) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == 2:
        return old == new  # 500 is recorded where a default was, 500.0 where it was given
    old = values_without_secrets(old)  # manifests of before that was done when they are written
    return json.dumps(old, sort_keys=True, default=str) == json.dumps(new, sort_keys=True, default=str)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:12] + "…" if len(text) == 64 else text
