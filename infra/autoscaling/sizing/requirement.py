"""What is required of each pool, and whether what is there carries it.

    fullness            what ready replicas are thought to carry now, of what they are planned to
    capacity shortfall  what is there, or starting, carries less than is expected: grow at once
    pools to keep       what remains would carry less than is carried now: nothing shrinks yet

A pool carries load_max · ready replicas / work of a request, in requests a second; loads of two
types of GPU are compared in these. If n of N replicas go, the load of the others rises by
N / (N − n): whoever ignores that goes from two to one and back for ever. And where a replica is
replaced by one of another pool or model, it stays until the other one is ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.autoscaling.contract import PoolCondition
from infra.capacity.fleet import PoolPlan


@dataclass(slots=True, kw_only=True)
class Requirement:
    """By pool, where not said otherwise."""

    replicas: dict[str, int]
    load_max: dict[str, float]  # how full it may be, with so many
    work_s: dict[str, float]  # of a mean request, corrected by prices
    rate: dict[str, float]  # requests/s that it is to carry when a replica started now is ready
    lead_s: dict[str, float]  # until then
    # By model, requests/s: what would prefer it if capacity were unconstrained, then, of that
    # without the margin, and at present; and what its pools are to carry of all requests then.
    demand: dict[str, float] = field(default_factory=dict)
    likely: dict[str, float] = field(default_factory=dict)
    demand_now: dict[str, float] = field(default_factory=dict)
    carried: dict[str, float] = field(default_factory=dict)
    fixed: dict[str, float] = field(default_factory=dict)  # of the demand, for no other model
    unmet: float = 0.0  # requests/s that nothing is had for

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Requirement:
        """From JSON, also as written before demand had its name, or a margin was apart."""
        before = {"wished": "demand", "now": "demand_now"}
        found = {before.get(name, name): value for name, value in saved.items()}
        return cls(**{"likely": found.get("demand", {}), **found})


def requirement_of(replicas: Mapping[str, int], lead_s: Mapping[str, float]) -> Requirement:
    """These replicas, with nothing known of why."""
    none = dict.fromkeys(replicas, 0.0)
    return Requirement(
        replicas=dict(replicas),
        load_max=dict.fromkeys(replicas, 1.0),
        work_s=dict(none),
        rate=dict(none),
        lead_s=dict(lead_s),
    )


def fullness(required: Requirement, pools: Mapping[str, PoolCondition]) -> dict[str, float]:
    """Of each pool with ready replicas; of the last minute's decisions and mean requests as
    planned.
    """
    return {
        name: pool.requests_per_s * required.work_s[name] / (pool.ready * required.load_max[name])
        for name, pool in pools.items()
        if pool.ready and name in required.work_s
    }


def pools_to_keep(
    fleet: Mapping[str, PoolPlan], required: Requirement, pools: Mapping[str, PoolCondition]
) -> set[str]:
    """The names of pools that may not shrink in this step."""
    found: set[str] = set()
    share = _share_now(required)
    for model in sorted({pool.model for pool in fleet.values()}):
        names = [n for n, p in fleet.items() if p.model == model and required.work_s[n] > 0.0]
        ready = {n: pools[n].ready if n in pools else 0 for n in names}
        stay = {n: min(ready[n], required.replicas[n]) for n in names}
        carries = sum(stay[n] * required.load_max[n] / required.work_s[n] for n in names)
        # Of what it carries now, others may be going to take a part. That they stand by for the
        # margin takes nothing from it.
        likely, carried = required.likely.get(model, 0.0), required.carried.get(model, 0.0)
        own = min(1.0, carried / likely) if likely else 0.0
        carries_now = sum(
            _load(pools.get(n)) * required.load_max[n] * ready[n] / required.work_s[n]
            for n in names
        )
        if carries < own * carries_now:
            found |= {n for n, p in fleet.items() if p.model == model}
        if carries < carried * share and any(ready[n] < required.replicas[n] for n in names):
            return set(fleet)  # what is to take over is still to come
    return found


def capacity_shortfall(
    fleet: Mapping[str, PoolPlan], required: Requirement, now: Mapping[str, int]
) -> float:
    """Requests a second that replicas that are there, or starting, do not carry of what is
    expected.

    Without any, what the mix wants beside them is only cheaper, and need not be had at once. Models
    whose requests others are to answer may go on answering them; for those that no other model may
    answer that is no help.
    """
    short = spare = alone = 0.0
    for model in sorted({pool.model for pool in fleet.values()}):
        names = [n for n, p in fleet.items() if p.model == model and required.work_s[n] > 0.0]
        carries = sum(now[n] * required.load_max[n] / required.work_s[n] for n in names)
        demand, carried = required.demand.get(model, 0.0), required.carried.get(model, 0.0)
        short += max(0.0, carried - carries)
        spare += max(0.0, min(carries, demand) - carried)
        alone += max(0.0, min(carried, required.fixed.get(model, 0.0)) - carries)
    return max(alone, short - spare)


def _share_now(required: Requirement) -> float:
    """What is asked for now, of what is likely."""
    expected = sum(required.likely.values())
    return min(1.0, sum(required.demand_now.values()) / expected) if expected else 0.0


def _load(there: PoolCondition | None) -> float:
    if there is None:
        return 0.0
    return there.load if there.load is not None else there.reports.load or 0.0
