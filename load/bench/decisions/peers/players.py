"""Other projects' bandits as contenders. Runs in their environment: numpy, and one package each.

All are told the same: the reward is the utility at the stream's setting of the dial, so that each
optimises what it is measured by. Linear ones get 25 principal directions, as ParetoBandit ships;
Vowpal Wabbit, which is quick, gets all. Parameters are each project's defaults, or what it
recommends for a cold start, unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from load.bench.decisions.streams import Floats, Player, Rows, Stream

N_LINEAR = 25


def linear_features(stream: Stream) -> Floats:
    """The first principal directions (n, 25) at unit length, without a constant.

    At the router's own scale, which is about five times larger, they do worse.
    """
    directions = np.ascontiguousarray(stream.contexts[:, :N_LINEAR], np.float64)
    return directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)


class ParetoBandit:
    """BanditRouter, tabula rasa: α 0.05, forgetting 0.997; the price is in the reward."""

    def __init__(self, stream: Stream) -> None:
        import logging

        from pareto_bandit import BanditRouter
        from pareto_bandit.config import BEST_K3_TABULA_RASA_HPARAMS as COLD
        from pareto_bandit.feature_service import FeatureService
        from pareto_bandit.types import RouterConfig

        logging.getLogger("pareto_bandit").setLevel(logging.ERROR)
        self._stream, self._x = stream, linear_features(stream)
        self._names = [f"m{column}" for column in range(stream.n_models)]
        lowest = float(stream.utility(stream.quality, stream.cost_usd).min())
        self._router = BanditRouter.create(
            model_registry={
                name: {"input_cost_per_m": 1.0, "output_cost_per_m": 1.0} for name in self._names
            },
            priors="none",
            feature_service=FeatureService.for_precomputed(dimension=N_LINEAR),
            alpha=COLD["alpha"],
            forgetting_factor=COLD["forgetting_factor"],
            cost_penalty=0.0,
            bandit_seed=stream.seed,
            config=RouterConfig(
                reward_min=min(0.0, lowest), reward_max=1.0, max_log_size=2 * len(stream)
            ),
        )
        self._ids: dict[int, str] = {}

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        columns = []
        for row in rows.tolist():
            name, log = self._router.route(self._x[row])
            self._ids[row] = log.request_id
            columns.append(int(name[1:]))
        return np.array(columns)

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`."""
        del columns
        for row, worth in zip(
            rows.tolist(), self._stream.utility(quality, cost_usd).tolist(), strict=True
        ):
            self._router.process_feedback(self._ids.pop(row), reward=worth)


class VowpalSquareCb:
    """`--cb_explore_adf --squarecb`, contexts crossed with models."""

    def __init__(self, stream: Stream) -> None:
        from vowpalwabbit import Workspace

        self._stream = stream
        self._vw = Workspace(
            f"--cb_explore_adf --squarecb -q UA --quiet --random_seed {stream.seed + 1}"
        )
        self._rng = np.random.default_rng([stream.seed, 7])
        self._actions = [f"|A m{column}" for column in range(stream.n_models)]
        self._propensity: dict[int, float] = {}

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        columns = []
        for row in rows.tolist():
            p = np.array(self._vw.predict([self._shared(row), *self._actions]))
            column = int(self._rng.choice(len(p), p=p / p.sum()))
            self._propensity[row] = float(p[column])
            columns.append(column)
        return np.array(columns)

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`."""
        costs = -self._stream.utility(quality, cost_usd)
        for row, column, cost in zip(rows.tolist(), columns.tolist(), costs.tolist(), strict=True):
            lines = list(self._actions)
            lines[column] = f"0:{cost}:{self._propensity.pop(row)} {lines[column]}"
            self._vw.learn([self._shared(row), *lines])

    def _shared(self, row: int) -> str:
        values = self._stream.contexts[row, :63].tolist()
        return "shared |U " + " ".join(f"f{i}:{value:.4g}" for i, value in enumerate(values))


class MabWiserLinUcb:
    """LinUCB, α 0.1 as the project's reference figures were taken."""

    def __init__(self, stream: Stream) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        self._stream = stream
        self._x = np.hstack([linear_features(stream), np.ones((len(stream), 1))])
        self._mab = MAB(
            list(range(stream.n_models)), LearningPolicy.LinUCB(alpha=0.1), seed=stream.seed
        )
        self._fitted = False
        self._rng = np.random.default_rng([stream.seed, 8])

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        if not self._fitted:
            return self._rng.integers(0, self._stream.n_models, len(rows))
        return np.atleast_1d(self._mab.predict(self._x[rows])).astype(np.intp)

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`."""
        train = self._mab.partial_fit if self._fitted else self._mab.fit
        train(columns, self._stream.utility(quality, cost_usd), self._x[rows])
        self._fitted = True


class RiverLinUcb:
    """`bandit.LinUCBDisjoint` with its own defaults."""

    def __init__(self, stream: Stream) -> None:
        from river import bandit

        self._stream, self._arms = stream, list(range(stream.n_models))
        self._contexts = [
            {**{f"f{i}": value for i, value in enumerate(row)}, "one": 1.0}
            for row in linear_features(stream).tolist()
        ]
        self._policy: Any = bandit.LinUCBDisjoint(burn_in=0, seed=stream.seed)

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        pull = self._policy.pull
        return np.array([pull(self._arms, context=self._contexts[row]) for row in rows.tolist()])

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`."""
        rewards = self._stream.utility(quality, cost_usd)
        for row, column, worth in zip(
            rows.tolist(), columns.tolist(), rewards.tolist(), strict=True
        ):
            self._policy.update(column, self._contexts[row], worth)


class Gittins:
    """`gittins.decide`, the models as candidates; a model of 2^14 weights."""

    def __init__(self, stream: Stream) -> None:
        import gittins

        self._gittins, self._stream = gittins, stream
        self._state = gittins.create(bits=14, horizon=float(10 * len(stream)))
        self._candidates: list[tuple[str, dict[str, float]]] = [
            (f"m{column}", {}) for column in range(stream.n_models)
        ]
        self._contexts = [
            {f"f{i}": value for i, value in enumerate(row)}
            for row in linear_features(stream).tolist()
        ]
        self._salt, self._now = f"seed-{stream.seed}", 0
        self._ids: dict[int, Any] = {}

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        columns = []
        for row in rows.tolist():
            self._now += 1
            record = self._gittins.decide(
                self._state, self._contexts[row], self._candidates, float(self._now), self._salt
            )
            self._ids[row] = record.decision_id
            columns.append(record.chosen)
        return np.array(columns)

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`."""
        del columns
        for row, worth in zip(
            rows.tolist(), self._stream.utility(quality, cost_usd).tolist(), strict=True
        ):
            self._now += 1
            self._gittins.learn(self._state, self._ids.pop(row), worth, float(self._now))


class SaveRouter:
    """K = 1: one answer for each prompt of the first fifth, chosen its way, then a fixed router.

    A fifth is ORBIT's split. What is bought is the stream's own answers, so exploration is counted;
    it is told each at once, without the delay.
    """

    SHARE = 0.2

    def __init__(self, stream: Stream) -> None:
        from saverouter import FixedKSparseRouter, GroupAssigner, collect_fixed_k_supervision

        n = max(16, int(self.SHARE * len(stream)))
        every = stream.embeddings.astype(np.float64)
        x = every[:n]
        assigner = GroupAssigner(seed=stream.seed)
        groups = assigner.fit_predict(x)
        self._first = np.zeros(n, np.intp)

        def reveal(row: int, column: int) -> tuple[float, float]:
            self._first[row] = column
            return float(stream.quality[row, column]), float(stream.cost_usd[row, column])

        bought = collect_fixed_k_supervision(
            n_queries=n,
            n_models=stream.n_models,
            group_ids=groups,
            reveal=reveal,
            k=1,
            seed=stream.seed,
        )
        router = FixedKSparseRouter(group_assigner=assigner).fit(x, bought)
        scores = stream.utility(router.predict_scores(every), router.predict_costs(every))
        self._chosen = scores.argmax(axis=1)
        self._chosen[:n] = self._first

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        return self._chosen[rows]

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """It does not learn once it is fitted."""


# Name in the results → the package it needs, as pip knows it, and how it is made.
PEERS: dict[str, tuple[str, Callable[[Stream], Player]]] = {
    "paretobandit": ("paretobandit", ParetoBandit),
    "vw_squarecb": ("vowpalwabbit", VowpalSquareCb),
    "mabwiser_linucb": ("mabwiser", MabWiserLinUcb),
    "river_linucb": ("river", RiverLinUcb),
    "gittins": ("gittins", Gittins),
    "saverouter_k1": ("saverouter", SaveRouter),
}
