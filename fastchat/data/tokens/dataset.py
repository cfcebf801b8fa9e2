"""The dataset that the Trainer indexes: examples tokenised before the run. Needs no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastchat.data.tokens.store import TokenStore
from fastchat.errors import counted


class ChatDataset:
    """The examples of a TokenStore, or those whose numbers are in `chosen` (int64 [E], ascending)."""

    def __init__(self, store: TokenStore, chosen: np.ndarray | None = None):
        self.store, self.chosen = store, chosen

    def __len__(self) -> int:
        return len(self.store) if self.chosen is None else len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.store[i if self.chosen is None else int(self.chosen[i])]

    def ids(self, example: int) -> np.ndarray:
        """The token ids of an example, int32 [T]."""
        return self[example]["input_ids"]

    def beginnings(self, examples: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of some examples, int64 [n], which all have so many: int32 [n, stop - start]."""
        offsets = self.store.offsets[examples if self.chosen is None else self.chosen[examples]]
        return self.store.ids[offsets[:, None] + np.arange(start, stop)]

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
