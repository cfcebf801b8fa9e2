"""The dataset that the Trainer indexes: examples tokenised before the run. Needs no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastchat.data.tokens.store import TokenStore


class ChatDataset:
    """The examples of a TokenStore, or those whose numbers are in `chosen` (int64 [E], ascending)."""

    def __init__(self, store: TokenStore, chosen: np.ndarray | None = None):
        self.store, self.chosen = store, chosen

    def __len__(self) -> int:
        return len(self.store) if self.chosen is None else len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.store[i if self.chosen is None else int(self.chosen[i])]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [E]: for grouping by length."""
        return self._of_chosen(self.store.lengths)

    @property
    def digests(self) -> np.ndarray:
        """64-bit digest of each dialogue's texts, uint64 [E]."""
        return self._of_chosen(self.store.digests)

    @property
    def num_supervised(self) -> np.ndarray:
        """Supervised tokens of each example, int32 [E]."""
        return self._of_chosen(self.store.supervised)

    def _of_chosen(self, values: np.ndarray) -> np.ndarray:
        return values if self.chosen is None else values[self.chosen]
