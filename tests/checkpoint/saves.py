"""One small save of real files, and children that die in the middle of it."""

from __future__ import annotations

import builtins
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastchat.checkpoint import staging
from fastchat.checkpoint.manager import save_checkpoint
from fastchat.checkpoint.manifest import Manifest, find_problems
from fastchat.checkpoint.staging import checkpoints_in

DIED, COUNTED = 77, 0
# Every call with which a save changes the disk or waits for it. `exchange` is the only system call not in `os`.
_OS_CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "chmod", "write")


def write_files(content: int) -> Callable[[Path], None]:
    """Weights, optimizer, state of the process and a nested shard; `content` makes them differ between saves."""
    import torch
    from safetensors.torch import save_file

    def write(stage: Path) -> None:
        tensor = torch.full((64,), float(content))
        save_file({"weight": tensor}, stage / "adapter_model.safetensors")
        torch.save({"state": {0: {"exp_avg": tensor}}}, stage / "optimizer.pt")
        torch.save({"torch": torch.random.get_rng_state()}, stage / "rank_0.pt")
        (stage / "trainer_state.json").write_text(f'{{"global_step": {content}}}')
        (stage / "global_step").mkdir()
        torch.save({"shard": tensor}, stage / "global_step" / "shard_0.pt")

    return write


def save(run: Path, step: int, keep: int | None = None, content: int | None = None) -> Path:
    """One checkpoint of this process."""
    return save_checkpoint(run, Manifest(step=step), write_files(step if content is None else content), keep=keep)


def valid_in(run: Path) -> list[int]:
    """Steps of the checkpoints in which every byte is correct."""
    return [step for step, path in checkpoints_in(run) if not find_problems(path)]


def dying_at(event: int, half: bool, work: Callable[[], Any]) -> int:
    """Runs `work` in a forked child that exits silently at file-system event number `event`.

    With `half` an event that writes or removes is done before the end, else not. Returns the child's exit code.
    """
    child = os.fork()
    if child == 0:
        try:
            _count_events(event, half)
            work()
            os._exit(COUNTED)
        except BaseException:  # noqa: BLE001 - a child must never go back into pytest
            traceback.print_exc()
            os._exit(99)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def all_deaths(
    prepare: Callable[[Path], None], work: Callable[[Path], Any], folder: Path
) -> Iterator[tuple[int, Path]]:
    """For every event of `work(run)`, before and after it: (event, the run folder as that death left it)."""
    event = 0
    while True:
        ended = 0
        for half in (False, True):
            run = folder / f"run-{event}-{half}"
            prepare(run)
            code = dying_at(event, half, lambda run=run: work(run))
            assert code in (DIED, COUNTED), code
            if code == COUNTED:
                ended += 1
            yield event, run
            shutil.rmtree(run)
        if ended:
            return
        event += 1


def _count_events(last: int, half: bool) -> None:
    """Ends this process at event number `last`."""
    seen = [0]

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            mine = seen[0] == last
            seen[0] += 1
            if mine and half:
                call(*args, **kwargs)
            if mine:
                os._exit(DIED)
            return call(*args, **kwargs)

        return instead

    for name in _OS_CALLS:
        setattr(os, name, dying(getattr(os, name)))
    staging.exchange = dying(staging.exchange)
    _torn_writes(dying)


def _torn_writes(dying: Callable[..., Any]) -> None:
    """Weights and pickles are written by compiled code: dying after such a write leaves half of its file."""
    import safetensors.torch
    import torch

    def torn(call: Callable[..., Any], position: int) -> Callable[..., Any]:
        def half_of(*args: Any, **kwargs: Any) -> None:
            call(*args, **kwargs)
            path = args[position]
            if isinstance(path, (str, Path)):
                os.truncate(path, os.path.getsize(path) // 2)

        whole, half = call, dying(half_of)

        def instead(*args: Any, **kwargs: Any) -> None:
            half(*args, **kwargs)  # ends the process here, or leaves a torn file that the whole write replaces
            whole(*args, **kwargs)

        return instead

    torch.save = torn(torch.save, 1)
    safetensors.torch.save_file = torn(safetensors.torch.save_file, 1)
    builtins.open = dying(builtins.open)
