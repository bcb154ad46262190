"""PORT, the baselines that it was published with, and the optimum that it is measured by.

    history ──5 nearest──▶ quality d, cost g of every query and model ─┬─▶ router ─▶ a model each
                                                                       └─▶ linear programme
    referee: in order of arrival; a query whose model's budget does not hold its real cost is lost

"Efficient Training-Free Online Routing for High-Volume Multi-LLM Serving" (NeurIPS 2025), written
anew from its equations. Budgets are per model, for all queries together: what the cheapest model
would cost for them, split by √(mean quality / mean cost). The router knows how many queries come.
Nothing is learned from answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
from scipy.optimize import linprog, minimize
from scipy.sparse import csr_array, vstack

from load.bench.decisions.streams import LOST, Floats, Rows
from load.data.tables import OutcomeTable

NEAREST = 5
ALPHA, EXPLORED = 1e-4, 0.025  # as published
EXPLORED_TRIED = (0.025, 0.05, 0.1, 0.2)
BATCH = 256
HNSW_LINKS = 32


@dataclass(frozen=True, eq=False)
class Market:
    """Queries in order, the history that is known of, and each model's budget."""

    history: OutcomeTable
    queries: OutcomeTable
    seed: int

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def n_models(self) -> int:
        """How many models there are."""
        return len(self.queries.models)

    @cached_property
    def budgets_usd(self) -> Floats:
        """What each model may be given (k,)."""
        history = self.history
        worth = np.sqrt(history.quality.mean(axis=0) / history.cost_usd.mean(axis=0))
        return float(self.queries.cost_usd.sum(axis=0).min()) * worth / worth.sum()

    @cached_property
    def approximate(self) -> tuple[Floats, Floats]:
        """Quality and cost (n, k) by nearest neighbours, found by a graph (HNSW)."""
        return self._estimated(exact=False)

    @cached_property
    def exact(self) -> tuple[Floats, Floats]:
        """The same, by looking at all of the history."""
        return self._estimated(exact=True)

    def _estimated(self, *, exact: bool) -> tuple[Floats, Floats]:
        known, asked = _unit(self.history), _unit(self.queries)
        index = (
            faiss.IndexFlatL2(known.shape[1])
            if exact
            else faiss.IndexHNSWFlat(known.shape[1], HNSW_LINKS)
        )
        index.add(known)
        near = index.search(asked, NEAREST)[1]
        return self.history.quality[near].mean(axis=1), self.history.cost_usd[near].mean(axis=1)


def _unit(table: OutcomeTable) -> np.ndarray:
    vectors = table.embeddings
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a router's choices."""

    quality: float  # sum of what was served
    usd: float
    n: int


def refereed(market: Market, chosen: Rows) -> Served:
    """Serve choices in order, each while its model's budget lasts."""
    left, quality, usd, n = market.budgets_usd.copy(), 0.0, 0.0, 0
    worth, cost = market.queries.quality, market.queries.cost_usd
    for row, column in enumerate(chosen.tolist()):
        if column != LOST and cost[row, column] <= left[column]:
            left[column] -= cost[row, column]
            quality, usd, n = quality + worth[row, column], usd + cost[row, column], n + 1
    return Served(quality, usd, n)


# --- routers


def port(market: Market, explored: float = EXPLORED) -> Rows:
    """PORT: uniform at first (one outcome of k + 1 is to drop), then at prices fixed by those."""
    (quality, cost), n = market.approximate, len(market)
    first, k = int(np.ceil(explored * n)), market.n_models
    drawn = np.random.default_rng([market.seed, 70]).integers(0, k + 1, first)
    seen = ALPHA * quality[:first], cost[:first]

    def dual(price: Floats) -> float:
        best = (seen[0] - price * seen[1]).max(axis=1)
        return float(explored * price @ market.budgets_usd + best.sum())

    start, bounds = np.full(k, 1.0 / k), [(0.0, 1.0)] * k
    price = minimize(dual, start, method="L-BFGS-B", bounds=bounds).x
    best = (ALPHA * quality[first:] - price * cost[first:]).argmax(axis=1)
    return np.concatenate([np.where(drawn == k, LOST, drawn), best])


def uniform(market: Market) -> Rows:
    """Any model."""
    return np.random.default_rng([market.seed, 71]).integers(0, market.n_models, len(market))


def dearest(estimates: tuple[Floats, Floats]) -> Rows:
    """The best model by its estimate, whatever it costs."""
    return np.asarray(estimates[0].argmax(axis=1))


def fullest(market: Market, estimates: tuple[Floats, Floats]) -> Rows:
    """The model with the most left of its budget, after what the query is estimated to take."""
    return _in_order(market, lambda row, left: int((left - estimates[1][row]).argmax()))


def fitting(market: Market) -> Rows:
    """The best model by its estimate of those whose budget still holds its estimated cost."""
    quality, cost = market.exact

    def best(row: int, left: Floats) -> int:
        fits = cost[row] <= left
        return int(np.where(fits, quality[row], -1.0).argmax()) if fits.any() else LOST

    return _in_order(market, best)


def _in_order(market: Market, choose: Callable[[int, Floats], int]) -> Rows:
    """Choices that look at what is left of the budgets (k,)."""
    left, chosen, real = market.budgets_usd.copy(), np.empty(len(market), np.intp), market.queries
    for row in range(len(market)):
        column = chosen[row] = choose(row, left)
        if column != LOST and real.cost_usd[row, column] <= left[column]:
            left[column] -= real.cost_usd[row, column]
    return chosen


def batch_split(market: Market, *, share: bool) -> Rows:
    """A programme per batch over what is left of the budgets, or over the batch's share of it."""
    (quality, cost), real, n = market.approximate, market.queries.cost_usd, len(market)
    left, chosen = market.budgets_usd.copy(), np.empty(n, np.intp)
    for start in range(0, n, BATCH):
        rows = slice(start, min(start + BATCH, n))
        here = left * (rows.stop - start) / (n - start) if share else left
        chosen[rows] = programme(quality[rows], cost[rows], here)[1]
        for row in range(start, rows.stop):
            column = chosen[row]
            if column != LOST and real[row, column] <= left[column]:
                left[column] -= real[row, column]
    return chosen


# --- the optimum


def programme(quality: Floats, cost: Floats, left: Floats) -> tuple[float, Rows]:
    """The linear programme: what it expects of queries known at once, and whom each goes to.

    All but k of its variables are whole; those queries are dropped, or go to their larger part.
    """
    scale = 1.0 / np.maximum(left, 1e-12)
    ones = np.ones(len(quality))
    matrix = _matrix(cost) * np.concatenate([ones, scale])[:, None]
    limits = np.concatenate([ones, left * scale])
    found = linprog(-quality.ravel(), matrix, limits, bounds=(0, 1), method="highs")
    assert found.x is not None and found.fun is not None, found.message
    taken = found.x.reshape(quality.shape)
    return -float(found.fun), np.where(taken.max(axis=1) >= 0.5, taken.argmax(axis=1), LOST)


def _matrix(cost: Floats) -> csr_array:
    """One row for each query (one model at most), then one for each model (its budget)."""
    n, k = cost.shape
    cells = np.arange(n * k)
    once = csr_array((np.ones(n * k), (np.repeat(np.arange(n), k), cells)), shape=(n, n * k))
    spent = csr_array((cost.ravel(), (np.tile(np.arange(k), n), cells)), shape=(k, n * k))
    return csr_array(vstack([once, spent]))


BASELINES: Mapping[str, Callable[[Market], Rows]] = {
    "random": uniform,
    "greedy_performance": lambda market: dearest(market.approximate),
    "greedy_cost": lambda market: fullest(market, market.approximate),
    "knn_performance": lambda market: dearest(market.exact),
    "knn_cost": lambda market: fullest(market, market.exact),
    "batch_split": lambda market: batch_split(market, share=False),
    "batch_split_by_share": lambda market: batch_split(market, share=True),
    "best_that_fits": fitting,
}
