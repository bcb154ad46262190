"""The router and the trainer as Ray Serve deployments: placed, health-checked, restarted, scaled.

Ray Serve runs the replicas; requests do not pass through it (see `listener`). The trainer is a
deployment of one replica, so that the same machinery brings it back when it dies.

Beside `dispatch_deployment` this is the only file of this folder that knows Ray. What it is handed
is plain data and importable classes, because it travels to other processes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray
from ray import serve as ray_serve

from serve.deploy.options import DeploymentOptions
from serve.deploy.replica import Replica, settle
from serve.deploy.site import Site
from serve.deploy.watched import COMMON, GRACE_S
from serve.encoders import identity, make_encoder
from serve.tracing.tracing import opened
from streams.alarms import Board
from streams.clock import now_ms
from streams.feedback.ticket import Sealer, key_of
from streams.log.contract import FEEDBACK
from streams.training.folder import Folder
from streams.training.shards import CountsElsewhere, Layout, Merger, lay_out, start_of
from streams.training.share import PartitionShare, Share, SoleShard
from streams.training.snapshots import Store
from streams.training.state import State
from streams.training.supervision import Worker, supervise
from streams.training.trainer import Trainer
from streams.training.watch import Watch

logger = logging.getLogger(__name__)

ROUTER_APP, TRAINER_APP = "router", "trainer"
PER_MACHINE_MAX = 100  # replicas that Ray lets a machine have


def seed_of(seed: int | None, part: str) -> list[int] | None:
    """The seed of this replica: repeatable, and another one than any other replica has."""
    if seed is None:
        return None
    return [seed, key_of(part), int(ray_serve.get_replica_context().rank.rank)]


class RouterDeployment:
    """One replica of the router."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, options: DeploymentOptions, site: Site
    ) -> None:
        site.open_logs("router")
        # Loading weights and a snapshot takes a second; the event loop must answer Ray meanwhile.
        self._replica: Replica = await asyncio.to_thread(
            Replica,
            options.replica,
            site.log(),
            site.store(),
            site.catalogue(),
            site.ticket_keys(),
            seed_of(options.seed, "router"),
            now_ms,
            site.control(),
        )
        await self._replica.start()
        settle()

    def check_health(self) -> None:
        """Called by Ray Serve; raising replaces this replica."""
        problem = self._replica.problem()
        if problem:
            raise RuntimeError(problem)

    async def __del__(self) -> None:
        """Called by Ray Serve when it stops this replica."""
        if hasattr(self, "_replica"):
            await self._replica.stop()


class TrainerDeployment:
    """A trainer. Its thread comes back from errors, its process from death."""

    def __init__(
        self, options: DeploymentOptions, site: Site, layout: Layout, shard: int | None
    ) -> None:
        """`shard` is which of the layout's trainers this is; None: the merger of all."""
        site.open_logs("trainer")
        self._stopping = threading.Event()
        self._tracing = opened(options.replica.tracing)
        traced = self._tracing.learned if self._tracing else None
        board = _board(site, shard)
        make = _merger if shard is None else _trainer
        work = partial(make, options, site, layout, shard or 0, board, traced)
        store = site.store() if shard is None else _store(site, layout, shard)
        self._thread = threading.Thread(
            target=supervise, args=(work, self._stopping, board, store), name="trainer", daemon=True
        )
        self._thread.start()

    def check_health(self) -> None:
        """Called by Ray Serve; raising replaces this replica."""
        if not self._thread.is_alive():
            raise RuntimeError("the trainer's thread has died")

    async def __del__(self) -> None:
        """Called by Ray Serve when it stops this replica: save what was learned last."""
        if hasattr(self, "_thread"):
            self._stopping.set()
            await asyncio.to_thread(self._thread.join, GRACE_S)
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)


def _board(site: Site, shard: int | None) -> Board:
    """Where this trainer's alarms are shown."""
    role = "trainer-merger" if shard is None else f"trainer-{shard}"
    source = f"{os.getpid()}-{secrets.token_hex(4)}"
    return Board(Folder(site.snapshots), role, source, now_ms)


def _store(site: Site, layout: Layout, shard: int) -> Store:
    """Where a trainer saves what it has learned."""
    return site.store() if layout.n_shards == 1 else layout.store(site.snapshots, shard)


def _trainer(
    options: DeploymentOptions,
    site: Site,
    layout: Layout,
    shard: int,
    board: Board,
    traced: Callable[[str], None] | None,
) -> Worker:
    """A trainer of everything, or of one shard."""
    log, encoder = site.log(), identity(make_encoder(options.encoder))
    log.ensure_topics()
    share: Share = SoleShard()
    start: Callable[[], State | None] = lambda: None  # noqa: E731 - the other is a partial
    elsewhere: Callable[[], Mapping[str, int]] = dict
    if layout.n_shards > 1:
        n_partitions = layout.n_partitions or len(log.end_offsets(FEEDBACK))
        share = PartitionShare(shard, layout.n_shards, n_partitions)
        memory = options.trainer.memory
        start = partial(start_of, site.snapshots, layout, shard, encoder, memory)
        elsewhere = CountsElsewhere(site.snapshots, layout, shard, now_ms)
    return Trainer(
        log,
        _store(site, layout, shard),
        Sealer(site.ticket_keys()),
        encoder,
        options.trainer,
        now_ms,
        share,
        start,
        Watch(board, log, share, now_ms, traced),
        elsewhere,
    )


def _merger(
    options: DeploymentOptions,
    site: Site,
    layout: Layout,
    shard: int,
    board: Board,
    traced: Callable[[str], None] | None,
) -> Worker:
    """What publishes the sum of all shards."""
    del shard, traced
    encoder = identity(make_encoder(options.encoder))
    memory = options.trainer.memory
    return Merger(site.snapshots, layout, encoder, memory, now_ms, board.beat)


def running(app: str) -> int:
    """How many replicas an application of one deployment has before it is deployed again."""
    found = ray_serve.status().applications.get(app)
    states = [of.replica_states for of in found.deployments.values()] if found else []
    return sum(n for of in states for state, n in of.items() if state == "RUNNING")


def spread(replicas: int, running: int = 0) -> dict[str, int]:
    """So many replicas, on machines such that the loss of one leaves some of them.

    Ray spreads by itself, but does not promise to: with two replicas on one machine, its death
    leaves nobody to decide for as long as it takes to start others. Where there are too few
    machines for that, nothing is asked for that could not be had after one's loss.

    Ray gives each replica its share of a machine, and stops none of those `running` before more
    run, where more are wanted: an update that found no room beside them never ended. So for one or
    two machines nothing is asked at all, and for more all that are new have room on one.
    """
    machines = sum(node["Alive"] for node in ray.nodes())
    per_machine = PER_MACHINE_MAX
    if machines > 2 and replicas > 1:
        # One more than come, as shares of another size don't fill a machine; one is left elsewhere.
        beside = min(replicas - running + 1, replicas - 1) if running else 0
        per_machine = max(math.ceil(replicas / (machines - 1)), beside)
    return {
        "num_replicas": replicas,
        "max_replicas_per_node": min(per_machine, PER_MACHINE_MAX),
        **_updated(replicas),
    }


def scaled(autoscaling: Mapping[str, Any], running: int = 0) -> dict[str, object]:
    """As many replicas as a policy of Ray's says; there is room for all on all machines but one."""
    room = spread(autoscaling["max_replicas"])["max_replicas_per_node"]
    return {
        "autoscaling_config": dict(autoscaling),
        "max_replicas_per_node": room,
        **_updated(running or autoscaling["min_replicas"]),
    }


def _updated(replicas: int) -> dict[str, int]:
    """How an update goes. Where there is one alone, the new one starts before the old one stops.

    Of several one at a time stops while the others answer, which needs no room for one more.
    """
    return {"max_surge_percent": 100 if replicas == 1 else 0}


def _n_partitions(options: DeploymentOptions, site: Site) -> int:
    """Partitions of the feedback topic, where several trainers share them; else 0."""
    if options.trainers == 1:
        return 0
    log = site.log()
    try:
        log.ensure_topics()
        return len(log.end_offsets(FEEDBACK))
    finally:
        log.close()


def deploy(
    options: DeploymentOptions, site: Site, autoscaling: Mapping[str, Any] | None = None
) -> None:
    """Run trainer and router in the connected Ray cluster; returns when both are up.

    `autoscaling` is Ray's configuration for the router; None: it has `options.replicas`.
    Raises what Ray raises when a deployment can't start, with the replica's error in its text.
    """
    now = running(ROUTER_APP)
    router = ray_serve.deployment(RouterDeployment).options(  # type: ignore[attr-defined]  # decorates
        name="Router",
        **COMMON,
        **(scaled(autoscaling, now) if autoscaling else spread(options.replicas, now)),
    )
    trainer = ray_serve.deployment(TrainerDeployment).options(  # type: ignore[attr-defined]  # decorates
        name="Trainer", num_replicas=1, **COMMON
    )
    layout = lay_out(site.snapshots, options.trainers, _n_partitions(options, site))
    learning = {
        f"{TRAINER_APP}-{shard}": trainer.bind(options, site, layout, shard)
        for shard in range(layout.n_shards)
    }
    if layout.n_shards > 1:
        learning[f"{TRAINER_APP}-merger"] = trainer.bind(options, site, layout, None)
    apps = {**learning, ROUTER_APP: router.bind(options, site)}
    ray_serve.run_many(
        [ray_serve.RunTarget(app, name, route_prefix=None) for name, app in apps.items()]
    )
