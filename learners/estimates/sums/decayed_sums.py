"""Sums that fade with age and are still exact: the same outcomes give the same bits in any order.

An outcome of age `a` counts 2^(−a / half_life). Time is cut into *epochs* of one half-life, and

    2^((t − t₀) / half_life)  =  2^epoch · fraction,   fraction in [1, 2)

so each outcome enters its epoch's sum with `fraction` as an integer of 1/256, times integers.
Integer addition does not round and does not care for order: batches of any size, shards added in
any order and a restart half-way all end in equal bits. Fading is a division by a power of two
when the sums are *read*, so nothing is ever multiplied down, drifts or winds up. What groups of
tenants reported is summed apart, so that how much each counts is chosen then, too (`influence`).

Nothing but `add` and `merge` changes a sum, and both are integer additions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.estimates.sums.influence import EARLIER, N_GROUPS, N_UNNAMED

FRACTION_ONE = 256  # the integer weight of an outcome at the very start of its epoch
# After 16 half-lives an outcome weighs 1/65,536: it is left out, which bounds the memory.
EPOCHS_KEPT = 16


@dataclass(slots=True, eq=False)
class DecayedSums:
    """One array of `shape` per key (a model, a pool), summed over time with a half-life.

    >>> sums = DecayedSums(shape=(1,), half_life_ms=1000)
    >>> for t_ms in (0, 1000):
    ...     epoch, weight = sums.epochs_and_weights(np.array([t_ms]))
    ...     sums.add(7, int(epoch[0]), weight[:, None])
    >>> sums.read([7], as_of_ms=1000)  # half of the first, all of the second
    array([[1.5]])
    """

    shape: tuple[int, ...]
    half_life_ms: int
    # (key, epoch, tenant group) → int64 array of `shape`
    sums: dict[tuple[int, int, int], NDArray[np.int64]] = field(default_factory=dict)

    def epochs_and_weights(
        self, t_ms: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epoch and integer weight (256 … 511) of outcomes at times (n,)."""
        epochs = t_ms // self.half_life_ms
        fraction = (t_ms - epochs * self.half_life_ms) / self.half_life_ms
        return epochs, np.floor(np.exp2(fraction) * FRACTION_ONE).astype(np.int64)

    def add(
        self, key: int, epoch: int, total: NDArray[np.int64], tenant_group: int = EARLIER
    ) -> None:
        """Add a sum of weighted integers (`shape`) to one key's epoch."""
        held = self.sums.get((key, epoch, tenant_group))
        if held is None:
            self.sums[key, epoch, tenant_group] = total.astype(np.int64).reshape(self.shape)
        else:
            held += total.reshape(self.shape)

    def merge(self, other: DecayedSums) -> None:
        """Add everything another shard has summed."""
        assert (self.shape, self.half_life_ms) == (other.shape, other.half_life_ms)
        for (key, epoch, tenant_group), total in other.sums.items():
            self.add(key, epoch, total, tenant_group)

    def forget(self) -> None:
        """Keep the newest `EPOCHS_KEPT` epochs there are: what is left does not depend on when.

        Counted, not measured from the newest: an outcome whose clock was years ahead takes one
        place, and the past stays.
        """
        epochs = sorted({epoch for _, epoch, _ in self.sums})
        gone = set(epochs[:-EPOCHS_KEPT])
        if gone:
            self.sums = {at: total for at, total in self.sums.items() if at[1] not in gone}

    def read(self, keys: list[int], as_of_ms: int) -> NDArray[np.float64]:
        """The faded sums of `keys` at a time, (len(keys), *shape); zero for an unknown key."""
        return self.read_groups(keys, as_of_ms).sum(axis=1)

    def read_groups(self, keys: list[int], as_of_ms: int) -> NDArray[np.float64]:
        """The same by group: (len(keys), g, *shape), without those of producers if none is named.

        Epochs that weigh nothing any more count for nothing, and so do those after the next: they
        come from a clock that was ahead.
        """
        named = any(group >= N_UNNAMED for _, _, group in self.sums)
        faded = np.zeros((len(keys), N_GROUPS if named else N_UNNAMED, *self.shape))
        row_of = {key: row for row, key in enumerate(keys)}
        now = as_of_ms // self.half_life_ms
        for (key, epoch, tenant_group), total in sorted(
            self.sums.items(), key=lambda item: item[0]
        ):
            if key in row_of and now - EPOCHS_KEPT < epoch <= now + 1:
                fade = 2.0 ** (epoch - as_of_ms / self.half_life_ms) / FRACTION_ONE
                faded[row_of[key], tenant_group] += total * fade
        return faded

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything held, in canonical order: equal sums give equal bytes.

        What was taken out again has never been: sums of nothing are left out.
        """
        self.forget()
        at = sorted(held for held, total in self.sums.items() if total.any())
        return {
            "keys": np.array([key for key, _, _ in at], np.uint64),
            "epochs": np.array([epoch for _, epoch, _ in at], np.int64),
            "tenant_groups": np.array([group for _, _, group in at], np.uint8),
            "sums": np.array([self.sums[a] for a in at], np.int64).reshape(len(at), *self.shape),
        }

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take over what `arrays` gave, replacing what is held."""
        # Snapshots of before groups were noted lack the column.
        groups = arrays.get("tenant_groups", np.full(len(arrays["keys"]), EARLIER))
        at = zip(*(a.tolist() for a in (arrays["keys"], arrays["epochs"], groups)), strict=True)
        self.sums = dict(zip(at, np.array(arrays["sums"], np.int64), strict=True))
