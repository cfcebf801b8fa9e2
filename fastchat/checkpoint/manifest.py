"""`MANIFEST.json`: the exact contents of a checkpoint folder, and which run and step it belongs to.

Needs only the standard library, so that `python -m fastchat.checkpoint.verify` starts at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fastchat.bars import Progress, bar
from fastchat.errors import CheckpointError, values_without_secrets
from fastchat.files import read_object, sha256_of, sha256_of_json, write_json

MANIFEST = "MANIFEST.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The contents of `MANIFEST.json`.

    Attributes:
        step: optimizer steps done; epoch: passes over the data, with a fraction.
        samples, tokens, supervised_tokens: seen in training so far, over all processes.
        world_size: processes that wrote it; engine: "plain", "ddp", "zero2" or "zero3".
        fingerprints: of the run's inputs: name -> digest or number ("data", "template", "tokenizer", ...).
        settings: name -> value, as resolved.
        files: path inside the folder, with "/" -> {"size": bytes, "sha256": hex}.
    """

    step: int
    epoch: float = 0.0
    samples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    world_size: int = 1
    engine: str = "plain"
    fingerprints: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(int(entry["size"]) for entry in self.files.values())


def files_in(folder: Path) -> list[str]:
    """Every file below `folder` except the manifest, as sorted paths with "/"; links are listed but not followed."""
    found = []
    for base, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(base, name))]
        found += [Path(base, name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(name for name in found if name != MANIFEST)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: {"size", "sha256"}} of some files, for `Manifest.files`."""
    sizes = {name: (folder / name).stat().st_size for name in names}
    with bar("computing digests", sum(sizes.values())) as progress:
        return {
            name: {"size": size, "sha256": sha256_of(folder / name, progress.advance)} for name, size in sizes.items()
        }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes and flushes `MANIFEST.json`. It includes a digest of itself, so that a changed byte in it is detected too.

    It is written into a staged folder, which is not read before it is renamed.
    """
    values = asdict(manifest)
    values["settings"] = values_without_secrets(values["settings"])
    values["digest"] = sha256_of_json(values)
    write_json(folder / MANIFEST, values)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint. CheckpointError if it is missing, damaged or from a newer version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}: it is not a complete checkpoint of this project")
    try:
        values = read_object(path)
        digest = values.pop("digest")
        version = int(values["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if version > FORMAT:
        raise CheckpointError(f"{path} has format {version}; this version reads up to {FORMAT}")
    if digest != sha256_of_json(values):
        raise CheckpointError(f"{path} is damaged: its digest does not match")
    try:
        return Manifest(**values)
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def find_problems(folder: Path, manifest: Manifest | None = None) -> list[str]:
    """The problems of a checkpoint, one line per file; empty if every byte is as it was written.

    A file that the manifest does not list (a foreign shard) and a link instead of a file are problems too.
    """
    if manifest is None:
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            return [str(error)]
    problems = file_problems(folder, manifest.files)
    problems += [f"{name}: not listed in {MANIFEST}" for name in files_in(folder) if name not in manifest.files]
    return problems


def file_problems(folder: Path, files: dict[str, dict[str, Any]], *, links: bool = False) -> list[str]:
    """The problems of `files` (from `describe_files`), one line each. `links`: files may be links."""
    size = sum(entry["size"] for entry in files.values() if isinstance(entry.get("size"), int))
    with bar(f"verifying {folder.name}", size) as progress:
        found = [(name, _problem(folder, name, entry, links, progress)) for name, entry in sorted(files.items())]
    return [f"{name}: {problem}" for name, problem in found if problem]


def _problem(folder: Path, name: str, expected: dict[str, Any], links: bool, progress: Progress) -> str | None:
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or not parts:
        return "points outside the folder"
    path = folder / name
    if path.is_symlink() and not links:
        return "is a link, not the file that was written"
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != expected.get("size"):
        return f"has {size} bytes instead of {expected.get('size')}"
    try:
        found = sha256_of(path, progress.advance)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == expected.get("sha256") else "has the right size but different content (sha256 differs)"
