"""Several dialogues in one sequence: planned by best-fit-decreasing, read as packs, collated so that none sees another.

    capacity 10, dialogues a (6 tokens), b (5), c (4), d (3)

    pack 0   a a a a a a c c c c        input_ids
             0 1 2 3 4 5 0 1 2 3        position_ids: their restart alone separates the dialogues
    pack 1   b b b b b d d d . .        two tokens of padding are a separate dialogue (positions 0 1), not supervised

transformers derives the block-diagonal mask from restarting `position_ids`, under two conditions whose violation is not
reported: no `attention_mask` is passed, and the model is called with `use_cache=False`. `packing_check.py` tests the
actual model. Packs do not depend on the number of processes: `GlobalBatchSampler` distributes them like dialogues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastchat.data.batches.prefix_tree import PrefixTree, grow
from fastchat.data.encoding.examples import IGNORED
from fastchat.errors import DataError, SettingsError, counted
from fastchat.files import sha256_of_blocks

if TYPE_CHECKING:
    import torch

SEQ_LENGTHS = "seq_lengths"  # returned by `pack_collate` for counting, not for the model
# One pack in so many offers its dialogues to close the gaps of the others.
_OFFERED = 4
# Attention that looks at other tokens only through the mask that transformers builds from the positions.
_MASKED_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Packs:
    """Which examples share a pack. `packs[p]` is the int64 array of the example numbers in pack p, ascending.

    Attributes:
        members: int64 [E], every example number exactly once, pack after pack.
        offsets: int64 [P + 1]; pack p is members[offsets[p]:offsets[p + 1]].
        num_tokens: int64 [P], tokens of each pack.
        capacity: the maximum number of tokens in a pack.
        separate: where every pack is a prefix tree, the tokens of all examples without sharing; otherwise None.
    """

    members: np.ndarray
    offsets: np.ndarray
    num_tokens: np.ndarray
    capacity: int
    separate: int | None = None

    def __len__(self) -> int:
        return len(self.num_tokens)

    def __getitem__(self, pack: int) -> np.ndarray:
        if not 0 <= pack < len(self):
            raise IndexError(pack)
        return self.members[self.offsets[pack] : self.offsets[pack + 1]]

    @property
    def fill(self) -> float:
        """Fraction of the packs' capacity that is filled with tokens, 0 to 1."""
        return float(self.num_tokens.sum() / (len(self) * self.capacity)) if len(self) else 0.0

    @property
    def sizes(self) -> np.ndarray:
        """Examples in each pack, int64 [P]."""
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the assignment of examples to packs."""
        trees = [] if self.separate is None else [b"prefix trees"]
        return sha256_of_blocks([self.members.tobytes(), self.offsets.tobytes(), *trees])

    @property
    def line(self) -> str:
        """One line for the log."""
        return (
            f"packing: {counted(len(self.members), 'example')} in {counted(len(self), 'pack')} of up to "
            f"{self.capacity:,} tokens, {100 * self.fill:.2f} % filled{self.shared}"
        )

    @property
    def shared(self) -> str:
        """What the prefix trees save, for messages; "" without them."""
        if self.separate is None:
            return ""
        return f"; common prefixes computed once: {int(self.num_tokens.sum()):,} tokens instead of {self.separate:,}"

    def describe(self) -> dict[str, Any]:
        """The same numbers as a dict, for training.json."""
        return {
            "dialogues": len(self.members),
            "packs": len(self),
            "capacity": self.capacity,
            "tokens": int(self.num_tokens.sum()),
            "fill": round(self.fill, 6),
        } | ({} if self.separate is None else {"tokens_without_sharing": self.separate})


def plan_packs(lengths: Sequence[int] | np.ndarray, capacity: int, seed: int = 0) -> Packs:
    """Best-fit-decreasing: the longest example first, each into the fullest pack that still has room for it.

    Packs are in the order of their first example; the Trainer shuffles them again in every epoch.

    Args:
        lengths: tokens of each example, [E], all at least 1.
        capacity: tokens of a pack.
        seed: decides which examples of equal length share a pack. The number of packs does not depend on it.

    Raises:
        DataError: an example is longer than a pack; examples are never split or cut to fit.

    Example:
        >>> packs = plan_packs([6, 5, 4, 3], capacity=10)
        >>> [packs[p].tolist() for p in range(len(packs))]
        [[0, 2], [1, 3]]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert capacity >= 1 and lengths.ndim == 1, (capacity, lengths.shape)
    assert not len(lengths) or lengths.min() >= 1, f"example {lengths.argmin()} has no token"
    if len(lengths) and lengths.max() > capacity:
        raise DataError(
            f"{int((lengths > capacity).sum())} examples do not fit into a pack of {capacity} tokens (the longest has "
            f"{lengths.max()}): raise --model_max_length, or let --overlong truncate or drop them."
        )
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    pack_of, num_packs = _plan(lengths[order], capacity)
    first = np.full(num_packs, len(lengths))
    np.minimum.at(first, pack_of, order)
    members = order[np.lexsort((order, first[pack_of]))]
    sizes = np.bincount(pack_of, minlength=num_packs)[np.argsort(first)]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(lengths[members])])
    return Packs(members, offsets, np.diff(before[offsets]), capacity)


def _plan(descending: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Best-fit-decreasing, then filling the gaps it leaves: the pack of each length, int64 [E], and how many there are.

    If dialogues are about equally long, no short ones are left for the gaps (1.1 % of the capacity on gsm8k_multiturn).
    So one pack in four offers its dialogues for exchange: a pack with a gap of 7 exchanges one of 200 tokens for one of
    207. The offered dialogues become shorter by all the gaps, and are planned again in the same way.
    """
    pack_of, num_packs = _best_fit(descending, capacity)
    if num_packs < _OFFERED or num_packs == -(-int(descending.sum()) // capacity):
        return pack_of, num_packs
    exchanged = _exchange(descending, pack_of, capacity)
    left = np.flatnonzero(exchanged < 0)
    again, num_again = _plan(descending[left], capacity)
    kept = np.unique(exchanged[exchanged >= 0])
    if len(kept) + num_again >= num_packs:
        return pack_of, num_packs
    improved = np.searchsorted(kept, exchanged)
    improved[left] = len(kept) + again
    return improved, len(kept) + num_again


def _exchange(descending: np.ndarray, pack_of: np.ndarray, capacity: int) -> np.ndarray:
    """Swap dialogues of packs with a gap for longer ones from every fourth pack: pack_of, -1 to plan it again."""
    offered = pack_of % _OFFERED == 0
    lengths, exchanged = descending.tolist(), np.where(offered, -1, pack_of).tolist()
    gaps = (capacity - np.bincount(pack_of, weights=descending)).astype(np.int64).tolist()
    pool: dict[int, list[int]] = {}
    available = 0  # bit n is set: the pool has a dialogue of length n
    for item in np.flatnonzero(offered).tolist():
        pool.setdefault(lengths[item], []).append(item)
        available |= 1 << lengths[item]
    for item in np.flatnonzero(~offered)[::-1].tolist():
        pack, length = exchanged[item], lengths[item]
        if not gaps[pack]:
            continue
        better = (available & ((2 << (length + gaps[pack])) - 1)).bit_length() - 1
        if better <= length:
            continue
        exchanged[pool[better].pop()], exchanged[item] = pack, -1
        gaps[pack] -= better - length
        if not pool[better]:
            available ^= 1 << better
        pool.setdefault(length, []).append(item)
        available |= 1 << length
    return np.array(exchanged, dtype=np.int64)


def _best_fit(descending: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """The pack of each length, int64 [E], and the number of packs; exactly the result of placing them one by one.

    Packs with the same room are interchangeable, and so are equal lengths: all items of one length that go into packs
    with room `r` are placed in one step, `r // length` into each. A Python integer in which bit `r` is set if some pack
    has room `r` gives the tightest room with one shift.
    """
    sizes, counts = np.unique(-descending, return_counts=True)
    pack_of: list[int] = []
    packs_with: dict[int, list[int]] = {}
    rooms = num_packs = 0
    for size, left in zip((-sizes).tolist(), counts.tolist(), strict=True):
        while left:
            fitting = rooms >> size
            if not fitting:
                new = -(-left // (capacity // size))
                packs_with[capacity] = list(range(num_packs, num_packs + new))
                num_packs += new
                rooms |= 1 << capacity
                continue
            room = size + (fitting & -fitting).bit_length() - 1
            packs = packs_with[room]
            each = min(room // size, left)
            num = min(len(packs), left // each)
            taken = packs[-num:]
            del packs[-num:]
            if not packs:
                rooms ^= 1 << room
            for pack in taken:
                pack_of += [pack] * each
            left -= num * each
            if rest := room - each * size:
                packs_with.setdefault(rest, []).extend(taken)
                rooms |= 1 << rest
    return np.array(pack_of, dtype=np.int64), num_packs


class PackedDataset:
    """A dataset of packs over a dataset of examples; the Trainer treats packs as it would single dialogues.

    `dataset[p]` is a dict: input_ids and labels int32 [T], the dialogues of the pack concatenated; lengths int64 [D],
    the tokens of each; index [D], the rows of the input they come from. The first label of every dialogue is -100: in a
    pack that token would be predicted from the last token of the dialogue before it.

    With packs that are prefix trees, `dataset[p]` has a `tree` (PrefixTree) and the index alone.
    """

    def __init__(self, dataset: Any, packs: Packs):
        assert len(dataset) == len(packs.members), (len(dataset), len(packs.members))
        self.dataset, self.packs = dataset, packs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, pack: int) -> dict[str, Any]:
        examples = [self.dataset[i] for i in self.packs[pack].tolist()]
        if self.packs.separate is not None:
            return {"tree": grow(examples), "index": [example["index"] for example in examples]}
        return {
            "input_ids": np.concatenate([example["input_ids"] for example in examples]),
            "labels": np.concatenate([_without_first(example["labels"]) for example in examples]),
            "lengths": np.array([len(example["input_ids"]) for example in examples], dtype=np.int64),
            "index": [example["index"] for example in examples],
        }

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pack, int64 [P]."""
        return self.packs.num_tokens


def pack_collate(
    batch: Sequence[Mapping[str, Any]], *, pad_token_id: int, flat: bool = False
) -> dict[str, torch.Tensor]:
    """Packs -> tensors for a model that is called without attention_mask and with `use_cache=False`.

    Args:
        batch: items of a PackedDataset, or single examples (no "lengths"), each then a pack of one.
        flat: concatenate all packs into a batch of one, without padding. Required by flash attention, which separates
            dialogues only in batches of one and would silently mix them in larger ones; suitable for every kernel that
            skips masked blocks. For kernels that compute the whole T x T square (eager, SDPA), use separate packs.

    Returns:
        input_ids, labels, position_ids: [B, T] int64, T the longest pack; with `flat` [1, sum of lengths].
        seq_lengths: [B, D] int64, tokens of each dialogue, 0 after the last one. Not for the model: remove it first.
        With prefix trees also their parents, counts and ends (see `PrefixTree`), [B, T] int64; seq_lengths is [B, 1].

    Example (pad_token_id=0; packs of 2 + 1 and of 1 token):
        >>> pack_collate([{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "lengths": [2, 1]},
        ...               {"input_ids": [8], "labels": [8]}], pad_token_id=0)
        {"input_ids":    [[5, 6, 7], [8, 0, 0]],     "labels":      [[-100, 6, -100], [-100, -100, -100]],
         "position_ids": [[0, 1, 0], [0, 0, 1]],     "seq_lengths": [[2, 1], [1, 0]]}
    """
    import torch

    if any("tree" in item for item in batch):
        return _collate_trees([_tree_of(item) for item in batch], pad_token_id, flat)
    packs = [(pack, np.asarray(pack.get("lengths", [len(pack["input_ids"])]))) for pack in batch]
    if flat:
        joined = {name: np.concatenate([pack[name] for pack, _ in packs]) for name in ("input_ids", "labels")}
        packs = [(joined, np.concatenate([lengths for _, lengths in packs]))]
    width = max(len(pack["input_ids"]) for pack, _ in packs)
    shape = (len(packs), width)
    made = {
        "input_ids": np.full(shape, pad_token_id, dtype=np.int64),
        "labels": np.full(shape, IGNORED, dtype=np.int64),
        "position_ids": np.zeros(shape, dtype=np.int64),
        SEQ_LENGTHS: np.zeros((len(packs), max(len(lengths) for _, lengths in packs)), dtype=np.int64),
    }
    for row, (pack, lengths) in enumerate(packs):
        length = len(pack["input_ids"])
        assert lengths.sum() == length == len(pack["labels"]), (lengths, length, len(pack["labels"]))
        starts = np.cumsum(lengths) - lengths
        made["input_ids"][row, :length] = pack["input_ids"]
        made["labels"][row, :length] = pack["labels"]
        made["labels"][row, starts] = IGNORED
        made["position_ids"][row] = _positions(np.append(lengths, width - length))
        made[SEQ_LENGTHS][row, : len(lengths)] = lengths
    return {name: torch.from_numpy(array) for name, array in made.items()}


def _collate_trees(trees: Sequence[PrefixTree], pad_token_id: int, flat: bool) -> dict[str, torch.Tensor]:
    """`pack_collate` of prefix trees. Padding is a tree of its own."""
    import torch

    rows = [list(trees)] if flat else [[tree] for tree in trees]
    width = max(sum(map(len, row)) for row in rows)
    made = {
        name: np.zeros((len(rows), width), dtype=np.int64)
        for name in ("input_ids", "labels", "position_ids", "parents", "ends", "counts")
    }
    made[SEQ_LENGTHS] = np.array([[sum(map(len, row))] for row in rows], dtype=np.int64)
    for i, row in enumerate(rows):
        padding = np.full(width - int(made[SEQ_LENGTHS][i, 0]), pad_token_id)
        start = 0
        for tree in [*row, grow([{"input_ids": padding, "labels": np.full(len(padding), IGNORED)}])]:
            span = slice(start, start + len(tree))
            made["input_ids"][i, span], made["labels"][i, span] = tree.ids, tree.labels
            made["position_ids"][i, span], made["counts"][i, span] = tree.positions, tree.counts
            made["parents"][i, span], made["ends"][i, span] = tree.parents + start, tree.ends + start
            start += len(tree)
    return {name: torch.from_numpy(array) for name, array in made.items()}


def _tree_of(item: Mapping[str, Any]) -> PrefixTree:
    return item["tree"] if "tree" in item else grow([item])


def check_packable(config: Any, capacity: int, rope_parameters: Mapping[str, Any] | None = None) -> None:
    """Check that packing is exact for a model.

    Args:
        config: the model's configuration; `rope_parameters`: those that the run sets in it, if any.
        capacity: tokens of a pack (`--model_max_length`).

    Raises:
        SettingsError: RoPE whose angles depend on the longest dialogue of the pack ("dynamic", and "longrope" beyond
            the length at which it switches), ALiBi, or layers that carry a state from token to token.
    """
    text = config.get_text_config()
    own = text.model_type
    scaling = getattr(text, "rope_parameters", None) if rope_parameters is None else rope_parameters
    for entry in _rope_entries(scaling or {}):
        kind, way_out = entry.get("rope_type", "default"), " (or --rope_scaling_type linear)"
        if kind == "longrope":
            switch = entry.get("original_max_position_embeddings") or text.max_position_embeddings
            kind, way_out = (kind if capacity > switch else ""), f" (or --model_max_length {switch})"
        if kind in ("dynamic", "longrope"):
            raise SettingsError(
                f'--packing cannot be combined with RoPE scaling "{kind}": its angles depend on the longest dialogue '
                f"in the pack, so packed dialogues would be computed differently. Use --packing False{way_out}."
            )
    carried = sorted(set(getattr(text, "layer_types", None) or ()) - set(_MASKED_LAYERS))
    if carried:
        raise SettingsError(
            f"--packing: {own} has layers of type {', '.join(carried)}, which carry a state from token to token and "
            "so from one dialogue to the next. Do not use --packing."
        )
    if getattr(text, "alibi", False) or own in ("bloom", "mpt"):
        raise SettingsError(
            f"--packing: {own} encodes positions with ALiBi, not with position_ids. Do not use --packing."
        )


def _without_first(labels: Any) -> np.ndarray:
    labels = np.array(labels)
    labels[:1] = IGNORED
    return labels


def _positions(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... for each of the lengths: int64 [sum of lengths].

    >>> _positions(np.array([3, 2]))
    array([0, 1, 2, 0, 1])
    """
    starts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(starts, lengths)


def _rope_entries(parameters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The RoPE settings: one set, or one per kind of layer."""
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]
