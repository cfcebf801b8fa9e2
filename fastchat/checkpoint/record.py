"""`training.json`: the record of a run, written next to its result and read by everything that uses the result.

A chat or a merge reads from it the template, the RoPE scaling, whether the base was quantised, and which base it was,
so that no flags are needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastchat.errors import CheckpointError, values_without_secrets
from fastchat.files import JsonError, parse_json, read_json, read_object, sha256_of_json, write_json

RECORD_NAME = "training.json"
STATUS_NAME, METRICS_NAME = "status.json", "metrics.jsonl"  # of the run, in the same folder
FORMAT = 1


@dataclass
class TrainingRecord:
    """The contents of `training.json`. Fields unknown to a run keep their empty value.

    Attributes:
        settings: name -> {"value": ..., "from": "default" | "yaml" | "command line" | "derived"}.
        template: {"name": ..., "definition": Template.to_dict(), "stop_token_ids": [...]}; None without a template.
        base_model: path or hub name of what was trained from.
        rope_parameters: the config's whole `rope_parameters` if the run scaled RoPE, else None.
        max_position_embeddings: the config's value that goes with it.
        quantization: {"type": "nf4", "double_quant": ..., "compute_dtype": ...}; None if the base was not quantised.
        dtype: of the base's weights, such as "bfloat16"; for a quantised base the dtype it was quantised from.
        attention, engine, world_size: what the run actually used.
        data: {"train": {"paths", "fingerprint", "counts"}, "eval": ...}.
        versions: library -> version.
        trainable_parameters: how many numbers were trained.
        fingerprints: of the run's inputs, name -> digest or number ("base_model", "data", "template", ...).
        metrics: final losses and speeds.
        files: name -> {"size": bytes, "sha256": hex} of all other files of the result; empty in a checkpoint,
            whose manifest has them, and in older results. The file also has a digest of the record itself, so that a
            changed byte in it (in the RoPE factor, for example) is detected.
        unusable: why the result must not be used; None if it was verified.
    """

    base_model: str | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    template: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    max_position_embeddings: int | None = None
    quantization: dict[str, Any] | None = None
    dtype: str | None = None
    attention: str | None = None
    engine: str | None = None
    world_size: int = 1
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    trainable_parameters: int | None = None
    fingerprints: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    unusable: str | None = None
    format: int = FORMAT

    def write(self, directory: str | Path) -> Path:
        """Write `training.json` into `directory`, whole or not at all, and return its path."""
        return write_values(directory, asdict(self))


def write_values(directory: str | Path, values: dict[str, Any]) -> Path:
    """Like `TrainingRecord.write`, for a record of plain values, which may have unknown fields."""
    path = Path(directory) / RECORD_NAME
    values = values_without_secrets(parse_json(json.dumps(values, ensure_ascii=False, allow_nan=False)))
    if values.get("files"):
        values["files"][RECORD_NAME] = {"sha256": _own_digest(values)}
    write_json(path, values, indent=2)
    return path


def read_status(folder: Path) -> dict[str, Any]:
    """The contents of `status.json` of the run in `folder`; {} if there is none that can be read."""
    try:
        return read_object(folder / STATUS_NAME)
    except (OSError, JsonError):
        return {}


def read_training_record(directory: str | Path) -> TrainingRecord | None:
    """The record in `directory`, or None if there is none.

    Raises CheckpointError if the file exists but is not a record, has changed since it was written (if it has a digest
    of itself), or was written by a newer version.
    """
    path = Path(directory).expanduser() / RECORD_NAME
    if not path.is_file():
        return None
    try:
        values = read_json(path)
    except (JsonError, OSError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}. Restore it from a copy.") from None
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise CheckpointError(
            f'{path} is not a training record (no "format"). Restore it from a copy, or move it away.'
        )
    if values["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {values['format']}, this version reads up to {FORMAT}. Update it.")
    files = values.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise CheckpointError(
            f'{path} is not a training record ("files" is not a list of digests). Restore it from a copy.'
        )
    if RECORD_NAME in files:
        if files[RECORD_NAME].get("sha256") != _own_digest(values):
            raise CheckpointError(
                f"{path} has changed since it was saved: its values do not match its digest. Copy it again from an "
                'intact copy; if you changed it on purpose, remove "files" from it.'
            )
        del files[RECORD_NAME]
    known = TrainingRecord.__dataclass_fields__
    return TrainingRecord(**{name: value for name, value in values.items() if name in known})


def _own_digest(values: dict[str, Any]) -> str:
    others = {name: entry for name, entry in values["files"].items() if name != RECORD_NAME}
    return sha256_of_json({**values, "files": others})
