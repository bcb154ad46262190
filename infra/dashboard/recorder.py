"""Takes a sample of the site once a minute and keeps it, in a thread of `fairlead up`.

    status, outcomes of the last minute ──sample()──▶ History

What fails is said in the log once a minute and tried again: a gap in the charts, and nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from infra.dashboard.history import AT, History, Sample
from infra.dashboard.judged import Judged
from infra.dashboard.savings import Tally, written
from infra.status.status import Status
from streams.errors import StreamError
from streams.quiet import once_a_minute

logger = once_a_minute(logging.getLogger(__name__))

EVERY_S = 60.0
STOP_S_MAX = 10.0
TALLY = "tally"  # name of a sample's sums, which are not shown over time but added up


class Recorder:
    """Records until it is stopped."""

    def __init__(
        self,
        look: Callable[[], Status],
        judged: Judged,
        history: History,
        now_ms: Callable[[], int],
        every_s: float = EVERY_S,
    ) -> None:
        self._look, self._judged, self._history = look, judged, history
        self._now_ms, self._every_s = now_ms, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin; the first sample comes at once, so that charts begin with the site."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the sample under way."""
        self._stopping.set()
        self._thread.join(STOP_S_MAX)

    def _run(self) -> None:
        while True:
            self.record()
            if self._stopping.wait(self._every_s):
                return

    def record(self) -> None:
        """Take one sample and keep it."""
        try:
            tally, means = self._judged.look()
            self._history.add(sample(self._look(), tally, means, self._now_ms()))
        except (OSError, StreamError) as error:
            logger.error("no sample for the dashboard: %s", error)


def sample(status: Status, tally: Tally, means: dict[str, float | None], at_ms: int) -> Sample:
    """What is kept of one look."""
    router, workload = status.router, status.workload.values()
    mix: dict[str, float] = {}
    for one in router.mix if router else ():
        mix[one.model] = mix.get(one.model, 0.0) + one.decisions_per_s
    pools = status.pools
    return {
        AT: at_ms,
        "decisions_per_s": router.decisions_per_s if router else None,
        "refused_per_s": router.refused_per_s if router else None,
        "arrivals_per_s": sum(one.arrivals_per_s["1m"] for one in workload),
        "latency_ms_p50": router.latency_ms_p50 if router else None,
        "latency_ms_p99": router.latency_ms_p99 if router else None,
        "explored_share": router.explored_share if router else None,
        "snapshot_age_s": status.snapshot_age_s,
        "lag_s": status.lag_s,
        "alarms": len(status.alarms),
        "models_per_s": mix,
        "replicas": {name: sum(one.replicas.values()) for name, one in pools.items()},
        "ttft_ms_p99": {name: one.ttft_ms["p99"] for name, one in pools.items()},
        "price": {name: price.multiple for name, price in status.prices.items()},
        "budget_spent": {
            name: one.spent / one.amount for name, one in status.budgets.items() if one.amount
        },
        **means,
        TALLY: written(tally),
    }
