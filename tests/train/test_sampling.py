"""The order of dialogues: every one once per epoch, the same global batches for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat.train.sampling import DUMMY, GlobalBatchSampler, WithDummy


def _steps(n: int, micro: int, accumulation: int, world: int, **more) -> list[list[int]]:
    """The dialogues of every optimizer step, over all ranks and micro-steps."""
    ranks = [
        list(GlobalBatchSampler(n, micro=micro, accumulation=accumulation, world_size=world, rank=r, **more))
        for r in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1, "ranks must meet in every step"
    rows = [[i for rank in ranks for i in rank[k] if i != DUMMY] for k in range(len(ranks[0]))]
    return [sum(rows[k : k + accumulation], []) for k in range(0, len(rows), accumulation)]


@given(
    n=st.integers(1, 70),
    split=st.sampled_from([(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2), (2, 1, 4), (1, 1, 8)]),
    order=st.sampled_from(["random", "sequential", "group_by_length"]),
    seed=st.integers(0, 3),
)
def test_a_global_batch_is_the_same_for_any_split(n: int, split: tuple[int, int, int], order: str, seed: int) -> None:
    lengths = [(7 * i) % 31 + 1 for i in range(n)]
    reference = _steps(n, 8, 1, 1, order=order, seed=seed, lengths=lengths)
    assert _steps(n, *split, order=order, seed=seed, lengths=lengths) == reference
    assert sorted(sum(reference, [])) == list(range(n)), "every dialogue exactly once"


def test_epochs_and_seeds_differ_and_repeat() -> None:
    batches = GlobalBatchSampler(50, micro=4, accumulation=1, world_size=1, rank=0, seed=1)
    first = batches.permutation().tolist()
    batches.set_epoch(1)
    assert batches.permutation().tolist() != first
    batches.set_epoch(0)
    assert batches.permutation().tolist() == first
    other = GlobalBatchSampler(50, micro=4, accumulation=1, world_size=1, rank=0, seed=2)
    assert other.permutation().tolist() != first


def test_grouping_puts_like_lengths_together_and_the_longest_first() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1000, 800)
    grouped = GlobalBatchSampler(
        800, micro=4, accumulation=2, world_size=1, rank=0, seed=0, order="group_by_length", lengths=lengths
    )
    order = grouped.permutation().reshape(-1, 8)
    assert lengths.max() in lengths[order[0]]
    spread = np.ptp(lengths[order], axis=1).mean()
    assert spread < 0.1 * np.ptp(lengths[rng.permutation(800).reshape(-1, 8)], axis=1).mean()
    means = lengths[order].mean(axis=1)
    assert 0 < (np.diff(means) > 0).sum() < len(means) - 1, "batches come in mixed order"


def test_drop_last_leaves_an_incomplete_global_batch_out() -> None:
    batches = GlobalBatchSampler(19, micro=2, accumulation=2, world_size=2, rank=0, seed=0, drop_last=True)
    assert len(batches) == len(list(batches)) == 4
    assert len(sum(_steps(19, 2, 2, 2, seed=0, drop_last=True), [])) == 16


@pytest.mark.parametrize("n", [1, 5, 8, 9])
def test_length_is_the_number_of_batches(n: int) -> None:
    for rank in range(2):
        batches = GlobalBatchSampler(n, micro=2, accumulation=2, world_size=2, rank=rank, seed=0)
        assert len(batches) == len(list(batches))


def test_the_dummy_supervises_nothing() -> None:
    dataset = WithDummy([{"input_ids": [1], "labels": [1]}], token_id=7)
    assert dataset[DUMMY] == {"input_ids": [7, 7], "labels": [-100, -100]}
    assert dataset[0] == {"input_ids": [1], "labels": [1]} and len(dataset) == 1


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_get_equal_work_also_at_the_end_of_an_epoch(world: int) -> None:
    """Nothing is dealt to one rank while another waits; and packs, all about full, make the tokens equal too."""
    from fastchat.data.batches.packing import plan_packs

    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.8, 20_000), 20, 4096).astype(int)
    packs = plan_packs(lengths, 4096)
    assert packs.fill > 0.99
    kwargs = {"micro": 4, "accumulation": 2, "world_size": world, "seed": 1}
    ranks = [list(GlobalBatchSampler(len(packs), rank=rank, **kwargs)) for rank in range(world)]
    uneven = 0
    for micro in zip(*ranks, strict=True):
        counts = [sum(i != DUMMY for i in mine) for mine in micro]
        assert max(counts) - min(counts) <= 1
        tokens = [packs.num_tokens[mine].sum() for mine in micro]
        uneven += min(counts) == max(counts) and min(tokens) < 0.99 * max(tokens)
    assert uneven <= 1, "only the one pack that nothing was left for"


@pytest.mark.parametrize("drop_last", [False, True])
def test_dialogues_seen_are_counted_through_packs(drop_last: bool) -> None:
    sizes = np.random.default_rng(0).integers(1, 9, 21)
    batches = GlobalBatchSampler(
        21, micro=2, accumulation=2, world_size=2, rank=0, seed=0, order="random", drop_last=drop_last
    )
    others = GlobalBatchSampler(
        21, micro=2, accumulation=2, world_size=2, rank=1, seed=0, order="random", drop_last=drop_last
    )
    seen = packs = 0
    for step in range(7):
        assert batches.seen_after(step, sizes) == seen and batches.seen_after(step) == packs
        dealt = [i for rank in (batches, others) for micro in rank.of_step(step) for i in micro]
        seen, packs = seen + int(sizes[dealt].sum()), packs + len(dealt)
