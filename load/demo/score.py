"""How well requests were routed: quality, cost and utility, by quarter, beside what was possible.

    router            what it chose, exploration included
    random            a uniformly chosen model (its exact expectation, not a draw)
    single models     each one for everything
    oracle            for every prompt the model of highest utility, knowing all outcomes

The one rule: everything is measured on the same requests in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from load.data.tables import OutcomeTable

N_QUARTERS = 4


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
class Quarters:
    """A score overall and by quarter of the requests."""

    overall: Score
    by_quarter: tuple[Score, ...]

    def json(self) -> dict[str, object]:
        """As plain JSON, quarters under `by_quarter`."""
        return {**self.overall.json(), "by_quarter": [q.json() for q in self.by_quarter]}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run's scores; `single` by model."""

    router: Quarters
    random: Quarters
    oracle: Quarters
    single: dict[str, Quarters]

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


def compare(
    table: OutcomeTable, chosen: NDArray[np.intp], preference: Sequence[float]
) -> Comparison:
    """Score a run: `chosen` (n,) columns; requests without a decision (−1) count as quality 0."""
    n = len(table)
    rows = np.arange(n)
    utility = preference[0] * table.quality - preference[1] * table.cost_usd  # (n, k)
    answered = chosen >= 0

    def of(columns: NDArray[np.intp], counts: NDArray[np.bool_]) -> Quarters:
        return _quarters(
            *(
                np.where(counts, v[rows, columns], 0.0)
                for v in (table.quality, table.cost_usd, utility)
            )
        )

    everything = np.ones(n, bool)
    return Comparison(
        router=of(np.maximum(chosen, 0), answered),
        random=_quarters(
            table.quality.mean(axis=1), table.cost_usd.mean(axis=1), utility.mean(axis=1)
        ),
        oracle=of(utility.argmax(axis=1), everything),
        single={m: of(np.full(n, i), everything) for i, m in enumerate(table.models)},
    )


def _quarters(*figures: NDArray[np.float64]) -> Quarters:
    parts = [np.array_split(figure, N_QUARTERS) for figure in figures]
    return Quarters(
        Score(*(float(figure.mean()) for figure in figures)),
        tuple(Score(*(float(part[q].mean()) for part in parts)) for q in range(N_QUARTERS)),
    )


def average(scores: Sequence[Quarters]) -> Quarters:
    """The mean of several runs."""

    def mean(parts: Sequence[Score]) -> Score:
        columns = zip(*((p.quality, p.cost_usd, p.utility) for p in parts), strict=True)
        return Score(*(float(np.mean(c)) for c in columns))

    return Quarters(
        mean([s.overall for s in scores]),
        tuple(mean([s.by_quarter[q] for s in scores]) for q in range(N_QUARTERS)),
    )
