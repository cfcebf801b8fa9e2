"""Packs whose rows are prefix trees: which examples share a row, so that what they begin with is computed once.

The examples of a dialogue are one tree; one that is longer than a pack is cut into several. Dialogues that have a
quarter of their tokens in common, or more (several answers to one question), and fit into a pack together are one tree
as well. Trees that begin alike (with a system prompt, a list of tools) are packed among themselves, where that saves a
whole pack or more: their packs are planned without the common tokens, which each pack holds once. `plan_packs` plans
both these and the rest.

Where less than 5 % of all tokens would be saved there are no trees, and the packs are those of `plan_packs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastchat.data.batches.packing import Packs, plan_packs
from fastchat.data.batches.prefix_tree import common_prefixes, depth_first, tree_size

_WORTH = 0.05  # of all tokens
_SHORTEST = 16  # tokens that trees of several dialogues begin with: fewer save nothing to speak of
_ALIKE = 0.25  # of the tokens of dialogues that become one tree
_BLOCK = 1 << 22  # tokens that are compared at a time

_Level = tuple[int, np.ndarray, np.ndarray, np.ndarray]


class Dataset(Protocol):
    """What is asked of a ChatDataset."""

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def dialogue_starts(self) -> np.ndarray: ...

    def ids(self, example: int) -> np.ndarray: ...

    def beginnings(self, examples: np.ndarray, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class _Trees:
    """N trees. `trees[i]`: the examples of tree i, int64.

    Attributes:
        members, offsets: tree i is members[offsets[i]:offsets[i + 1]].
        sizes: the tokens of each tree, int64 [N].
        roots: the tokens that all examples of a tree begin with, int64 [N].
    """

    members: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    roots: np.ndarray

    @classmethod
    def of(cls, found: Sequence[tuple[np.ndarray, int, int]]) -> _Trees:
        """Of (examples, tokens, tokens that all begin with) for each tree."""
        members, sizes, roots = zip(*found, strict=True)
        offsets = np.cumsum([0, *map(len, members)])
        return cls(np.concatenate(members), offsets, np.array(sizes), np.array(roots))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, tree: int) -> np.ndarray:
        return self.members[self.offsets[tree] : self.offsets[tree + 1]]

    @property
    def first(self) -> np.ndarray:
        """One example of each tree, int64 [N]."""
        return self.members[self.offsets[:-1]]


@dataclass(frozen=True)
class _Cluster:
    """The numbers of trees that all begin with the same `prefix` tokens."""

    trees: np.ndarray
    prefix: int


def plan_shared_packs(dataset: Dataset, capacity: int, seed: int = 0) -> Packs | None:
    """The packs of a dataset as prefix trees; None where that saves too little, or an example exceeds `capacity`.

    `capacity`: tokens of a pack, each common prefix counted once. `seed`: as for `plan_packs`.
    """
    lengths = dataset.lengths
    if not len(lengths) or lengths.max() > capacity:
        return None
    trees = _of_dialogues(dataset, capacity)
    levels = list(_levels(dataset, trees, capacity))
    if merged := _merged(dataset, trees, levels, capacity):
        trees, levels = merged, list(_levels(dataset, merged, capacity))
    clusters = _clusters(dataset, trees, levels, capacity)
    total = int(lengths.sum())
    saved = total - int(trees.sizes.sum()) + sum(_saving(trees, cluster, capacity) for cluster in clusters)
    if saved < _WORTH * total:
        return None
    groups, rest = [], np.ones(len(trees), bool)
    for cluster in clusters:
        room = capacity - cluster.prefix
        packs = plan_packs(trees.sizes[cluster.trees] - cluster.prefix, room, seed)
        for pack in range(len(packs)):
            if 2 * packs.num_tokens[pack] >= room:  # the last one is filled up with others
                groups.append(cluster.trees[packs[pack]])
                rest[groups[-1]] = False
    left = np.flatnonzero(rest)
    packs = plan_packs(trees.sizes[left], capacity, seed)
    groups += [left[packs[pack]] for pack in range(len(packs))]
    return packs_of(dataset.ids, [np.concatenate([trees[i] for i in group.tolist()]) for group in groups], capacity)


def packs_of(ids: Callable[[int], np.ndarray], groups: Sequence[np.ndarray], capacity: int) -> Packs:
    """Packs of the given examples (int64 each), every pack a prefix tree, in the order of their first examples.

    `ids`: the token ids of an example.
    """
    groups = sorted((np.sort(group) for group in groups), key=lambda group: int(group[0]))
    sizes, separate = [], 0
    for group in groups:
        rows = [ids(i) for i in group.tolist()]
        sizes.append(tree_size(rows))
        separate += sum(map(len, rows))
    return Packs(np.concatenate(groups), np.cumsum([0, *map(len, groups)]), np.array(sizes), capacity, separate)


def _of_dialogues(dataset: Dataset, capacity: int) -> _Trees:
    """One tree for each dialogue, or several where it is longer than a pack."""
    lengths, starts = dataset.lengths, dataset.dialogue_starts
    if len(starts) == len(lengths):
        return _Trees(starts, np.arange(len(starts) + 1), lengths, lengths)
    found: list[tuple[np.ndarray, int, int]] = []
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(lengths)], strict=True):
        found += _cut(dataset, np.arange(start, end), capacity)
    return _Trees.of(found)


def _cut(dataset: Dataset, examples: np.ndarray, capacity: int) -> list[tuple[np.ndarray, int, int]]:
    """Trees of at most `capacity` tokens of these examples: (examples, tokens, tokens that all begin with)."""
    rows = [dataset.ids(i) for i in examples.tolist()]
    order = depth_first(rows)
    shared = common_prefixes([rows[i] for i in order]).tolist()
    found: list[tuple[list[int], int, int]] = []
    for i, common in zip(order, shared, strict=True):
        members, size, root = found[-1] if found else ([], capacity, 0)
        if size + len(rows[i]) - common > capacity:
            found.append(([i], len(rows[i]), len(rows[i])))
        else:
            found[-1] = ([*members, i], size + len(rows[i]) - common, min(root, common))
    return [(examples[members], size, root) for members, size, root in found]


def _merged(dataset: Dataset, trees: _Trees, levels: list[_Level], capacity: int) -> _Trees | None:
    """The trees, with those that are alike and fit into a pack together merged into one; None where none are."""
    unit, num = np.full(len(trees), -1), 0
    for stop, numbers, group, sizes in levels:
        tokens = np.bincount(group, weights=trees.sizes[numbers], minlength=len(sizes))
        common = stop * (sizes - 1)
        good = (common >= _ALIKE * tokens) & (tokens - common <= capacity) & (sizes > 1)
        new = good[group] & (unit[numbers] < 0)
        unit[numbers[new]] = num + group[new]
        num += len(sizes)
    if not num or unit.max() < 0:
        return None
    order = np.argsort(unit, kind="stable")
    alone, together = np.split(order, [int((unit < 0).sum())])
    parts = np.split(together, np.flatnonzero(np.diff(unit[together])) + 1)
    found = [(trees[i], int(trees.sizes[i]), int(trees.roots[i])) for i in alone.tolist()]
    for part in parts:
        found += _cut(dataset, np.concatenate([trees[i] for i in part.tolist()]), capacity)
    return _Trees.of(found)


def _levels(dataset: Dataset, trees: _Trees, capacity: int) -> Iterator[_Level]:
    """For 16, 32, 64 ... tokens: trees that begin with as many, those that begin alike in a group.

    Yields (tokens, numbers of trees, the group of each, the number of trees in each group); what was alone in its group
    is left out after that.
    """
    first, digests = trees.first, np.zeros(len(trees), dtype=np.uint64)
    numbers, start, stop = np.arange(len(trees)), 0, _SHORTEST
    while stop < capacity:
        numbers = numbers[trees.roots[numbers] >= stop]
        if not len(numbers):
            return
        digests[numbers] += _digests(dataset, first[numbers], start, stop)
        _, group, sizes = np.unique(digests[numbers], return_inverse=True, return_counts=True)
        yield stop, numbers, group, sizes
        numbers = numbers[sizes[group] > 1]
        start, stop = stop, 2 * stop


def _clusters(dataset: Dataset, trees: _Trees, levels: list[_Level], capacity: int) -> list[_Cluster]:
    """Trees that begin alike, where packing them among themselves saves a pack or more.

    A longer prefix, which fewer of them have, must save another pack.
    """
    cluster_of, prefix = np.full(len(trees), -1), np.zeros(len(trees), dtype=np.int64)
    num = 0
    for stop, numbers, group, sizes in levels:
        tokens = np.bincount(group, weights=trees.sizes[numbers] - stop, minlength=len(sizes))
        fewer = sizes - np.ceil(tokens / (capacity - stop))  # times that the prefix is not computed
        kept = ((stop - prefix[numbers]) * fewer[group]) >= capacity
        cluster_of[numbers[kept]], prefix[numbers[kept]] = num + group[kept], stop
        num += len(sizes)
    order = np.argsort(cluster_of, kind="stable")[int((cluster_of < 0).sum()) :]
    edges = np.flatnonzero(np.diff(cluster_of[order])) + 1
    found = [_Cluster(part, _common(dataset, trees, part)) for part in np.split(order, edges) if len(part)]
    return [cluster for cluster in found if cluster.prefix]


def _digests(dataset: Dataset, examples: np.ndarray, start: int, stop: int) -> np.ndarray:
    """uint64 [n] of the tokens from `start` to `stop` of some examples, which all have as many."""
    factors = np.random.default_rng(start).integers(1, 1 << 63, stop - start, dtype=np.uint64) * np.uint64(2)
    factors += np.uint64(1)
    step = max(_BLOCK // (stop - start), 1)
    parts = [examples[at : at + step] for at in range(0, len(examples), step)]
    found = [(dataset.beginnings(part, start, stop).astype(np.uint64) + np.uint64(1)) @ factors for part in parts]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *found])


def _common(dataset: Dataset, trees: _Trees, cluster: np.ndarray) -> int:
    """The tokens that all trees of a cluster begin with; fewer than any of them has."""
    limit = min(int(trees.roots[cluster].min()), int(trees.sizes[cluster].min()) - 1)
    first = trees.first[cluster]
    own = dataset.ids(int(first[0]))[:limit]
    step = max(_BLOCK // max(limit, 1), 1)
    for at in range(0, len(first), step):
        same = dataset.beginnings(first[at : at + step], 0, len(own)) == own
        own = own[: int(np.minimum.accumulate(same, axis=1).sum(axis=1).min())]
    return len(own)


def _saving(trees: _Trees, cluster: _Cluster, capacity: int) -> int:
    """The tokens that packing a cluster by itself saves, about."""
    tokens = int(trees.sizes[cluster.trees].sum()) - cluster.prefix * len(cluster.trees)
    packs = -(-tokens // (capacity - cluster.prefix))
    return cluster.prefix * (len(cluster.trees) - packs)
