"""A run that resumes with another number of processes than it was saved by: what stays the same, and what cannot.

The global batch stays (the accumulation follows from it), and with it the order of the dialogues, which does not
depend on the processes. Random numbers cannot: each process draws its own, so that dropout has other masks from there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastchat.checkpoint.manifest import read_manifest
from fastchat.checkpoint.record import read_training_record
from fastchat.checkpoint.staging import checkpoints_in
from fastchat.errors import CheckpointError, SettingsError, counted
from fastchat.processes import on_main_process, world_size
from fastchat.settings.values import Values

_MICRO, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_SHOWN = 4


def keep_global_batch(values: Values) -> None:
    """Sets the accumulation so that the run has the global batch of its checkpoint. Every process calls it.

    Nothing to do where the number of processes is the same, or nothing is resumed. SettingsError where no accumulation
    gives that batch, with the values that do.
    """
    saved = on_main_process(lambda: _saved(values))
    if saved is None:
        return
    where, batch, processes = saved
    now, micro = world_size(), values[_MICRO]
    if processes == now or micro * values[_ACCUMULATION] * now == batch:
        return
    was = f"{where} was saved by {counted(processes, 'process')} with a global batch of {batch}"
    if batch % (micro * now) == 0:
        accumulation = batch // (micro * now)
        line = f"{was}: --{_ACCUMULATION} is {accumulation} on {counted(now, 'process')}"
        values.derive(_ACCUMULATION, accumulation, line)
        return
    if batch % now:
        fitting = [str(n) for n in range(1, batch + 1) if batch % n == 0]
        raise SettingsError(
            f"{was}, which {now} processes cannot share: start {' or '.join(fitting[:8])}, or name another --output_dir"
        )
    each = batch // now
    pairs = [f"--{_MICRO} {m} --{_ACCUMULATION} {each // m}" for m in range(min(each, micro), 0, -1) if each % m == 0]
    raise SettingsError(
        f"{was}, which is {each} for each of {counted(now, 'process')}: give {' or '.join(pairs[:_SHOWN])}"
    )


def _saved(values: Values) -> tuple[str, int, int] | None:
    """(where, global batch, processes) of what the run may resume from. What is wrong with it is found later."""
    choice = values["resume_from_checkpoint"] or "auto"
    if choice == "never" or (choice == "auto" and values["overwrite_output_dir"]):
        return None
    output = Path(values["output_dir"]).expanduser()
    steps = checkpoints_in(output) if choice == "auto" else [(0, Path(choice).expanduser())]
    try:
        if steps:
            found: Any = read_manifest(steps[-1][1])
        else:
            found = read_training_record(output)
    except CheckpointError:
        return None
    batch = found.fingerprints.get("global_batch") if found is not None else None
    return (str(steps[-1][1] if steps else output), batch, found.world_size) if batch else None


def joined(progresses: Sequence[dict[str, Any]], *, first: bool) -> dict[str, Any]:
    """What the first process (`first`), or another one, goes on counting from, of what each process had counted.

    `run` holds sums over all processes already; the other tensors are each process's own.
    """
    whole = dict(progresses[0])
    for name, value in whole.items():
        if isinstance(value, torch.Tensor) and name != "run":
            total = torch.stack([progress[name] for progress in progresses]).sum(dim=0)
            whole[name] = total if first else torch.zeros_like(total)
    return whole


def new_random_state(seed: int, step: int, rank: int) -> None:
    """Random numbers that only depend on these three, and that no other process or step has."""
    (word,) = np.random.SeedSequence([seed, step, rank]).generate_state(1)
    random.seed(int(word))
    np.random.seed(int(word))
    torch.manual_seed(int(word))
