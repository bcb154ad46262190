"""Which of a model's pools is the least crowded now: telemetry, and what was sent there since.

    snapshot: latency, queued, running ──┐
    this replica's own decisions since ──┴─▶ expected latency of each pool ─▶ the best one

Telemetry is a second old, and a burst may come within it. With R requests running that take L each,
a pool finishes R / L of them per second, so what has not been answered yet is about

    Q = max(0, queued + sent since − R · time since / L)        and a new one takes  L · (1 + Q / R)

A pool nobody reports on is taken by its latency alone.

The one rule: what is counted here is this replica's own and a second's; the next telemetry, which
has everybody's, replaces it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from serve.live import Live


class Crowding:
    """Corrects views. Used from one event loop."""

    def __init__(self) -> None:
        self._as_of_ms = -1
        self._sent: Counter[str] = Counter()  # since then, by pool

    def corrected(self, live: Live, now_ms: int) -> Live:
        """The view, with the pool of every model that is best now."""
        if not live.loads:
            return live
        if live.loads_as_of_ms != self._as_of_ms:
            self._as_of_ms = live.loads_as_of_ms
            self._sent.clear()
        pools = tuple(
            ranked[0]
            if len(ranked) == 1
            else min(ranked, key=lambda pool: self._expected_ms(pool, live, now_ms))
            for ranked in live.pools_of.values()
        )
        return live if pools == live.pools else live.with_pools(pools)

    def sent(self, pools: Iterable[str]) -> None:
        """Note what was decided."""
        if self._as_of_ms >= 0:
            self._sent.update(pools)

    def _expected_ms(self, pool: str, live: Live, now_ms: int) -> float:
        latency_ms = live.pool_latency_ms[pool]
        load = live.loads.get(pool)
        if load is None:
            return latency_ms
        since_ms = max(0, now_ms - live.loads_as_of_ms)
        running = max(1, load.running)
        waiting = load.queued + self._sent[pool] - running * since_ms / latency_ms
        return latency_ms * (1.0 + max(0.0, waiting) / running)
