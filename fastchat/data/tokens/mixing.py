"""Which dialogues of the data a run uses: fixed proportions of several sources, and a part held out for evaluation.

Selected at random by seed; the same in every process, on every machine and with every version of numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastchat.errors import SettingsError


def check_proportions(proportions: Sequence[float], num_sources: int) -> None:
    """Raise SettingsError unless there is one positive number for each source."""
    given = " ".join(f"{p:g}" for p in proportions)
    if len(proportions) != num_sources:
        raise SettingsError(
            f"--data_proportions {given}: {len(proportions)} numbers for {num_sources} values of --data_path; "
            "give one for each"
        )
    if not all(0 < p < math.inf for p in proportions):
        raise SettingsError(
            f"--data_proportions {given}: each must be above 0; remove the sources that you do not want"
        )


def proportional(sizes: Sequence[int], proportions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Which dialogues of each source make up an epoch.

    `proportions` are shares of the dialogues of an epoch; only their ratio matters. The epoch is as large as possible
    without repeating a dialogue: the source that is too short for its share is used completely, the others in part.

    Args:
        sizes: dialogues of each source.

    Returns:
        For each source, the numbers of its dialogues that are used, int64, ascending.

    >>> [len(taken) for taken in proportional([80, 21], [0.7, 0.3], seed=0)]
    [49, 21]
    """
    total = min(size / share for size, share in zip(sizes, proportions, strict=True))
    taken = []
    for number, (size, share) in enumerate(zip(sizes, proportions, strict=True)):
        wanted = min(int(share * total + 1e-6), size)
        taken.append(_drawn(size, wanted, [seed, number]))
    return taken


def proportions_line(names: Sequence[str], taken: Sequence[int], sizes: Sequence[int]) -> str:
    """One line: how many dialogues of each source are used."""
    parts = [f"{part:,} of {size:,} from {name}" for name, part, size in zip(names, taken, sizes, strict=True)]
    return f"--data_proportions: {sum(taken):,} dialogues make up an epoch: {', '.join(parts)}"


def held_out_line(size: int, num_dialogues: int) -> str:
    """One line: how many dialogues are held out."""
    return (
        f"--val_set_size: {size:,} of {num_dialogues:,} dialogues are held out, {num_dialogues - size:,} are trained on"
    )


def num_held_out(val_set_size: float, num_dialogues: int) -> int:
    """The number of dialogues that `--val_set_size` means: the value itself or, below 1, that fraction (at least one).

    Raises SettingsError if none would be left to train on.
    """
    held_out = int(val_set_size) if val_set_size >= 1 else max(1, round(val_set_size * num_dialogues))
    if held_out >= num_dialogues:
        raise SettingsError(
            f"--val_set_size {val_set_size:g}: none of the {num_dialogues:,} dialogues would be left to train on"
        )
    return held_out


def held_out(num_dialogues: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, held out): the numbers below `num_dialogues`, int64, ascending, each in exactly one of the two."""
    out = _drawn(num_dialogues, size, [seed, 2**32 - 1])
    stays = np.ones(num_dialogues, bool)
    stays[out] = False
    return np.flatnonzero(stays), out


def _drawn(size: int, wanted: int, seed: list[int]) -> np.ndarray:
    # numpy guarantees that this generator never changes; the newer ones may change with a release
    return np.sort(np.random.RandomState([number % 2**32 for number in seed]).permutation(size)[:wanted]).astype(
        np.int64
    )
