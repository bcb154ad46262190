"""The trainer in virtual time, and the view of what it knows that routers decide from.

    log in memory ──feedback, telemetry──▶ Trainer ─┬─ every step ──▶ Live.renewed (loads, prices)
                                                    └─ now and then ▶ Live (all that was learned)

It is the real trainer on the real topics. Only the way of its state to the routers is shorter: it
is handed over in memory and not through a store. What it has read is dropped from the log.

A view of all that was learned costs milliseconds, and every estimate made anew thereafter. So there
is one after 10 s, one when twice the time has passed, and so on until they come every `publish_s`:
each is made of about twice the outcomes of the last, as long as there are few. Where nothing was
learned since, there is nothing to publish.

Between two views a router sees nothing new, as between two snapshots.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from learners.context import Contexts
from load.simulation.loop.bills import Bill
from load.simulation.loop.remembered import Remembered
from serve.routing.catalogue import Catalogue
from serve.routing.live import Live, LiveOptions
from streams.feedback.ticket import Sealer
from streams.log.contract import FEEDBACK, TELEMETRY
from streams.log.memory_log import MemoryLog
from streams.telemetry.fleet_state import FleetState
from streams.training.budgets import RELEASED
from streams.training.folder import Folder
from streams.training.prices import Prices
from streams.training.snapshots import Store
from streams.training.state import State
from streams.training.trainer import Trainer, TrainerOptions

FIRST_PUBLISH_S = 10.0
DEFAULTS = LiveOptions()
RECORDS_MAX = 65_536  # per step and topic: all there is, as nothing else waits for the trainer


class VirtualTrainer:
    """See above. Close it, or use it in a `with` block."""

    def __init__(
        self,
        log: MemoryLog,
        catalogue: Catalogue,
        sealer: Sealer,
        encoder: str,
        contexts: Contexts,
        options: TrainerOptions,
        publish_s: float,
        now_ms: Callable[[], int],
        start: Callable[[], State | None],
        live_options: LiveOptions = DEFAULTS,
        *,
        keep_log: bool,
        plain_requests: bool = True,
    ) -> None:
        """`contexts` (t, 64) are all that routers will ask about, made by `encoder`.

        `start` gives what is known to begin with. Records are kept if `keep_log`. With
        `plain_requests` views leave out what only others need (`Live`).
        """
        self._live_options, self._plain_requests = live_options, plain_requests
        self._log, self._catalogue, self._encoder = log, catalogue, encoder
        self._contexts = contexts
        self._now_ms, self._publish_ms, self._keep_log = now_ms, publish_s * 1000.0, keep_log
        # A trainer claims a store; it never saves anything there, as nobody reads it.
        self._folder = tempfile.TemporaryDirectory()
        never = replace(
            options,
            wait_s=0.0,
            publish_s=math.inf,
            publish_fleet_s=math.inf,
            records_max=RECORDS_MAX,
            telemetry_records_max=RECORDS_MAX,
        )
        store = Store(Folder(self._folder.name))
        self._trainer = Trainer(log, store, sealer, encoder, never, now_ms, start=start)
        self._version, self._began_ms = 0, now_ms()
        self._estimates: Remembered | None = None
        self.live = self._published()

    @property
    def state(self) -> State:
        """All that it knows."""
        return self._trainer.state

    def step(self) -> None:
        """Read all there is, and renew the view."""
        self._trainer.step()
        if not self._keep_log:
            self._drop_read()
        self._version += 1
        now_ms, state = self._now_ms(), self.state
        if now_ms >= self._publish_next_ms and state.offsets != self._published_offsets:
            self.live = self._published()
        else:
            self.live = self.live.renewed(self._version, now_ms, state.fleet, state.prices)

    def settle(self, bills: Sequence[Bill]) -> None:
        """Bills came of calls that have no ticket: release what they were reserved beyond that."""
        for window, released in bills:
            self.state.count(RELEASED + window, released)

    def restate(self, catalogue: Catalogue) -> None:
        """From now on the catalogue states this."""
        self._catalogue = catalogue
        self.live = self._published()

    def _published(self) -> Live:
        """A view of all that was learned."""
        state, now_ms = self.state, self._now_ms()
        gap_ms = max(FIRST_PUBLISH_S * 1000.0, now_ms - self._began_ms)
        self._publish_next_ms = now_ms + min(gap_ms, self._publish_ms)
        self._published_offsets = dict(state.offsets)
        state.learned.history.settle()
        live = Live(
            self._catalogue,
            state.learned,
            self._encoder,
            self._live_options,
            version=self._version,
            published_at_ms=now_ms,
            fleet=state.fleet,
            prices=state.prices,
            plain_requests=self._plain_requests,
        )
        self._estimates = Remembered(live.estimator, self._contexts, self._estimates)
        live.estimator = self._estimates  # type: ignore[assignment]  # answers `estimate` alike
        return live

    def _drop_read(self) -> None:
        read = {FEEDBACK: self.state.offsets, TELEMETRY: self.state.telemetry_offsets}
        for topic, offsets in read.items():
            for partition, offset in offsets.items():
                self._log.drop_before(topic, partition, offset)

    def close(self) -> None:
        """Let go of everything."""
        self._trainer.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def blind(live: Live) -> Live:
    """The same view without pools' loads and prices: for a router that does not look at them."""
    return live.renewed(live.version, live.published_at_ms, FleetState(), Prices())
