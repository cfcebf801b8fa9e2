"""What the Trainer indexes: examples tokenised before the run, or (`--lazy_preprocess`) each when it is asked for.

Both have `__len__`, `__getitem__` (a dict with input_ids, labels, index) and `lengths`, and need no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastchat.data.binding import BoundEncoder
from fastchat.data.counts import hint_at_causes
from fastchat.data.loading import Record
from fastchat.data.store import TokenStore, digest
from fastchat.data.tokenization import IGNORED, Example, tokenize_dialogue
from fastchat.errors import DataError, say


class ChatDataset:
    """The examples of a TokenStore, or those of them whose numbers `chosen` (int64 [E], rising) holds."""

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
        """64 bits of what each dialogue says, uint64 [E]."""
        return self._of_chosen(self.store.digests)

    @property
    def num_supervised(self) -> np.ndarray:
        """Supervised tokens of each example, int32 [E]."""
        return self._of_chosen(self.store.supervised)

    def _of_chosen(self, values: np.ndarray) -> np.ndarray:
        return values if self.chosen is None else values[self.chosen]


class LazyChatDataset:
    """Tokenises on access, so that the run starts at once. It keeps the texts of all dialogues in memory.

    The price: how many tokens are supervised, cut or straddling is not known beforehand. A dialogue of which nothing
    can be learned turns out only when its turn comes: it then stands as one token without a label, and is named once.

    Raises:
        DataError: no dialogue at all has anything to learn (looked for until the first one has).
    """

    def __init__(self, records: Sequence[Record], bound: BoundEncoder, *, max_length: int, overlong: str):
        self._usable = [(r.index, r.dialogue) for r in records if r.dialogue is not None]
        self._bound, self._max_length, self._overlong = bound, max_length, overlong
        self._named: set[int] = set()
        if not any(self._example(i).dropped is None for i in range(len(self._usable))):
            counts = {f"dropped_{reason}": 1 for reason in self._reasons(records)}
            raise DataError(
                f"Not one supervised token in the {len(records)} rows of the data: there is nothing to train on. "
                + hint_at_causes(counts, max_length)
            )

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self._example(i)
        if example.dropped is not None:
            return self._nothing_to_learn(i, example.dropped)
        ids, labels = (np.array(x, dtype=np.int32) for x in (example.input_ids, example.labels))
        return {"input_ids": ids, "labels": labels, "index": example.index}

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each dialogue, int64 [E]: nearly in proportion to its tokens, enough for grouping by length."""
        return np.array([sum(len(turn.text) for turn in dialogue.turns) for _, dialogue in self._usable])

    @property
    def digests(self) -> np.ndarray:
        """64 bits of what each dialogue says, uint64 [E]."""
        return np.array([digest(dialogue) for _, dialogue in self._usable], np.uint64)

    def _example(self, i: int) -> Example:
        index, dialogue = self._usable[i]
        return tokenize_dialogue(
            dialogue, self._bound, max_length=self._max_length, overlong=self._overlong, index=index
        )

    def _nothing_to_learn(self, i: int, reason: str) -> dict[str, Any]:
        index, dialogue = self._usable[i]
        if index not in self._named:
            self._named.add(index)
            say(f"{dialogue.where}: nothing of it is trained ({reason})")
        first = self._bound.encode(self._bound.template.render(dialogue)).input_ids[:1]
        return {"input_ids": np.array(first, np.int32), "labels": np.array([IGNORED], np.int32), "index": index}

    def _reasons(self, records: Sequence[Record]) -> set[str]:
        found = {record.dropped for record in records} | {self._example(i).dropped for i in range(len(self))}
        return {reason for reason in found if reason}
