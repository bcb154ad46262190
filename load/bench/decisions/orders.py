"""The orders in which a table's prompts come: several by chance, and one that drifts.

A drifting order goes through the prompts along the first principal direction of their embeddings,
so that subjects come and go slowly, with half of the place left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from learners.context import STEP
from load.bench.decisions.served import served_contexts
from load.bench.decisions.streams import Floats, Rows, Stream, delays
from load.data.tables import COST, OutcomeTable
from load.errors import TableRefused

DRIFT_CHANCE = 0.5  # deviation of the place, in deviations along the principal direction


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """A table with its orders: `n_seeds` by chance, then the drifting one."""

    table: OutcomeTable
    n_seeds: int
    rows: Rows  # (n_seeds + 1, n) rows of the table
    contexts: np.ndarray  # (rows of the table, 64) real
    price_usd: Floats = field(init=False)
    best_single_usd: float = field(init=False)

    def __post_init__(self) -> None:
        price = self.table.cost_usd.mean(axis=0)
        object.__setattr__(self, "price_usd", price)
        best = int(self.table.quality.mean(axis=0).argmax())
        object.__setattr__(self, "best_single_usd", float(price[best]))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_prompts(self) -> int:
        """How long each order is."""
        return self.rows.shape[1]

    def due(self) -> Floats:
        """When outcomes are known, (orders, n)."""
        return np.stack([delays(self.n_prompts, order) for order in range(len(self))])

    def stream(self, order: int, penalty: float) -> Stream:
        """One order at one setting of the dial."""
        rows, table = self.rows[order], self.table
        return Stream(
            seed=order,
            embeddings=table.embeddings[rows],
            contexts=self.contexts[rows],
            prompt_tokens=table.prompt_tokens[rows],
            quality=table.quality[rows],
            cost_usd=table.cost_usd[rows],
            price_usd=self.price_usd,
            best_single_usd=self.best_single_usd,
            penalty=penalty,
            due=delays(len(rows), order),
        )


def orders_of(table: OutcomeTable, n_seeds: int, n_max: int | None = None) -> Orders:
    """`n_seeds` shuffled orders and a drifting one, of at most `n_max` prompts each."""
    best = int(table.quality.mean(axis=0).argmax())
    if not table.cost_usd[:, best].any():
        why = "is 0 throughout, and preferences are in units of the best model's cost"
        raise TableRefused(table.name, COST + table.models[best], None, why)
    n = min(len(table), n_max or len(table))
    shuffled = [
        np.random.default_rng([seed, 0]).permutation(len(table))[:n] for seed in range(n_seeds)
    ]
    contexts = served_contexts(table.embeddings, table.prompt_tokens).astype(np.float32) * STEP
    rows = np.stack([*shuffled, drifting(table, n)])
    return Orders(table, n_seeds, rows, contexts)


def drifting(table: OutcomeTable, n: int) -> Rows:
    """Rows (n,) in an order along which the prompts' subjects drift."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(table))[:n]
    centred = table.embeddings[rows] - table.embeddings[rows].mean(axis=0)
    _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    along = centred @ vectors[:, -1]
    place = along / max(float(along.std()), 1e-12) + DRIFT_CHANCE * rng.standard_normal(n)
    return rows[np.argsort(place, kind="stable")]
