"""How long replicas really take to become ready, measured from what is observed of their pools.

    one more is starting ─▶ waits in line ─▶ one more is ready: the first in line took so long
                                             the last eight of a pool ─▶ its start, for the planner

A plan is made for the time at which a replica that is started now will be ready. What settings
state of that (`startup_s`, `load_s`) stands for the first four measurements. The upper quartile
counts: a start that takes longer than was stated is believed the second time, one that takes less
when most do, and one that had to wait for hours for its machine counts for nothing.

A start that was not seen to begin is not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from infra.autoscaling.contract import PoolCondition
from infra.capacity.fleet import PoolPlan

MEASURED_MAX, STATED_AS = 8, 4
ROUNDED_S = 10.0  # two steps of the planner: nothing finer can be seen
ALIKE = 0.1  # a start that is as stated, but for so much, is as stated


class ColdStarts:
    """Of pools with GPUs."""

    def __init__(
        self, pools: Mapping[str, PoolPlan], remembered: Mapping[str, Any] | None = None
    ) -> None:
        """`remembered` as `as_dict` gave it; of a pool that is another one now it says nothing."""
        self._stated = {name: stated_s(pool) for name, pool in pools.items()}
        self._of = {name: _what(pool) for name, pool in pools.items()}
        self._measured: dict[str, list[float]] = {}
        for name, (what, measured) in (remembered or {}).items():
            if self._of.get(name) == what:
                self._measured[name] = list(measured)
        self._ready: dict[str, int] = {}  # when it was last looked
        self._waiting: dict[str, list[float]] = {}  # since when each that starts does; NaN: unknown

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: [self._of[name], measured] for name, measured in self._measured.items()}

    def resume(self) -> None:
        """Nothing was observed for a while: what began meanwhile is not known."""
        self._ready.clear()
        self._waiting.clear()

    def observe(self, at_s: float, observed: Mapping[str, PoolCondition]) -> None:
        """Take note of who starts, and who has become ready."""
        for name in self._stated.keys() & observed.keys():
            self._note(name, observed[name], at_s)

    def start_s(self, name: str) -> float:
        """Seconds from starting a replica of a pool until it answers."""
        stated = self._stated[name]
        known = [stated] * STATED_AS + self._measured.get(name, [])
        known = sorted(known[-MEASURED_MAX:])
        found = known[math.ceil(0.75 * len(known)) - 1]
        if abs(found - stated) <= max(ROUNDED_S, ALIKE * stated):
            return stated
        return math.ceil(found / ROUNDED_S) * ROUNDED_S

    def _note(self, name: str, condition: PoolCondition, at_s: float) -> None:
        before, self._ready[name] = self._ready.get(name), condition.ready
        if before is None:
            self._waiting[name] = [math.nan] * condition.starting
            return
        line, came = self._waiting[name], max(0, condition.ready - before)
        line += [at_s] * (condition.starting + came - len(line))
        done, line = line[:came], line[came:]
        self._waiting[name] = line[: condition.starting]  # who was given up came last
        took = [at_s - since_s for since_s in done if not math.isnan(since_s)]
        if took:
            self._measured[name] = (self._measured.get(name, []) + took)[-MEASURED_MAX:]


def stated_s(pool: PoolPlan) -> float:
    """As settings have it: until a machine is there, and until the model is loaded on it."""
    return pool.machine.startup_s + pool.load_s


def _what(pool: PoolPlan) -> str:
    """What its start depends on."""
    return f"{pool.model} {pool.machine.name} {pool.region} {stated_s(pool):g} {pool.command}"
