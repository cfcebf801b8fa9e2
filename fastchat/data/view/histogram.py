"""A histogram of dialogue lengths, with four bins per doubling so that one long outlier does not hide the rest."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

KINDS = ("whole", "cut", "dropped")
_PER_DOUBLING = 4


class Histogram:
    """Lengths in tokens, separately for dialogues that are "whole", "cut" or "dropped"."""

    def __init__(self) -> None:
        self._lengths: Counter[tuple[int, str]] = Counter()

    def add(self, length: int, kind: str) -> None:
        """Count one dialogue; one of length 0 has no tokens and is ignored."""
        assert kind in KINDS, kind
        if length:
            self._lengths[length, kind] += 1

    def table(self, max_length: int) -> dict[str, Any]:
        """The data for the chart on the page.

        Returns: `bins`: [first length, last length, whole, cut, dropped] of each bin, from the shortest dialogue to the
            longest; `max`: `max_length`; and smallest, median, mean, 95th percentile and largest length as `facts`.
        """
        bins: dict[int, list[int]] = {}
        for (length, kind), number in self._lengths.items():
            bins.setdefault(_bin(length), [0] * len(KINDS))[KINDS.index(kind)] += number
        wide = range(min(bins), max(bins) + 1) if bins else range(0)
        rows = [[*_edges(at), *bins.get(at, [0] * len(KINDS))] for at in wide]
        rows = [row for row in rows if row[0] <= row[1]]  # the lowest bins are narrower than one token
        return {"bins": rows, "max": max_length, "facts": self._facts()}

    def _facts(self) -> dict[str, float]:
        ordered = sorted(length for (length, _), number in self._lengths.items() for _ in range(number))
        if not ordered:
            return {}
        return {
            "shortest": ordered[0],
            "median": statistics.median(ordered),
            "mean": round(statistics.fmean(ordered), 1),
            "95th percentile": percentile(ordered, 95),
            "longest": ordered[-1],
        }


def percentile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that at least `percent` of 100 values do not exceed; `ordered` is sorted and not empty."""
    return ordered[-(-len(ordered) * percent // 100) - 1]


def _bin(length: int) -> int:
    """The bin of a length: the last one whose first length does not exceed it."""
    at = (length.bit_length() - 1) * _PER_DOUBLING
    while _first(at + 1) <= length:
        at += 1
    return at


def _first(at: int) -> int:
    """The first whole length of bin `at`, 2 ** (at / 4) rounded up."""
    whole, quarter = divmod(at, _PER_DOUBLING)
    # Exact in integers: ceil(2 ** (at / 4)) is the ceiling of the fourth root of 2 ** at.
    if quarter == 0:
        return 1 << whole
    return int(2 ** (at / _PER_DOUBLING)) + 1


def _edges(at: int) -> tuple[int, int]:
    return _first(at), _first(at + 1) - 1
