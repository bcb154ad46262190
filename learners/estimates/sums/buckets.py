"""Exact sums in short buckets of time, of which the newest are kept: what happened just now.

    t ──▶ bucket = t // width_ms      add, merge: integer additions      read: from any bucket on

`DecayedSums` fade at one half-life. Here how much of the past counts is chosen when reading: the
last minute, since a change, or as many buckets as hold so many outcomes. What is kept depends on
the newest bucket alone, so the same outcomes give the same bits in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class Buckets:
    """One integer array of `shape` per key and bucket.

    >>> buckets = Buckets((1,), width_ms=1000, kept=60)
    >>> buckets.update(np.array([7, 7]), np.array([0, 5000]), np.array([[1], [2]]))
    >>> buckets.of(7)
    (array([0, 5]), array([[1],
           [2]]))
    """

    shape: tuple[int, ...]
    width_ms: int
    kept: int
    sums: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)

    def update(
        self,
        keys: NDArray[Any],
        t_ms: NDArray[np.int64],
        values: NDArray[np.int64],
        places: NDArray[np.intp] | None = None,
    ) -> None:
        """Add values (n, *shape) of keys (n,) at times (n,).

        With `places` (n,) along the first axis of `shape`, values (n, *rest of shape) at these.
        """
        at = t_ms // self.width_ms
        within = np.zeros(len(keys), np.intp) if places is None else places
        order = np.lexsort((within, at, keys))
        columns = [column[order] for column in (keys, at, within)]
        changes = np.any([column[1:] != column[:-1] for column in columns], axis=0)
        starts = np.concatenate([np.zeros(min(1, len(keys)), np.intp), np.flatnonzero(changes) + 1])
        totals = np.add.reduceat(values[order], starts, axis=0)
        each = zip(*(column[starts].tolist() for column in columns), totals, strict=True)
        for key, bucket, place, total in each:
            self._add(key, bucket, total, ... if places is None else place)

    def _add(
        self, key: int, bucket: int, total: NDArray[np.int64], place: int | EllipsisType = ...
    ) -> None:
        held = self.sums.get((key, bucket))
        if held is None:
            held = self.sums[key, bucket] = np.zeros(self.shape, np.int64)
        held[place] += total

    def merge(self, other: Buckets) -> None:
        """Add everything another shard has summed."""
        assert (self.shape, self.width_ms) == (other.shape, other.width_ms)
        for (key, bucket), total in other.sums.items():
            self._add(key, bucket, total)

    def forget(self) -> None:
        """Drop what is older than `kept` buckets before the newest."""
        oldest = max((bucket for _, bucket in self.sums), default=0) - self.kept
        for gone in [at for at in self.sums if at[1] <= oldest]:
            del self.sums[gone]

    def of(self, key: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A key's buckets (b,) in order of time, and their sums (b, *shape)."""
        found = sorted(bucket for held, bucket in self.sums if held == key)
        sums = [self.sums[key, bucket] for bucket in found]
        return np.array(found, np.int64), np.array(sums, np.int64).reshape(-1, *self.shape)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything held, in canonical order: equal sums give equal bytes."""
        self.forget()
        at = sorted(self.sums)
        return {
            "keys": np.array([key for key, _ in at], np.uint64),
            "buckets": np.array([bucket for _, bucket in at], np.int64),
            "sums": np.array([self.sums[a] for a in at], np.int64).reshape(len(at), *self.shape),
        }

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take over what `arrays` gave, replacing what is held.

        Sums that were not yet kept apart by the first axis of `shape` are its first entry.
        """
        at = zip(arrays["keys"].tolist(), arrays["buckets"].tolist(), strict=True)
        sums = np.array(arrays["sums"], np.int64)
        if sums.shape[1:] == self.shape[1:]:
            apart = np.zeros((len(sums), *self.shape), np.int64)
            apart[:, 0] = sums
            sums = apart
        self.sums = dict(zip(at, sums, strict=True))
