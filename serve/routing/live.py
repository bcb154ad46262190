"""What decisions are made from: a snapshot × the catalogue, solved, and from then on only read.

    what was learned ─┐
    telemetry, prices ├──▶ solve, warm ──▶ Live: models (k,), pools (P,), an estimator
    catalogue ────────┘

Telemetry alone, which comes every second, is read anew without solving again (`renewed`).
`live_view` keeps the newest one at hand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES
from learners.criticality import Criticality
from learners.estimates import ema
from learners.estimates.billing import BillingOptions, overbilled
from learners.estimates.calibration import COST_FIGURE
from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.learned import RATIOS, Learned
from learners.kernels.compiled import kernels
from learners.novelty import GuardOptions, Novelty
from learners.option import option, same_as
from learners.targets import N_TARGETS, ONE, RATIO_UNIT, Target
from serve.routing.catalogue import Catalogue, Pool
from streams.feedback.ticket import key_of
from streams.telemetry.capacity import Capacity, capacities
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.tally import parted
from streams.training.prices import Price, Prices

# The threshold of a share is then off by 0.02 for one view, and by less over several.
REFERENCE_ROWS = 512
REFERENCE_TOGETHER = 16  # 0.1 ms; half a millisecond where neighbours are searched
# All that a request may need, so that none of it is loaded or compiled while one waits.
KERNELS = [
    f"learners.kernels.{k}"
    for k in ("contexts", "estimate", "records", "place", "charge", "decide")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How the view is kept fresh."""

    # A listing of ten names costs 0.1 ms.
    poll_s: float = option(0.1, "Seconds between looks; a dispatcher's: ≥ 1.", ge=0.01, le=3600)
    # A failure or an outcome is rare; a rate is believed after about as many outcomes.
    error_prior_weight: float = 20.0
    latency_prior_weight: float = 5.0
    first_token_s: float = same_as(2.0, "targets.ttft_s")  # how long a pool's queue may be
    blend: BlendOptions = field(default_factory=BlendOptions)
    compiled: bool = option(
        True, "Score with compiled code where numba is installed; false: with numpy."
    )
    guard: GuardOptions = field(default_factory=GuardOptions)
    billing: BillingOptions = field(default_factory=BillingOptions)


class Live:
    """A frozen view: everything a decision needs. Built off the request path, then only read."""

    def __init__(
        self,
        catalogue: Catalogue,
        learned: Learned,
        encoder: str,
        options: LiveOptions,
        *,
        version: int = 0,
        published_at_ms: int = 0,
        fleet: FleetState | None = None,
        prices: Prices | None = None,
        counts: Mapping[str, int] | None = None,
        since_ms: int = 0,
        plain_requests: bool = False,
    ) -> None:
        """`since_ms`: what the log took last before that time describes another time.

        `plain_requests`: they say nothing of themselves and have no limits, so that a fifth of the
        work of a view is left out; others must not be decided with it.
        """
        self._since_ms, self.plain_requests = since_ms, plain_requests
        self.fleet = fleet or FleetState()  # read when something is first asked of it
        self.prices, self.counts = prices or Prices(), counts or {}  # of a change under trial
        self.catalogue, self.encoder, self.encoder_key = catalogue, encoder, key_of(encoder)
        self.version, self.published_at_ms = version, published_at_ms
        loaded = [kernels(name) for name in KERNELS] if options.compiled else [None]
        self.kernel = loaded[-1]  # of decisions; None: numpy computes
        self.known: Any = None  # what `plain` keeps of this view
        self.blank: Any = None  # what `records` keeps of it
        self._first_token_s = options.first_token_s
        self._read_models(learned, options, of_traits=not plain_requests)
        self._read_pools(learned, options)
        self._read_telemetry()
        # The first search and product of a process are slow; let no request pay for them.
        self.estimator.estimate(np.zeros((1, N_FEATURES), np.int8))
        self.reference = np.zeros((0, len(catalogue)))
        if not plain_requests:
            self.reference = self._reference(learned)
        # Whose bills are too high for chance.
        as_of_ms = learned.as_of_ms
        self.overbilled = overbilled(learned.billing, catalogue.keys, as_of_ms, options.billing)
        # Who answers what is far from everything seen: a column, or none; and what that is.
        self.guard = catalogue.column_of.get(options.guard.model)
        self.novelty = None if self.guard is None else _novelty(learned, options.guard)

    def _read_models(self, learned: Learned, options: LiveOptions, *, of_traits: bool) -> None:
        """The estimator, and what it says of models (k,) whatever the context."""
        catalogue = self.catalogue
        self.estimator = Estimator(
            learned,
            catalogue.keys,
            catalogue.quality,
            options.blend,
            catalogue.kin,
            compiled=self.kernel is not None,
            of_traits=of_traits,
        )
        self.error_share = self.estimator.error_share  # (k,)
        self.n_outcomes = self.estimator.n_outcomes[:, 0]  # (k,) outcomes behind estimates
        self.n_proving = self.estimator.n_proving  # (k,) likewise, fewer while calls fail
        self.drift = tuple(self.estimator.alarms)  # models that changed, for status
        self._read_means(learned, options)

    def _read_pools(self, learned: Learned, options: LiveOptions) -> None:
        """Recent latencies of pools (P,), and every model's, the one that was fastest first."""
        catalogue = self.catalogue
        self.pool_latency_ms = self._pool_latency_ms(learned, options)
        names, latency_ms = catalogue.pool_names, self.pool_latency_ms
        taking = map(catalogue.taking, catalogue.columns_of)
        self.pools_of = {
            model: tuple(
                names[p] for p in columns[np.argsort(latency_ms[columns], kind="stable")].tolist()
            )
            for model, columns in zip(catalogue.names, taking, strict=True)
        }

    def _read_means(self, learned: Learned, options: LiveOptions) -> None:
        """What is known of each model (k,) by its means, ever and recently."""
        means, prior = self.estimator.model_means, self.estimator.quality.means[:, 0]
        prior_weight = options.latency_prior_weight
        self.paid_usd = means.figure("cost_usd", 0.0, 1.0)
        stated = self.catalogue.output_tokens
        self.output_tokens = means.figure("output_tokens", stated, prior_weight)
        self.plain_quality = means.means[:, 0]
        weight = means.weights[:, 0]
        self.known_quality = (weight * self.plain_quality + prior_weight * prior) / (
            weight + prior_weight
        )
        recent = learned.recent
        oldest = learned.as_of_ms // recent.width_ms - recent.kept
        held = [recent.of(key) for key in self.catalogue.keys]
        minutes = [sums[at > oldest].sum(axis=(0, 1)) for at, sums in held]
        total, self.n_recent = np.array(minutes, np.float64)[:, Target.QUALITY].T
        # (2, k) cost and latency of the last minutes over what is stated, and of how many; cost
        # also (k,) as paid, which stands in where nothing is stated.
        ratios, n_ratios = np.array(minutes, np.float64)[:, RATIOS].transpose(2, 1, 0)
        self.recent_ratios = ratios / np.maximum(n_ratios, 1.0) * (RATIO_UNIT / ONE)
        usd, n_usd = np.array(minutes, np.float64)[:, N_TARGETS + COST_FIGURE].T
        self.recent_usd = usd / np.maximum(n_usd, 1.0) * ema.FIGURE_UNITS[COST_FIGURE]
        self.n_recent_ratios = np.stack([np.maximum(n_ratios[0], n_usd), n_ratios[1]])
        self.recent_quality = (total / ONE + prior * prior_weight) / (self.n_recent + prior_weight)

    def _reference(self, learned: Learned) -> NDArray[np.float64]:
        """Calibrated P(success) (m, k) on the newest prompts whose outcomes are known."""
        rows = learned.history.rows
        if not len(learned.history):
            return np.zeros((0, len(self.catalogue)))
        newest = np.argsort(rows["decided_at_ms"], kind="stable")[-REFERENCE_ROWS:]
        contexts, calibration = rows["contexts"][newest], self.estimator.calibration
        # A few at a time: a kernel keeps the interpreter from the event loop until it is done.
        found = np.concatenate(
            [
                self.estimator.estimate(contexts[first : first + REFERENCE_TOGETHER]).mean
                for first in range(0, len(contexts), REFERENCE_TOGETHER)
            ]
        )
        quality = np.clip(found[:, :, Target.QUALITY].astype(np.float64), 0.0, 1.0)
        success = calibration.quality(quality) if calibration else quality
        return success * (1.0 - self.error_share)

    def _pool_latency_ms(self, learned: Learned, options: LiveOptions) -> NDArray[np.float64]:
        """The pools' recent mean latencies (P,), failures counted in."""
        means = ema.read(learned.pools, self.catalogue.pool_keys.tolist(), learned.as_of_ms)
        stated_ms = self.catalogue.latency_ms[self.catalogue.model_of_pool]
        latency_ms = means.figure("latency_ms", stated_ms, options.latency_prior_weight)
        errors = means.figure("error", 0.0, options.error_prior_weight)
        return _with_retries(latency_ms, errors)

    def _read_telemetry(self) -> None:
        """Pools' utilisation and the price of their capacity, (P,) each; see `load_tracker`."""
        pools = self.catalogue.pools
        self.columns: Any = None  # what `placement` keeps of this view
        several = len(pools) > len(self.catalogue)
        self.loads: Mapping[str, Capacity] = {}
        asked = several or any(p.reports or p.watched for p in pools)
        if (asked or self.prices.capacity) and self._is_old():
            # Who begins anew begins as stated: those replicas are gone, and nothing is scarce yet.
            self.prices = self.prices.of_another_fleet()
        elif asked:
            self.loads = capacities(self.fleet, self._first_token_s)
        self.loads_as_of_ms = self.fleet.newest_ms if self.loads else 0
        self.n_routers = self.n_replicas() if self.loads else 1
        names = self.catalogue.pool_names
        each = map(
            _of_pool, pools, map(self.loads.get, names), map(self.prices.capacity.get, names)
        )
        found = np.array(list(each)).reshape(-1, 8).T
        self.of_pools = of = np.zeros((7, len(pools)))  # as `learners.kernels.place` takes it
        of[:6], ready, self.work_factor = found[:6], found[6], found[7]
        # Where requests are no work they can't be charged: such a pool has no price.
        of[3] *= self.catalogue.has_work
        of[6] = self.pool_latency_ms
        _, self.queued, self.running, _, self.load, self.log_price, self.pool_latency_ms = of
        self.reported, self.loaded, is_ready = of[0] > 0.0, of[3] > 0.0, ready > 0.0
        self.ready, self.priced = np.maximum(1.0, ready), bool(self.loaded.any())
        # Silent, a pool is gone; while nothing at all was received, if it begins with no replica.
        gone = [pool.reports and bool(self.loads or not pool.replicas) for pool in pools]
        self.open = is_ready | ~(self.reported | np.array(gone))
        self.open &= ~self.catalogue.draining
        self.model_open = self.catalogue.least(np.where(self.open, 0.0, 1.0)) == 0.0  # (k,)
        self.all_open = bool(self.model_open.all())

    def sent_ever(self) -> NDArray[np.float64]:
        """Requests that telemetry has seen decided for each model (k,), ever."""
        sent = np.zeros(len(self.catalogue))
        for (model, _), mix in ((parted(at), mix) for at, mix in self.fleet.totals.mix.items()):
            if model in self.catalogue.column_of:
                sent[self.catalogue.column_of[model]] += mix.decisions
        return sent

    def n_replicas(self) -> int:
        """Router replicas that telemetry knows of; one where it knows none."""
        return max(1, self.n_routers_known())

    def n_routers_known(self) -> int:
        """The same; 0 where it knows none."""
        return 0 if self._is_old() else len(self.fleet.live_routers)

    def _is_old(self) -> bool:
        """Whether telemetry is of the time before this router began, or there is none."""
        return self.fleet.received_ms < self._since_ms

    def held_most(self, pool: str, criticality: Criticality) -> float:
        """Requests that a server of a pool may hold of one dispatcher, to be given another one."""
        known = self.loads.get(pool)
        if known is None:
            return math.inf
        return max(1.0, known.held_for(criticality) / max(1, known.reports.n_callers))

    def renewed(
        self,
        version: int,
        published_at_ms: int,
        fleet: FleetState,
        prices: Prices,
        counts: Mapping[str, int] | None = None,
        since_ms: int = 0,
    ) -> Live:
        """The view of a later snapshot in which nothing but telemetry is new."""
        later = copy.copy(self)
        later._since_ms = since_ms
        later.version, later.published_at_ms = version, published_at_ms
        later.fleet, later.prices, later.counts = fleet, prices, counts or {}
        later._read_telemetry()
        return later

    def age_ms(self, now_ms: int) -> int:
        """Time since the snapshot was published; 0 before there is one."""
        return max(0, now_ms - self.published_at_ms) if self.version else 0


def _of_pool(pool: Pool, known: Capacity | None, price: Price | None) -> tuple[float, ...]:
    """Of a pool whether it is reported on, requests queued and running; whether it has a load that
    counts, it, the logarithm of its price; ready replicas, and its work over the catalogue's.
    """
    load, log_price = (0.0, 0.0) if price is None else (price.load, price.log_price)
    if known is None:
        return 0.0, 0.0, 1.0, price is not None, load, log_price, 0.0, 1.0
    of, factor = known.reports, known.work_factor(pool.rates)
    # One that has just begun to be ready is taken to be empty until it says more.
    ready = of.in_state("ready")
    has_load = ready > 0 or price is not None
    return 1.0, of.queued, max(1.0, of.running), has_load, load, log_price, ready, factor


def _novelty(learned: Learned, options: GuardOptions) -> Novelty:
    rows = learned.history.rows
    return Novelty(rows["contexts"][np.argsort(rows["decided_at_ms"], kind="stable")], options)


def _with_retries(latency_ms: NDArray[Any], error_share: NDArray[Any]) -> NDArray[Any]:
    """Expected time to success when failures are tried again: latency / (1 − error share)."""
    return latency_ms / np.maximum(1.0 - error_share, 0.01)
