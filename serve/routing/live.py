"""What decisions are made from: the last good snapshot × the catalogue, always in memory.

    snapshot store ─┐  every `poll_s`, in a thread of its own
                    ├──▶ load, verify, solve, warm ──▶ one reference is swapped
    catalogue file ─┘

While the store, the trainer or the file is away or broken, the last good view stays.

Whoever scores takes the reference once and uses that view to the end.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.arms.experience import Experience
from learners.context import N_FEATURES
from learners.criticality import Criticality
from learners.estimates import ema
from learners.estimates.billing import BillingOptions, overbilled
from learners.estimates.calibration import COST_FIGURE
from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.learned import RATIOS, Learned, MemoryOptions
from learners.kernels.compiled import kernels
from learners.novelty import GuardOptions, Novelty
from learners.option import option, same_as
from learners.targets import N_TARGETS, ONE, RATIO_UNIT, Target
from serve.routing.catalogue import Catalogue, CatalogueSource
from streams.errors import SnapshotDamaged
from streams.feedback.ticket import key_of
from streams.telemetry.capacity import Capacity, capacities
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.tally import parted
from streams.training.prices import Prices
from streams.training.snapshots import Manifest, Store
from streams.training.state import Loader, State

logger = logging.getLogger(__name__)
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
    ) -> None:
        self.fleet = fleet or FleetState()  # read when something is first asked of it
        self.prices, self.counts = prices or Prices(), counts or {}  # of a change under trial
        self.catalogue, self.encoder, self.encoder_key = catalogue, encoder, key_of(encoder)
        self.version, self.published_at_ms = version, published_at_ms
        loaded = [kernels(name) for name in KERNELS] if options.compiled else [None]
        self.kernel = loaded[-1]  # of decisions; None: numpy computes
        self.known: Any = None  # what `plain` keeps of this view
        self.blank: Any = None  # what `records` keeps of it
        self._first_token_s = options.first_token_s
        self._read_models(learned, options)
        self._read_pools(learned, options)
        self._read_telemetry()
        # The first search and product of a process are slow; let no request pay for them.
        self.estimator.estimate(np.zeros((1, N_FEATURES), np.int8))
        self.reference = self._reference(learned)
        # Whose bills are too high for chance.
        as_of_ms = learned.as_of_ms
        self.overbilled = overbilled(learned.billing, catalogue.keys, as_of_ms, options.billing)
        # Who answers what is far from everything seen: a column, or none; and what that is.
        self.guard = catalogue.column_of.get(options.guard.model)
        self.novelty = None if self.guard is None else _novelty(learned, options.guard)

    def _read_models(self, learned: Learned, options: LiveOptions) -> None:
        """The estimator, and what it says of models (k,) whatever the context."""
        catalogue = self.catalogue
        self.estimator = Estimator(
            learned,
            catalogue.keys,
            catalogue.quality,
            options.blend,
            catalogue.kin,
            compiled=self.kernel is not None,
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
        pools, prices = self.catalogue.pools, self.prices
        self.columns: Any = None  # what `placement` keeps of this view
        several = len(pools) > len(self.catalogue)
        self.loads: Mapping[str, Capacity] = {}
        if several or any(p.reports or p.watched for p in pools):
            self.loads = capacities(self.fleet, self._first_token_s)
        self.loads_as_of_ms = self.fleet.newest_ms if self.loads else 0
        self.n_routers = max(1, len(self.fleet.routers)) if self.loads else 1
        known_of = [self.loads.get(name) for name in self.catalogue.pool_names]
        found = [None if one is None else one.reports for one in known_of]
        self.work_factor = np.array(  # (P,) on the catalogue's work: as learned
            [
                1.0 if one is None else one.work_factor(pool.rates)
                for pool, one in zip(pools, known_of, strict=True)
            ]
        )
        self.reported = np.array([one is not None for one in found])
        self.queued = np.array([one.queued if one else 0.0 for one in found])
        self.running = np.maximum(1.0, [one.running if one else 0.0 for one in found])
        self.ready = np.maximum(1.0, [one.in_state("ready") if one else 0.0 for one in found])
        priced = [prices.capacity.get(name) for name in self.catalogue.pool_names]
        # Where requests are no work they can't be charged: such a pool has no price.
        # One that has just begun to be ready is taken to be empty until it says more.
        ready = [one is not None and one.in_state("ready") > 0 for one in found]
        known = np.array(ready) | np.array([one is not None for one in priced])
        self.loaded = known & self.catalogue.has_work
        self.priced = bool(self.loaded.any())
        self.load = np.array([one.load if one else 0.0 for one in priced])
        self.log_price = np.array([one.log_price if one else 0.0 for one in priced])
        # Silent, a pool is gone; while nothing at all was received, if it begins with no replica.
        gone = [pool.reports and bool(self.loads or not pool.replicas) for pool in pools]
        self.open = np.array(ready) | ~(self.reported | np.array(gone))
        self.open &= ~self.catalogue.draining
        self.model_open = np.array([self.open[c].any() for c in self.catalogue.columns_of])  # (k,)
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
        return max(1, len(self.fleet.routers))

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
    ) -> Live:
        """The view of a later snapshot in which nothing but telemetry is new."""
        later = copy.copy(self)
        later.version, later.published_at_ms = version, published_at_ms
        later.fleet, later.prices, later.counts = fleet, prices, counts or {}
        later._read_telemetry()
        return later

    def age_ms(self, now_ms: int) -> int:
        """Time since the snapshot was published; 0 before there is one."""
        return max(0, now_ms - self.published_at_ms) if self.version else 0


def _novelty(learned: Learned, options: GuardOptions) -> Novelty:
    rows = learned.history.rows
    return Novelty(rows["contexts"][np.argsort(rows["decided_at_ms"], kind="stable")], options)


def _with_retries(latency_ms: NDArray[Any], error_share: NDArray[Any]) -> NDArray[Any]:
    """Expected time to success when failures are tried again: latency / (1 − error share)."""
    return latency_ms / np.maximum(1.0 - error_share, 0.01)


class LiveView:
    """Keeps `current` fresh from the store and the catalogue, in a thread of its own."""

    def __init__(
        self,
        store: Store,
        source: CatalogueSource,
        encoder: str,
        memory: MemoryOptions,
        options: LiveOptions,
        on_swap: Callable[[Live], None] = lambda live: None,
        on_look: Callable[[Live, str], None] = lambda live, refused: None,
    ) -> None:
        """Load what there is. Raises if the catalogue is not valid, and SnapshotForeign.

        A store without a readable snapshot is no obstacle: decisions then rest on what the
        catalogue states, until the first snapshot comes.
        """
        self._store, self._source, self._encoder, self._options = store, source, encoder, options
        self._loader = Loader(store, encoder, memory, with_seen=False)
        self._on_swap, self._on_look = on_swap, on_look
        self._learned = Learned(memory, memory.landmarks_of(encoder))
        self._version = self._term = self._published_at_ms = 0
        self._fleet, self._prices = FleetState(), Prices()
        self.arms = Experience()  # what the newest snapshot has learned of arms
        self._counts: Mapping[str, int] = {}
        self._built_of: Learned | None = None  # what `current` was solved from
        self._passed_over = 0  # a version looked at and not taken
        self._refused = ""  # why the catalogue as it is now can't be used
        self._load_first()
        self.current = self._build(source.read())
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="live view", daemon=True)

    def start(self) -> None:
        """Begin watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; the current view stays usable."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    @property
    def learned(self) -> Learned:
        """What the newest view was solved from."""
        return self._learned

    @property
    def prices(self) -> Prices:
        """What is scarce, and what it costs, by the newest snapshot."""
        return self._prices

    @property
    def watching(self) -> bool:
        """Whether the watching thread is alive."""
        return self._thread.is_alive()

    def refresh(self) -> bool:
        """Look once; whether a new view was swapped in. Raises what looking raises.

        Either source may be away or broken: what the other one says takes effect all the same.
        """
        problems: list[Exception] = []
        catalogue = self.current.catalogue
        try:
            self._load_newer()
        except Exception as error:  # noqa: BLE001 - raised below
            problems.append(error)
        try:
            catalogue = self._source.read()
            self._refused = ""
        except Exception as error:  # noqa: BLE001 - raised below
            self._refused = str(error)
            problems.append(error)
        # Compared with the view, not with the last look: that one may have failed half-way.
        changed = self._version != self.current.version or catalogue != self.current.catalogue
        if changed:
            self.current = self._build(catalogue)
            self._on_swap(self.current)
        if problems:
            raise problems[0]
        return changed

    def _watch(self) -> None:
        """Look again and again; a failed look changes nothing and is said once."""
        last_problem = ""
        self._on_look(self.current, self._refused)
        while not self._stopping.wait(self._options.poll_s):
            try:
                self.refresh()
                last_problem = ""
            except Exception as error:  # noqa: BLE001 - static stability: the last view stays
                problem = f"{type(error).__name__}: {error}"
                if problem != last_problem:
                    logger.warning("the view of version %d stays: %s", self._version, problem)
                last_problem = problem
            self._on_look(self.current, self._refused)

    def _load_first(self) -> None:
        try:
            loaded = self._loader.load_newest()
        except (SnapshotDamaged, OSError) as error:
            logger.error("no snapshot can be read, starting from the catalogue alone: %s", error)
            return
        if loaded:
            self._take(*loaded)

    def _load_newer(self) -> None:
        """Load the newest version if it is newer, or of a newer trainer."""
        newest = self._store.newest()
        if newest in (0, self._version, self._passed_over):
            return
        if newest < self._version and self._store.load(newest).term <= self._term:
            self._passed_over = newest  # the newest was deleted; what is held is still the best
            return
        try:
            self._take(*self._loader.load(newest))
        except SnapshotDamaged:
            if newest not in self._store.versions():
                return  # pruned while being read; a newer one is there
            self._passed_over = newest
            raise

    def _take(self, state: State, manifest: Manifest) -> None:
        self._learned, self._fleet, self._prices = state.learned, state.fleet, state.prices
        self._counts, self.arms = state.counts, state.arms
        self._version, self._term = manifest.version, manifest.term
        self._published_at_ms = int(manifest.about["published_at_ms"])
        self._passed_over = 0

    def _build(self, catalogue: Catalogue) -> Live:
        """A view of what is loaded. Telemetry alone, every second, is no reason to solve again."""
        if self._built_of is self._learned and catalogue == self.current.catalogue:
            return self.current.renewed(
                self._version, self._published_at_ms, self._fleet, self._prices, self._counts
            )
        with self._learned.history.at_hand():
            live = Live(
                catalogue,
                self._learned,
                self._encoder,
                self._options,
                version=self._version,
                published_at_ms=self._published_at_ms,
                fleet=self._fleet,
                prices=self._prices,
                counts=self._counts,
            )
        self._loader.let_go()
        self._built_of = self._learned
        return live
