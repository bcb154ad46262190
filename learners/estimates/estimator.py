"""One estimate per request and model, blended from ridge, history and means.

    context ─┬─▶ ridge       w₀ + w_k: what models share, how one departs    ─┐
             ├─▶ neighbours  residuals of similar requests, shrunk            ├─▶ mean, deviation
             └─▶ means       what is known of a model whatever the context   ─┘

Ridge and neighbours both estimate the departure from the model's mean; the blend is their
weighted average (measured in DESIGN.md: better than either on every table).

The one rule: an estimator is solved once, then only read. It belongs to one snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts, real
from learners.estimates import ema, ridge
from learners.estimates.history import Evidence, Neighbours
from learners.estimates.learned import Learned
from learners.estimates.ridge import RidgeOptions
from learners.option import option
from learners.targets import N_TARGETS, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendOptions:
    """How the learners' estimates are put together."""

    ridge: RidgeOptions = field(default_factory=RidgeOptions)
    # Of the departure from the mean.
    neighbours_share: float = option(
        0.5, "Share of the neighbours in the estimate; the rest is the linear model's.", ge=0, le=1
    )
    # A model's stated expectation counts as this many outcomes.
    prior_weight: float = 4.0
    # Assumed residual deviations before data: quality points, then natural logs of the ratios.
    quality_noise: float = 0.3
    ratio_noise: float = 0.7


@dataclass(frozen=True, slots=True, eq=False)
class Estimates:
    """For n requests and k models, on the learned scale (see `learners.targets`).

    `mean` (n, k, 3); `deviation` (n, k) of the quality estimate itself, which more outcomes would
    shrink; `noise` (k, 3) of a single outcome around its estimate; `evidence` what neighbours said.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    noise: NDArray[np.float32]
    evidence: Evidence


class Estimator:
    """What a learned state says of k models, in the order given."""

    def __init__(
        self,
        learned: Learned,
        models: list[int],
        quality_prior: NDArray[np.float64],
        options: BlendOptions,
    ) -> None:
        """Solve for `models` (k keys); `quality_prior` (k,) is NaN where nothing was stated."""
        self.options, self.models = options, models
        as_of_ms = learned.as_of_ms
        self.model_means = ema.read(learned.models, models, as_of_ms)
        prior = np.zeros((len(models), N_TARGETS))
        prior[:, Target.QUALITY] = self._quality_prior(quality_prior)
        means = self.model_means.targets(prior, options.prior_weight)  # (k, 3)
        noise = np.array([options.quality_noise, options.ratio_noise, options.ratio_noise])
        sums = learned.ridge.read(models, as_of_ms)
        self.ridge = ridge.solve(sums, means, noise, options.ridge)
        rows, index = learned.history.rows, learned.history.index
        half_life_ms = learned.ridge.half_life_ms
        fade = np.exp2(-np.maximum(as_of_ms - rows["decided_at_ms"], 0) / half_life_ms)
        fade[rows["decided_at_ms"] > as_of_ms + half_life_ms] = 0.0  # from a clock that was ahead
        self.neighbours = Neighbours(rows, index, models, means, fade, learned.history.options)
        # The mean itself is uncertain by noise² / outcomes; ridge covers the departure from it.
        counts = self.ridge.counts[:, Target.QUALITY] + options.prior_weight
        self.mean_variance = (self.ridge.noise[:, 0] ** 2 / counts).astype(np.float32)

    def _quality_prior(self, stated: NDArray[np.float64]) -> NDArray[np.float64]:
        """What was stated, else the average of the models seen, else the middle."""
        quality = self.model_means.means[:, Target.QUALITY]
        weight = self.model_means.weights[:, Target.QUALITY]
        average = (weight @ quality + 0.5) / (weight.sum() + 1.0)
        return np.where(np.isnan(stated), average, stated)

    def estimate(self, contexts: Contexts) -> Estimates:
        """Estimate all models for contexts (n, 64), in one pass."""
        x = real(contexts)
        linear = self.ridge.predict(x)
        evidence = self.neighbours.evidence(contexts)
        share = np.float32(self.options.neighbours_share)
        nearby = self.ridge.means + evidence.deviation
        mean = linear + share * (nearby - linear)
        deviation = np.sqrt(self.ridge.deviation(x) ** 2 + self.mean_variance)
        return Estimates(mean, deviation, self.ridge.noise, evidence)
