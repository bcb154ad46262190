"""Everything learned, as one fold: outcomes in, statistics out.

    learned.update(outcomes)        in batches of any size, in any order
    learned.merge(other)            another shard's, in any order
    learned.digest()                equal exactly when the same outcomes were learned

The one rule: an outcome's effect depends on that outcome alone, never on what came before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.estimates import ema, ridge
from learners.estimates.history import COLUMNS, History, HistoryOptions, Rows
from learners.option import option
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """How long the past counts. A changed half-life means learning again from the log."""

    # Slow: weights and neighbours describe what models can do, which changes with releases.
    model_half_life_s: float = option(
        14 * 86_400.0, "Seconds until an outcome counts half for what models can do.", ge=60, le=1e9
    )
    # Fast: a pool's latency and error rate are about the last hour.
    pool_half_life_s: float = option(
        3_600.0, "The same for a pool's latency and failures, which change faster.", ge=60, le=1e9
    )
    history: HistoryOptions = field(default_factory=HistoryOptions)


class Learned:
    """The learners' state.

    `as_of_ms` is the decision time of the newest outcome, `n_values` (3,) how many reported
    values of each target were learned, ever.
    """

    def __init__(self, options: MemoryOptions) -> None:
        self.options = options
        model_half_life_ms = round(options.model_half_life_s * 1000)
        self.ridge = ridge.new_statistics(model_half_life_ms)
        self.models = ema.new_statistics(model_half_life_ms)
        self.pools = ema.new_statistics(round(options.pool_half_life_s * 1000))
        self.history = History(options.history)
        self.as_of_ms = 0
        self.n_values = np.zeros(N_TARGETS, np.int64)

    def update(self, outcomes: Outcomes) -> None:
        """Fold in a batch."""
        if not len(outcomes):
            return
        ridge.update(self.ridge, outcomes)
        ema.update(self.models, outcomes.models, outcomes)
        ema.update(self.pools, outcomes.pools, outcomes)
        self.history.update(outcomes)
        self.n_values += outcomes.known.sum(axis=0)
        self.as_of_ms = max(self.as_of_ms, int(outcomes.decided_at_ms.max()))

    def merge(self, other: Learned) -> None:
        """Add another shard's state, learned from other outcomes."""
        self.merge_statistics(other)
        other.history.settle()
        self.history.append(other.history.rows)

    def merge_statistics(self, other: Learned) -> None:
        """Add another shard's state except its history rows."""
        assert self.options == other.options, "shards must learn with the same options"
        self.ridge.merge(other.ridge)
        self.models.merge(other.models)
        self.pools.merge(other.pools)
        self.n_values += other.n_values
        self.as_of_ms = max(self.as_of_ms, other.as_of_ms)

    def digest(self) -> str:
        """A hash of all that was learned, independent of order, batches and restarts."""
        self.history.settle()
        digest = hashlib.sha256()
        for name, arrays in {**self.statistics(), "history": self.history.canonical()}.items():
            for column in sorted(arrays):
                digest.update(f"{name}/{column}/{arrays[column].shape}".encode())
                digest.update(np.ascontiguousarray(arrays[column]).tobytes())
        return digest.hexdigest()

    def statistics(self) -> dict[str, Arrays]:
        """Everything but the history rows, as named groups of arrays."""
        return {
            "ridge": self.ridge.arrays(),
            "models": self.models.arrays(),
            "pools": self.pools.arrays(),
            "counts": {"as_of_ms": np.array(self.as_of_ms), "n_values": self.n_values.copy()},
        }

    @classmethod
    def restore(cls, options: MemoryOptions, statistics: dict[str, Arrays], rows: Rows) -> Learned:
        """The state that `statistics()` and `history.rows` described."""
        learned = cls(options)
        learned.ridge.load(statistics["ridge"])
        learned.models.load(statistics["models"])
        learned.pools.load(statistics["pools"])
        learned.as_of_ms = int(statistics["counts"]["as_of_ms"])
        learned.n_values = np.array(statistics["counts"]["n_values"], np.int64)
        learned.history.rows = {name: rows[name] for name in COLUMNS}
        return learned
