"""Simple rules that any router should beat, and the bounds that none can.

    bandit feedback     random, EMA ε-greedy, kNN, PORT
    hindsight           the best fixed model, the oracle: they read the whole table

What is learned only from own choices takes turns with `play`; the others are functions of a stream.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

from load.bench.decisions.streams import LOST, Floats, Player, Rows, Stream

EPSILON = 0.05  # share of prompts sent to a uniformly drawn model
EMA_STEP = 0.01  # an outcome counts half after 69 newer ones
KNN_NEIGHBOURS, KNN_PRIOR = 50, 4.0
PORT_NEIGHBOURS, PORT_ALPHA = 5, 1e-4
# PORT wants history with every model's result; here it draws at random over as long a stretch as
# ORBIT trains on, a fifth, then solves for its prices once.
PORT_HISTORY = 0.2


class EmaGreedy:
    """The model with the best running mean of utility; now and then another one."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._rng = stream, np.random.default_rng([stream.seed, 3])
        self._mean = np.full(stream.n_models, 1.0)  # optimistic: each is tried

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        best = np.full(len(rows), self._mean.argmax())
        return _epsilon(best, self._stream.n_models, self._rng)

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`."""
        del rows
        for column, worth in zip(columns, self._stream.utility(quality, cost_usd), strict=True):
            self._mean[column] += EMA_STEP * (worth - self._mean[column])


class Observed:
    """Own outcomes so far, searched by similarity of contexts."""

    def __init__(self, stream: Stream) -> None:
        directions = stream.contexts[:, :62]
        norms = np.linalg.norm(directions, axis=1, keepdims=True)
        self._unit = directions / np.maximum(norms, 1e-9)
        self._k = stream.n_models
        self._rows = np.zeros(0, np.intp)
        self._columns = np.zeros(0, np.intp)
        self._values = np.zeros((0, 2))

    def add(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """Remember outcomes."""
        self._rows = np.concatenate([self._rows, rows])
        self._columns = np.concatenate([self._columns, columns])
        self._values = np.concatenate([self._values, np.stack([quality, cost_usd], axis=1)])

    def means(self, rows: Rows, neighbours: int, prior: Floats, weight: float) -> Floats:
        """Quality and cost (n, k, 2): of each model's nearest, pulled to `prior` (k, 2)."""
        found = np.tile(prior, (len(rows), 1, 1))
        for column in range(self._k):
            own = np.flatnonzero(self._columns == column)
            if not len(own):
                continue
            near = self._unit[rows] @ self._unit[self._rows[own]].T
            count = min(neighbours, len(own))
            at = own[np.argpartition(-near, count - 1, axis=1)[:, :count]]
            total = self._values[at].sum(axis=1) + weight * prior[column]
            found[:, column] = total / (count + weight)
        return found


class Knn:
    """Each model's mean outcome on the prompts most alike; ε of the prompts elsewhere."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._rng = stream, np.random.default_rng([stream.seed, 4])
        self._observed = Observed(stream)
        self._prior = np.stack([np.full(stream.n_models, 0.5), stream.price_usd], axis=1)

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        means = self._observed.means(rows, KNN_NEIGHBOURS, self._prior, KNN_PRIOR)
        best = self._stream.utility(means[..., 0], means[..., 1]).argmax(axis=1)
        return _epsilon(best, self._stream.n_models, self._rng)

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`."""
        self._observed.add(rows, columns, quality, cost_usd)


class Port:
    """PORT (NeurIPS 2025): models' budgets priced once by a dual, then α·quality − γ·cost.

    Its dial is money, not λ: the total budget is what the model that is best at λ, by what the
    history says, would cost for the rest of the stream. A prompt whose model has no budget left is
    lost, as in the paper.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream, self._rng = stream, np.random.default_rng([stream.seed, 5])
        self._observed = Observed(stream)
        self._history = int(PORT_HISTORY * len(stream))
        self._prior = np.stack([np.full(stream.n_models, 0.5), stream.price_usd], axis=1)
        self._price: Floats | None = None
        self._left_usd = np.zeros(stream.n_models)
        self._sums, self._counts = np.zeros((stream.n_models, 2)), np.zeros(stream.n_models)

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        k = self._stream.n_models
        if rows[0] < self._history:
            return self._rng.integers(0, k, len(rows))
        if self._price is None:
            self._price = self._solve()
        means = self._estimates(rows)
        score = PORT_ALPHA * means[..., 0] - self._price * means[..., 1]
        chosen = score.argmax(axis=1)
        expected = means[np.arange(len(rows)), chosen, 1]
        for i, column in enumerate(chosen.tolist()):
            if self._left_usd[column] < expected[i]:
                chosen[i] = LOST
            else:
                self._left_usd[column] -= expected[i]
        return chosen

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`: its history does not grow after the prices are set."""
        if self._price is None:
            self._observed.add(rows, columns, quality, cost_usd)
            np.add.at(self._sums, columns, np.stack([quality, cost_usd], axis=1))
            np.add.at(self._counts, columns, 1.0)

    def _estimates(self, rows: Rows) -> Floats:
        return self._observed.means(rows, PORT_NEIGHBOURS, self._prior, 0.0)

    def _solve(self) -> Floats:
        """The dual prices γ (k,) over the history's prompts; sets the budgets."""
        mean = (self._sums + self._prior) / (self._counts + 1.0)[:, None]
        rest = len(self._stream) - self._history
        best = self._stream.utility(mean[:, 0], mean[:, 1]).argmax()
        paid = mean[:, 1] > 0  # a free model needs no budget
        share = np.zeros(len(mean))
        share[paid] = np.sqrt(np.maximum(mean[paid, 0], 1e-6) / mean[paid, 1])
        budget = rest * mean[best, 1] * share / share.sum()
        self._left_usd = budget.copy()
        means = self._estimates(np.arange(self._history))
        epsilon = self._history / rest

        def dual(price: Floats) -> tuple[float, Floats]:
            score = PORT_ALPHA * means[..., 0] - price * means[..., 1]
            taken = score.argmax(axis=1)
            rows = np.arange(len(score))
            slope = epsilon * budget
            slope = slope - np.bincount(taken, means[rows, taken, 1], minlength=len(price))
            return float(epsilon * price @ budget + score[rows, taken].sum()), slope

        k = len(budget)
        start = np.full(k, 1.0 / k)
        return minimize(dual, start, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * k).x


class Random:
    """A uniformly drawn model."""

    def __init__(self, stream: Stream) -> None:
        self._rng, self._k = np.random.default_rng([stream.seed, 6]), stream.n_models

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        return self._rng.integers(0, self._k, len(rows))

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """Nothing is learned."""


BANDITS: dict[str, Callable[[Stream], Player]] = {
    "random": Random,
    "ema_epsilon_greedy": EmaGreedy,
    "knn": Knn,
    "port": Port,
}


def best_fixed(stream: Stream) -> Rows:
    """The one model that is best over the whole stream, for every prompt."""
    mean = stream.utility(stream.quality, stream.cost_usd).mean(axis=0)
    return np.full(len(stream), mean.argmax())


def oracle(stream: Stream) -> Rows:
    """The best model for each prompt."""
    return stream.utility(stream.quality, stream.cost_usd).argmax(axis=1)


def _epsilon(best: Rows, k: int, rng: np.random.Generator) -> Rows:
    drawn = rng.random(len(best)) < EPSILON
    return np.where(drawn, rng.integers(0, k, len(best)), best)
