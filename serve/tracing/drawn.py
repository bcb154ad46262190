"""Which calls get a trace of those that come without one: decided before there is any span.

    no `traceparent` ─▶ share drawn ─▶ fewer than `per_s_max` in this second? ─▶ spans
                              └──────────────────┴─ no: the call goes on as if tracing were off

Spans of every call would cost a router more than its decisions. So of a few requests all have one,
and of many so many a second: what tracing costs is bounded, whatever the traffic.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable


class Drawn:
    """A share of calls, and no more than so many a second. Used on one event loop."""

    def __init__(
        self,
        *,
        share: float = 1.0,
        per_s_max: float = 1e9,
        now_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """As `TracingOptions` has them."""
        self._share, self._per_s_max = share if per_s_max else 0.0, per_s_max
        self._now_s, self._draw = now_s, draw
        self._left, self._filled_s = max(1.0, per_s_max), now_s()

    def __call__(self) -> bool:
        """Whether the next one is drawn."""
        if self._draw() >= self._share:
            return False
        now_s = self._now_s()
        more = (now_s - self._filled_s) * self._per_s_max
        self._left, self._filled_s = min(max(1.0, self._per_s_max), self._left + more), now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
