"""Finding the checkpoint that a run resumes from. Needs only the standard library."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from fastchat.checkpoint.manifest import Manifest, find_problems, read_manifest
from fastchat.checkpoint.staging import checkpoints_in, step_of
from fastchat.errors import CheckpointError


@dataclass(frozen=True)
class Found:
    """A checkpoint of which every byte was checked, and the newer ones that were skipped: (folder, problems)."""

    path: Path
    manifest: Manifest
    skipped: list[tuple[Path, list[str]]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One warning per skipped checkpoint."""
        return [
            f"WARNING: {path} is not usable and is skipped: {shorten(problems)}. Resuming from {self.path.name}"
            for path, problems in self.skipped
        ]


def check_checkpoint(path: Path) -> Found:
    """The checkpoint at `path`. CheckpointError naming its problems if it is not valid."""
    if not path.is_dir():
        raise CheckpointError(f"--resume_from_checkpoint {path}: there is no such folder")
    problems = _problems(path)
    if problems:
        raise CheckpointError(f"--resume_from_checkpoint {path} is not usable: {shorten(problems)}")
    return Found(path, read_manifest(path))


def newest_checkpoint(run: Path) -> Found | None:
    """The newest valid checkpoint of a run folder; None if there are no checkpoints.

    CheckpointError if there are some and none is valid: a run must not silently start over.
    """
    skipped: list[tuple[Path, list[str]]] = []
    for _, path in reversed(checkpoints_in(run)):
        problems = _problems(path)
        if not problems:
            return Found(path, read_manifest(path), skipped)
        skipped.append((path, problems))
    if not skipped:
        return None
    listed = "\n".join(f"  {path.name}: {shorten(problems)}" for path, problems in skipped)
    raise CheckpointError(
        f"{run} has no valid checkpoint to resume from:\n{listed}\n"
        "Restore one from a copy, or name another --output_dir to start over; nothing was removed"
    )


def shorten(problems: list[str], limit: int = 3) -> str:
    """The first few problems as one line."""
    more = f" and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more


def _problems(path: Path) -> list[str]:
    if path.is_symlink() and not path.exists():
        return [f"is a link to {os.readlink(path)}, which does not exist"]
    problems = find_problems(path)
    if not problems:
        step = read_manifest(path).step
        if step_of(path) not in (None, step):
            problems = [f"its name says step {step_of(path)}, its manifest step {step}"]
    return problems
