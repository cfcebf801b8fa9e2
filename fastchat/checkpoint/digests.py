"""Digests of a result: recorded in `training.json` when it is saved, checked before it is opened.

A result without digests (an older one, or one of another program) is used unchecked. Needs only the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastchat.checkpoint.manifest import MANIFEST, describe_files, file_problems, files_in, read_manifest
from fastchat.checkpoint.record import (
    RECORD_NAME,
    STATUS_NAME,
    TrainingRecord,
    read_status,
    read_training_record,
    write_values,
)
from fastchat.errors import EXIT_CHECKPOINT, CheckpointError
from fastchat.files import read_object

_WEIGHTS = (".safetensors", ".safetensors.index.json")
# What loading reads besides the weights and users do not edit. The rest (sampling settings, chat template) is recorded
# and verified, but does not stop a chat: the template of a chat is in the record.
_OPENED = ("adapter_config.json", "config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def describe_result(folder: Path, known: Mapping[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """{name: {"size", "sha256"}} of every file in `folder` except the record itself and documents (.md). `known`: the
    entries that were made while the files were written."""
    known = known or {}
    names = [n for n in files_in(folder) if n != RECORD_NAME and not n.endswith(".md")]
    made = describe_files(folder, (n for n in names if n not in known))
    return {n: known[n] if n in known else made[n] for n in names}


def record_digests(folder: Path, known: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Writes the digests of the files in `folder` into the training record that was copied into it, if there is one.
    `known`: as for `describe_result`."""
    path = folder / RECORD_NAME
    if path.is_file():
        write_values(folder, {**read_object(path), "files": describe_result(folder, known)})


def mark_unusable(folder: Path, reason: str) -> None:
    """Marks the result in `folder` as unusable in its training record."""
    write_values(folder, {**read_object(folder / RECORD_NAME), "unusable": reason})


def why_unusable(folder: Path, record: TrainingRecord) -> str:
    """Why the record, or the status of its run, forbids using the result in `folder`; "" if it does not."""
    if record.unusable:
        return f"{RECORD_NAME} says that it is not usable: {record.unusable}"
    status = read_status(folder)
    failed = status.get("status") == "failed" and status.get("exit_code") == EXIT_CHECKPOINT
    return f"its run failed when it was saved ({STATUS_NAME}: {status.get('message', '')})" if failed else ""


def result_problems(folder: Path, record: TrainingRecord) -> list[str]:
    """The problems of a result, one line each: its record or status marks it unusable, a recorded file has changed, a
    weight file is not recorded."""
    reason = why_unusable(folder, record)
    against = [reason] if reason else []
    if not record.files:
        return against
    more = sorted(path.name for path in folder.iterdir() if path.name.endswith(_WEIGHTS))
    unknown = [f"{name}: not listed in {RECORD_NAME}" for name in more if name not in record.files]
    return against + file_problems(folder, record.files, links=True) + unknown


def check_result(path: str | Path) -> None:
    """CheckpointError if the files that loading `path` reads are not those that this project saved there.

    `path`: a result, a checkpoint, or anything else, such as a hub name, which has no digests and passes. Links are
    followed, since the hub's cache consists of them.
    """
    folder = Path(path).expanduser()
    record = read_training_record(folder) if folder.is_dir() else None
    if record is None:
        return
    if reason := why_unusable(folder, record):
        raise CheckpointError(f"{folder}: {reason}. Nothing was loaded. Train again, or use another checkpoint.")
    if (folder / MANIFEST).is_file():
        files = {n: e for n, e in read_manifest(folder).files.items() if _opened(n) or n == RECORD_NAME}
        way_out = "use another checkpoint"
    else:
        files = {n: e for n, e in record.files.items() if _opened(n)}
        way_out = f'if you changed the file on purpose, remove "files" from {RECORD_NAME}'
    if problems := file_problems(folder, files, links=True):
        raise CheckpointError(
            f"{folder} has changed since it was saved: {'; '.join(problems)}. Nothing was loaded. Copy it again from "
            f"an intact copy, or {way_out}."
        )


def _opened(name: str) -> bool:
    return "/" not in name and (name.endswith(_WEIGHTS) or name in _OPENED)
