"""Replicas that do not become ready: how long they are waited for, and what is done without then.

    fewer ready than planned, none ─▶ overdue: no more than are ready are planned there ─▶ tried
    more for start + `ready_s_max`    for `without_s`, so others are planned instead       again

Either they have no machine: a cloud that has none of a type left does not say so, a replica just
stays pending. Then the place, a type of GPU in a region, is done without, unless another pool's
replica became ready there meanwhile. Or they have one, from which they report, and their server
does not start, or ends again and again: then it is the pool alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from infra.autoscaling.contract import PoolCondition
from infra.capacity.fleet import PoolPlan
from streams.alarms import Condition

SAID_S = 30.0  # beyond what a start takes: from then on it is said that one is waited for


class Overdue:
    """Remembers since when pools have been waiting, and until when they are done without."""

    def __init__(
        self,
        pools: Mapping[str, PoolPlan],
        start_s: Callable[[str], float],
        remembered: Mapping[str, Any] | None = None,
        *,
        ready_s_max: float,
        without_s: float,
    ) -> None:
        """`pools` have GPUs; `start_s` of a pool is what a start usually takes."""
        self._pools, self._start_s = dict(pools), start_s
        self._ready_s_max, self._without_s = ready_s_max, without_s
        remembered = remembered or {}
        self._ready: dict[str, int] = dict(remembered.get("ready", {}))
        self._gained_s: dict[str, float] = dict(remembered.get("gained_s", {}))  # one more ready
        self._since_s: dict[str, float] = dict(remembered.get("since_s", {}))
        self._placed_s: dict[str, float] = dict(remembered.get("placed_s", {}))  # had a machine
        self._until_s: dict[str, float] = dict(remembered.get("until_s", {}))
        # Of those that are done without: since when they waited, with a machine or not, and why.
        self._why: dict[str, list[Any]] = dict(remembered.get("why", {}))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ready": dict(self._ready),
            "gained_s": dict(self._gained_s),
            "since_s": dict(self._since_s),
            "placed_s": dict(self._placed_s),
            "until_s": dict(self._until_s),
            "why": dict(self._why),
        }

    def resume(self, at_s: float) -> None:
        """Nothing was observed for a while: all wait anew."""
        self._since_s = dict.fromkeys(self._since_s, at_s)

    def observe(
        self, at_s: float, observed: Mapping[str, PoolCondition], planned: Mapping[str, int]
    ) -> list[str]:
        """Take note of who is ready; a line for what is done without, or tried again."""
        for name in self._pools.keys() & observed.keys():
            self._note(name, observed[name], planned.get(name, 0), at_s)
        back = sorted(name for name, until_s in self._until_s.items() if until_s <= at_s)
        for name in back:
            self._try_again(name)
        late = [name for name in sorted(self._since_s) if self._is_late(name, at_s)]
        lines = [self._put_off(name, at_s) for name in late if name in self._since_s]
        return lines + [f"{name}: may be planned again, its replicas were overdue" for name in back]

    def most(self, name: str, condition: PoolCondition, at_s: float, most: int) -> int:
        """How many replicas may be planned: where none start, those that are ready."""
        return min(most, condition.ready) if at_s < self._until_s.get(name, at_s) else most

    def conditions(self, at_s: float) -> list[Condition]:
        """Of pools that wait for longer than a start takes, and of those that are done without."""
        found = []
        for name, since_s in self._since_s.items():
            if at_s - since_s > self._start_s(name) + SAID_S:
                cause = f"None became ready for {at_s - since_s:.0f} s."
                found.append(self._condition(name, since_s, self._has_machine(name), cause))
        for name, (since_s, machine, cause) in self._why.items():
            found.append(self._condition(name, since_s, machine, cause, given_up=True))
        return sorted(found, key=lambda one: one.pool)

    # --- who waits

    def _note(self, name: str, condition: PoolCondition, planned: int, at_s: float) -> None:
        if condition.ready > self._ready.get(name, 0):
            self._gained_s[name] = at_s
            self._try_again(name)
            self._since_s.pop(name, None)
        self._ready[name] = condition.ready
        if condition.failing or condition.reports.in_state("starting"):
            self._placed_s[name] = at_s
        # Whose server ends again and again is at times not even starting.
        if condition.starting or condition.ready < planned:
            self._since_s.setdefault(name, at_s)
        else:
            self._since_s.pop(name, None)

    def _is_late(self, name: str, at_s: float) -> bool:
        return at_s - self._since_s[name] > self._start_s(name) + self._ready_s_max

    def _has_machine(self, name: str) -> bool:
        return self._placed_s.get(name, -math.inf) >= self._since_s[name]

    # --- what is done without

    def _try_again(self, name: str) -> None:
        self._until_s.pop(name, None)
        self._why.pop(name, None)

    def _put_off(self, name: str, at_s: float) -> str:
        """Do without the pool, and without the others of its place if that has no machine."""
        since_s, machine = self._since_s[name], self._has_machine(name)
        place = _place(self._pools[name])
        here = [other for other, pool in self._pools.items() if _place(pool) == place]
        gained = any(self._gained_s.get(other, since_s) > since_s for other in here)
        without = [name] if machine or gained else here
        what = name if without == [name] else f"{place[0]}{' in ' if place[1] else ''}{place[1]}"
        how = "have a machine" if machine else "wait for a machine"
        said = (
            f"replicas {how}, and none became ready for {at_s - since_s:.0f} s: no more of {what} "
            f"are planned for {self._without_s:.0f} s"
        )
        for other in without:
            self._until_s[other] = at_s + self._without_s
            if other in self._since_s:
                self._why[other] = [self._since_s.pop(other), machine, f"{name}: {said}."]
        return f"{name}: {said}"

    @staticmethod
    def _condition(
        name: str, since_s: float, machine: bool, cause: str, *, given_up: bool = False
    ) -> Condition:
        return Condition(
            pool=name,
            kind="not_ready" if machine else "no_machine",
            since_ms=round(since_s * 1000),
            given_up=given_up,
            cause=cause,
        )


def _place(pool: PoolPlan) -> tuple[str, str]:
    return pool.machine.name, pool.region
