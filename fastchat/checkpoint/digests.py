"""Digests of a result: recorded in `training.json` when it is saved, checked before it is opened.

A result without them (an older one, somebody else's) is used as it is. Needs only the standard library.
"""

from __future__ import annotations

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
# What loading reads beside them and nobody edits. The rest (sampling settings, chat template) is recorded and verified,
# but does not stop a chat: the template of a chat stands in the record.
_OPENED = ("adapter_config.json", "config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def describe_result(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: {"size", "sha256"}} of every file in `folder` but the record itself and texts for people (.md)."""
    return describe_files(folder, (n for n in files_in(folder) if n != RECORD_NAME and not n.endswith(".md")))


def record_digests(folder: Path) -> None:
    """Writes what `folder` holds now into the training record that was copied into it; nothing where it has none."""
    path = folder / RECORD_NAME
    if path.is_file():
        write_values(folder, {**read_object(path), "files": describe_result(folder)})


def mark_unusable(folder: Path, reason: str) -> None:
    """Writes into the training record in `folder` that the result beside it must not be used."""
    write_values(folder, {**read_object(folder / RECORD_NAME), "unusable": reason})


def why_unusable(folder: Path, record: TrainingRecord) -> str:
    """What the record, or the status of its run, says against using the result in `folder`; "" where nothing."""
    if record.unusable:
        return f"{RECORD_NAME} says that it is not usable: {record.unusable}"
    status = read_status(folder)
    failed = status.get("status") == "failed" and status.get("exit_code") == EXIT_CHECKPOINT
    return f"its run failed when it was saved ({STATUS_NAME}: {status.get('message', '')})" if failed else ""


def result_problems(folder: Path, record: TrainingRecord) -> list[str]:
    """What is wrong with a result, one line for each reason: what its record or its run says against it, recorded files
    that are not as they were, weight files that are not recorded."""
    reason = why_unusable(folder, record)
    against = [reason] if reason else []
    if not record.files:
        return against
    more = sorted(path.name for path in folder.iterdir() if path.name.endswith(_WEIGHTS))
    unknown = [f"{name}: not listed in {RECORD_NAME}" for name in more if name not in record.files]
    return against + file_problems(folder, record.files, links=True) + unknown


def check_result(path: str | Path) -> None:
    """CheckpointError where the files that loading `path` reads are not what this project saved there.

    `path`: a result, a checkpoint, or anything else, such as a hub name, which has no digests and passes. Links are
    followed: the hub's cache is made of them.
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
        way_out = f'if you changed the file on purpose, take "files" out of {RECORD_NAME}'
    if problems := file_problems(folder, files, links=True):
        raise CheckpointError(
            f"{folder} is not what was saved there: {'; '.join(problems)}. Nothing was loaded. Copy it again from "
            f"where it is intact, or {way_out}."
        )


def _opened(name: str) -> bool:
    return "/" not in name and (name.endswith(_WEIGHTS) or name in _OPENED)
