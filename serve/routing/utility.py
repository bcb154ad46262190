"""What each model is worth to each request, in points, and who may be chosen at all.

    estimates ─▶ Expected ─┬─ limits ──▶ verdicts, who is left
                           └─ · weights ─▶ free ─ charges of the best pool ─▶ utility
    utility, and how sure it is, over what is at stake ─▶ Scores, for a policy

*Free* is the utility if all pools were there and capacity cost nothing but money for calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.estimates.estimator import Estimates
from learners.policies.policy import Mask, Scores
from learners.targets import UNSURE_SHARE_MAX, Target
from serve.budgets.spending import Purse
from serve.routing.eligible import (
    Expected,
    Left,
    RequestBatch,
    Verdict,
    expected_of,
    left_by,
    preferred_of,
    verdicts_of,
    weights_of,
    with_replicas,
)
from serve.routing.live import Live
from serve.routing.load_tracker import PoolLoad
from serve.routing.placement import (
    Placement,
    PlacementOptions,
    asked_of,
    charge,
    known_tokens_of,
)

Floats = NDArray[np.float64]


@dataclass(slots=True, kw_only=True, eq=False)
class Utilities:
    """Of n requests and k models, (n, k) each unless it says otherwise; and what they come of.

    Not frozen because that takes as long to make as a kernel runs; verdicts are changed later on.
    """

    live: Live
    estimates: Estimates
    expected: Expected
    known_tokens: Floats  # (n,)
    charged: Placement
    verdict: NDArray[np.uint8]
    left: Left
    weights: Floats  # (n, 4), see `weights_of`
    free: Floats
    charges: Floats  # beside cost and latency
    energy: Floats  # of them, those for energy and power
    utility: Floats

    def unhindered(self) -> tuple[Floats, Floats]:
        """Utility, and what is charged beside cost, where every pool is there and free.

        Fleets are sized by the demand that would be then. So a model counts with at least what its
        GPUs cost, even if its callers pay nothing, and money with at least what it is worth to the
        operator: callers who do not weigh money would otherwise demand the best model at any price.
        """
        cost, charged = self.expected.cost_usd, self.charged
        usd = np.maximum(cost, self.live.catalogue.least(charged.reference_usd))
        beyond = charged.money[:, None] * usd - self.weights[:, 1:2] * cost
        return self.free - beyond, beyond

    def scores(
        self, eligible: Mask, utility: Floats | None = None, charges: Floats | None = None
    ) -> Scores:
        """What the policy weighs, in units of what is at stake for each request.

        `charges` are the points that `utility` has been charged beside cost and latency; None: as
        they are.
        """
        utility = self.utility if utility is None else utility
        charges = self.charges if charges is None else charges
        weights, live, expected, estimates = self.weights, self.live, self.expected, self.estimates
        cost_points = weights[:, 1:2] * expected.cost_usd
        latency_points = weights[:, 2:3] * (expected.latency_ms / 1000.0)
        scale = _scale(weights, cost_points + latency_points + charges, eligible)
        unsure = estimates.mean_deviation.astype(np.float64)
        money = np.minimum(
            expected.list_usd * unsure[:, Target.COST], UNSURE_SHARE_MAX * expected.cost_usd
        )
        time_ms = np.minimum(
            live.catalogue.latency_ms * unsure[:, Target.LATENCY],
            UNSURE_SHARE_MAX * expected.latency_ms,
        )
        money, time = weights[:, 1:2] * money, weights[:, 2:3] * (time_ms / 1000.0)
        # Energy comes of output tokens, as costs do: it is as unsure, relative to its size.
        power = self.energy * unsure[:, Target.COST]
        others = money**2 + time**2 + power**2  # contexts have their say in quality alone
        quality = weights[:, :1] * estimates.deviation
        of_model = weights[:, :1] * unsure[:, Target.QUALITY]
        plain, recent = live.plain_quality, live.recent_quality
        rest = utility - weights[:, :1] * expected.quality
        return Scores(
            utility / scale,
            np.sqrt(quality**2 + others) / scale,
            eligible,
            mean_deviation=np.sqrt(of_model**2 + others) / scale,
            plain_utility=(rest + weights[:, :1] * plain) / scale,
            recent_utility=(rest + weights[:, :1] * recent) / scale,
            n_outcomes=live.n_outcomes,
            n_recent=live.n_recent,
            cost=cost_points / scale,
        )


def utilities_of(
    requests: RequestBatch,
    live: Live,
    estimates: Estimates,
    pool_load: PoolLoad,
    spread: Floats | None,
    options: PlacementOptions,
    purse: Purse | None = None,
) -> Utilities:
    """Weigh n requests; what budgets take is not charged yet.

    What rules prefer is among the models that the `purse` holds, where that is any.
    """
    expected = expected_of(requests, live, estimates)
    known_tokens = known_tokens_of(requests.prompt_tokens, live)
    charged = charge(requests.preference, known_tokens, live, pool_load, spread, options)
    holds = None
    if purse is not None and requests.preferred is not None:
        holds = purse.holds(asked_of(requests, live, expected.paid_usd, expected.list_usd, options))
    verdict, left = _open_to(requests, live, estimates, expected, holds)
    weights = weights_of(requests, charged.money, left.below)
    free = weights[:, :1] * expected.quality - weights[:, 1:2] * expected.cost_usd
    free -= weights[:, 2:3] * (expected.latency_ms / 1000.0)
    at = np.arange(len(requests))[:, None], charged.best
    points = charged.points[at]
    utility = free - points
    budget = live.prices.budget.charged(options.pricing.ascent)
    if budget:
        utility -= charged.money[:, None] * (budget * expected.cost_usd)
    return Utilities(
        live=live,
        estimates=estimates,
        expected=expected,
        known_tokens=known_tokens,
        charged=charged,
        verdict=verdict,
        left=left,
        weights=weights,
        free=free,
        charges=np.abs(points),
        energy=charged.fixed[at],
        utility=utility,
    )


def _open_to(
    requests: RequestBatch,
    live: Live,
    estimates: Estimates,
    expected: Expected,
    holds: Mask | None,
) -> tuple[NDArray[np.uint8], Left]:
    """Why models are out, and who is left: by stated limits, replicas, rules, and quality."""
    verdict = verdicts_of(requests, live, expected.paid_usd, expected.latency_ms)
    able = with_replicas(verdict == Verdict.ELIGIBLE, live, verdict)
    eligible = preferred_of(requests, able, verdict, holds)
    return verdict, left_by(requests, live, estimates, expected, eligible, verdict)


def _scale(weights: Floats, points: Floats, eligible: Mask) -> Floats:
    """The size (n, 1) of what is at stake, so that a policy explores alike whatever the units.

    A caller who weighs cost alone compares fractions of a cent; unscaled, a policy would take
    all models for equals. Only what a request may have counts: a model that is dear and not
    allowed must not make the others look alike.
    """
    mean = np.where(eligible, points, 0.0).sum(axis=1) / eligible.sum(axis=1)
    return np.maximum(weights[:, 0] + mean, 1e-12)[:, None]
