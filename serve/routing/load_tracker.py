"""How utilised pools are now: telemetry, and what was sent there since.

    snapshot: load, queued, running, price ──┐
    this replica's own decisions since ──────┴─▶ expected latency, load and price of every pool

Telemetry is a second old, and a burst may come within it. With R requests running that take L each,
a pool finishes R / L of them per second, so what has not been answered yet is about

    Q = max(0, queued + sent since − R · time since / L)        and a new one takes  L · (1 + Q / R)

A pool that reports its load ρ works off as much per second as it takes in at that load. Work sent
beyond that raises the load, a mean of five seconds, and here somewhat faster: so of what one pool's
load is below another's 0.7 is made up for before the next report. All of it would come to the pool
as a burst, which fills it beyond its limit, and then to the other one:

    ρ + (work sent since · routers / replicas / F − ρ · time since) / FILL_S

F is the work a second sent to a replica that reports a load of 1. It is less than one, and depends
on lengths and GPU: 0.3 where prompts are long and answers short, 0.95 at the most. So it is learned
from what was sent and what was reported over the last minutes: at a steady load both terms cancel,
also for a router that gets more or fewer requests than others.

The pool's price goes on from the snapshot's by the proportional part of the ascent, see
`learners.prices`.

Telemetry lags one to two seconds: requests are counted since its timestamp, not since its arrival.
Otherwise what is under way would be forgotten each time, and pools that are alike would be flooded
in turns. What is counted here is this replica's own; newer telemetry, which has everybody's,
replaces it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.kernels.compiled import kernels
from learners.prices import multiples
from serve.routing.live import Live
from streams.telemetry.received import SILENT_MS
from streams.training.prices import PricingOptions

Floats = NDArray[np.float64]

FILL_S = 3.5  # 0.7 of `infra.capacity.load.FLOW_S`: see above
FULL = 0.9  # F before anything is learned: of chats, on most GPUs
FULL_PRIOR_S = 1.5  # at a load of 1, that this counts for
FULL_MIN, FULL_MAX = 0.1, 2.0  # a router that gets twice its share finds up to 2 × 0.95
SLOT_MS = 100  # resolution at which sent requests are kept, until newer telemetry covers them
SLOTS_MAX = 100
N_ROWS = 7
KERNEL = "learners.kernels.place"
LEARNED_S = 60.0  # lengths change by the minute: as in `infra.capacity.load.LENGTHS_S`


class _Row:
    """One row of `PoolLoad.rows`."""

    def __init__(self, row: int) -> None:
        self._row = row

    def __get__(self, of: PoolLoad, kind: type | None = None) -> Floats:
        return of.rows[self._row]


@dataclass(slots=True, eq=False)
class PoolLoad:
    """All P pools at a moment, in the rows that `learners.kernels.place` takes; nobody sets them
    anew. Where telemetry does not report on a pool, all is 0 but its latency.
    """

    rows: Floats  # (7, P), which follow

    load = _Row(0)  # 1: as much as it should carry
    latency_s = _Row(1)  # of a request sent now
    waiting = _Row(2)  # requests, less those there is room for
    empty_s = _Row(3)  # what `latency_s` is where nobody waits
    per_request = _Row(4)  # how many times longer it takes for each that waits
    per_work = _Row(5)  # of load, that a second of work sent now adds
    multiple = _Row(6)  # price of its capacity, in multiples of what it costs


class LoadTracker:
    """Counts what was sent. Used from one event loop."""

    def __init__(self, options: PricingOptions) -> None:
        self._options, ascent = options, options.ascent
        self._settings = np.array(
            [FILL_S, ascent.damped_load_max, ascent.damping, ascent.log_multiple_max]
        )
        self._of: tuple[int, tuple[str, ...]] | None = None  # telemetry and pools counted for
        self._since = np.zeros((2, 0))  # (2, P) since telemetry: requests sent, and their work
        self._slots: list[tuple[int, Floats]] = []  # the same, by when: (end, (2, P))
        # (2, P) of the last minutes: work sent to a replica, and reported loads times how long.
        self._recent = np.zeros((2, 0))
        self._known: tuple[Live, Floats] | None = None  # a view, and its `per_work`

    def now(self, live: Live, now_ms: int) -> PoolLoad:
        """The pools' load at this moment."""
        known, rows = live.of_pools, np.zeros((N_ROWS, live.of_pools.shape[1]))
        if not live.loads and not live.priced:  # nothing is known, so nothing is to be corrected
            empty_s = live.pool_latency_ms / 1000.0
            rows[:4] = live.load, empty_s, rows[2], empty_s
            return PoolLoad(rows)
        self._begin(live)
        since_s = max(0, now_ms - live.loads_as_of_ms) / 1000.0 if live.loads else 0.0
        per_work = self._per_work(live)
        kernel: Any = live.kernel and kernels(KERNEL)
        if kernel is None:
            self._reckon(live, per_work, since_s, rows)
        else:
            kernel.reckon(known, self._since, per_work, since_s, self._settings, rows)
            np.expm1(rows[-1], out=rows[-1])
        return PoolLoad(rows)

    def _reckon(self, live: Live, per_work: Floats, since_s: float, rows: Floats) -> None:
        """Fill in the rows, with numpy."""
        empty_s = live.pool_latency_ms / 1000.0
        sent, work_s = self._since
        left = live.queued + sent - live.running * since_s / empty_s
        waiting = np.where(live.reported, left, 0.0)
        lengthened = 1.0 + np.maximum(0.0, waiting) / live.running
        gone = np.where(live.loaded, live.load * since_s / FILL_S, 0.0)
        load = np.maximum(0.0, live.load + work_s * per_work - gone)
        priced = multiples(live.log_price, load, self._options.ascent)
        latency_s = live.pool_latency_ms * lengthened / 1000.0
        rows[:4] = load, latency_s, waiting, empty_s
        rows[4] = live.reported / live.running
        rows[5:] = per_work, np.where(live.loaded, priced, 0.0)

    def sent(self, live: Live, pools: NDArray[np.intp], work_s: Floats, now_ms: int) -> None:
        """Note n decisions: their pools (n,), columns of `live`, and their work (n,)."""
        self._begin(live)
        n_pools = len(live.catalogue.pool_names)
        counts = np.empty((2, n_pools))
        counts[0] = np.bincount(pools, minlength=n_pools)
        counts[1] = np.bincount(pools, work_s, minlength=n_pools)
        self._since += counts
        ends_ms = now_ms // SLOT_MS * SLOT_MS + SLOT_MS
        if self._slots and ends_ms <= self._slots[-1][0]:
            ends_ms, before = self._slots.pop()
            counts = before + counts
        self._slots.append((ends_ms, counts))
        if len(self._slots) > SLOTS_MAX:  # a long silence: the oldest are summed up
            oldest, (ends_ms, counts) = self._slots[:2]
            self._slots[:2] = [(ends_ms, oldest[1] + counts)]

    def _begin(self, live: Live) -> None:
        """Forget what newer telemetry has counted in, once F is learned from it."""
        of = (live.loads_as_of_ms, live.catalogue.pool_names)
        if of == self._of:
            return
        before, self._of, self._known = self._of, of, None
        if before is None or before[1] != live.catalogue.pool_names:
            self._slots.clear()
            self._since, self._recent = np.zeros((2, 2, len(live.catalogue.pool_names)))
            return
        kept = [slot for slot in self._slots if slot[0] > live.loads_as_of_ms]
        since = sum((counts for _, counts in kept), np.zeros_like(self._since))
        if before[0]:
            came_s = self._since[1] - since[1]
            self._learn(live, came_s, (live.loads_as_of_ms - before[0]) / 1000.0)
        self._slots, self._since = kept, since

    def _learn(self, live: Live, work_s: Floats, elapsed_s: float) -> None:
        """Compare the work (P,) that was sent in a time with the loads that were reported after it.

        A pool beyond its limit, whose load counts what waits, is taken to be at it: to leave it out
        would leave only times in which a burst had just come. Not after a silence.
        """
        if not 0.0 < elapsed_s <= SILENT_MS / 1000.0:
            return
        known = live.loaded & (live.load > 0.0)
        load = np.minimum(live.load, 1.0)
        new = np.stack([work_s * live.n_routers / live.ready, load * elapsed_s])
        kept = math.exp(-elapsed_s / LEARNED_S)
        self._recent = np.where(known, kept * self._recent + new, self._recent)

    def _per_work(self, live: Live) -> Floats:
        """What a second of work adds to loads (P,); the same until there is another view."""
        if self._known is None or self._known[0] is not live:
            filled = live.n_routers / live.ready / self._full() / FILL_S
            self._known = live, np.where(live.loaded, filled, 0.0)
        return self._known[1]

    def _full(self) -> Floats:
        """F (P,)."""
        first = FULL * self._options.load_target
        came_s, reported_s = self._recent
        found = (came_s + first * FULL_PRIOR_S) / (reported_s + FULL_PRIOR_S)
        return np.minimum(np.maximum(found, FULL_MIN), FULL_MAX)
