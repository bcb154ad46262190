"""Histograms with fixed, log-spaced buckets: counts that add up, and percentiles out of them.

    37.2 ms ──index──▶ bucket 122 ──count──▶ {122: 1}  +  {122: 4, 123: 1}  =  {122: 5, 123: 1}

Every process uses the same edges, so histograms of any number of processes, and of any windows,
are merged by adding. Only buckets that hold something are kept.

The edges never change. Other edges are another field with another name.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = dict[int, int]  # bucket → how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Bucket i > 0 holds values in [least·ratio^(i−1), least·ratio^i); bucket 0 what is smaller.

    The last one also holds everything larger.
    """

    least: float
    ratio: float
    last: int  # index of the last bucket
    edges: list[float] = field(init=False, repr=False, compare=False)  # where all but it end
    _edges: NDArray[np.float64] = field(init=False, repr=False, compare=False)  # the same

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", [self.edge(i) for i in range(self.last)])
        object.__setattr__(self, "_edges", np.array(self.edges))

    def indexes(self, values: ArrayLike) -> NDArray[np.int64]:
        """Buckets (n,) of finite values (n,)."""
        return self._edges.searchsorted(np.asarray(values, np.float64), side="right")

    def index(self, value: float) -> int:
        """The bucket of one finite value."""
        return bisect_right(self.edges, value)

    def edge(self, index: int) -> float:
        """Where bucket `index` ends."""
        return self.least * self.ratio**index

    def typical(self, index: int) -> float:
        """The value that stands for a bucket: its geometric middle, at most √ratio off."""
        return self.edge(index) / math.sqrt(self.ratio) if index else self.least / 2

    def percentile(self, counts: Mapping[int, int], share: float) -> float | None:
        """The value that `share` (0 to 1) of what was counted does not exceed; None of nothing."""
        rank = math.ceil(share * sum(counts.values()))
        passed = 0
        for index in sorted(counts):
            passed += counts[index]
            if passed >= rank and passed:
                return self.typical(index)
        return None


# A tenth of a millisecond to 8 hours. 5 % wide: percentiles are at most 2.5 % off.
LATENCY_MS = Buckets(least=0.1, ratio=1.05, last=400)
# 1 to 10 million tokens, four buckets to a doubling: at most 9 % off. Sums are sent beside them.
TOKENS = Buckets(least=1.0, ratio=2**0.25, last=93)


def filled(cells: NDArray[np.integer]) -> list[tuple[int, int]]:
    """How many of whole numbers (n,) from 0 on are each, of those that are there, ascending.

    As `np.unique`, without sorting: cells are few, and what falls into them is many.
    """
    counts = np.bincount(cells)
    there = counts.nonzero()[0]
    return list(zip(there.tolist(), counts[there].tolist(), strict=True))


def pairs(counts: Mapping[int, int]) -> list[tuple[int, int]]:
    """Counts as a record has them: (bucket, how many), ascending."""
    return sorted(counts.items())


def counted(found: Sequence[tuple[int, int]]) -> Counts:
    """The inverse of `pairs`; a bucket that is named twice counts for both."""
    counts: Counts = {}
    count_into(counts, found)
    return counts


def added(counts: Counts, more: Counts) -> Counts:
    """Counts of both; where one has none, a copy of the other."""
    if not counts or not more:
        return dict(counts or more)
    count_into(found := dict(counts), more.items())
    return found


def count_into(counts: Counts, found: Iterable[tuple[int, int]]) -> None:
    """Add counts of buckets to others, in place."""
    for index, n in found:
        counts[index] = counts.get(index, 0) + n
