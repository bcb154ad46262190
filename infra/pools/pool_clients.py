"""Which endpoints every pool has, followed in the background.

Implements `serve.dispatch.backend.Pools`.

    servers that run already: their URLs, from the settings, for ever
    replicas run by Ray:      their addresses, asked of the directory four times a second

While the directory does not answer, the last addresses stay: whether an endpoint still answers is
for `serve.health.health` to find out. A directory that was just restarted does not know everybody
yet, so what it says is added and nothing taken away.

`endpoints` is a look into memory, and gives the same mapping until something changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from infra.capacity.fleet import PoolPlan
from infra.endpoints.connections import Connections
from infra.endpoints.openai_endpoint import OpenAiEndpoint
from infra.endpoints.options import OpenAiOptions
from infra.pools.directory import KEPT_S
from serve.dispatch.backend import Watched

logger = logging.getLogger(__name__)

ASK_S = 0.25
ANSWER_S_MAX = 2.0  # then the last addresses stay
COMPLETE_S = 2 * KEPT_S  # in a directory this old everybody who would be kept has registered

# Seconds since the directory began, and of every pool its replicas' names by address.
Asked = tuple[float, Mapping[str, Mapping[str, str]]]


class PoolClients:
    """The endpoints of all pools. Used from one event loop."""

    def __init__(
        self, pools: Sequence[PoolPlan], ask: Callable[[], Awaitable[Asked]], *, sized: bool = False
    ) -> None:
        """`ask` asks the directory; it may raise whatever it likes.

        `sized`: replicas are started where they are needed, also of a pool that states none.
        """
        self._sized = sized
        self._plans = {plan.name: plan for plan in pools if plan.backend != "none"}
        self._ask = ask
        self._connections = Connections()
        self._endpoints: dict[str, dict[str, OpenAiEndpoint]] = {
            plan.name: self._made(plan, plan.urls) for plan in self._plans.values()
        }
        self._replicas: dict[str, str] = {}
        self._following: asyncio.Task[None] | None = None
        self._problem = ""  # of the last look

    def endpoints(self, pool: str) -> Mapping[str, OpenAiEndpoint]:
        """Endpoints by address; empty where the pool has none now."""
        return self._endpoints.get(pool, {})

    def replica(self, address: str) -> str:
        """What Ray calls the replica at an address; else the address."""
        return self._replicas.get(address, address)

    def watched(self) -> Sequence[Watched]:
        """All pools but the emulated ones, which report what goes on inside them."""
        return [
            Watched(
                pool=plan.name,
                model=plan.model,
                gpu=plan.gpu.name if plan.gpu else "",
                region=plan.region,
                stated=plan.stated,
            )
            for plan in self._plans.values()
            if plan.backend != "emulated"
        ]

    def start_s(self, pool: str) -> float | None:
        """What the start of a replica is stated to take; None: nobody starts one."""
        plan = self._plans.get(pool)
        if plan is None or not plan.deployed:
            return None
        if not plan.replicas and not (self._sized and plan.gpu):
            return None
        return plan.load_s + (plan.gpu.startup_s if plan.gpu else 0.0)

    async def start(self) -> None:
        """Look into the directory and follow it from then on, if any pool is run by Ray.

        Waits for the first look, though not for long: who answers requests should know where to.
        """
        if any(plan.deployed for plan in self._plans.values()):
            await self._look()
            self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Let go of connections."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._connections.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(ASK_S)
            await self._look()

    async def _look(self) -> None:
        """Ask once; a failure changes nothing and is said once."""
        problem = ""
        try:
            # Not `wait_for`: in Python 3.11 it loses a cancellation that comes with the answer.
            async with asyncio.timeout(ANSWER_S_MAX):
                said = await self._ask()
            self.learn(*said)
        except Exception as error:  # noqa: BLE001 - the last addresses stay
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                logger.warning("the directory of pools does not answer: %s", problem)
        self._problem = problem

    def learn(self, directory_age_s: float, addresses: Mapping[str, Mapping[str, str]]) -> None:
        """Take what the directory says."""
        self._replicas = {at: name for of in addresses.values() for at, name in of.items()}
        for name, plan in self._plans.items():
            if not plan.deployed:
                continue
            known, there = self._endpoints[name], addresses.get(name, {})
            complete = directory_age_s >= COMPLETE_S
            kept = {at: endpoint for at, endpoint in known.items() if at in there or not complete}
            self._replace(plan, kept, [f"http://{at}/v1" for at in there if at not in known])

    def _replace(
        self, plan: PoolPlan, kept: dict[str, OpenAiEndpoint], urls: Sequence[str]
    ) -> None:
        """Swap in the endpoints there are now, if they are others than before."""
        if urls or len(kept) != len(self._endpoints[plan.name]):
            self._endpoints[plan.name] = kept | self._made(plan, urls)

    def _made(self, plan: PoolPlan, urls: Sequence[str]) -> dict[str, OpenAiEndpoint]:
        server, model = plan.server, plan.upstream_model or plan.model
        server = replace(server, priority=server.priority or plan.backend == "emulated")
        options = [OpenAiOptions.of(server, url=url, model=model) for url in urls]
        made = [OpenAiEndpoint(plan.name, one, self._connections) for one in options]
        return {endpoint.address: endpoint for endpoint in made}
