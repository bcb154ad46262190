"""The routing decision itself: requests in, decisions out, as arrays. No I/O, no clock, no Ray.

    contexts ──estimator──▶ quality, cost, latency per model
                                  │ preference    ▲ charges of its best pool    │ limits
                                  ▼               │ (`placement`)               ▼
                               utility ───────────┘                    who is eligible
                                  └──── policy ────▶ probabilities ──draw──▶ model ─▶ its pool

Serving and simulation call this very function. For the same requests, live view, pool load and
uniform numbers it gives the same bits.

When every pool that a request could go to costs more than its criticality may pay, it is *shed*:
refused, so that more critical requests are served in time (docs/prices.md).

A model that is not eligible has probability zero, whatever it scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.estimates.estimator import Estimates
from learners.policies.limits import good_enough, with_trials
from learners.policies.newcomers import Tries, draw_within
from learners.policies.policy import Mask, Policy
from learners.prices import shed_share
from serve.budgets.spending import NONE, Purse
from serve.routing import plain
from serve.routing.choices import FIGURES, Choices
from serve.routing.eligible import RequestBatch, Verdict, traits_of
from serve.routing.live import Live
from serve.routing.load_tracker import PoolLoad
from serve.routing.placement import PlacementOptions, asked_of, least_multiple, place
from serve.routing.utility import Utilities, utilities_of

Floats = NDArray[np.float64]


def route(
    requests: RequestBatch,
    live: Live,
    pool_load: PoolLoad,
    policy: Policy,
    uniform: Floats,
    spread: Floats | None,
    options: PlacementOptions,
    tries: Tries | None = None,
    purse: Purse | None = None,
) -> Choices:
    """Decide n requests at once; `uniform` (n, 2) in [0, 1) are the draws.

    `spread` (n, P) are factors on the prices of pools, see `placement`; None: all one. `tries` is
    what models that are not proven may take, `purse` what budgets leave; None: no limit.
    """
    estimates = live.estimator.estimate(requests.contexts, traits_of(requests, live))
    done = plain.decided(
        requests, live, estimates, pool_load, policy, uniform, spread, options, tries, purse
    )
    if done is not None:
        return Choices(**done)
    of = utilities_of(requests, live, estimates, pool_load, spread, options, purse)
    fits = _someone(of.left.eligible)
    if purse is not None:
        asked = asked_of(requests, live, of.expected.paid_usd, of.expected.list_usd, options)
        of.utility -= purse.charge(asked, of.utility, of.left.eligible)
    p = _probabilities(of, policy)
    lots = _lots(of, p, fits, uniform[:, 0], options.limits.probe_share, tries)
    propensity, chosen = lots.drawn()
    preferred = _preferred(requests, of, policy, lots, chosen)
    refused = np.full(len(requests), NONE, np.intp)
    if purse is not None:
        propensity, chosen, refused = _within(purse, of, lots, propensity, chosen)
    least = least_multiple(pool_load, lots.eligible, live)
    shed = shed_share(least, requests.criticality) if live.priced else 0.0
    fits = lots.fits & (refused == NONE)
    rows, pool = np.arange(len(requests)), place(chosen, of.charged, of.weights, live, pool_load)
    charged = of.charged
    return Choices(
        chosen=chosen,
        pool=pool,
        fits=fits,
        budget=refused,
        shed=fits & (uniform[:, 1] < shed),
        multiple=least,
        below_quality=of.left.below,
        preferred=preferred,
        pools=charged.best,
        verdict=of.verdict,
        propensity=propensity,
        energy_j=charged.energy_j[rows[:, None], charged.best],
        work_s=charged.work_s[rows, pool],
        figures=_figures(of, estimates),
    )


def _figures(of: Utilities, estimates: Estimates) -> Floats:
    """What `Choices` has of every model."""
    expected = of.expected
    figures = {
        "utility": of.utility,
        "unsure": of.weights[:, :1] * estimates.deviation,
        "quality": expected.success,
        "cost_usd": expected.paid_usd,
        "latency_ms": expected.latency_ms,
        "quality_deviation": expected.success_deviation,
        "cost_usd_deviation": expected.cost_usd_deviation,
        "latency_ms_deviation": expected.latency_ms_deviation,
        "expected_cost_usd": expected.list_usd,
        "estimated_quality": expected.estimated_quality,
        "estimated_cost_usd": expected.estimated_usd,
    }
    return np.stack([figures[name] for name in FIGURES])


@dataclass(slots=True, kw_only=True, eq=False)
class _Lots:
    """How one of k models is drawn for each of n requests."""

    p: Floats  # (n, k)
    eligible: Mask  # (n, k) who may be drawn
    fits: Mask  # (n,) somebody may
    share: Floats  # (n, 1) how often anybody is called: less than one where there are only trials
    uniform: Floats  # (n,)
    tries: Tries | None
    reserved_usd: Floats  # (n, k) that a try may cost

    def drawn(self) -> tuple[Floats, NDArray[np.intp]]:
        """Propensities (n, k), and whom they gave (n,)."""
        propensity, chosen = self.draw(self.p, self.eligible)
        return self.share * propensity, chosen

    def draw(self, p: Floats, eligible: Mask) -> tuple[Floats, NDArray[np.intp]]:
        """By other probabilities, among others, with the same numbers."""
        return draw_within(p, eligible, self.tries, self.reserved_usd, self.uniform)


def _someone(eligible: Mask) -> Mask:
    """For which requests (n,) anybody is eligible.

    For the others all are from now on: they are refused, and any probabilities will do.
    """
    fits = np.asarray(eligible.any(axis=1))
    eligible[~fits] = True
    return fits


def _probabilities(of: Utilities, policy: Policy) -> Floats:
    """The policy's own (n, k); where the strong model is only sometimes there, those of both."""
    left, p = of.left, policy.probabilities(of.scores(of.left.eligible))
    if left.without_strong is None or left.passes is None:
        return p
    passes = left.passes[:, None]
    return passes * p + (1.0 - passes) * policy.probabilities(of.scores(left.without_strong))


def _lots(
    of: Utilities,
    p: Floats,
    fits: Mask,
    uniform: Floats,
    share: float,
    tries: Tries | None,
) -> _Lots:
    """Give trials their `share` of the probabilities (n, k).

    Who has nothing but trials gets one as often as others would, and is refused otherwise.
    """
    alone = ~fits & of.left.trials.any(axis=1)
    again = uniform / share % 1.0 if share else uniform  # uniform below the share, too
    return _Lots(
        p=with_trials(p, of.left.trials, np.where(alone, 1.0, share)),
        eligible=np.where(alone[:, None], of.left.trials, of.left.eligible),
        fits=fits | (alone & (uniform < share)),
        share=np.where(alone, share, 1.0)[:, None],
        uniform=np.where(alone, again, uniform),
        tries=tries,
        reserved_usd=np.maximum(of.expected.paid_usd, of.expected.list_usd),
    )


def _preferred(
    requests: RequestBatch,
    of: Utilities,
    policy: Policy,
    lots: _Lots,
    chosen: NDArray[np.intp],
) -> NDArray[np.intp]:
    """Whom (n,) the same numbers give where every pool is there and capacity is free."""
    able = (of.verdict == Verdict.ELIGIBLE) | (of.verdict == Verdict.NO_REPLICA)
    able, _ = good_enough(requests.quality_min, able, of.expected.success)
    utility, beyond = of.unhindered()
    if not ((of.utility != utility).any() or (lots.eligible != able).any()):
        return chosen
    _someone(able)
    _, preferred = lots.draw(policy.probabilities(of.scores(able, utility, beyond)), able)
    return preferred


def _within(
    purse: Purse, of: Utilities, lots: _Lots, propensity: Floats, chosen: NDArray[np.intp]
) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    """What budgets leave of a draw: propensities, choices, and which budget refuses, or NONE."""
    within = lots.fits[:, None] & (lots.eligible | (propensity > 0.0))
    drawn = purse.draw(propensity, chosen, of.utility, within, lots.uniform)
    of.verdict[(of.verdict == Verdict.ELIGIBLE) & purse.barred] = Verdict.OVER_BUDGET
    return drawn
