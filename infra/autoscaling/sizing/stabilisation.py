"""From what is needed to what is done: growing at once, shrinking late, neither without limits.

    needed now ──────────▶ more: at once, but no more than three times as many a minute;
                           if what there is would do, too: only what every plan of 3 minutes wanted
    needed in 3 minutes ─▶ fewer: only what no plan of that time needed …
    load, ready ─────────▶ … and only if those that are *ready* then carry what is carried now,
                           in every plan of a minute
    nothing remembered ──▶ for ten minutes not fewer than were found

If n of N replicas go, the load of the others rises by N / (N − n): whoever ignores that goes from
two to one and back for ever. Where a replica is replaced by one of another pool, it stays until
the other one is there.

How much there is to spare comes of the errors that forecasts made. Who has just begun and remembers
nothing has made none: what it finds, somebody else had a reason for.

All delays are in seconds, never in steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

Replicas = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilisationOptions:
    """How fast a fleet follows its plan."""

    # As long as a machine takes to come back: keeping one for that long costs what bringing it back
    # would, so at worst it is twice what was needed (the ski-rental problem).
    down_s: float = 180.0
    # Of a planner that remembers nothing: then forecasts over a start's time have a few errors.
    fresh_s: float = 600.0
    # Of mixes that cost nearly the same the best may be another one for a moment: who was not to go
    # yet in any plan of this time does not go by a single one.
    keep_s: float = 60.0
    grow_s: float = 60.0
    grow_factor: float = 3.0  # in `grow_s`; a flood of ×5 is met in two minutes, as machines start
    grow_least: int = 4  # replicas in `grow_s`, however few there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one pool, which nothing exceeds."""

    gpu: str
    gpus_per_replica: int
    least: int
    most: int


class StabilisationWindow:
    """Remembers what was needed and what was planned."""

    def __init__(
        self, options: StabilisationOptions, remembered: Mapping[str, Any] | None = None
    ) -> None:
        self._options = options
        remembered = remembered or {}
        self._needed = _restored(remembered.get("needed", ()))
        self._planned = _restored(remembered.get("planned", ()))
        self._kept = _restored(remembered.get("kept", ()))
        self._found = _restored(remembered.get("found", ()))  # by whom remembered nothing

    def settle(
        self,
        at_s: float,
        now: Mapping[str, int],
        needed: Mapping[str, int],
        limits: Mapping[str, Limits],
        gpus: Mapping[str, int],
        keep: Collection[str] = (),
        at_once: bool = True,
    ) -> Replicas:
        """What is to be had: not fewer than any plan of the last minutes needed, as far as it may.

        All keys are pools; `needed` is within the limits and the GPUs. Those to `keep` don't
        shrink for a minute. If not `at_once`, they grow by what all plans of the last minutes
        needed.
        """
        if not self._needed:
            self._found.append((at_s, dict(now)))
            self._remember(self._needed, at_s, now, self._options.down_s)
        while self._found and self._found[0][0] <= at_s - self._options.fresh_s:
            self._found.popleft()
        self._remember(self._needed, at_s, needed, self._options.down_s)
        self._remember(self._kept, at_s, {pool: now[pool] for pool in keep}, self._options.keep_s)
        wanted = {}
        for pool in limits:
            recent = [one.get(pool, 0) for _, one in self._needed]
            found = [one.get(pool, 0) for _, one in self._found]
            kept = [one.get(pool, 0) for _, one in self._kept]
            most = max([*recent, *found, *kept])
            more = needed[pool] if at_once else min(needed[pool], max(now[pool], min(recent)))
            wanted[pool] = min(max(more, min(now[pool], most)), self._growth(pool, now[pool]))
        return within(wanted, needed, limits, gpus)

    def resume(self, at_s: float, now: Mapping[str, int]) -> None:
        """After a time of which nothing is known: what is there is taken to have been needed."""
        self._remember(self._needed, at_s, now, self._options.down_s)

    def planned(self, at_s: float, replicas: Mapping[str, int]) -> None:
        """What was decided in the end."""
        self._remember(self._planned, at_s, replicas, self._options.grow_s)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "needed": [[at_s, dict(one)] for at_s, one in self._needed],
            "planned": [[at_s, dict(one)] for at_s, one in self._planned],
            "kept": [[at_s, dict(one)] for at_s, one in self._kept],
            "found": [[at_s, dict(one)] for at_s, one in self._found],
        }

    def _growth(self, pool: str, now: int) -> int:
        """The most replicas that it may have at this time."""
        o = self._options
        before = [one.get(pool, 0) for _, one in self._planned]
        base = min([now, *before])
        return max(now, round(o.grow_factor * base) + o.grow_least)

    @staticmethod
    def _remember(
        past: deque[tuple[float, Replicas]], at_s: float, entry: Mapping[str, int], kept_s: float
    ) -> None:
        past.append((at_s, dict(entry)))
        while past[0][0] <= at_s - kept_s:
            past.popleft()


def within(
    wanted: Mapping[str, int],
    needed: Mapping[str, int],
    limits: Mapping[str, Limits],
    gpus: Mapping[str, int],
) -> Replicas:
    """As wanted, within the limits. What is kept, but not needed, makes way for what is."""
    found = {pool: min(max(wanted[pool], at.least), at.most) for pool, at in limits.items()}
    for gpu in sorted({at.gpu for at in limits.values()}):
        of = [pool for pool, at in limits.items() if at.gpu == gpu]
        over = sum(found[p] * limits[p].gpus_per_replica for p in of) - gpus.get(gpu, 0)
        for floor in ({pool: needed[pool] for pool in of}, dict.fromkeys(of, 0)):
            for pool in reversed(of):
                each = limits[pool].gpus_per_replica
                gone = min(max(0, found[pool] - floor[pool]), -(-max(0, over) // each))
                found[pool] -= gone
                over -= gone * each
    return found


def _restored(entries: Any) -> deque[tuple[float, Replicas]]:
    return deque((float(at_s), dict(one)) for at_s, one in entries)
