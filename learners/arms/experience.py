"""What was learned of arms, as exact integer sums: equal bits in any order, batch and shard.

    outcome: arm, request, pair, quality ─┬─▶ one Σ x xᵀ, Σ x y of all arms' pairs
                                          └─▶ of each arm: n, Σ y, Σ x, Σ q, Σ y q

All arms share one linear model of pairs; so an arm that was never tried is judged by its
description. What an arm does beyond it is found from its own sums, whatever the model is when they
are read. Keys are kept, not places: arms may come, go and change places in the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from learners.arms.pairs import N_PAIR, Pairs
from learners.context import N_DIRECTIONS, Contexts
from learners.targets import to_fixed

Ints = NDArray[np.int64]
# Where an arm's sums stand in its row.
COUNT, QUALITY = 0, 1
PAIR = slice(2, 2 + N_PAIR)
ASKED = slice(PAIR.stop, PAIR.stop + N_DIRECTIONS)
LIKED = slice(ASKED.stop, ASKED.stop + N_DIRECTIONS)
N_SUMS = LIKED.stop


@dataclass(slots=True, eq=False)
class Experience:
    """Everything learned of arms.

    >>> one, other = Experience(), Experience()
    >>> pair, request = np.ones((1, N_PAIR), np.int8), np.ones((1, 64), np.int8)
    >>> one.update([7], request, pair, np.array([0.5]))
    >>> other.merge(one)
    >>> other.of([7, 8])[:, COUNT]
    array([1, 0])
    """

    squares: Ints = field(default_factory=lambda: np.zeros((N_PAIR, N_PAIR), np.int64))
    products: Ints = field(default_factory=lambda: np.zeros(N_PAIR, np.int64))
    rows: dict[int, Ints] = field(default_factory=dict)  # by arm's key

    def update(
        self, keys: Sequence[int], requests: Contexts, pairs: Pairs, quality: NDArray[np.float64]
    ) -> None:
        """Learn n outcomes: contexts (n, 64) and pairs (n, 127) as decided, quality (n,) 0 to 1."""
        y = to_fixed(quality)
        # Integers below 2^53 are exact in float64, whose products are the fast ones.
        x = pairs.astype(np.float64)
        self.squares += (x.T @ x).astype(np.int64)
        self.products += (y @ x).astype(np.int64)
        asked = requests[:, :N_DIRECTIONS].astype(np.int64)
        each = np.concatenate(
            [np.ones((len(y), 1), np.int64), y[:, None], pairs, asked, y[:, None] * asked], axis=1
        )
        for key, row in zip(keys, each, strict=True):
            self._add(key, row)

    def merge(self, other: Experience) -> None:
        """Add what another shard has learned from other outcomes."""
        self.squares += other.squares
        self.products += other.products
        for key, row in other.rows.items():
            self._add(key, row)

    def of(self, keys: Sequence[int]) -> Ints:
        """The sums (k, N_SUMS) of arms; zero for one of which nothing is known."""
        found = np.zeros((len(keys), N_SUMS), np.int64)
        for place, key in enumerate(keys):
            if (row := self.rows.get(key)) is not None:
                found[place] = row
        return found

    def _add(self, key: int, row: Ints) -> None:
        held = self.rows.get(key)
        self.rows[key] = row.astype(np.int64) if held is None else held + row
