"""What decisions are made from: the last good snapshot × the catalogue, always in memory.

    snapshot store ─┐  every `poll_s`, in a thread of its own
                    ├──▶ load, verify, solve, warm ──▶ one reference is swapped
    catalogue file ─┘

While the store, the trainer or the file is away or broken, the last good view stays.

The one rule: whoever scores takes the reference once and uses that view to the end.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from learners import ema
from learners.context import N_FEATURES
from learners.estimator import BlendOptions, Estimator
from learners.learned import Learned, MemoryOptions
from serve.catalogue import Catalogue, CatalogueSource
from streams.errors import SnapshotDamaged
from streams.fleet_state import FleetState
from streams.fleet_view import loads
from streams.snapshots import Manifest, Store
from streams.state import Loader, State
from streams.ticket import key_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How the view is kept fresh."""

    poll_s: float = 0.1  # looks at the store; a listing of ten names costs 0.1 ms
    # A failure or an outcome is rare; a rate is believed after about as many outcomes.
    error_prior_weight: float = 20.0
    latency_prior_weight: float = 5.0
    blend: BlendOptions = field(default_factory=BlendOptions)


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
    ) -> None:
        self.fleet = fleet or FleetState()  # read when something is first asked of it
        self.catalogue, self.encoder = catalogue, encoder
        self.version, self.published_at_ms = version, published_at_ms
        self.estimator = Estimator(learned, catalogue.keys, catalogue.quality, options.blend)
        means = self.estimator.model_means
        self.error_share = means.figure("error", 0.0, options.error_prior_weight)  # (k,)
        self.pool_latency_ms: dict[str, float] = {}  # of models that have several
        # Every model's pools, the best first; `pools` (k,) is the best of each.
        self.pools_of = {
            name: self._ranked_pools(learned, column, options)
            for column, name in enumerate(catalogue.names)
        }
        self.pools = tuple(self.pools_of[name][0] for name in catalogue.names)
        self.model_keys = np.array(catalogue.keys, np.uint64)
        self.pool_keys = np.array([key_of(name) for name in self.pools], np.uint64)
        self.encoder_key = key_of(encoder)
        self._read_loads()
        # The first search and product of a process are slow; let no request pay for them.
        self.estimator.estimate(np.zeros((1, N_FEATURES), np.int8))

    def _ranked_pools(self, learned: Learned, column: int, options: LiveOptions) -> tuple[str, ...]:
        """A model's pools by their mean latency lately, failures counted in."""
        pools = [pool.name for pool in self.catalogue.pools_of[column]]
        if len(pools) == 1:
            return tuple(pools)
        means = ema.read(learned.pools, [key_of(pool) for pool in pools], learned.as_of_ms)
        stated_ms = float(self.catalogue.latency_ms[column])
        latency_ms = means.figure("latency_ms", stated_ms, options.latency_prior_weight)
        errors = means.figure("error", 0.0, options.error_prior_weight)
        expected_ms = _with_retries(latency_ms, errors)
        self.pool_latency_ms.update(zip(pools, expected_ms.tolist(), strict=True))
        return tuple(pools[i] for i in np.argsort(expected_ms, kind="stable").tolist())

    def _read_loads(self) -> None:
        """How full pools are, where there is a choice between them; see `crowding`."""
        self.loads = loads(self.fleet) if self.pool_latency_ms else {}
        self.loads_as_of_ms = self.fleet.newest_ms if self.loads else 0

    def with_pools(self, pools: tuple[str, ...]) -> Live:
        """The same view, with other pools (k,) of the models."""
        other = copy.copy(self)
        other.pools = pools
        other.pool_keys = np.array([key_of(name) for name in pools], np.uint64)
        return other

    def renewed(self, version: int, published_at_ms: int, fleet: FleetState) -> Live:
        """The view of a later snapshot in which nothing but telemetry is new."""
        later = copy.copy(self)
        later.version, later.published_at_ms, later.fleet = version, published_at_ms, fleet
        later._read_loads()
        return later

    def age_ms(self, now_ms: int) -> int:
        """Time since the snapshot was published; 0 before there is one."""
        return max(0, now_ms - self.published_at_ms) if self.version else 0


def _with_retries(latency_ms: NDArray, error_share: NDArray) -> NDArray:
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
    ) -> None:
        """Load what there is. Raises if the catalogue is not valid, and SnapshotForeign.

        A store without a readable snapshot is no obstacle: decisions then rest on what the
        catalogue states, until the first snapshot comes.
        """
        self._store, self._source, self._encoder, self._options = store, source, encoder, options
        self._loader = Loader(store, encoder, memory, with_seen=False)
        self._on_swap = on_swap
        self._learned, self._version, self._term, self._published_at_ms = Learned(memory), 0, 0, 0
        self._fleet = FleetState()
        self._built_of: Learned | None = None  # what `current` was solved from
        self._passed_over = 0  # a version looked at and not taken
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
        except Exception as error:  # noqa: BLE001 - raised below
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
        while not self._stopping.wait(self._options.poll_s):
            try:
                self.refresh()
                last_problem = ""
            except Exception as error:  # noqa: BLE001 - static stability: the last view stays
                problem = f"{type(error).__name__}: {error}"
                if problem != last_problem:
                    logger.warning("the view of version %d stays: %s", self._version, problem)
                last_problem = problem

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
        self._learned, self._fleet = state.learned, state.fleet
        self._version, self._term = manifest.version, manifest.term
        self._published_at_ms = int(manifest.about["published_at_ms"])
        self._passed_over = 0

    def _build(self, catalogue: Catalogue) -> Live:
        """A view of what is loaded. Telemetry alone, every second, is no reason to solve again."""
        if self._built_of is self._learned and catalogue == self.current.catalogue:
            return self.current.renewed(self._version, self._published_at_ms, self._fleet)
        live = Live(
            catalogue,
            self._learned,
            self._encoder,
            self._options,
            version=self._version,
            published_at_ms=self._published_at_ms,
            fleet=self._fleet,
        )
        self._built_of = self._learned
        return live
