"""A batch of outcomes as columns: the only thing learners ever learn from.

Row i says: in context `contexts[i]`, model `models[i]` in pool `pools[i]` gave `values[i]`, of
which `known[i]` were reported. Several rows may belong to one decision (latency now, quality
later); each reported value appears in exactly one row, which the trainer sees to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES, Contexts
from learners.targets import N_TARGETS
from learners.traits import SLOTS, Traits, no_traits

NOT_ESTIMATED = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """Columns of n outcomes, checked where they are made.

    `targets` are on the learned scale (see `learners.targets`) as fixed-point integers;
    `figures` hold what averages report: error share, output tokens, cost, latency (see `ema`).
    """

    issuers: NDArray[np.uint64]  # (n,) with `sequences`, the decision each row belongs to
    sequences: NDArray[np.uint64]  # (n,)
    decided_at_ms: NDArray[np.int64]  # (n,) Unix time of the decision: the event time of decay
    models: NDArray[np.uint64]  # (n,) key of the model that answered
    pools: NDArray[np.uint64]  # (n,) key of the pool that answered
    tenant_hashes: NDArray[np.uint8]  # (n,) `influence.hash_of` its tenant
    contexts: Contexts  # (n, 64)
    targets: NDArray[np.int64]  # (n, 3) fixed point
    known: NDArray[np.bool_]  # (n, 3) which targets were reported
    figures: NDArray[np.int64]  # (n, 4) fixed point, units in `ema.FIGURE_UNITS`
    figures_known: NDArray[np.bool_]  # (n, 4)
    # (n, 2) quality and cost as estimated when it was decided, on the scales of `targets` and of
    # `figures`; `NOT_ESTIMATED` where nothing was, which is also what leaving it out means.
    estimated: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    # (n, SLOTS) what the request said of itself; zeros, or left out: nothing.
    traits: Traits = field(default_factory=lambda: np.zeros((0, SLOTS), np.uint8))
    # (n,) `influence.producer_of` who says so; zeros, or left out: not named.
    producers: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    # (n, 127) of arms: how request and arm were seen when it was decided (`learners.arms.pairs`);
    # zeros of models, and (n, 0), or left out, where all are.
    pairs: NDArray[np.int8] = field(default_factory=lambda: np.zeros((0, 0), np.int8))

    def __post_init__(self) -> None:
        n = len(self.issuers)
        if n and not len(self.estimated):
            object.__setattr__(self, "estimated", np.full((n, 2), NOT_ESTIMATED, np.int64))
        if n and not len(self.traits):
            object.__setattr__(self, "traits", no_traits(n))
        if n and not len(self.producers):
            object.__setattr__(self, "producers", np.zeros(n, np.uint8))
        if n and not len(self.pairs):
            object.__setattr__(self, "pairs", np.zeros((n, 0), np.int8))
        assert len(self.pairs) == n
        assert self.producers.shape == (n,)
        assert self.estimated.shape == (n, 2) and self.traits.shape == (n, SLOTS)
        assert self.contexts.shape == (n, N_FEATURES) and self.contexts.dtype == np.int8
        assert self.targets.shape == self.known.shape == (n, N_TARGETS)
        assert self.figures.shape == self.figures_known.shape == (n, 4)
        assert self.sequences.shape == self.decided_at_ms.shape == (n,)
        assert self.models.shape == self.pools.shape == self.tenant_hashes.shape == (n,)

    def __len__(self) -> int:
        return len(self.issuers)

    @property
    def of_arms(self) -> NDArray[np.bool_]:
        """Which rows (n,) are of arms: `models` has their keys."""
        return np.asarray(self.pairs.any(axis=1))

    def take(self, rows: NDArray[Any]) -> Outcomes:
        """The outcomes at `rows`: indices or a mask."""
        return Outcomes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})
