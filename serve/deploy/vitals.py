"""How a router replica reports of itself: once a period, what it decided and how its loop is.

    event loop ──late by, busy for──┐
    batches ──RouterWindow──────────┼──▶ records ──outbox──▶ fairlead.telemetry
    current view ──version, age─────┘

Runs as a task of the event loop it watches. How late the loop comes to a timer is how long
anything else on it may have to wait.

Nothing here waits for the log, and nothing that fails here is felt by a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from serve.budgets.ledger import Left
from serve.budgets.spending import Spending
from serve.grpc_api.replies import ServicerCounts
from serve.routing.live_view import LiveView
from streams.errors import OutboxClosed
from streams.log.outbox import Outbox
from streams.telemetry.records import EndedReplica, Telemetry
from streams.telemetry.window import Reporter, RouterGauges, RouterWindow

logger = logging.getLogger(__name__)

# From who reports and the window (from, to) to the records of it.
Contribute = Callable[[Reporter, tuple[int, int]], Sequence[Telemetry]]
SAMPLE_S = 0.1  # between looks at how late the loop is: ten timers a second cost 0.1 % of a core


class Vitals:
    """Reports until it is stopped. Used on one event loop."""

    def __init__(
        self,
        window: RouterWindow,
        outbox: Outbox[Sequence[Telemetry]],
        view: LiveView,
        counts: ServicerCounts,
        reporter: Reporter,
        period_s: float,
        now_ms: Callable[[], int],
        spending: Spending,
        left: Left | None = None,
    ) -> None:
        """`spending` says what was spent of budgets so far, `left` what dead replicas had left."""
        self._spending, self._left = spending, left
        self._window, self._outbox, self._view = window, outbox, view
        self._counts, self._period_s, self._now_ms = counts, max(period_s, SAMPLE_S), now_ms
        self._others: list[Contribute] = []
        self._reporter = reporter
        self._refused = 0  # of the servicer's count, those reported
        self._lag_s_max = 0.0
        self._began_s, self._busy_s = time.monotonic(), time.thread_time()
        self._task: asyncio.Task[None] | None = None

    def add(self, contribute: Contribute) -> None:
        """Report what others of this process count, too: called once a window, must not block."""
        self._others.append(contribute)

    def start(self) -> None:
        """Begin to report, on the running loop."""
        self._began_s, self._busy_s = time.monotonic(), time.thread_time()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Report what was counted last, and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self.report(last=True)
            if self._left is not None:
                self._left.close()

    async def _run(self) -> None:
        due_s = time.monotonic() + self._period_s
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(SAMPLE_S)
            now_s = time.monotonic()
            self._lag_s_max = max(self._lag_s_max, now_s - before_s - SAMPLE_S)
            if now_s >= due_s:
                due_s = now_s + self._period_s
                self.report()

    def report(self, *, last: bool = False) -> None:
        """Hand over the records of the window that ends now; after the last no more is decided."""
        try:
            now_ms = self._now_ms()
            gauges = self._gauges(now_ms, self._ended(now_ms, last=last))
            self._window.count_refused(self._counts.refused - self._refused)
            self._refused = self._counts.refused
            window = self._reporter.window(now_ms)
            records: list[Telemetry] = [*self._window.take(self._reporter, window, gauges)]
            for contribute in self._others:
                records += contribute(self._reporter, window)
            self._outbox.offer(records)
        except OutboxClosed:
            pass
        except Exception:  # our bug, but a router that decides is worth more than its telemetry
            logger.exception("a window of telemetry is lost")

    def _ended(self, now_ms: int, *, last: bool) -> list[EndedReplica]:
        """Who spends no more: the dead of this machine, and at last this one."""
        found = self._spending.end(now_ms) if last else []
        if self._left is not None:
            accounts = self._view.current.prices.accounts
            found += self._left.ended(self._spending.hard_windows(now_ms), accounts)
        return found

    def _gauges(self, now_ms: int, ended: Sequence[EndedReplica]) -> RouterGauges:
        now_s, busy_s = time.monotonic(), time.thread_time()
        live = self._view.current
        gauges = RouterGauges(
            snapshot_version=live.version,
            snapshot_age_ms=live.age_ms(now_ms),
            loop_lag_ms_max=self._lag_s_max * 1000,
            loop_busy_share=(busy_s - self._busy_s) / max(now_s - self._began_s, 1e-9),
            budgets=self._spending.windows(),
            ended=ended,
        )
        self._lag_s_max, self._began_s, self._busy_s = 0.0, now_s, busy_s
        return gauges
