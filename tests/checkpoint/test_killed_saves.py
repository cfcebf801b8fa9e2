"""A process that dies at any file-system event of a save never costs a checkpoint, and the next run cleans up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.checkpoint import staging
from fastchat.checkpoint.discover import newest_checkpoint
from fastchat.errors import ResourceError
from tests.checkpoint.saves import all_deaths, save, valid_in

pytestmark = pytest.mark.slow


def _names(run: Path) -> set[str]:
    return set(os.listdir(run)) if run.is_dir() else set()


def check_all_deaths(
    folder: Path, prepare: Callable[[Path], None], work: Callable[[Path], object], before: list[int], after: list[int]
) -> int:
    """Dies at every event of `work`: each `checkpoint-*` is complete, and no fewer are valid than in `before`."""
    events, seen = 0, set()
    for event, run in all_deaths(prepare, work, folder):
        steps = [step for step, _ in staging.checkpoints_in(run)]
        assert valid_in(run) == steps, f"event {event}: {_names(run)} holds a torn checkpoint"
        newest = newest_checkpoint(run)
        assert len(steps) >= min(1, len(before)), f"event {event}: no checkpoint is left"
        assert not before or newest is not None and newest.manifest.step >= before[-1], f"event {event}"
        seen.add(tuple(steps))
        staging.recover(run)
        assert _names(run) == {f"checkpoint-{step}" for step in valid_in(run)}, "recovery leaves nothing else"
        work(run)
        assert valid_in(run) == after == [step for step, _ in staging.checkpoints_in(run)], f"event {event}: the rerun"
        events = max(events, event)
    assert tuple(before) in seen and tuple(after) in seen
    return events


def test_a_first_save(tmp_path: Path) -> None:
    events = check_all_deaths(tmp_path, lambda run: run.mkdir(), lambda run: save(run, 1), [], [1])
    assert events > 20, "the harness must see the save's events"


def test_a_second_save_with_a_limit_of_one(tmp_path: Path) -> None:
    """Two valid ones for a moment, never none."""
    check_all_deaths(tmp_path, lambda run: _saved(run, 1), lambda run: save(run, 2, keep=1), [1], [2])


def test_rotation_of_several(tmp_path: Path) -> None:
    check_all_deaths(tmp_path, lambda run: _saved(run, 1, 2, 3), lambda run: save(run, 4, keep=2), [1, 2, 3], [3, 4])


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_step_saved_again(tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file system can swap folders, one of the two is in place at every moment; otherwise recovery does it."""
    if can_exchange:
        check_all_deaths(tmp_path, lambda run: _saved(run, 1), lambda run: save(run, 1, content=9), [1], [1])
        return
    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    for event, run in all_deaths(lambda run: _saved(run, 1), lambda run: save(run, 1, content=9), tmp_path):
        lines = staging.recover(run)
        assert valid_in(run) == [1] and _names(run) == {"checkpoint-1"}, (event, lines)


def test_a_rename_that_fails_leaves_the_old_one_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems may fail at any moment: also at the second of two renames, if folders cannot be swapped."""
    save(tmp_path, 1)
    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if Path(source).name.startswith(staging.SAVING):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ResourceError, match="Input/output error.*existing files are kept"):
        save(tmp_path, 1, content=9)
    assert valid_in(tmp_path) == [1] and _names(tmp_path) == {"checkpoint-1"}


def _saved(run: Path, *steps: int) -> None:
    for step in steps:
        save(run, step)
