"""The scalers that Fairlead is compared with, as functions of what a scaler sees.

    Observed ─▶ groups of pools ─▶ policy: units wanted, per group ─▶ filled up, cheapest pool first
                                     QueueLength  Ray Serve's default
                                     Utilisation  Kubernetes' HorizontalPodAutoscaler

A group is scaled as one. Laid out `side_by_side` every pool is a group; `cheapest_first` all pools
of a model are one, counted in replicas of its cheapest pool (*units*), and filled in order of cost
while GPUs are to be had. Rivals do not see prices of capacity, forecasts or lengths; like Fairlead
they see GPUs' list prices and how many there are.

A rival is its public algorithm at its best settings: see `load.bench.fleet.tuning`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from infra.autoscaling.contract import Observed, Plan, PoolCondition

EPSILON_S = 1e-6  # Ray's own tolerance: sums of periods fall short of a delay by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class RivalPool:
    """What a rival knows of a pool from the start."""

    name: str
    model: str
    gpu: str
    gpus: int  # of one replica
    requests_per_s: float  # that a replica carries: how pools compare
    usd_per_hour: float  # of one replica
    replicas_max: int
    running: float  # requests in a replica at that rate: what its queue length is measured by


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """A group as its policy sees it; counts are units, of replicas of its cheapest pool."""

    current: int  # wanted so far
    ready: int
    starting: int
    ongoing: float  # requests running and queued, in shares of what a full unit runs
    load: float | None  # mean over the ready; 1: as full as it can be within the target


class Policy(Protocol):
    """How many units a group should have."""

    def desired(self, at_s: float, signals: Signals) -> int:
        """Called in order of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLengthOptions:
    """Ray Serve's `AutoscalingConfig`; its defaults but for the target, which has no unit there."""

    target: float = 0.7  # of the requests that a full replica runs: target_ongoing_requests
    look_back_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0


class QueueLength:
    """Ray Serve's default policy, `replica_queue_length_autoscaling_policy` of Ray 2.59.

    Wanted is the mean of ongoing requests over the look-back, over the target. It has to be wanted
    for a delay in one direction without interruption before it is done; delays are of time, not of
    steps. With nothing running, one request starts one replica at once.
    """

    def __init__(self, options: QueueLengthOptions) -> None:
        self._options = options
        self._seen: deque[tuple[float, float]] = deque()
        self._direction, self._since_s = 0, 0.0

    def desired(self, at_s: float, signals: Signals) -> int:
        """See `Policy`; Ray calls it ten times a second, here it is each step of the scaler."""
        o = self._options
        ongoing = self._mean(at_s, signals.ongoing)
        if signals.ready == 0:
            if ongoing > 0.0:
                return max(math.ceil(o.upscaling_factor), signals.current)
            return signals.current
        wanted = ongoing / o.target
        return self._delayed(at_s, max(0, self._damped(wanted, signals.ready)), signals.current)

    def _mean(self, at_s: float, ongoing: float) -> float:
        seen = self._seen
        seen.append((at_s, ongoing))
        while seen[0][0] < at_s - self._options.look_back_s:
            seen.popleft()
        return sum(value for _, value in seen) / len(seen)

    def _damped(self, wanted: float, ready: int) -> int:
        o, change = self._options, wanted - ready
        factor = o.upscaling_factor if change > 0 else o.downscaling_factor
        damped = math.ceil(ready + factor * change)
        stuck = math.ceil(wanted) < ready and damped == ready
        return damped - 1 if stuck else damped

    def _delayed(self, at_s: float, wanted: int, current: int) -> int:
        direction = (wanted > current) - (wanted < current)
        if direction != self._direction:
            self._direction, self._since_s = direction, at_s
        if direction == 0:
            return current
        delay_s = (
            self._options.upscale_delay_s if direction > 0 else self._options.downscale_delay_s
        )
        if at_s - self._since_s + EPSILON_S < delay_s:
            return current
        self._direction = 0
        return wanted if direction > 0 or current == 1 else max(1, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilisationOptions:
    """Of the HorizontalPodAutoscaler; the defaults of autoscaling/v2 but for the target."""

    target: float = 0.7  # of a full replica
    tolerance: float = 0.1
    period_s: float = 15.0  # between looks, and of the limit on growth
    down_window_s: float = 300.0  # the highest of what was wanted in it counts
    growth_factor: float = 2.0  # per period; the larger of the two limits counts
    growth: int = 4


class Utilisation:
    """The HorizontalPodAutoscaler on a metric per pod: here the load, the best metric there is.

    Wanted is ⌈ready · load / target⌉, unless within the tolerance. Replicas that are not ready
    count as idle when scaling up, so that what is coming is not ordered twice. (Kubernetes,
    "Horizontal Pod Autoscaling", algorithm details and default behaviour.)
    """

    def __init__(self, options: UtilisationOptions) -> None:
        self._options = options
        self._wanted: deque[tuple[float, int]] = deque()
        self._looked_s = -math.inf

    def desired(self, at_s: float, signals: Signals) -> int:
        """See `Policy`."""
        o = self._options
        if at_s - self._looked_s + EPSILON_S < o.period_s:
            return signals.current
        self._looked_s = at_s
        wanted = self._recommended(signals)
        if not self._wanted:  # what is there is the first recommendation, as in Kubernetes
            self._wanted.append((at_s, signals.current))
        self._wanted.append((at_s, wanted))
        while self._wanted[0][0] < at_s - o.down_window_s:
            self._wanted.popleft()
        if wanted > signals.current:
            most = max(math.ceil(signals.current * o.growth_factor), signals.current + o.growth)
            return min(wanted, most)
        return min(signals.current, max(units for _, units in self._wanted))

    def _recommended(self, signals: Signals) -> int:
        o = self._options
        if signals.load is None or signals.ready == 0:
            return max(signals.current, 1 if signals.ongoing > 0 else 0)
        ratio, counted = signals.load / o.target, signals.ready
        if ratio > 1.0 and signals.starting:
            counted = signals.ready + signals.starting
            ratio *= signals.ready / counted
            if ratio < 1.0:
                return signals.current
        if abs(ratio - 1.0) <= o.tolerance:
            return signals.current
        wanted = math.ceil(ratio * counted - 1e-9)
        return max(wanted, signals.current) if ratio > 1.0 else wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pools that are scaled as one, the cheapest per unit of work first."""

    name: str
    pools: tuple[RivalPool, ...]

    def units(self, pool: RivalPool) -> float:
        """What one replica of a pool is worth."""
        return pool.requests_per_s / self.pools[0].requests_per_s


def side_by_side(pools: Sequence[RivalPool]) -> tuple[Group, ...]:
    """Every pool for itself."""
    return tuple(Group(name=pool.name, pools=(pool,)) for pool in pools)


def cheapest_first(pools: Sequence[RivalPool]) -> tuple[Group, ...]:
    """A group per model; the next pool is used when the GPUs of the cheaper ones are."""
    by_model: dict[str, list[RivalPool]] = {}
    for pool in pools:
        by_model.setdefault(pool.model, []).append(pool)
    return tuple(
        Group(
            name=model,
            pools=tuple(sorted(of, key=lambda p: (p.usd_per_hour / p.requests_per_s, p.name))),
        )
        for model, of in by_model.items()
    )


@dataclass(slots=True)
class Rival:
    """A `Scaler`: one policy for each group."""

    groups: Sequence[Group]
    policy: Callable[[], Policy]
    initial: Mapping[str, int]  # replicas by pool, as the fleet begins
    units_min: int = 1  # of each group: a blind router sends nothing where nothing is
    _policies: dict[str, Policy] = field(default_factory=dict, init=False)
    _planned: dict[str, int] | None = field(default=None, init=False)  # replicas by pool

    def step(self, observed: Observed) -> Plan:
        """The plan from now on."""
        free = dict(observed.gpus_available)
        plan: dict[str, int] = {}
        wanted = {group.name: self._wanted(group, observed) for group in self.groups}
        # What is there already keeps its GPUs, whoever comes first in the list.
        held = {name: self._held(name, observed) for group in self.groups for name in _names(group)}
        for group in self.groups:
            for pool in group.pools:
                free[pool.gpu] = free.get(pool.gpu, 0) - held[pool.name] * pool.gpus
        for group in self.groups:
            plan |= _filled(group, wanted[group.name], held, free, observed.pools)
        self._planned = plan
        return Plan(replicas=plan, routers=max(1, observed.routers))

    def _held(self, pool: str, observed: Observed) -> int:
        condition = observed.pools.get(pool, PoolCondition())
        planned = self.initial if self._planned is None else self._planned
        return planned.get(pool, 0) if condition.available else 0

    def _wanted(self, group: Group, observed: Observed) -> float:
        policy = self._policies.setdefault(group.name, self.policy())
        current = sum(self._held(p.name, observed) * group.units(p) for p in group.pools)
        signals = signals_of(group, observed.pools, round(current))
        desired = policy.desired(observed.at_s, signals)
        # As it is, not as it is rounded: units of unlike replicas are no whole numbers.
        return max(self.units_min, current if desired == signals.current else desired)


def signals_of(group: Group, conditions: Mapping[str, PoolCondition], current: int) -> Signals:
    """What a policy sees of a group."""
    ready = starting = ongoing = loaded = 0.0
    known = False
    for pool in group.pools:
        condition, units = conditions.get(pool.name, PoolCondition()), group.units(pool)
        reports = condition.reports
        ready += condition.ready * units
        starting += condition.starting * units
        ongoing += (reports.queued + reports.running) / pool.running * units
        if reports.load is not None and condition.ready:
            loaded, known = loaded + reports.load * condition.ready * units, True
    whole = round(ready) if ready >= 1.0 or ready == 0.0 else 1
    return Signals(
        current=current,
        ready=whole,
        starting=round(starting),
        ongoing=ongoing,
        load=loaded / ready if known else None,
    )


def _filled(
    group: Group,
    units: float,
    held: Mapping[str, int],
    free: dict[str, int],
    conditions: Mapping[str, PoolCondition],
) -> dict[str, int]:
    """Replicas by pool that make up the units, the cheapest first; takes GPUs from `free`."""
    left, plan = units, {}
    for pool in group.pools:
        available = conditions.get(pool.name, PoolCondition()).available
        room = max(0, free.get(pool.gpu, 0) // pool.gpus) + held[pool.name]
        wanted = max(0, math.ceil(left / group.units(pool) - 1e-6))
        replicas = min(wanted, room, pool.replicas_max) if available else 0
        free[pool.gpu] = free.get(pool.gpu, 0) + (held[pool.name] - replicas) * pool.gpus
        left -= replicas * group.units(pool)
        plan[pool.name] = replicas
    return plan


def _names(group: Group) -> list[str]:
    return [pool.name for pool in group.pools]
