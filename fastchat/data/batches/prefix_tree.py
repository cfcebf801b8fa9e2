"""Examples that begin alike, as a tree over their token ids: every common prefix is computed once.

    examples     s u1 t1 a1         one example per answer: the thoughts t1 are not part of the history of a2
                 s u1 a1 u2 t2 a2   (s: system prompt, u: question, a: answer)

    tree         s u1 a1 u2 t2 a2 t1 a1        depth first: what follows a token and depends on it is one interval
    position     0  1  2  3  4  5  2  3        the depth
    parent       -  0  1  2  3  4  1  6        whose hidden state predicts the token
    end          8  8  6  6  6  6  8  8        query q sees key k exactly if k <= q < end[k]

The loss of the tree is the sum of the losses of the examples: a token that several of them supervise counts as often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastchat.data.encoding.examples import IGNORED


@dataclass(frozen=True)
class PrefixTree:
    """The tokens of a tree (or of several with no common token), depth first; all arrays int64 [T].

    Attributes:
        ids: token ids.
        positions: the place of each token in its examples, from 0.
        parents: the index of the token before it in its examples; its own index at the beginning of an example.
        ends: the index after the last token that has this one before it.
        counts: how many examples supervise the token.
    """

    ids: np.ndarray
    positions: np.ndarray
    parents: np.ndarray
    ends: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> np.ndarray:
        """The id where at least one example supervises the token, else -100: int64 [T]."""
        return np.where(self.counts > 0, self.ids, IGNORED)


def grow(examples: Sequence[Mapping[str, Any]]) -> PrefixTree:
    """The tree of some examples with "input_ids" and "labels" ([T] each; a label is the id itself or -100).

    The first token of an example is never supervised, since nothing predicts it.

    Example:
        >>> tree = grow([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5, 6], "labels": [-100, 6]}])
        >>> tree.ids.tolist(), tree.counts.tolist()
        ([5, 6, 7], [0, 2, 1])
    """
    rows = [np.asarray(example["input_ids"], dtype=np.int64) for example in examples]
    order = depth_first(rows)
    shared = common_prefixes([rows[i] for i in order])
    total = sum(map(len, rows)) - int(shared.sum())
    ids, positions, parents, ends, counts = (np.zeros(total, dtype=np.int64) for _ in range(5))
    path, size = np.zeros(0, dtype=np.int64), 0  # the indices of the last example's tokens; tokens so far
    for i, common in zip(order, shared.tolist(), strict=True):
        ends[path[common:]] = size
        new = np.arange(size, size + len(rows[i]) - common)
        path = np.concatenate([path[:common], new])
        ids[new], positions[new] = rows[i][common:], np.arange(common, len(rows[i]))
        parents[new] = np.concatenate([path[:1], path])[common : len(rows[i])]
        size += len(new)
        supervised = np.asarray(examples[i]["labels"]) != IGNORED
        assert len(supervised) == len(path), (len(supervised), len(path))
        counts[path[1:][supervised[1:]]] += 1
    ends[path] = size
    return PrefixTree(ids, positions, parents, ends, counts)


def depth_first(rows: Sequence[np.ndarray]) -> list[int]:
    """The order of rows of token ids in which those that begin alike are neighbours: a permutation of their numbers.

    >>> depth_first([np.array([1, 2]), np.array([3]), np.array([1, 4])])
    [0, 2, 1]
    """
    keys = [row.astype(">u4").tobytes() for row in rows]
    return sorted(range(len(rows)), key=keys.__getitem__)


def common_prefixes(rows: Sequence[np.ndarray]) -> np.ndarray:
    """How many tokens each of the rows begins with that the one before it begins with too: int64 [E], the first 0."""
    found = np.zeros(len(rows), dtype=np.int64)
    for i in range(1, len(rows)):
        before, row = rows[i - 1], rows[i]
        length = min(len(before), len(row))
        differs = before[:length] != row[:length]
        first = int(differs.argmax()) if length else 0
        found[i] = first if length and differs[first] else length
    return found


def tree_size(rows: Sequence[np.ndarray]) -> int:
    """Tokens of the tree of some rows of token ids."""
    ordered = [rows[i] for i in depth_first(rows)]
    return sum(map(len, rows)) - int(common_prefixes(ordered).sum())
