"""Which replicas there are, as Ray Serve has them: also those that have not reported yet.

    Ray Serve's status ─▶ PoolReplicas by pool ─┬─▶ Observed, in the place of what telemetry reports
                                                ├─▶ lines about replicas that find no place
                                                └─▶ recording: how many there were over time

Telemetry is of replicas that run, and a second or two old. A replica that waits for a machine with
its GPU reports nothing, and one that was killed is missed after ten seconds.

What Ray does not run is left as telemetry reports it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayError
from ray.serve._private.common import DeploymentStatus
from ray.serve.schema import DeploymentStatusOverview

from infra.autoscaling.contract import Observed, PoolCondition
from infra.autoscaling.live.ray_status import applications
from infra.capacity.fleet import Fleet
from infra.pools.directory import POOLS_APP

STARTING, DRAINING = "STARTING", "STOPPING"
ILL = (DeploymentStatus.UNHEALTHY, DeploymentStatus.DEPLOY_FAILED)
AS_PLANNED = ("Upscaling from", "Downscaling from")  # how Ray Serve's words begin, if all is well


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReplicas:
    """Of one pool."""

    ready: int = 0
    starting: int = 0  # waiting for a place included
    draining: int = 0
    failing: bool = False  # some were started and ended, again and again
    problem: str = ""  # what Ray Serve says of it; "": nothing


@dataclass(frozen=True, slots=True)
class ReplicaCount:
    """Ready replicas at a time."""

    at_s: float
    by_pool: Mapping[str, int]


def pool_replicas() -> dict[str, PoolReplicas]:
    """Replicas of every pool that Ray runs. Raises what Ray raises while it can't be asked."""
    app = applications().get(POOLS_APP)
    found = app.deployments if app else {}
    return {name: _replicas(of) for name, of in found.items()}


def _replicas(of: DeploymentStatusOverview) -> PoolReplicas:
    states: dict[Any, int] = dict(of.replica_states)
    starting, draining = states.get(STARTING, 0), states.get(DRAINING, 0)
    # What was said of a replica that was slow stays there when it has come.
    well = not starting and of.status not in ILL
    return PoolReplicas(
        # Of whatever other state Ray says: its process is there and answers.
        ready=sum(states.values()) - starting - draining,
        starting=starting,
        draining=draining,
        failing=of.status == DeploymentStatus.DEPLOY_FAILED,  # three times in a row
        problem="" if well or of.message.startswith(AS_PLANNED) else of.message,
    )


def all_deployed(fleet: Fleet, replicas: Mapping[str, PoolReplicas]) -> bool:
    """Whether Ray knows all pools that it is to run, be it without replicas."""
    return all(plan.name in replicas for plan in fleet.pools if plan.deployed)


def with_replicas(observed: Observed, replicas: Mapping[str, PoolReplicas]) -> Observed:
    """What was observed, with these replicas."""
    pools = dict(observed.pools)
    for pool, of in replicas.items():
        pools[pool] = replace(
            pools.get(pool, PoolCondition()),
            ready=of.ready,
            starting=of.starting,
            draining=of.draining,
            failing=of.failing,
        )
    return replace(observed, pools=pools)


def problems(
    before: Mapping[str, PoolReplicas], now: Mapping[str, PoolReplicas]
) -> tuple[str, ...]:
    """A line for every pool that Ray Serve says something of, and new: of other replicas, too."""
    return tuple(
        f"{pool}: {of.ready} ready, {of.starting} starting: {_one_line(of.problem)}"
        for pool, of in sorted(now.items())
        if of.problem and of != before.get(pool)
    )


def _one_line(problem: str) -> str:
    """Of a traceback, what happened and why."""
    first, *others = problem.strip().splitlines()
    return f"{first} … {others[-1]}" if others else first


@contextmanager
def recording(period_s: float, now_s: Callable[[], float]) -> Iterator[list[ReplicaCount]]:
    """A list of how many replicas were ready, growing by one a period while this is open."""
    found: list[ReplicaCount] = []
    ended = threading.Event()

    def record() -> None:
        while not ended.wait(period_s):
            with suppress(RayError):  # a gap, while Ray Serve can't be asked
                ready = {pool: of.ready for pool, of in pool_replicas().items()}
                found.append(ReplicaCount(now_s(), ready))

    thread = threading.Thread(target=record, name="recording", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
