"""How replicas are reported on: once a period, what each holds, makes and draws.

    emulated engine, answers ─▶ EmulatedMeter ─┐
    server's metrics page ────▶ ServerMeter ───┴─record──▶ outbox ─▶ telemetry

Nothing here waits for the log, and nothing that fails here is felt by a request. Servers are looked
at side by side: one that is slow with its page delays nobody else's record.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from infra.capacity.latency_target import LatencyTarget
from infra.pools.emulated_server import EmulatedServer
from infra.pools.replica_meter import ReplicaMeter
from streams.errors import OutboxClosed
from streams.log.contract import TELEMETRY, Log
from streams.log.outbox import Outbox
from streams.telemetry.pool_window import ReplicaIdentity
from streams.telemetry.records import PoolState, Telemetry, encode_all
from streams.telemetry.window import SOURCE_BYTES, TELEMETRY_OUTBOX, Reporter

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "draining"]


class Meter(Protocol):
    """What is known of one replica."""

    async def report(
        self, reporter: Reporter, ends: Callable[[], tuple[int, int]], state: State
    ) -> PoolState | None:
        """The record of the window that `ends` closes; None where there is nothing to say."""


class EmulatedMeter:
    """Of an emulated replica in this process."""

    def __init__(
        self, identity: ReplicaIdentity, server: EmulatedServer, target: LatencyTarget
    ) -> None:
        self._clock = server.clock
        self._meter = server.meter = ReplicaMeter(identity, server.engine, target)

    async def report(
        self, reporter: Reporter, ends: Callable[[], tuple[int, int]], state: State
    ) -> PoolState:
        """The record of the window that ends now."""
        window = ends()
        self._clock.advance()  # as far as it has come by now
        return self._meter.report(reporter, window, state, (window[1] - window[0]) / 1000.0)


class PoolVitals:
    """Reports until it is stopped. Used on one event loop."""

    def __init__(
        self, meters: Sequence[Meter], log: Log, period_s: float, now_ms: Callable[[], int]
    ) -> None:
        """`log` is closed here at the end."""
        self._log, self._period_s, self._now_ms = log, period_s, now_ms
        self._outbox: Outbox[Sequence[Telemetry]] = Outbox(
            log, TELEMETRY, encode_all, TELEMETRY_OUTBOX
        )
        self._meters = [
            (one, Reporter(secrets.token_hex(SOURCE_BYTES), now_ms())) for one in meters
        ]
        self.state: State = "starting"
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to report, on the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(*one)) for one in self._meters]

    async def stop(self) -> None:
        """Say that the replicas drain, and end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.state = "draining"
            await asyncio.gather(*(self.report(*one) for one in self._meters))
        await asyncio.to_thread(self._outbox.close)
        self._log.close()

    async def _run(self, meter: Meter, reporter: Reporter) -> None:
        while True:
            await self.report(meter, reporter)
            await asyncio.sleep(self._period_s)

    async def report(self, meter: Meter, reporter: Reporter) -> None:
        """Hand over the record of a window."""
        try:
            record = await meter.report(
                reporter, lambda: reporter.window(self._now_ms()), self.state
            )
            if record is not None:
                self._outbox.offer([record])
        except OutboxClosed:
            pass
        except Exception:  # our bug, but a replica that answers is worth more than its telemetry
            logger.exception("a window of telemetry is lost")
