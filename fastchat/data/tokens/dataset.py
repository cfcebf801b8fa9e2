"""The dataset that the Trainer indexes: examples tokenised before the run. Needs no torch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastchat.data.encoding.examples import IGNORED
from fastchat.data.tokens.store import TokenStore
from fastchat.errors import counted

_ENDING = 4  # tokens that a template writes after an answer, about


class ChatDataset:
    """The examples of a TokenStore, or those whose numbers are in `chosen` (int64 [E], ascending)."""

    def __init__(self, store: TokenStore, chosen: np.ndarray | None = None):
        self.store, self.chosen = store, chosen

    def __len__(self) -> int:
        return len(self.store) if self.chosen is None else len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.store[i if self.chosen is None else int(self.chosen[i])]

    def beginnings(self, examples: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of some examples, int64 [n], which all have so many: int32 [n, stop - start]."""
        offsets = self.store.offsets[examples if self.chosen is None else self.chosen[examples]]
        return self.store.ids[offsets[:, None] + np.arange(start, stop)]

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Tokens of each example up to its last supervised one, int64 [E]; all, where none is."""
        labels, starts, ends = self.store.labels, self.store.offsets[:-1], self.store.offsets[1:].copy()
        still = np.flatnonzero(self.store.supervised > 0)
        for _ in range(_ENDING):
            still = still[labels[ends[still] - 1] == IGNORED]
            ends[still] -= 1
        for i in still.tolist():
            ends[i] = starts[i] + np.flatnonzero(labels[starts[i] : ends[i]] != IGNORED)[-1] + 1
        return self._of_chosen(ends - starts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [E]: for grouping by length."""
        return self._of_chosen(self.store.lengths)

    @property
    def dialogue_starts(self) -> np.ndarray:
        """The number of the first example of each dialogue, int64 [D], ascending: a dialogue may be several examples,
        one after the other, of which all or none are chosen."""
        index = self._of_chosen(self.store.index)
        return np.flatnonzero(np.diff(index, prepend=-1))

    @property
    def num_dialogues(self) -> int:
        """The number of dialogues."""
        return len(self.dialogue_starts)

    @property
    def size(self) -> str:
        """The number of dialogues, and of examples if that is another number, for messages."""
        examples = f" ({counted(len(self), 'example')})" if len(self) != self.num_dialogues else ""
        return f"{counted(self.num_dialogues, 'dialogue')}{examples}"

    def examples_of(self, dialogues: np.ndarray) -> np.ndarray:
        """The numbers of all examples of some dialogues, int64, ascending. `dialogues`: their numbers, int64."""
        starts = self.dialogue_starts
        wanted = np.zeros(len(starts), bool)
        wanted[dialogues] = True
        return np.flatnonzero(np.repeat(wanted, np.diff(starts, append=len(self))))

    @property
    def digests(self) -> np.ndarray:
        """64-bit digest of the texts of each example's dialogue, uint64 [E]."""
        return self._of_chosen(self.store.digests)

    @property
    def num_supervised(self) -> np.ndarray:
        """Supervised tokens of each example, int32 [E]."""
        return self._of_chosen(self.store.supervised)

    def _of_chosen(self, values: np.ndarray) -> np.ndarray:
        return values if self.chosen is None else values[self.chosen]


class WithoutTails:
    """A ChatDataset without what follows the last supervised token of each example: in a causal model nothing of it
    reaches the loss. An example in which nothing is supervised stays whole.

    `whole`: set it for a model whose loss depends on all tokens; the examples are then those of the dataset.
    """

    def __init__(self, dataset: ChatDataset):
        self.dataset, self.whole = dataset, False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self.dataset[i]
        supervised = np.flatnonzero(example["labels"] != IGNORED)
        if self.whole or not len(supervised):
            return example
        kept = slice(int(supervised[-1]) + 1)
        return example | {"input_ids": example["input_ids"][kept], "labels": example["labels"][kept]}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [E]."""
        return self.dataset.lengths if self.whole else self.dataset.ends

    @property
    def dialogue_starts(self) -> np.ndarray:
        """As for a ChatDataset."""
        return self.dataset.dialogue_starts

    def ids(self, example: int) -> np.ndarray:
        """The token ids of an example, int32 [T]."""
        return self[example]["input_ids"]

    def beginnings(self, examples: np.ndarray, start: int, stop: int) -> np.ndarray:
        """As for a ChatDataset; `stop` is at most the length of every example."""
        return self.dataset.beginnings(examples, start, stop)
