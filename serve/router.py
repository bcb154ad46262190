"""The heart: requests in, decisions out, as arrays. No I/O, no clock, no Ray.

    contexts ──estimator──▶ quality, cost, latency per model
                                  │ preference            │ limits
                                  ▼                       ▼
                               utility               who is eligible
                                  └──── policy ────▶ probabilities ──draw──▶ choice

Serving and simulation call this very function. For the same requests, live view and uniform
numbers it gives the same bits.

The one rule: a model that is not eligible has probability zero, whatever it scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts
from learners.policy import Policy, draw
from learners.targets import Target
from serve.live import Live

Floats = NDArray[np.float64]


class Verdict(IntEnum):
    """Why a model was eligible for a request, or not. Stored in tickets: numbers never change."""

    ELIGIBLE = 0
    NOT_ALLOWED = 1
    TOO_DEAR = 2
    TOO_SLOW = 3
    PROMPT_TOO_LONG = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """Columns of n requests against a catalogue of k models."""

    contexts: Contexts  # (n, 64)
    prompt_tokens: Floats  # (n,) 0: unknown
    preference: Floats  # (n, 3) weights of quality, US dollars, seconds
    allowed: NDArray[np.bool_]  # (n, k)
    cost_usd_max: Floats  # (n,) infinity: no limit
    latency_ms_max: Floats  # (n,) likewise
    # (n, k) what a session's other models would take longer; None where no session is held.
    switch_ms: Floats | None = None

    def __len__(self) -> int:
        return len(self.contexts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """Columns of n decisions, and what they were based on, (n, k) each.

    Where no model is eligible `fits` is False and the row's other values mean nothing.
    """

    chosen: NDArray[np.intp]  # (n,) column of the chosen model
    fits: NDArray[np.bool_]  # (n,)
    verdict: NDArray[np.uint8]
    propensity: Floats
    utility: Floats
    quality: Floats
    cost_usd: Floats
    latency_ms: Floats
    quality_deviation: Floats
    cost_usd_deviation: Floats
    latency_ms_deviation: Floats
    expected_cost_usd: Floats  # by the catalogue


def route(requests: Requests, live: Live, policy: Policy, uniform: Floats) -> Choices:
    """Decide n requests at once; `uniform` (n,) in [0, 1) are the draws."""
    estimates = live.estimator.estimate(requests.contexts)
    expected_cost = live.catalogue.expected_cost_usd(requests.prompt_tokens)
    quality = np.clip(estimates.mean[:, :, Target.QUALITY], 0.0, 1.0) * (1.0 - live.error_share)
    cost, cost_deviation = _from_ratio(
        expected_cost, estimates.mean[:, :, Target.COST], estimates.noise[:, Target.COST]
    )
    latency, latency_deviation = _from_ratio(
        live.catalogue.latency_ms,
        estimates.mean[:, :, Target.LATENCY],
        estimates.noise[:, Target.LATENCY],
    )
    if requests.switch_ms is not None:
        latency = latency + requests.switch_ms
    weights = requests.preference
    utility = (
        weights[:, :1] * quality - weights[:, 1:2] * cost - weights[:, 2:] * (latency / 1000.0)
    )
    verdict = _verdicts(requests, live, cost, latency)
    eligible = verdict == Verdict.ELIGIBLE
    fits = eligible.any(axis=1)
    eligible[~fits] = True  # any probabilities will do, the row is refused
    scale = _scale(weights, cost, latency)
    propensity = policy.probabilities(
        utility / scale, weights[:, :1] * estimates.deviation / scale, eligible
    )
    return Choices(
        chosen=draw(propensity, uniform),
        fits=fits,
        verdict=verdict,
        propensity=propensity,
        utility=utility,
        quality=quality,
        cost_usd=cost,
        latency_ms=latency,
        quality_deviation=np.hypot(estimates.deviation, estimates.noise[:, Target.QUALITY]),
        cost_usd_deviation=cost_deviation,
        latency_ms_deviation=latency_deviation,
        expected_cost_usd=expected_cost,
    )


def _from_ratio(expected: Floats, log_ratio: NDArray, noise: NDArray) -> tuple[Floats, Floats]:
    """Mean and standard deviation (n, k) of a log-normal around `expected`·exp(`log_ratio`)."""
    variance = noise.astype(np.float64) ** 2
    mean = expected * np.exp(log_ratio + variance / 2)
    return mean, mean * np.sqrt(np.expm1(variance))


def _verdicts(requests: Requests, live: Live, cost: Floats, latency: Floats) -> NDArray[np.uint8]:
    """Verdicts (n, k); where several apply, the one a caller can do least about stays."""
    verdict = np.where(latency > requests.latency_ms_max[:, None], Verdict.TOO_SLOW, 0)
    verdict[cost > requests.cost_usd_max[:, None]] = Verdict.TOO_DEAR
    too_long = requests.prompt_tokens[:, None] > live.catalogue.context_tokens_max
    verdict[too_long] = Verdict.PROMPT_TOO_LONG
    verdict[~requests.allowed] = Verdict.NOT_ALLOWED
    return verdict.astype(np.uint8)


def _scale(weights: Floats, cost: Floats, latency: Floats) -> Floats:
    """The size (n, 1) of what is at stake, so that a policy explores alike whatever the units.

    A caller who weighs cost alone compares fractions of a cent; unscaled, a policy would take
    all models for equals.
    """
    stake = (
        weights[:, 0]
        + weights[:, 1] * cost.mean(axis=1)
        + weights[:, 2] * latency.mean(axis=1) / 1000.0
    )
    return np.maximum(stake, 1e-12)[:, None]
