"""The newest view, always in memory: looked for, verified and solved off the request path.

    snapshot store ─┐  every `poll_s`, in a thread of its own
                    ├──▶ load, verify ──▶ Live ──▶ one reference is swapped
    catalogue file ─┘

While the store, the trainer or the file is away or broken, the last good view stays.

Whoever scores takes the reference once and uses that view to the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from learners.arms.experience import Experience
from learners.estimates.learned import Learned, MemoryOptions
from serve.routing.catalogue import Catalogue, CatalogueSource
from serve.routing.live import Live, LiveOptions
from streams.errors import SnapshotDamaged
from streams.telemetry.fleet_state import FleetState
from streams.training.prices import Prices
from streams.training.snapshots import Manifest, Store
from streams.training.state import Loader, State

logger = logging.getLogger(__name__)


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
        since_ms: int = 0,
        reports_as: str = "",
    ) -> None:
        """Load what there is. Raises if the catalogue is not valid, and SnapshotForeign.

        Telemetry of before `since_ms` counts as none: it describes a fleet that was there before
        this router. Once it has seen newer one, the last view stays however old it gets. What
        this process has reported itself is newer, whatever the clocks say.

        A store without a readable snapshot is no obstacle: decisions then rest on what the
        catalogue states, until the first snapshot comes.
        """
        self._store, self._source, self._encoder, self._options = store, source, encoder, options
        self._loader = Loader(store, encoder, memory, with_seen=False)
        self._since_ms, self._reports_as = since_ms, reports_as
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
        newer = self._fleet.received_ms >= self._since_ms
        if newer or self._reports_as in self._fleet.routers:
            self._since_ms = 0  # for good: the clock may be set back

    def _build(self, catalogue: Catalogue) -> Live:
        """A view of what is loaded. Telemetry alone, every second, is no reason to solve again."""
        if self._built_of is self._learned and catalogue == self.current.catalogue:
            return self.current.renewed(
                self._version,
                self._published_at_ms,
                self._fleet,
                self._prices,
                self._counts,
                self._since_ms,
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
                since_ms=self._since_ms,
            )
        self._loader.let_go()
        self._built_of = self._learned
        return live
