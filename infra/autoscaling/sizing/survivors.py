"""Whether what is there carries what comes: before anything goes, and before anything is replaced.

    load · how full · ready replicas / work of a request = requests/s that a pool carries now
    replicas that stay and are ready · how full they may be / work  ≥  that of the model's pools

If n of N replicas go, the load of the others rises by N / (N − n): whoever ignores that goes from
two to one and back for ever. And where a replica is replaced, by one of another pool or model, it
stays until the other one is ready.

The one rule: loads are compared in requests a second: replicas of two GPUs are not the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.sizing.needs import Needs
from infra.capacity.fleet import PoolPlan


def held(
    fleet: Mapping[str, PoolPlan], needs: Needs, pools: Mapping[str, PoolCondition]
) -> set[str]:
    """The names of pools that may not shrink in this step."""
    found: set[str] = set()
    share = _share_now(needs)
    for model in sorted({pool.model for pool in fleet.values()}):
        names = [n for n, p in fleet.items() if p.model == model and needs.work_s[n] > 0.0]
        ready = {n: pools[n].ready if n in pools else 0 for n in names}
        stay = {n: min(ready[n], needs.replicas[n]) for n in names}
        carries = sum(stay[n] * needs.load_max[n] / needs.work_s[n] for n in names)
        wished, carried = needs.wished.get(model, 0.0), needs.carried.get(model, 0.0)
        # Of what it carries now, others may be going to take a part.
        kept = min(1.0, carried / wished) if wished else 0.0
        carries_now = sum(
            _load(pools.get(n)) * needs.load_max[n] * ready[n] / needs.work_s[n] for n in names
        )
        if carries < kept * carries_now:
            found |= {n for n, p in fleet.items() if p.model == model}
        if carries < carried * share and any(ready[n] < needs.replicas[n] for n in names):
            return set(fleet)  # what is to take over is still to come
    return found


def urgent(fleet: Mapping[str, PoolPlan], needs: Needs, now: Mapping[str, int]) -> bool:
    """Whether the replicas that are there, or coming, do not carry what is expected.

    If they do, what the mix wants beside them is only cheaper, and can be thought about. Models
    whose requests others are to answer may go on answering them.
    """
    short = spare = 0.0
    for model in sorted({pool.model for pool in fleet.values()}):
        names = [n for n, p in fleet.items() if p.model == model and needs.work_s[n] > 0.0]
        carries = sum(now[n] * needs.load_max[n] / needs.work_s[n] for n in names)
        wished, carried = needs.wished.get(model, 0.0), needs.carried.get(model, 0.0)
        short += max(0.0, carried - carries)
        spare += max(0.0, min(carries, wished) - carried)
    return short > spare


def _share_now(needs: Needs) -> float:
    """What is wished now, of what is expected."""
    expected = sum(needs.wished.values())
    return min(1.0, sum(needs.now.values()) / expected) if expected else 0.0


def _load(there: PoolCondition | None) -> float:
    load = None if there is None else there.load
    return load if load is not None and math.isfinite(load) and load > 0.0 else 0.0
