"""Looks at servers that run somewhere already, for pools of `urls`: one actor for the whole site.

    every URL's /metrics ──ServerMeter──▶ PoolVitals ─▶ telemetry

Who runs them elsewhere is not known here, so a record says only what their pages do; of a server
without a page, of a cloud's API, its callers alone know something. A bearer token is sent to the
host that it is stated for, and to its page no less: some ask for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp

from infra.capacity.fleet import PoolPlan
from infra.head_actor import close_actor, open_actor
from infra.pools.pool_vitals import PoolVitals
from infra.pools.site import LocalSite
from infra.server_metrics.fetch import Text
from infra.server_metrics.power import ExporterPower, not_metered
from infra.server_metrics.server_meter import ServerMeter
from streams.clock import now_ms

NAME = "fairlead.url_watch"


def meters_of(plans: Sequence[PoolPlan], session: aiohttp.ClientSession) -> list[ServerMeter]:
    """One for each URL. `session` is borrowed."""
    return [
        ServerMeter(
            plan.identity(address_of(url)),
            plan.stated,
            f"{url.rstrip('/').removesuffix('/v1')}/metrics",
            session,
            time.monotonic,
            token=plan.server.api_key,
            runs=False,
            power=exporter_power(plan, urlsplit(url).hostname or "", session) or not_metered,
        )
        for plan in plans
        for url in plan.urls
    ]


def exporter_power(
    plan: PoolPlan, host: str, session: aiohttp.ClientSession
) -> ExporterPower | None:
    """What the exporter beside a server says; None where none is stated."""
    if not plan.power_url:
        return None
    shown = f"[{host}]" if ":" in host else host
    page = Text(session, plan.power_url.replace("{host}", shown), time.monotonic)
    return ExporterPower(page, plan.gpus_per_replica)


def address_of(url: str) -> str:
    """As dispatchers name the server (`OpenAiEndpoint.address`)."""
    return url.rstrip("/").split("://", 1)[1].removesuffix("/v1")


class UrlWatch:
    """The actor: it looks in a thread of its own, also when Ray has started it again."""

    def __init__(self, site: LocalSite, telemetry_s: float) -> None:
        self._site, self._telemetry_s = site, telemetry_s
        threading.Thread(target=self._run, name="url watch", daemon=True).start()

    def _run(self) -> None:
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        async with aiohttp.ClientSession() as session:
            meters = meters_of(self._site.fleet.pools, session)
            vitals = PoolVitals(meters, self._site.log(), self._telemetry_s, now_ms)
            vitals.state = "ready"
            vitals.start()
            await asyncio.Event().wait()


def open_url_watch(site: LocalSite, telemetry_s: float) -> None:
    """Have the site's URLs looked at, if it has any and telemetry is on."""
    if telemetry_s and any(plan.urls for plan in site.fleet.pools):
        open_actor(UrlWatch, NAME, site, telemetry_s)
    else:
        close_url_watch()


def close_url_watch() -> None:
    """End it, if it is there."""
    close_actor(NAME)
