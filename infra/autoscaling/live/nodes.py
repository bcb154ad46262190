"""Machines that are gone, or are being taken back: as Ray's head node knows of them.

    Ray's table of nodes ─▶ LostNode, with the GPUs that it had ─▶ Condition of every pool on those

A cloud takes a spot machine back with a warning of seconds to minutes, which its node provider
passes to Ray as a *drain* with a deadline, for the reason "preemption". Ray moves replicas away
then. Others just die. Who was ended in order (`ray stop`, an idle machine given back) is no news.

What is said here is for people: the planner sees by its replicas what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a C extension
from ray.core import generated

from infra.capacity.fleet import PoolPlan
from streams.alarms import Condition

ANSWER_S_MAX = 5.0
SAID_MS = 3_600_000  # a machine that is gone is said to be for so long
PREEMPTED, LOST = "node_preempted", "node_lost"
PROTOS: Any = generated  # made by a compiler, without types
DEATHS, DEAD = PROTOS.common_pb2.NodeDeathInfo, PROTOS.gcs_pb2.GcsNodeInfo.DEAD
REASONS = {
    DEATHS.AUTOSCALER_DRAIN_PREEMPTED: PREEMPTED,
    DEATHS.UNEXPECTED_TERMINATION: LOST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LostNode:
    """A machine that is gone, or will be."""

    address: str
    resources: frozenset[str]  # what it had, as Ray calls it
    kind: str  # of `streams.alarms.Condition`
    at_ms: int  # Unix time
    said: str  # by whoever took it away


def lost_nodes() -> list[LostNode]:
    """Those that Ray still knows of. Raises what Ray raises."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    table: dict[Any, Any] = client.get_all_node_info(timeout=ANSWER_S_MAX)
    found = []
    for node in table.values():
        kind = REASONS.get(node.death_info.reason)
        if node.state == DEAD and kind:
            found.append(
                LostNode(
                    address=node.node_manager_address,
                    resources=frozenset(node.resources_total),
                    kind=kind,
                    at_ms=int(node.end_time_ms),
                    said=node.death_info.reason_message,
                )
            )
    return found


def node_conditions(
    nodes: Iterable[LostNode], pools: Sequence[PoolPlan], now_ms: int
) -> list[Condition]:
    """What the last hour's losses mean: a condition of every pool on GPUs that a machine had."""
    return [
        Condition(
            pool=pool.name,
            kind=node.kind,
            since_ms=node.at_ms,
            cause=f"{node.address} {'was taken back' if node.kind == PREEMPTED else 'is gone'}: "
            f"{node.said or 'no reason was given'}.",
        )
        for node in nodes
        for pool in pools
        if now_ms - node.at_ms <= SAID_MS and not node.resources.isdisjoint(pool.resources())
    ]
