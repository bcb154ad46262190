"""How well requests were routed: quality, cost and utility, beside what was possible.

    router            what it chose, exploration included
    random            a uniformly chosen model (its exact expectation, not a draw)
    single models     each one for everything; the best of them is known in hindsight alone
    oracle            for every prompt the model of highest utility, knowing all outcomes

Everything is measured on the same requests in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from load.data.tables import OutcomeTable

N_QUARTERS = 4
N_STEPS = 20  # of the learning curve
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Score:
    """Means per request: quality (0 to 1), cost in US dollars, utility in quality points."""

    quality: float
    cost_usd: float
    utility: float

    def json(self) -> dict[str, float]:
        """As plain JSON."""
        return {"quality": self.quality, "cost_usd": self.cost_usd, "utility": self.utility}


@dataclass(frozen=True, slots=True)
class Scores:
    """A score overall, by quarter of the requests, and of their second half."""

    overall: Score
    by_quarter: tuple[Score, ...]
    second_half: Score

    def json(self) -> dict[str, object]:
        """As plain JSON, quarters under `by_quarter`."""
        return {**self.overall.json(), "by_quarter": [q.json() for q in self.by_quarter]}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run's scores; `single` by model."""

    router: Scores
    random: Scores
    oracle: Scores
    single: dict[str, Scores]
    # Utility of the router over each single model's, in `N_STEPS` stretches of the requests.
    over_single: dict[str, NDArray[np.float64]]

    @property
    def best_single(self) -> str:
        """The single model of highest mean quality over these requests."""
        return max(self.single, key=lambda model: self.single[model].overall.quality)

    @property
    def last_quarter_quality_share(self) -> float:
        """The router's last quarter's quality over the best single model's."""
        best = self.single[self.best_single].by_quarter[-1]
        return self.router.by_quarter[-1].quality / best.quality

    @property
    def last_quarter_cost_share(self) -> float:
        """The router's last quarter's cost over the best single model's."""
        best = self.single[self.best_single].by_quarter[-1]
        return self.router.by_quarter[-1].cost_usd / best.cost_usd

    def over(self, model: str) -> float:
        """The router's utility over a model's, second half."""
        return self.router.second_half.utility - self.single[model].second_half.utility

    def savings_share(self, model: str) -> float:
        """Cost saved at a model's quality, second half; see `saved`."""
        single = {name: scores.second_half for name, scores in self.single.items()}
        return saved(self.router.second_half, single, model)


def saved(router: Score, single: Mapping[str, Score], model: str) -> float:
    """The share of a model's cost that the router saves at that model's very quality.

    A router of another quality is brought to it by sending a share of the requests to one fixed
    model instead: to a poorer one where it is above, to a better one where it is below. The model
    that makes this cheapest counts; below zero it costs more.
    """
    wanted = single[model]
    costs = [router.cost_usd] if router.quality >= wanted.quality else []
    for other in single.values():
        low, high = sorted((router, other), key=lambda score: score.quality)
        if low.quality < wanted.quality <= high.quality:
            share = (wanted.quality - low.quality) / (high.quality - low.quality)
            costs.append(low.cost_usd + share * (high.cost_usd - low.cost_usd))
    return 1.0 - min(costs) / wanted.cost_usd


def best_fixed(comparisons: Sequence[Comparison]) -> str:
    """The single model of highest utility in the second half, all runs together."""
    return max(
        comparisons[0].single,
        key=lambda m: float(np.mean([c.single[m].second_half.utility for c in comparisons])),
    )


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean over seeds with Student's 95 % interval; one seed alone has none, so it has no width."""
    n, mean = len(values), float(np.mean(values))
    half = 0.0
    if n > 1:
        error = float(np.std(values, ddof=1) / np.sqrt(n))
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half}


def compare(
    table: OutcomeTable,
    chosen: NDArray[np.intp],
    preference: Sequence[float],
    extra_usd: NDArray[np.float64] | float = 0.0,
) -> Comparison:
    """Score a run: `chosen` (n,) columns; requests without a decision (−1) count as quality 0.

    `extra_usd` (n,) is what the router paid beside the chosen answers, for probes.
    """
    n = len(table)
    rows = np.arange(n)
    utility = preference[0] * table.quality - preference[1] * table.cost_usd  # (n, k)
    answered = chosen >= 0

    def figures(columns: NDArray[np.intp]) -> list[NDArray[np.float64]]:
        return [v[rows, columns] for v in (table.quality, table.cost_usd, utility)]

    router = [np.where(answered, figure, 0.0) for figure in figures(np.maximum(chosen, 0))]
    router[1] = router[1] + extra_usd
    router[2] = router[2] - preference[1] * extra_usd
    single = {m: figures(np.full(n, i)) for i, m in enumerate(table.models)}
    return Comparison(
        router=_scores(router),
        random=_scores([v.mean(axis=1) for v in (table.quality, table.cost_usd, utility)]),
        oracle=_scores(figures(utility.argmax(axis=1))),
        single={model: _scores(of) for model, of in single.items()},
        over_single={model: _curve(router[2] - of[2]) for model, of in single.items()},
    )


def _curve(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    parts = np.array_split(differences, min(N_STEPS, len(differences)))
    return np.array([part.mean() for part in parts])


def _scores(figures: Sequence[NDArray[np.float64]]) -> Scores:
    parts = [np.array_split(figure, N_QUARTERS) for figure in figures]
    half = len(figures[0]) // 2
    return Scores(
        Score(*(float(figure.mean()) for figure in figures)),
        tuple(Score(*(float(part[q].mean()) for part in parts)) for q in range(N_QUARTERS)),
        Score(*(float(figure[half:].mean()) for figure in figures)),
    )


def average(scores: Sequence[Scores]) -> Scores:
    """The mean of several runs."""

    def mean(parts: Sequence[Score]) -> Score:
        columns = zip(*((p.quality, p.cost_usd, p.utility) for p in parts), strict=True)
        return Score(*(float(np.mean(c)) for c in columns))

    return Scores(
        mean([s.overall for s in scores]),
        tuple(mean([s.by_quarter[q] for s in scores]) for q in range(N_QUARTERS)),
        mean([s.second_half for s in scores]),
    )
