"""What the servers of a pool do, by their own metrics pages: a record of each window.

    server's page ──fetch──▶ Reading ──since the last one──▶ ServerMeter ─▶ `pool` record

Where a page can't be had or read, the record says only that the replica is there: its callers say
the rest (`streams.telemetry.pool_reports`). What can't be had is said once in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Literal

import aiohttp

from infra.errors import PageUnreadable
from infra.server_metrics.fetch import Page
from infra.server_metrics.pages import Reading
from infra.server_metrics.power import Power, not_metered
from infra.server_metrics.since import since
from learners.servers.held import HeldRequests, Stated
from streams.telemetry.pool_window import PoolWindow, ReplicaIdentity
from streams.telemetry.records import PoolState
from streams.telemetry.window import Reporter, clean

logger = logging.getLogger(__name__)
State = Literal["starting", "ready", "draining"]


class ServerMeter:
    """Of one server."""

    def __init__(
        self,
        identity: ReplicaIdentity,
        stated: Stated,
        url: str,
        session: aiohttp.ClientSession,
        now_s: Callable[[], float],
        *,
        token: str | None = None,
        runs: bool = True,
        power: Power = not_metered,
    ) -> None:
        """`url` is the page's; `identity.replica` the server's address, as callers name it.

        `runs`: it is known that the server runs, whatever its page says. `power` is what its GPUs
        draw, where the page does not say so.
        """
        self._runs, self._power = runs, power
        self._window, self._held = PoolWindow(identity), HeldRequests(stated)
        self._where, self._page = (
            f"{identity.pool} at {identity.replica}",
            Page(session, url, now_s, token),
        )
        self._last: Reading | None = None
        self._problem = ""

    async def report(
        self, reporter: Reporter, ends: Callable[[], tuple[int, int]], state: State
    ) -> PoolState | None:
        """The record of the window that ends when the page has come; `ends` closes it.

        None where nothing is known.
        """
        reading, watts = None, None
        if state != "starting":
            reading, watts = await asyncio.gather(self._read(), self._power())
        window = ends()
        if reading is None and not self._runs:
            return None
        if reading is None:
            metered = _metered(watts, window)
            taken = self._window.take(reporter, window)
            return PoolState(by="callers", state=state, **taken | metered)
        return self._record(reading, watts, reporter, window, state)

    async def _read(self) -> Reading | None:
        try:
            reading, problem = await self._page.read(), ""
        except PageUnreadable as error:
            reading, problem = None, str(error)
        if problem != self._problem:
            said = problem or "it is there again"
            logger.log(logging.WARNING if problem else logging.INFO, "%s: %s", self._where, said)
        self._problem = problem
        return reading

    def _record(
        self,
        reading: Reading,
        watts: float | None,
        reporter: Reporter,
        window: tuple[int, int],
        state: State,
    ) -> PoolState:
        new, self._last = since(self._last, reading), reading
        held, window_ms = reading.running + reading.waiting, window[1] - window[0]
        self._held.lengths(new.finished or 0, new.prompt_tokens, new.output_tokens)
        fields = self._held.window(held, window_ms, waiting=reading.waiting, finished=new.finished)
        self._window.count_tokens(new.output_tokens)
        self._window.count_latencies(new.ttft_ms or {}, new.tpot_ms or {})
        fields |= self._window.take(reporter, window)
        watts = reading.watts if reading.watts is not None else watts
        fields |= _metered(watts, window) or self._held.power(held, window_ms)
        return PoolState(
            by="page",
            state=state,
            version=clean(reading.version) if reading.version else "",
            running=round(reading.running),
            queued=round(reading.waiting),
            kv_use=reading.kv_use,
            prompt_tokens=max(0, new.prompt_tokens - new.cached_tokens),
            cached_tokens=new.cached_tokens,
            preempted=new.preempted,
            **fields,
        )


def _metered(watts: float | None, window: tuple[int, int]) -> dict[str, Any]:
    """The fields of power that was measured; none where it was not."""
    if watts is None:
        return {}
    return {"watts": watts, "joules": watts * (window[1] - window[0]) / 1000.0}
