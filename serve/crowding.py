"""How full pools are now: telemetry, and what was sent there since.

    snapshot: load, queued, running, price ──┐
    this replica's own decisions since ──────┴─▶ expected latency, load and price of every pool

Telemetry is a second old, and a burst may come within it. With R requests running that take L each,
a pool finishes R / L of them per second, so what has not been answered yet is about

    Q = max(0, queued + sent since − R · time since / L)        and a new one takes  L · (1 + Q / R)

A pool that tells its load ρ works off as much per second as it takes in at that load. What was
sent beyond it fills the pool; it takes about `FILL_S` of twice the work to double the load:

    ρ + (work sent since · routers / replicas − ρ · time since) / FILL_S

and its price goes on from the snapshot's by the proportional part of the ascent, see
`learners.prices`.

The one rule: what is counted here is this replica's own and a second's; the next telemetry, which
has everybody's, replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.prices import multiples
from serve.live import Live
from streams.prices import PricingOptions

Floats = NDArray[np.float64]

FILL_S = 5.0  # a load is of the last few seconds: `infra.emulator.capacity.FLOW_S`


@dataclass(frozen=True, slots=True, eq=False)
class Crowd:
    """All P pools at a moment."""

    latency_ms: Floats  # (P,) of a request sent now
    waiting: Floats  # (P,) requests that wait, less those there is room for; 0 where nobody tells
    load: Floats  # (P,) 1: as much as it should carry; 0 where nobody tells
    multiple: Floats  # (P,) price of its capacity, in multiples of what it costs


class Crowding:
    """Counts what was sent. Used from one event loop."""

    def __init__(self, options: PricingOptions, *, priced: bool = True) -> None:
        """Without `priced` all capacity is free: the router is blind to prices."""
        self._options, self._priced = options, priced
        self._of: tuple[int, tuple[str, ...]] | None = None  # telemetry and pools counted for
        self._sent = self._work_s = np.zeros(0)  # (P,) requests, and their work

    def now(self, live: Live, now_ms: int) -> Crowd:
        """How full pools are."""
        if not live.loads and not live.priced:  # nothing is known, so nothing is to be corrected
            free = np.zeros(len(live.load))
            return Crowd(live.pool_latency_ms, free, live.load, free)
        self._begin(live)
        since_s = max(0, now_ms - live.loads_as_of_ms) / 1000.0 if live.loads else 0.0
        latency_s = live.pool_latency_ms / 1000.0
        left = live.queued + self._sent - live.running * since_s / latency_s
        waiting = np.where(live.told, left, 0.0)
        crowded = 1.0 + np.maximum(0.0, waiting) / live.running
        fresh = self._work_s * live.n_routers / live.ready / self._options.load_target
        more = np.where(live.loaded, (fresh - live.load * since_s) / FILL_S, 0.0)
        load = np.maximum(0.0, live.load + more)
        free = np.zeros_like(load)
        priced = multiples(live.log_price, load, self._options.ascent) if self._priced else free
        return Crowd(
            latency_ms=live.pool_latency_ms * crowded,
            waiting=waiting,
            load=load,
            multiple=np.where(live.loaded, priced, 0.0),
        )

    def sent(self, live: Live, pools: NDArray[np.intp], work_s: Floats) -> None:
        """Note n decisions: their pools (n,), columns of `live`, and their work (n,)."""
        self._begin(live)
        n_pools = len(live.pool_names)
        self._sent += np.bincount(pools, minlength=n_pools)
        self._work_s += np.bincount(pools, work_s, minlength=n_pools)

    def _begin(self, live: Live) -> None:
        """Forget what newer telemetry has counted in."""
        of = (live.loads_as_of_ms, live.pool_names)
        if of != self._of:
            self._of = of
            self._sent, self._work_s = np.zeros((2, len(live.pool_names)))
