"""Which dialogue (with --packing: which pack of them) is trained when: the same global batches for any number of
processes.

Global batch k is a fixed slice of one permutation. It is cut into rows of `world_size * per_device_batch` dialogues,
one micro-step each, and every process takes its part of a row:

    global batch of 8, two processes, per-device batch 2, accumulation 2
    permutation  [a b c d | e f g h]      rank 0 trains [a b] then [e f], rank 1 trains [c d] then [g h]

The tail of an epoch is shorter, never filled with dialogues that were trained already: a process without a dialogue
gets `DUMMY`, a row without supervised tokens that adds exactly zero, so that all processes still meet in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

DUMMY = -1
_MEGABATCHES = 50  # grouping by length sorts this many global batches at a time, so that the order stays mostly random


class GlobalBatchSampler:
    """The micro-batches of one process, one list of dialogue numbers each; a torch batch sampler.

    Args: `num_samples` dialogues; `micro` per process and micro-step; `accumulation` micro-steps per optimizer step;
    `order` "random", "sequential" or "group_by_length" (then `lengths` holds one number per dialogue); `drop_last`
    leaves an incomplete global batch out.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        micro: int,
        accumulation: int,
        world_size: int,
        rank: int,
        seed: int,
        order: str = "random",
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.num_samples, self.micro, self.world_size, self.rank = num_samples, micro, world_size, rank
        self.row = micro * world_size
        self.global_batch = self.row * accumulation
        self.seed, self.order, self.drop_last = seed, order, drop_last
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Epochs differ in order; the same epoch is always the same."""
        self.epoch = epoch

    def permutation(self) -> np.ndarray:
        """All dialogue numbers in this epoch's order, [num_samples], or fewer with `drop_last`."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = np.arange(self.num_samples) if self.order == "sequential" else rng.permutation(self.num_samples)
        if self.order == "group_by_length":
            order = self._grouped(order, rng)
        return order[: len(order) // self.global_batch * self.global_batch] if self.drop_last else order

    def _grouped(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sorts megabatches by length, shuffles global batches, longest first: memory runs out early or never."""
        assert self.lengths is not None, "grouping needs lengths"
        size = self.global_batch * _MEGABATCHES
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([c[np.argsort(-self.lengths[c], kind="stable")] for c in chunks])
        whole = len(order) // self.global_batch
        if whole < 2:
            return order
        batches = order[: whole * self.global_batch].reshape(whole, self.global_batch)
        shuffled = rng.permutation(whole)
        longest = int(np.argmax(self.lengths[batches].max(axis=1)))
        shuffled = np.concatenate([[longest], shuffled[shuffled != longest]])
        return np.concatenate([batches[shuffled].reshape(-1), order[whole * self.global_batch :]])

    def of_step(self, step: int) -> list[list[int]]:
        """The micro-batches of this process in optimizer step `step` (0-based, over all epochs), without dummies."""
        accumulation = self.global_batch // self.row
        epoch, within = divmod(step, -(-len(self) // accumulation))
        before, self.epoch = self.epoch, epoch
        order = self.permutation()
        self.epoch = before
        start = within * self.global_batch
        step_order = order[start : start + self.global_batch]
        return [self._mine(step_order[row : row + self.row]) for row in range(0, len(step_order), self.row)]

    def _mine(self, row: np.ndarray) -> list[int]:
        """This process's part of a row; a short one, at an epoch's end, is shared out evenly too."""
        return np.array_split(row, self.world_size)[self.rank].tolist()

    def seen_after(self, steps: int, sizes: np.ndarray | None = None) -> int:
        """Dialogues that all processes together have trained after so many optimizer steps.

        `sizes`: where the numbers dealt out are packs, how many dialogues are in each, [num_samples].
        """
        accumulation = self.global_batch // self.row
        epochs, within = divmod(steps, -(-len(self) // accumulation))
        before, seen = self.epoch, 0
        for self.epoch in range(epochs + 1):
            order = self.permutation()[: None if self.epoch < epochs else within * self.global_batch]
            seen += len(order) if sizes is None else int(sizes[order].sum())
        self.epoch = before
        return seen

    def __len__(self) -> int:
        count = self.num_samples // self.global_batch * self.global_batch if self.drop_last else self.num_samples
        return -(-count // self.row)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.permutation()
        for start in range(0, len(order), self.row):
            yield self._mine(order[start : start + self.row]) or [DUMMY]


class WithDummy:
    """A dataset that also answers to `DUMMY`: two tokens, nothing supervised. Works for torch's DataLoader."""

    def __init__(self, dataset: object, token_id: int) -> None:
        self.dataset = dataset
        self.dummy = {"input_ids": [token_id, token_id], "labels": [-100, -100]}

    def __len__(self) -> int:
        return len(self.dataset)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> dict[str, object]:
        if index == DUMMY:
            return {key: list(value) for key, value in self.dummy.items()}
        return self.dataset[index]  # pyright: ignore[reportIndexIssue]
