"""All examples of a run in flat arrays: no Python object per token, and a file that every rank can map.

ids      int32 [N]      the token ids of all examples, one after the other
labels   int32 [N]      beside each id: itself where it is supervised, else -100
offsets  int64 [E + 1]  example i is ids[offsets[i]:offsets[i + 1]]
index    int64 [E]      which row of the input it was
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastchat.data.binding import BoundEncoder
from fastchat.data.counts import count_example, hint_at_causes, table
from fastchat.data.loading import Record
from fastchat.data.progress import with_bar
from fastchat.data.tokenization import IGNORED, Example, tokenize_dialogues
from fastchat.errors import DataError

_FIELDS = {"ids": np.int32, "labels": np.int32, "offsets": np.int64, "index": np.int64}


class TokenStore:
    """Examples in flat arrays; `store[i]` is a dict with input_ids and labels (int32 [T], views) and index."""

    def __init__(self, ids: np.ndarray, labels: np.ndarray, offsets: np.ndarray, index: np.ndarray):
        self.ids, self.labels, self.offsets, self.index = ids, labels, offsets, index

    @classmethod
    def of_examples(cls, examples: Iterable[Example]) -> TokenStore:
        """Collect examples; those that were dropped are left out."""
        ids, labels, offsets, index = array("i"), array("i"), array("q", [0]), array("q")
        for example in examples:
            if example.dropped is None:
                ids.extend(example.input_ids)
                labels.extend(example.labels)
                offsets.append(len(ids))
                index.append(example.index)
        parts = zip((ids, labels, offsets, index), _FIELDS.values(), strict=True)
        return cls(*(np.frombuffer(part, dtype=dtype) if part else np.empty(0, dtype) for part, dtype in parts))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        span = slice(*self.offsets[i % len(self) :][:2])
        return {"input_ids": self.ids[span], "labels": self.labels[span], "index": int(self.index[i])}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example: int64 [E]."""
        return np.diff(self.offsets)

    @property
    def num_supervised(self) -> np.ndarray:
        """Supervised tokens of each example: int64 [E]."""
        before = np.concatenate([[0], np.cumsum(self.labels != IGNORED)])
        return np.diff(before[self.offsets])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the arrays into a new folder `directory`, which is complete as soon as it is there.

        Raises OSError where the folder exists and is not empty.
        """
        target = Path(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        staged.mkdir()
        try:
            for name in _FIELDS:
                np.save(staged / f"{name}.npy", getattr(self, name), allow_pickle=False)
            os.replace(staged, target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    @classmethod
    def load(cls, directory: str | os.PathLike[str], mmap: bool = True) -> TokenStore:
        """Read a saved store; with `mmap` the arrays stay in the file and all processes share one copy.

        Raises:
            DataError: a file is missing, cut off, or does not belong to the others.
        """
        mode = "r" if mmap else None
        try:
            parts = {n: np.load(Path(directory) / f"{n}.npy", mmap_mode=mode, allow_pickle=False) for n in _FIELDS}
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{directory}: not a readable token store ({error}); delete it and tokenise again."
            ) from None
        store = cls(**parts)
        if not store._is_consistent():
            raise DataError(f"{directory}: the arrays of this token store do not fit together; tokenise again.")
        return store

    def _is_consistent(self) -> bool:
        types = all(getattr(self, n).dtype == dtype and getattr(self, n).ndim == 1 for n, dtype in _FIELDS.items())
        sizes = len(self.ids) == len(self.labels) and len(self.offsets) == len(self.index) + 1
        if not (types and sizes):
            return False
        return bool(self.offsets[0] == 0 and self.offsets[-1] == len(self.ids) and (np.diff(self.offsets) > 0).all())


def build_store(
    records: Sequence[Record], bound: BoundEncoder, *, max_length: int, overlong: str, progress: bool
) -> tuple[TokenStore, dict[str, int]]:
    """Tokenise all usable records, in order.

    Args:
        max_length: in tokens; `overlong` ("truncate", "drop", "error") says what happens to longer dialogues.
        progress: show a bar on stderr.

    Returns:
        The store, and the counts: rows, dropped_<reason>, dialogues, tokens, supervised_tokens, ...

    Raises:
        DataError: nothing is supervised (with the counts), or a dialogue is too long and `overlong` is "error".
    """
    counts: Counter[str] = Counter(rows=len(records))
    counts.update(f"dropped_{record.dropped}" for record in records if record.dropped)
    usable = [(record.index, record.dialogue) for record in records if record.dialogue is not None]
    examples = tokenize_dialogues(usable, bound, max_length=max_length, overlong=overlong)
    store = TokenStore.of_examples(_counted(with_bar(examples, len(usable), progress), counts))
    if not counts["supervised_tokens"]:
        raise DataError(
            "Not one supervised token in the data: there is nothing to train on.\n"
            f"{table(counts)}\n{hint_at_causes(counts, max_length)}"
        )
    return store, dict(counts)


def _counted(examples: Iterable[Example], counts: Counter[str]) -> Iterator[Example]:
    for example in examples:
        count_example(counts, example)
        yield example
