"""How an emulated replica reports of itself: once a period, what its engine does and how fast.

    engine, answers ─▶ ReplicaMeter ──record──▶ outbox ─▶ telemetry

Nothing here waits for the log, and nothing that fails here is felt by a request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Literal

from infra.capacity.latency_target import LatencyTarget
from infra.pools.emulated_server import EmulatedServer
from infra.pools.replica_meter import ReplicaMeter
from serve.deploy.replica import SOURCE_BYTES, TELEMETRY_OUTBOX
from streams.errors import OutboxClosed
from streams.log.contract import TELEMETRY, Log
from streams.log.outbox import Outbox
from streams.telemetry.pool_window import ReplicaIdentity
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
        self._meter = server.meter = ReplicaMeter(identity, server.engine, target)
        self._outbox: Outbox[Sequence[Telemetry]] = Outbox(
            log, TELEMETRY, encode_all, TELEMETRY_OUTBOX
        )
        self._reporter = Reporter(secrets.token_hex(SOURCE_BYTES), now_ms())
        self.state: Literal["starting", "ready", "draining"] = "starting"
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
            self._server.clock.advance()  # as far as it has come by now
            elapsed_s = (window[1] - window[0]) / 1000.0
            record = self._meter.report(self._reporter, window, self.state, elapsed_s)
            self._outbox.offer([record])
        except OutboxClosed:
            pass
        except Exception:  # our bug, but a replica that answers is worth more than its telemetry
            logger.exception("a window of telemetry is lost")
