"""Policies that come from other routers: prices of a budget, and means without contexts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learners.option import option
from learners.policies.policy import Matrix, Scores, register, sure


@register("port")
@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """Greedy against a dual price of money, after a share of uniform exploration (PORT, 2025).

    The published method fixes one price per model on the first ε of a known stream. Here the price
    is one number, on top of what the request's preference weighs.
    """

    price: float = option(
        0.0,
        "Further weight of cost, in parts of the preference's; 1: it counts twice.",
        ge=0,
        le=1e6,
    )
    explored: float = option(0.025, "Share of requests that are routed uniformly.", ge=0, le=1)

    def probabilities(self, scores: Scores) -> Matrix:
        charge = self.price * scores.cost if scores.cost is not None else 0.0
        best = sure(np.where(scores.allowed, scores.utility - charge, -np.inf))
        uniform = scores.allowed / scores.allowed.sum(axis=1, keepdims=True)
        return (1.0 - self.explored) * best + self.explored * uniform


@register("orch")
@dataclass(frozen=True, slots=True, kw_only=True)
class Orch:
    """Deterministic: least-tried first, then the best by each model's decayed mean (ORCH)."""

    n_outcomes_min: float = option(
        5.0, "Outcomes that every model is given before means decide.", ge=0, le=1e6
    )

    def probabilities(self, scores: Scores) -> Matrix:
        mean = scores.utility if scores.plain_utility is None else scores.plain_utility
        if scores.n_outcomes is not None:
            missing = np.maximum(self.n_outcomes_min - scores.n_outcomes, 0.0)
            mean = mean + 1e6 * missing  # the least tried comes before any utility
        return sure(np.where(scores.allowed, mean, -np.inf))
