"""Decisions of requests that nothing makes special, by compiled code: the same as `router.route`.

    RequestBatch, Estimates, Live ─weigh─▶ columns ─policy─▶ probabilities ─pick─▶ Picked
                                     └─ a stale estimate keeps one out, …: None, and numpy decides

Most requests have no limit that only numpy knows. For these a few calls of the kernel (`decide`) do
what takes numpy three hundred. What budgets charge and leave is `serve.budgets`' own, and draws
that models not proven limit are `learners.policies.newcomers`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.estimates.calibration import BINS, OWN_WEIGHT, STEPS
from learners.estimates.estimator import Estimates
from learners.kernels.compiled import writable
from learners.policies.limits import UNSURE, with_trials
from learners.policies.newcomers import Tries, draw_within
from learners.policies.policy import Policy
from learners.prices import shed_share
from learners.targets import COST_USD_MIN, UNSURE_SHARE_MAX
from serve.budgets.spending import NONE, Asked, Purse
from serve.routing.choices import FIGURES
from serve.routing.eligible import RequestBatch, Verdict
from serve.routing.live import Live
from serve.routing.load_tracker import PoolLoad
from serve.routing.placement import (
    Placement,
    PlacementOptions,
    asked_of,
    charge,
    known_tokens_of,
    least_multiple,
    place,
)

Floats = NDArray[np.float64]
NO_CURVES, NONE_SAID = np.zeros((0, 0)), np.zeros((0, 0, 0))
NO_RULES = np.zeros((0, 0, 0), bool)


@dataclass(slots=True, eq=False)
class Picked:
    """What was decided, (n, k) each but where said; not frozen, and why: see `Choices`."""

    columns: Floats  # (c, n, k), see `learners.kernels.decide`
    verdict: NDArray[np.uint8]
    eligible: NDArray[np.bool_]
    fits: NDArray[np.bool_]  # (n,)
    below: NDArray[np.bool_]  # (n,)
    weighed: Floats  # (n, 4) what counts, see `eligible.weights_of`
    propensity: Floats
    chosen: NDArray[np.intp]  # (n,)
    preferred: NDArray[np.intp]  # (n,)
    refused: NDArray[np.intp]  # (n,) by which budget, or NONE


@dataclass(slots=True, eq=False)
class Known:
    """What is known of k models, as the kernel takes it."""

    models: Floats
    curves: Floats
    spreads: Floats
    open: NDArray[np.bool_]  # (k,) which had replicas when this was made
    settings: tuple[object, object, Floats] | None = None  # of which prices and options, and they

    def holds(self, live: Live) -> bool:
        """Whether the same models have replicas: telemetry comes more often than they change."""
        if self.open is not live.model_open and np.array_equal(self.open, live.model_open):
            self.open = live.model_open
        return self.open is live.model_open

    def settings_of(self, live: Live, options: PlacementOptions) -> Floats:
        """Numbers that are declared elsewhere, in the order that the kernel reads."""
        made = self.settings
        if made is None or made[0] is not live.prices or made[1] is not options:
            budget = live.prices.budget.charged(options.pricing.ascent)
            usual, worth = live.catalogue.prompt_tokens, options.value_usd
            constants = [STEPS, BINS, OWN_WEIGHT, COST_USD_MIN, UNSURE, UNSURE_SHARE_MAX]
            found = np.array([usual, worth, budget, *constants])
            self.settings = made = live.prices, options, found
        return made[2]

    @classmethod
    def of(cls, kernel: ModuleType, live: Live, estimates: Estimates) -> Known:
        """Of what a view states and has learned."""
        catalogue, calibration = live.catalogue, estimates.calibration
        rows = np.ones((kernel.N_ROWS, len(catalogue)))
        rows[kernel.PER_TOKEN] = catalogue.usd_per_input_token
        rows[kernel.FIXED_USD] = catalogue.usd_fixed
        rows[kernel.STATED_MS] = catalogue.latency_ms
        rows[kernel.TOKENS_MAX] = catalogue.context_tokens_max
        rows[kernel.ANSWERED] = 1.0 - live.error_share
        rows[kernel.PAID_ON_AVERAGE] = live.paid_usd
        rows[kernel.TAKES] = np.where(live.model_open, kernel.OPEN, kernel.CLOSED)
        rows[kernel.TAKES, catalogue.model_draining] = kernel.DRAINED
        rows[kernel.NOISE : kernel.NOISE + 3] = estimates.noise.T
        rows[kernel.OFF : kernel.OFF + 3] = estimates.mean_deviation.T
        if calibration is None:
            return cls(rows, NO_CURVES, NONE_SAID, live.model_open)
        rows[kernel.COST_FACTOR] = calibration.cost_factor
        spreads = np.stack([calibration.squares, calibration.counts])
        curves = np.ascontiguousarray(calibration.curves)
        return cls(rows, curves, spreads, live.model_open)


def decided(
    requests: RequestBatch,
    live: Live,
    estimates: Estimates,
    pool_load: PoolLoad,
    policy: Policy,
    uniform: Floats,
    spread: Floats | None,
    options: PlacementOptions,
    tries: Tries | None,
    purse: Purse | None,
) -> dict[str, Any] | None:
    """The columns of `Choices`; None where a request needs more than this does."""
    kernel, n, charged = live.kernel, len(requests), None
    if kernel is None or (purse and requests.preferred is not None):
        return None
    if live.catalogue.any_work or live.catalogue.several:
        tokens = known_tokens_of(requests.prompt_tokens, live)
        charged = charge(requests.preference, tokens, live, pool_load, spread, options)
    of = pick(requests, live, estimates, charged, policy, uniform, options, tries, purse)
    if of is None:
        return None
    least, shed = np.zeros(n), np.zeros(n, bool)
    if live.priced:
        least = least_multiple(pool_load, of.eligible, live)
        shed = of.fits & (uniform[:, 1] < shed_share(least, requests.criticality))
    return {
        **_places(of, live, pool_load, charged),
        "figures": of.columns[: len(FIGURES)],
        "chosen": of.chosen,
        "preferred": of.preferred,
        "propensity": of.propensity,
        "verdict": of.verdict,
        "fits": of.fits,
        "budget": of.refused,
        "shed": shed,
        "multiple": least,
        "below_quality": of.below,
    }


def _places(
    of: Picked, live: Live, pool_load: PoolLoad, charged: Placement | None
) -> dict[str, Any]:
    """Columns about pools."""
    if charged is None:
        return {
            "pools": live.catalogue.first_pool[None].repeat(len(of.chosen), axis=0),
            "pool": live.catalogue.first_pool[of.chosen],
            "energy_j": np.zeros(of.propensity.shape),
            "work_s": np.zeros(len(of.chosen)),
        }
    rows = np.arange(len(of.chosen))
    pool = place(of.chosen, charged, of.weighed, live, pool_load)
    return {
        "pools": charged.best,
        "pool": pool,
        "energy_j": _charges(live, charged)[3],
        "work_s": charged.work_s[rows, pool],
    }


def pick(
    requests: RequestBatch,
    live: Live,
    estimates: Estimates,
    charged: Placement | None,
    policy: Policy,
    uniform: Floats,
    options: PlacementOptions,
    tries: Tries | None,
    purse: Purse | None,
) -> Picked | None:
    """Decide n requests; None where one of them needs more than this does.

    `charged` is None where capacity costs nothing, `tries` where all models are proven, `purse`
    where there are no budgets.
    """
    kernel, likely = live.kernel, getattr(policy, "quick", None)
    if kernel is None or likely is None:
        return None
    n, k = estimates.deviation.shape
    known = live.known
    if known is None or not known.holds(live):
        known = live.known = Known.of(kernel, live, estimates)
    columns, verdict = np.empty((kernel.N_COLUMNS, n, k)), np.empty((n, k), np.uint8)
    of_models, of_requests = np.empty((3, n, k), bool), np.empty((2, n), bool)
    weighed, found = np.empty((n, 4)), np.zeros(4, bool)
    found[kernel.BOTH] = purse is not None
    kernel.weigh(
        writable(estimates.mean, np.float32),
        writable(estimates.deviation, np.float32),
        known.models,
        known.curves,
        known.spreads,
        writable(requests.preference),
        writable(requests.allowed, np.bool_),
        _asked(requests),
        _stays(requests),
        _ruled(requests),
        NONE_SAID if charged is None else _charges(live, charged),
        known.settings_of(live, options),
        columns,
        verdict,
        of_models,
        of_requests,
        weighed,
        found,
    )
    if not found[kernel.PLAIN]:
        return None
    eligible, fits, below = (
        of_models[kernel.MAY],
        of_requests[kernel.FITS],
        of_requests[kernel.BELOW],
    )
    again = found[kernel.AGAIN]
    if purse is not None:
        asked = asked_of(requests, live, columns[kernel.PAID], columns[kernel.LIST], options)
        again |= _charge(kernel, purse, asked, columns, eligible)
    first, draws = kernel.SCORED, uniform[:, 0]
    p = likely(kernel, columns[first], columns[first + 1], columns[first + 2], eligible)
    if found[kernel.TRIALS]:
        p = with_trials(p, of_models[kernel.TRIED], np.full(n, options.limits.probe_share))
    propensity, chosen = _drawn(kernel, p, eligible, tries, columns, uniform)
    preferred, refused = chosen, np.array([NONE] * n, np.intp)
    if again:
        first = kernel.SCORED_FREE
        might = of_models[kernel.MIGHT]
        free = likely(kernel, columns[first], columns[first + 1], columns[first + 2], might)
        _, preferred = _drawn(kernel, free, might, tries, columns, uniform)
    if purse is not None:
        utility, within = columns[kernel.UTILITY], fits[:, None] & (eligible | (propensity > 0.0))
        propensity, chosen, refused = purse.draw(propensity, chosen, utility, within, draws)
        verdict[(verdict == Verdict.ELIGIBLE) & purse.barred] = Verdict.OVER_BUDGET
        fits &= refused == NONE
    return Picked(
        columns, verdict, eligible, fits, below, weighed, propensity, chosen, preferred, refused
    )


def _charge(
    kernel: ModuleType,
    purse: Purse,
    asked: Asked,
    columns: Floats,
    eligible: NDArray[np.bool_],
) -> bool:
    """Take what budgets charge from the utilities; whether any changes by it."""
    utility = columns[kernel.UTILITY].copy()
    columns[kernel.UTILITY] -= purse.charge(asked, utility, eligible)
    columns[kernel.SCORED] = columns[kernel.UTILITY] / columns[kernel.SCORED + 3]
    return bool((columns[kernel.UTILITY] != utility).any())


def _drawn(
    kernel: ModuleType,
    p: Floats,
    eligible: NDArray[np.bool_],
    tries: Tries | None,
    columns: Floats,
    uniform: Floats,
) -> tuple[Floats, NDArray[np.intp]]:
    """Propensities (n, k), and whom (n,) they gave."""
    if tries is not None:
        reserved_usd = np.maximum(columns[kernel.PAID], columns[kernel.LIST])
        return draw_within(p, eligible, tries, reserved_usd, uniform[:, 0])
    chosen = np.empty(len(p), np.intp)
    kernel.pick(p, uniform, chosen)
    return p, chosen


def _asked(requests: RequestBatch) -> Floats:
    """What requests say, in the rows that the kernel reads."""
    found = np.empty((5, len(requests.prompt_tokens)))
    found[0] = requests.prompt_tokens
    found[1], found[2] = requests.cost_usd_max, requests.latency_ms_max
    found[3], found[4] = requests.quality_min, requests.strong_share_max
    return found


def _stays(requests: RequestBatch) -> Floats:
    """What leaving sessions' models costs (2, n, k), as the kernel takes it."""
    if requests.switch_ms is None and requests.saved_usd is None:
        return NONE_SAID
    found = np.zeros((2, *requests.allowed.shape))
    for row, column in enumerate((requests.switch_ms, requests.saved_usd)):
        if column is not None:
            found[row] = column
    return found


def _ruled(requests: RequestBatch) -> NDArray[np.bool_]:
    """What rules leave, and what they prefer (2, n, k), as the kernel takes it."""
    if requests.left is None and requests.preferred is None:
        return NO_RULES
    found = np.ones((2, *requests.allowed.shape), bool)
    for row, column in enumerate((requests.left, requests.preferred)):
        if column is not None:
            found[row] = column
    return found


def _charges(live: Live, charged: Placement) -> Floats:
    """Charges at the best pools, in all and for energy; the least at list price; the energy."""
    if charged.at_best is not None:
        return charged.at_best
    at = np.arange(len(charged.best))[:, None], charged.best
    least = live.catalogue.least(charged.reference_usd)
    return np.stack([charged.points[at], charged.fixed[at], least, charged.energy_j[at]])
