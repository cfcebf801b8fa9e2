"""The state, besides the weights, that an exact resume needs: optimizer, schedule, random state; saved and loaded.

Nothing here unpickles code: only tensors and plain values, with torch's `weights_only`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastchat.errors import CheckpointError

OPTIMIZER, SCHEDULER, SCALER, STATE = "optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json"
LATEST = "latest"  # DeepSpeed's pointer to its folder of shards


def rank_file(rank: int) -> str:
    """The file with the state of one process."""
    return f"rank_{rank}.pt"


def random_state() -> dict[str, Any]:
    """The state of every random number generator of this process, as tensors and plain numbers."""
    version, words, gauss = random.getstate()
    numbers: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = numbers
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restores the random number generators of this process to a state returned by `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def load_tensors(path: Path, *, lazily: bool = False) -> Any:
    """The contents of a state file, on the CPU. CheckpointError if it is missing or has more than plain values.

    `lazily`: tensors stay in the file until they are used.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the run cannot resume exactly; try --resume_weights_only")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except Exception as error:  # noqa: BLE001 - torch raises many classes
        raise CheckpointError(f"{path} cannot be loaded safely: {str(error).strip().splitlines()[0]}") from None


def settings_of_groups(optimizer: Any) -> list[dict[str, Any]]:
    """The options of each parameter group: learning rate, betas, weight decay; without the parameters."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def apply_settings(optimizer: Any, scheduler: Any, wanted: list[dict[str, Any]]) -> None:
    """After loading a state, restores the newly configured values, at the schedule's current position.

    `wanted` was taken before loading from the new optimizer, to whose groups the schedule had already been applied.
    """
    for group, new in zip(optimizer.param_groups, wanted, strict=True):
        group.update({k: v for k, v in new.items() if k != "lr"})
    bases = [new.get("initial_lr", new["lr"]) for new in wanted]
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        scheduler.base_lrs = bases
        rates = [base * rule(scheduler.last_epoch) for base, rule in zip(bases, scheduler.lr_lambdas, strict=True)]
        scheduler._last_lr = rates
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
