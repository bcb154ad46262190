"""Replicas that do not become ready: how long they are waited for, and what is done without then.

    starting, none became ready for ─▶ overdue: no more than are ready are planned there ─▶ tried
    its start + `ready_s_max`          for `without_s`, so others are planned instead      again

A cloud that has no machine of a type left does not say so: a replica just stays pending. The place,
a type of GPU in a region, is done without, unless another pool's replica became ready there
meanwhile: then it is the pool itself that does not start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.autoscaling.contract import PoolCondition
from infra.capacity.fleet import PoolPlan


class Overdue:
    """Remembers since when pools have been waiting, and until when they are done without."""

    def __init__(
        self,
        pools: Mapping[str, PoolPlan],
        remembered: Mapping[str, Any] | None = None,
        *,
        ready_s_max: float,
        without_s: float,
    ) -> None:
        """`pools` have GPUs."""
        self._pools, self._ready_s_max, self._without_s = dict(pools), ready_s_max, without_s
        remembered = remembered or {}
        self._ready: dict[str, int] = dict(remembered.get("ready", {}))
        self._gained_s: dict[str, float] = dict(remembered.get("gained_s", {}))  # one more ready
        self._since_s: dict[str, float] = dict(remembered.get("since_s", {}))
        self._until_s: dict[str, float] = dict(remembered.get("until_s", {}))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ready": dict(self._ready),
            "gained_s": dict(self._gained_s),
            "since_s": dict(self._since_s),
            "until_s": dict(self._until_s),
        }

    def resume(self, at_s: float) -> None:
        """Nothing was observed for a while: all wait anew."""
        self._since_s = dict.fromkeys(self._since_s, at_s)

    def observe(self, at_s: float, observed: Mapping[str, PoolCondition]) -> list[str]:
        """Take note of who is ready; a line for what is done without, or tried again."""
        for name in self._pools.keys() & observed.keys():
            self._note(name, observed[name], at_s)
        back = sorted(name for name, until_s in self._until_s.items() if until_s <= at_s)
        for name in back:
            del self._until_s[name]
        late = [name for name in sorted(self._since_s) if self._is_late(name, at_s)]
        lines = [self._put_off(name, observed[name].starting, at_s) for name in late]
        return lines + [f"{name}: may be planned again, its replicas were overdue" for name in back]

    def most(self, name: str, condition: PoolCondition, at_s: float, most: int) -> int:
        """How many replicas may be planned: where none start, those that are ready."""
        return min(most, condition.ready) if at_s < self._until_s.get(name, at_s) else most

    def _note(self, name: str, condition: PoolCondition, at_s: float) -> None:
        if condition.ready > self._ready.get(name, 0):
            self._gained_s[name] = at_s
            self._until_s.pop(name, None)
            self._since_s.pop(name, None)
        self._ready[name] = condition.ready
        if condition.starting:
            self._since_s.setdefault(name, at_s)
        else:
            self._since_s.pop(name, None)

    def _is_late(self, name: str, at_s: float) -> bool:
        pool = self._pools[name]
        start_s = pool.load_s + pool.machine.startup_s
        return at_s - self._since_s[name] > start_s + self._ready_s_max

    def _put_off(self, name: str, starting: int, at_s: float) -> str:
        """Do without the pool, and without the others of its place if none of them starts."""
        since_s = self._since_s[name]
        place = _place(self._pools[name])
        here = [other for other, pool in self._pools.items() if _place(pool) == place]
        alone = any(self._gained_s.get(other, since_s) > since_s for other in here)
        without = [name] if alone else here
        self._until_s |= dict.fromkeys(without, at_s + self._without_s)
        for other in without:
            self._since_s.pop(other, None)
        what = name if alone else f"{place[0]}{' in ' if place[1] else ''}{place[1]}"
        return (
            f"{name}: {starting} replicas are starting, and none became ready for "
            f"{at_s - since_s:.0f} s: no more of {what} are planned for {self._without_s:.0f} s"
        )


def _place(pool: PoolPlan) -> tuple[str, str]:
    return pool.machine.name, pool.region
