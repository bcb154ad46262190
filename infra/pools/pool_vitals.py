"""How an emulated replica reports of itself: once a period, what its engine does and how fast.

    engine ──queued, running, cache, tokens, energy──┐
    answers ──first token, pace──────────────────────┴─▶ PoolWindow ─▶ outbox ─▶ telemetry

The one rule: nothing here waits for the log, and nothing that fails here is felt by a request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Literal

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import LoadGauge
from infra.pools.emulated_server import EmulatedServer
from serve.deploy.replica import SOURCE_BYTES, TELEMETRY_OUTBOX
from streams.errors import OutboxClosed
from streams.log.contract import TELEMETRY, Log
from streams.log.outbox import Outbox
from streams.telemetry.pool_window import PoolWindow, ReplicaGauges, ReplicaIdentity
from streams.telemetry.records import Telemetry, encode_all
from streams.telemetry.window import Reporter

logger = logging.getLogger(__name__)


class PoolVitals:
    """Reports until it is stopped. Used on one event loop."""

    def __init__(
        self,
        identity: ReplicaIdentity,
        server: EmulatedServer,
        log: Log,
        target: LatencyTarget,
        period_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        """`log` is closed here at the end."""
        self._server, self._log, self._period_s, self._now_ms = server, log, period_s, now_ms
        self._window = server.window = PoolWindow(identity)
        self._outbox: Outbox[Sequence[Telemetry]] = Outbox(
            log, TELEMETRY, encode_all, TELEMETRY_OUTBOX
        )
        self._reporter = Reporter(secrets.token_hex(SOURCE_BYTES), now_ms())
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self._gauge = server.gauge = LoadGauge(server.engine, target)
        self._tokens, self._energy_j = 0, 0.0  # of the engine, as last reported
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to report, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Say that the replica drains, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self.state = "draining"
            self.report()
        await asyncio.to_thread(self._outbox.close)
        self._log.close()

    async def _run(self) -> None:
        while True:
            self.report()
            await asyncio.sleep(self._period_s)

    def report(self) -> None:
        """Hand over the record of the window that ends now."""
        try:
            window = self._reporter.window(self._now_ms())
            self._outbox.offer([self._record(window)])
        except OutboxClosed:
            pass
        except Exception:  # our bug, but a replica that answers is worth more than its telemetry
            logger.exception("a window of telemetry is lost")

    def _record(self, window: tuple[int, int]) -> Telemetry:
        engine = self._server.engine
        self._server.clock.advance()  # as far as it has come by now
        tokens, energy_j = engine.tokens_made_total, engine.energy_j
        spent_j = max(0.0, energy_j - self._energy_j)
        self._window.count_tokens(max(0, tokens - self._tokens))
        self._window.count_joules(spent_j)
        self._tokens, self._energy_j = tokens, energy_j
        gauges = ReplicaGauges(
            state=self.state,
            queued=engine.queued,
            running=engine.running,
            kv_use=engine.kv_use,
            watts=spent_j / ((window[1] - window[0]) / 1000.0),
            load=self._gauge.read(),
        )
        return self._window.take(self._reporter, window, gauges)
