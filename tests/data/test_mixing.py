"""What a run takes of its data: proportions that hold, nothing repeated, the same for a seed; a part held out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat.data.tokens.mixing import check_proportions, held_out, num_held_out, proportional
from fastchat.errors import SettingsError

SOURCES = st.lists(st.tuples(st.integers(1, 5000), st.floats(0.01, 10)), min_size=1, max_size=5)


@given(SOURCES, st.integers(0, 2**32 - 1))
def test_proportions_hold_and_nothing_is_repeated(sources: list[tuple[int, float]], seed: int) -> None:
    sizes, shares = [size for size, _ in sources], [share for _, share in sources]
    taken = proportional(sizes, shares, seed)
    assert any(len(part) == size for part, size in zip(taken, sizes, strict=True)), "as many as there can be"
    total = min(size / share for size, share in sources)
    for part, size, share in zip(taken, sizes, shares, strict=True):
        assert len(set(part.tolist())) == len(part) and (np.diff(part) > 0).all()
        assert not len(part) or 0 <= part[0] <= part[-1] < size
        assert total * share - 1 <= len(part) <= total * share + 1e-3
    again = proportional(sizes, shares, seed)
    assert all(a.tolist() == b.tolist() for a, b in zip(taken, again, strict=True))


def test_only_the_ratio_counts_and_the_seed_decides() -> None:
    one, other = proportional([80, 21], [0.7, 0.3], 1), proportional([80, 21], [7, 3], 1)
    assert [len(part) for part in one] == [49, 21] and one[0].tolist() == other[0].tolist()
    assert proportional([80, 21], [0.7, 0.3], 2)[0].tolist() != one[0].tolist()
    first, second = proportional([1000, 1000, 10], [1, 1, 1], 0)[:2]
    assert first.tolist() != second.tolist(), "sources are drawn from independently"


def test_what_is_drawn_stays_the_same_under_every_version_of_numpy() -> None:
    assert proportional([10, 4], [1, 1], 0)[0].tolist() == [3, 4, 6, 7]
    assert held_out(10, 3, 42)[1].tolist() == [1, 4, 8]


@given(st.integers(2, 5000), st.floats(1e-6, 0.999), st.integers(0, 2**40))
def test_held_out_is_disjoint_and_complete(num: int, share: float, seed: int) -> None:
    try:
        size = num_held_out(share, num)
    except SettingsError:
        assert round(share * num) >= num
        return
    stays, out = held_out(num, size, seed)
    assert len(out) == size >= 1 and abs(size - share * num) <= 1
    assert sorted([*stays, *out]) == list(range(num)) and (np.diff(stays) > 0).all() and (np.diff(out) > 0).all()
    assert held_out(num, size, seed)[1].tolist() == out.tolist()


def test_a_number_is_that_number() -> None:
    assert (num_held_out(7, 20), num_held_out(1.0, 20), num_held_out(0.001, 20)) == (7, 1, 1)
    for size in (20, 21, 1e9):
        with pytest.raises(SettingsError, match=r"--val_set_size .*: none of the 20 dialogues would be left"):
            num_held_out(size, 20)


@pytest.mark.parametrize(
    ("shares", "message"),
    [([1.0], "1 numbers for 2 values of --data_path"), ([1.0, 0.0], "above 0"), ([1.0, float("nan")], "above 0")],
)
def test_proportions_that_mean_nothing(shares: list[float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_proportions(shares, 2)
