"""What was decided of n requests, and what that was based on, in columns.

    figures (f, n, k), one block ──▶ utility, quality, cost_usd, …  (n, k) each, where asked for

The figures of k models stay in the block that they were computed in: who writes a decision takes
all of them, and a view of each would take a lone request as long as computing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.routing.eligible import taken

Floats = NDArray[np.float64]
FIGURES = (  # in the order that `learners.kernels.decide` writes them in
    "utility",
    "unsure",
    "quality",
    "cost_usd",
    "latency_ms",
    "quality_deviation",
    "cost_usd_deviation",
    "latency_ms_deviation",
    "expected_cost_usd",
    "estimated_quality",
    "estimated_cost_usd",
)
BESIDE = {"propensity": -1, "energy_j": -2}  # columns that kernels are handed beside the figures


def sources_of(columns: Sequence[str]) -> NDArray[np.int64]:
    """Where `learners.kernels.records` finds columns: their rows of the figures, or `BESIDE`."""
    places = {**BESIDE, **{name: row for row, name in enumerate(FIGURES)}}
    return np.array([places[name] for name in columns], np.int64)


class _Figure:
    """One row of `Choices.figures`."""

    def __init__(self, name: str) -> None:
        self._row = FIGURES.index(name)

    def __get__(self, choices: Choices, kind: type | None = None) -> Floats:
        return choices.figures[self._row]


@dataclass(slots=True, kw_only=True, eq=False)
class Choices:
    """Columns of n decisions, and what they were based on, (n, k) each unless it says otherwise.

    Nobody sets a column anew; it is not frozen because that takes as long to make as a kernel runs.
    Where no model is eligible or a budget refuses, `fits` is False; where it is refused for want of
    capacity, `shed` is True. The row's other values then say what would have been.
    """

    chosen: NDArray[np.intp]  # (n,) column of the chosen model
    pool: NDArray[np.intp]  # (n,) of its pool, among `Catalogue.pool_names`
    fits: NDArray[np.bool_]  # (n,)
    budget: NDArray[np.intp]  # (n,) of the budgets, the one that refuses it, or NONE
    shed: NDArray[np.bool_]  # (n,)
    multiple: Floats  # (n,) least price of the pools that it could go to, multiples of their cost
    below_quality: NDArray[np.bool_]  # (n,) no model was good enough for `quality_min`
    preferred: NDArray[np.intp]  # (n,) model chosen if all pools were there and capacity free
    pools: NDArray[np.intp]  # best pool of each model
    verdict: NDArray[np.uint8]
    propensity: Floats
    energy_j: Floats  # 0: not known
    work_s: Floats  # (n,) in the chosen pool
    figures: Floats  # (f, n, k) `FIGURES`, which follow
    arm: NDArray[np.object_] | None = None  # (n,) of a change under trial; None: there is none
    beside: Floats | None = None  # propensities of a policy that looked on
    suggested: NDArray[np.intp] | None = None  # (n,) whom it would have chosen

    utility = _Figure("utility")
    unsure = _Figure("unsure")  # standard deviation of the utility's estimate
    quality = _Figure("quality")
    cost_usd = _Figure("cost_usd")
    latency_ms = _Figure("latency_ms")
    quality_deviation = _Figure("quality_deviation")
    cost_usd_deviation = _Figure("cost_usd_deviation")
    latency_ms_deviation = _Figure("latency_ms_deviation")
    expected_cost_usd = _Figure("expected_cost_usd")  # by the catalogue
    # Before calibration, if no call failed; NaN: not estimated.
    estimated_quality = _Figure("estimated_quality")
    estimated_cost_usd = _Figure("estimated_cost_usd")

    def __getitem__(self, rows: NDArray[np.intp]) -> Choices:
        return taken(self, rows, second=("figures",))

    @property
    def sent_all(self) -> bool:
        """Whether none is refused; lists, because a reduction takes twenty times as long."""
        return False not in self.fits.tolist() and True not in self.shed.tolist()
