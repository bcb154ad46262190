"""One replica of a pool: a server of its own, entered in the directory while it answers.

    PoolPlan ─▶ Emulated (an engine behind HTTP, here) or Started (a program, a child) ─▶ address
                    └─▶ telemetry: of the engine, or of its metrics page      └─▶ directory

Ray Serve starts, checks and stops it (see `pools`); requests do not pass through Ray.

A replica that is in the directory answers. It is entered when it is ready and taken
out before it stops, early enough for dispatchers to look once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable
from typing import Protocol

import aiohttp
import ray
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException

from infra.capacity.fleet import PoolPlan
from infra.errors import ServerFailed
from infra.pools.directory import LAME_DUCK_S, REPORT_S, DirectoryClient
from infra.pools.emulated_server import EmulatedServer
from infra.pools.pool_vitals import EmulatedMeter, Meter, PoolVitals
from infra.pools.server_process import ServerProcess, ServerProcessOptions
from infra.pools.site import LocalSite
from infra.pools.url_watch import exporter_power
from infra.server_metrics.power import NvmlPower
from infra.server_metrics.server_meter import ServerMeter
from serve.addresses import joined
from serve.deploy.start_watch import StartWatch
from serve.deploy.watched import GRACE_S
from serve.openai_api.http_listener import HttpListener, HttpListenerOptions
from streams.clock import now_ms

logger = logging.getLogger(__name__)

REGISTER_S_MAX = 1.0  # then it is tried again; an address is kept for longer


class Server(Protocol):
    """What a replica runs."""

    address: str

    async def start(self) -> None:
        """Start and wait until it answers."""

    async def stop(self) -> None:
        """Finish what is under way, then end."""

    def problem(self) -> str:
        """Why this replica should be replaced; "" while it is well."""


class Emulated:
    """An emulated engine behind an HTTP listener, in this process."""

    def __init__(self, plan: PoolPlan, host: str) -> None:
        assert plan.emulation is not None
        name = plan.upstream_model or plan.model
        self.server = EmulatedServer(name, plan.emulation, time.monotonic, lambda: int(time.time()))
        self._host, self._load_s = host, plan.load_s / plan.engine.speed
        options = HttpListenerOptions(host=host, port=0, grace_s=GRACE_S / 2)
        self._listener = HttpListener(self.server.app, options)

    @property
    def address(self) -> str:
        """Where it listens."""
        return joined(self._host, self._listener.port)

    async def start(self) -> None:
        """Load the model, so to speak, and listen."""
        await asyncio.sleep(self._load_s)
        await self._listener.start()

    async def stop(self) -> None:
        """Finish what is under way, then end."""
        await self._listener.stop()

    def problem(self) -> str:
        """It lives as long as this process."""
        return ""


class Started:
    """A program that serves a model, run as a child of this process."""

    def __init__(self, plan: PoolPlan, host: str) -> None:
        options = ServerProcessOptions(ready_s_max=plan.ready_s_max)
        self._process, self._drain_s = ServerProcess(plan.command, host, options), plan.drain_s
        self.host, self.address = host, self._process.address

    async def start(self) -> None:
        """Start it and wait until it answers. Raises ServerFailed."""
        await self._process.start()

    async def stop(self) -> None:
        """Let it finish what is under way, then end it."""
        if not await self._process.drain(self._drain_s):
            logger.warning("%s is ended although somebody is still connected", self.address)
        await self._process.stop()

    def runs(self, pid: int) -> bool:
        """Whether a process is one of the program's."""
        return self._process.has(pid)

    def problem(self) -> str:
        """Whether it has died."""
        return "" if self._process.running else "the model server's process has ended"


def _own_name() -> str:
    """What Ray calls this replica; "" where it is none of Ray Serve's."""
    with contextlib.suppress(RayServeException):
        return str(ray_serve.get_replica_context().replica_id.to_full_id_str())
    return ""


class PoolDeployment:
    """One replica of one pool."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, plan: PoolPlan, site: LocalSite, telemetry_s: float, *others: object
    ) -> None:
        """`telemetry_s` is how often this replica reports of itself; 0: never.

        A server that is no emulation reports what its metrics page says, where it has one.

        `others` are handles of the other pools, which Ray needs to know of and nobody uses.
        """
        del others
        self._plan = plan
        host = ray.util.get_node_ip_address()
        self._server: Started | Emulated
        self._server = Started(plan, host) if plan.command else Emulated(plan, host)
        self._vitals: PoolVitals | None = None
        self._session = aiohttp.ClientSession()  # for the server's page
        if telemetry_s:
            log = await asyncio.to_thread(site.log)
            self._vitals = PoolVitals([self._meter()], log, telemetry_s, now_ms)
            self._vitals.start()
        watch = StartWatch(site.store().folder, plan.name, now_ms)
        await watch.over(self._server.start())
        if self._vitals:
            self._vitals.state = "ready"
        self._directory = DirectoryClient()
        self._telling = asyncio.create_task(self._tell())

    def _meter(self) -> Meter:
        """What says how this replica is."""
        plan, server = self._plan, self._server
        if isinstance(server, Emulated):
            target = plan.target.times(plan.engine.speed)
            identity = plan.identity(f"{plan.name}-{secrets.token_hex(4)}")
            return EmulatedMeter(identity, server.server, target)
        identity = plan.identity(server.address)
        url = f"http://{server.address}/metrics"
        power = exporter_power(plan, server.host, self._session) or NvmlPower(server.runs)
        return ServerMeter(identity, plan.stated, url, self._session, time.monotonic, power=power)

    async def _tell(self) -> None:
        """Register this replica, again and again, until it stops."""
        replica = _own_name()
        while True:
            await self._try(self._directory.report(self._plan.name, self._server.address, replica))
            await asyncio.sleep(REPORT_S)

    async def _try(self, registering: Awaitable[None]) -> None:
        """The directory may be about to be restarted: later we try again, or it forgets."""
        try:
            # Not `wait_for`: in Python 3.11 it loses a cancellation that comes with the answer,
            # and a replica that stops would report itself for ever.
            async with asyncio.timeout(REGISTER_S_MAX):
                await registering
        except Exception as error:  # noqa: BLE001 - whatever Ray raises
            logger.warning("the directory of pools can't be reached: %s", error)

    def check_health(self) -> None:
        """Called by Ray Serve; raising replaces this replica."""
        problem = self._server.problem()
        if problem:
            raise ServerFailed(self._plan.name, problem)

    async def __del__(self) -> None:
        """Called by Ray Serve when it stops this replica."""
        if not hasattr(self, "_telling"):
            return
        self._telling.cancel()
        await asyncio.gather(self._telling, return_exceptions=True)  # so as not to be entered again
        await self._try(self._directory.forget(self._plan.name, self._server.address))
        if self._vitals:
            await self._vitals.stop()
        await asyncio.sleep(LAME_DUCK_S)
        await self._session.close()  # or we would wait for ourselves
        await self._server.stop()
