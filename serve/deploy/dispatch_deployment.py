"""The dispatcher as a Ray Serve deployment, beside the router's (see `deployment`).

Its processes are others than the router's: who asks for decisions alone is not slowed by answers
streaming, and loads none of what calls pools.

What it is handed is plain data, because it travels to other processes.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ray import serve as ray_serve

from serve.deploy.deployment import running, seed_of, spread
from serve.deploy.dispatch_replica import DispatchReplica
from serve.deploy.explorer import Explorer
from serve.deploy.options import DeploymentOptions, DispatchersOptions
from serve.deploy.replica import Replica, settle
from serve.deploy.site import Site
from serve.deploy.watched import COMMON, GRACE_S
from streams.clock import now_ms

DISPATCH_APP = "dispatch"
# While a new view is made, 10 to 20 ms in a thread, every turn of the event loop waits for the
# interpreter. Four times a second, as often as a trainer publishes, one request in eight met that.
LOOK_S_MIN = 1.0


class DispatchDeployment:
    """One replica of the dispatcher."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, options: DeploymentOptions, dispatchers: DispatchersOptions, site: Site
    ) -> None:
        site.open_logs("dispatcher")
        # Loading weights and a snapshot takes a second; the event loop must answer Ray meanwhile.
        replica: Replica = await asyncio.to_thread(router_within, options, dispatchers, site)
        pages = await asyncio.to_thread(site.pages, Explorer(replica.servicer, replica.view))
        self._dispatch = DispatchReplica(replica, site.pools(), dispatchers.replica, pages=pages)
        await self._dispatch.start()
        settle()

    def check_health(self) -> None:
        """Called by Ray Serve; raising replaces this replica."""
        problem = self._dispatch.replica.problem()
        if problem:
            raise RuntimeError(problem)

    async def __del__(self) -> None:
        """Called by Ray Serve when it stops this replica."""
        if hasattr(self, "_dispatch"):
            await self._dispatch.stop()


def router_within(
    options: DeploymentOptions, dispatchers: DispatchersOptions, site: Site
) -> Replica:
    """The router replica that a dispatcher decides with."""
    listener = replace(options.replica.listener, port=dispatchers.port, reserved_port=0)
    # A dispatched request costs many times its scoring: batching would save nothing.
    batcher = replace(options.replica.servicer.batcher, gather_s_max=0.0)
    servicer = replace(options.replica.servicer, batcher=batcher)
    live = replace(options.replica.live, poll_s=max(options.replica.live.poll_s, LOOK_S_MIN))
    within = replace(
        options.replica, listener=listener, servicer=servicer, live=live, dispatches=True
    )
    return Replica(
        within,
        site.log(),
        site.store(),
        site.catalogue(),
        site.ticket_keys(),
        seed_of(options.seed, "dispatcher"),
        now_ms,
        site.control(),
    )


def deploy_dispatchers(
    options: DeploymentOptions, dispatchers: DispatchersOptions, site: Site
) -> None:
    """Run the dispatchers in the connected Ray cluster; returns when they are up.

    Raises what Ray raises when a deployment can't start, with the replica's error in its text.
    """
    if dispatchers.replicas:
        # HTTP and gRPC are drained beside each other, then what waits is written.
        graces_s = max(dispatchers.replica.http_listener.grace_s, options.replica.listener.grace_s)
        settings = COMMON | {"graceful_shutdown_timeout_s": GRACE_S + graces_s}
        dispatch = ray_serve.deployment(DispatchDeployment).options(  # type: ignore[attr-defined]  # decorates
            name="Dispatch",
            **settings,
            **spread(dispatchers.replicas, running(DISPATCH_APP)),
        )
        app = dispatch.bind(options, dispatchers, site)
        ray_serve.run_many([ray_serve.RunTarget(app, DISPATCH_APP, route_prefix=None)])
