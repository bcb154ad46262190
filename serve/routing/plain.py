"""Decisions of requests that nothing makes special, by compiled code: the same as `router.route`.

    RequestBatch, Estimates, Live ─weigh─▶ columns ─policy─▶ probabilities ─pick─▶ Picked
                                     └─ a limit keeps a model out, …: None, and numpy decides

Most requests state no limit, or none that matters; there is no budget, and no model on trial. For
these a few calls of `learners.kernels.decide` do what takes numpy three hundred.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from learners.estimates.calibration import BINS, OWN_WEIGHT, STEPS
from learners.estimates.estimator import Estimates
from learners.estimates.quick import writable
from learners.policies.policy import Policy
from learners.targets import COST_USD_MIN
from serve.routing.eligible import RequestBatch
from serve.routing.live import Live
from serve.routing.placement import Placement, PlacementOptions

Floats = NDArray[np.float64]
NO_CURVES, NO_SPREADS, NO_CHARGES = np.zeros((0, 0)), np.zeros((0, 0, 0)), np.zeros((0, 0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """What was decided, (n, k) each but where said; see `router.Choices`."""

    columns: Floats  # (c, n, k), see `learners.kernels.decide`
    verdict: NDArray[np.uint8]
    eligible: NDArray[np.bool_]
    fits: NDArray[np.bool_]  # (n,)
    propensity: Floats
    chosen: NDArray[np.intp]  # (n,)
    preferred: NDArray[np.intp]  # (n,)


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of k models, as the kernel takes it."""

    models: Floats
    curves: Floats
    spreads: Floats

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
        rows[kernel.NOISE : kernel.NOISE + 3] = estimates.noise.T
        rows[kernel.OFF : kernel.OFF + 3] = estimates.mean_deviation.T
        if calibration is None:
            return cls(rows, NO_CURVES, NO_SPREADS)
        rows[kernel.COST_FACTOR] = calibration.cost_factor
        spreads = np.stack([calibration.squares, calibration.counts])
        return cls(rows, np.ascontiguousarray(calibration.curves), spreads)


def pick(
    requests: RequestBatch,
    live: Live,
    estimates: Estimates,
    charged: Placement | None,
    policy: Policy,
    uniform: Floats,
    options: PlacementOptions,
) -> Picked | None:
    """Decide n requests; None where one of them needs more than this does.

    `charged` is None where capacity costs nothing.
    """
    kernel, likely = live.kernel, getattr(policy, "quick", None)
    if kernel is None or likely is None or not live.all_open or _special(requests):
        return None
    n, k = estimates.deviation.shape
    known = live.known = live.known or Known.of(kernel, live, estimates)
    columns, verdict = np.empty((kernel.N_COLUMNS, n, k)), np.empty((n, k), np.uint8)
    eligible, fits, found = np.empty((n, k), bool), np.empty(n, bool), np.empty(2, bool)
    kernel.weigh(
        writable(estimates.mean, np.float32),
        writable(estimates.deviation, np.float32),
        known.models,
        known.curves,
        known.spreads,
        writable(requests.preference),
        writable(requests.allowed, np.bool_),
        _asked(requests),
        NO_CHARGES if charged is None else _charges(live, charged),
        _settings(live, options),
        columns,
        verdict,
        eligible,
        fits,
        found,
    )
    if not found[kernel.PLAIN]:
        return None
    first = kernel.SCORED
    p = likely(kernel, columns[first], columns[first + 1], columns[first + 2], eligible)
    chosen = preferred = np.empty(n, np.intp)
    kernel.pick(p, uniform, chosen)
    if found[kernel.AGAIN]:
        first, preferred = kernel.SCORED_FREE, np.empty(n, np.intp)
        free = likely(kernel, columns[first], columns[first + 1], columns[first + 2], eligible)
        kernel.pick(free, uniform, preferred)
    return Picked(columns, verdict, eligible, fits, p, chosen, preferred)


def _special(requests: RequestBatch) -> bool:
    """Whether there are columns that the kernel knows nothing of."""
    columns = requests.switch_ms, requests.left, requests.preferred
    return any(column is not None for column in columns)


def _asked(requests: RequestBatch) -> Floats:
    """What requests say, in the rows that the kernel reads."""
    found = np.empty((5, len(requests.prompt_tokens)))
    found[0] = requests.prompt_tokens
    found[1], found[2] = requests.cost_usd_max, requests.latency_ms_max
    found[3], found[4] = requests.quality_min, requests.strong_share_max
    return found


def _charges(live: Live, charged: Placement) -> Floats:
    """Charges at the best pools, in all and for energy; and the least at list price."""
    at = np.arange(len(charged.best))[:, None], charged.best
    return np.stack([charged.points[at], charged.fixed[at], live.least(charged.reference_usd)])


def _settings(live: Live, options: PlacementOptions) -> Floats:
    """Numbers that are declared elsewhere, in the order that the kernel reads."""
    budget = live.prices.budget.charged(options.pricing.ascent)
    usual, worth = live.catalogue.prompt_tokens, options.value_usd
    return np.array([usual, worth, budget, STEPS, BINS, OWN_WEIGHT, COST_USD_MIN])
