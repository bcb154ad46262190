"""The fleet's planner: how many replicas of every pool, and of routers, and why.

    Observed ─▶ expected demand ─┐
    prices ───▶ correction ──────┼─▶ mix ─▶ stabilisation ─▶ Plan, one line for each change
    GPUs, their prices, states ──┘

Each pool is sized for the time at which a replica that is started now will be ready. What a price
above zero says is that capacity is worth more than its GPU: that a replica carries less than it was
thought to. So while a model's pools all have a price m, though they are thought to have room, its
work counts for more,

    correction ← min(1.3, correction · exp(0.1 · min(m, 1) · minutes)),   else halves in 5 minutes

The work of a request in a pool of real servers begins with what is stated or derived of them, and
is what was learned as soon as something was (`streams.telemetry.capacity`).

What it does not know it does not act on. With old telemetry the last plan holds, and
a pool that others run, or of which no GPU is stated, keeps its replicas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infra.autoscaling.contract import Demand, Observed, Plan, PoolCondition
from infra.autoscaling.demand.corrections import Corrections
from infra.autoscaling.demand.expected import ExpectedDemand, ExpectedOptions
from infra.autoscaling.explanations import Explanations
from infra.autoscaling.sizing.cold_starts import ColdStarts
from infra.autoscaling.sizing.mix import MixOptions
from infra.autoscaling.sizing.overdue import Overdue
from infra.autoscaling.sizing.requirement import (
    Requirement,
    capacity_shortfall,
    pools_to_keep,
)
from infra.autoscaling.sizing.sizing import Sizing, SizingOptions
from infra.autoscaling.sizing.stabilisation import Limits, StabilisationOptions, StabilisationWindow
from infra.capacity.fleet import Fleet, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from learners.work import WorkRates

UNMET_LEAST = 0.01  # of what is expected; less is within what a forecast is off


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOptions:
    """Of routers: an event loop that is busy all the time answers nobody in time."""

    least: int = 1
    most: int = 64
    busy_max: float = 0.6  # share of a replica's loop; above, waiting grows fast


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOptions:
    """Everything of the planner that can be chosen."""

    # Telemetry comes each second. By what is older than this nothing is taken away: prices can't
    # move requests meanwhile, which a smaller fleet counts on.
    late_s: float = 10.0
    stale_s: float = 30.0  # what is older than this describes another time: nothing changes
    ready_s_max: float = 600.0  # see `AutoscalingOptions`
    without_s: float = 1800.0  # then a place where nothing started is tried again
    expected: ExpectedOptions = field(default_factory=ExpectedOptions)
    sizing: SizingOptions = field(default_factory=SizingOptions)
    mix: MixOptions = field(default_factory=MixOptions)
    stabilisation: StabilisationOptions = field(default_factory=StabilisationOptions)
    routers: RouterOptions = field(default_factory=RouterOptions)


class Planner:
    """A `Scaler`. Pools without GPUs or `rates` can't be sized: they stay as described."""

    def __init__(
        self,
        fleet: Fleet,
        rates: Mapping[str, WorkRates],
        target: LatencyTarget,
        quality: Mapping[str, float],
        options: PlannerOptions | None = None,
        remembered: Mapping[str, Any] | None = None,
    ) -> None:
        """`rates` by pool, `quality` (0 to 1) by model, `remembered` as `as_dict` gave it."""
        self._options = options = options or PlannerOptions()
        remembered = remembered or {}
        self._fleet, self._rates, self._target = fleet, dict(rates), target
        self._pools = {p.name: p for p in fleet.pools if p.gpu is not None and p.name in rates}
        self._not_sized = [p for p in fleet.pools if p.name not in self._pools]
        self._gpus = {gpu.name: gpu for gpu in fleet.gpus}
        self._demand = ExpectedDemand(options.expected, remembered.get("demand"))
        self._corrections = Corrections(self._pools, remembered.get("corrections"))
        self._cold_starts = ColdStarts(self._pools, remembered.get("cold_starts"))
        self._overdue = Overdue(
            self._pools,
            self._cold_starts.start_s,
            remembered.get("overdue"),
            ready_s_max=options.ready_s_max,
            without_s=options.without_s,
        )
        window = options.stabilisation
        self._window = StabilisationWindow(window, remembered.get("steady"))
        self._router_window = StabilisationWindow(window, remembered.get("router_steady"))
        self._sizing = Sizing(self._pools, rates, target, quality, options.sizing, options.mix)
        self._sizing.restore(remembered.get("sizing"))
        self._explanations = Explanations(self._pools)
        plan = remembered.get("plan")
        self._plan = None if plan is None else Plan(replicas=plan[0], routers=plan[1])
        self._usd_per_hour: dict[str, float] = dict(remembered.get("usd_per_hour", {}))
        self._stale = bool(remembered.get("stale", False))
        self._left_out = bool(remembered.get("left_out", False))
        self._not_sized_said: list[str] | None = remembered.get("not_sized")
        self._lacking: dict[str, int] = dict(remembered.get("lacking", {}))

    def step(self, observed: Observed) -> Plan:
        """The plan from now on."""
        before = self._plan or self._first(observed)
        if not observed.telemetry_age_s <= self._options.stale_s:  # also if it is no number
            return self._hold(before, observed)
        said = []
        if self._stale:
            said.append("telemetry is back: planning goes on")
            self._window.resume(observed.at_s, before.replicas)
            self._overdue.resume(observed.at_s)
            self._cold_starts.resume()
        self._stale = False
        at_s = observed.at_s
        said += self._say_what_is_not_sized()
        said += self._say_what_is_lacking(observed)
        said += self._demand.observe(at_s, self._sizable(observed.demands))
        said += self._read_prices(observed)
        self._sizing.learn(observed.quality, observed.criticality)
        thought = self._sizing.fullness(observed.pools)
        self._corrections.observe(at_s, observed.pools, thought)
        said += self._observe_starts(observed, before)
        limits, gpus = self._limits(observed)
        now = {pool: before.replicas.get(pool, 0) for pool in self._pools}
        required = self.required(observed, now, limits, gpus)
        there = {name: min(now[name], limits[name].most) for name in now}
        at_once = self.at_once(required, there)
        keep = set(self._pools)
        if observed.telemetry_age_s <= self._options.late_s:
            keep = pools_to_keep(self._pools, required, observed.pools)
        settled = self._window.settle(at_s, now, required.replicas, limits, gpus, keep, at_once)
        self._window.planned(at_s, settled)
        routers = self._routers(observed, before.routers)
        replicas = {p.name: settled.get(p.name, p.replicas) for p in self._fleet.pools}
        said += self._explanations.lines(now, settled, required, limits, gpus, self._usd_per_hour)
        said += self._say_who_is_left_out(required)
        if routers != before.routers:
            busy = observed.router_busy_share
            said.append(f"routers: {before.routers} → {routers}: {busy:.2f} event loops are busy")
        conditions = tuple(self._overdue.conditions(at_s))
        self._plan = Plan(replicas=replicas, routers=routers, conditions=conditions)
        return replace(self._plan, lines=tuple(said))

    @property
    def knows(self) -> dict[str, Mapping[str, Any]]:
        """What it sizes by, beside demand and prices."""
        sizing = self._sizing
        return {
            "rates": dict(self._rates),
            "start_s": {name: self._cold_starts.start_s(name) for name in self._pools},
            "quality": dict(sizing.quality),
            "criticality": dict(sizing.criticality),
        }

    def as_dict(self) -> dict[str, Any]:
        """All that it remembers, for JSON."""
        return {
            "demand": self._demand.as_dict(),
            "corrections": self._corrections.as_dict(),
            "overdue": self._overdue.as_dict(),
            "cold_starts": self._cold_starts.as_dict(),
            "steady": self._window.as_dict(),
            "router_steady": self._router_window.as_dict(),
            "sizing": self._sizing.as_dict(),
            "plan": self._plan and [dict(self._plan.replicas), self._plan.routers],
            "usd_per_hour": dict(self._usd_per_hour),
            "stale": self._stale,
            "left_out": self._left_out,
            "not_sized": self._not_sized_said,
            "lacking": dict(self._lacking),
        }

    def required(
        self,
        observed: Observed,
        now: Mapping[str, int],
        limits: Mapping[str, Limits],
        gpus: Mapping[str, int],
    ) -> Requirement:
        """What each pool needs: the cheapest mix for all that is expected."""
        return self._sizing.together(
            self._demand, self._factors(observed), self._usd_per_hour, now, limits, gpus
        )

    def _factors(self, observed: Observed) -> dict[str, float]:
        """On the work of each pool: by prices, and by what was learned of its servers."""
        by_model, factors = self._corrections.factors(), {}
        for name, pool in self._pools.items():
            condition = observed.pools.get(name, PoolCondition())
            factors[name] = by_model[pool.model] * _stepped(condition.work_factor)
        return factors

    def at_once(self, required: Requirement, there: Mapping[str, int]) -> bool:
        """Whether what is required beyond what is there, or starting, must come without delay."""
        return capacity_shortfall(self._pools, required, there) > 0.0

    # --- what is observed, checked

    def _first(self, observed: Observed) -> Plan:
        """Where nothing was planned yet: what is described, some of which may still be to come; or
        what there is, if that is more.
        """
        replicas = {}
        for pool in self._fleet.pools:
            there = observed.pools.get(pool.name, PoolCondition())
            replicas[pool.name] = max(pool.replicas, there.ready + there.starting)
        least = self._options.routers.least
        return Plan(replicas=replicas, routers=max(least, observed.routers))

    def _hold(self, before: Plan, observed: Observed) -> Plan:
        said, self._stale, self._plan = self._stale, True, before
        line = (
            f"telemetry is {observed.telemetry_age_s:.0f} s old: nothing changes until it is back"
        )
        lines = () if said else (line,)
        return replace(before, lines=lines)

    def _observe_starts(self, observed: Observed, before: Plan) -> list[str]:
        """Who starts, how long that takes, and who is not waited for any more."""
        self._cold_starts.observe(observed.at_s, observed.pools)
        for name in self._pools:
            self._sizing.start_within(name, self._cold_starts.start_s(name))
        return self._overdue.observe(observed.at_s, observed.pools, before.replicas)

    def _sizable(self, demands: Sequence[Demand]) -> list[Demand]:
        """Without what prefers a model that only pools answer which can't be sized."""
        others = {pool.model for pool in self._not_sized}
        others -= {pool.model for pool in self._pools.values()}
        return [demand for demand in demands if demand.model not in others]

    def _say_what_is_not_sized(self) -> list[str]:
        """Once, and again when it is another set of pools."""
        names = [pool.name for pool in self._not_sized]
        before, self._not_sized_said = self._not_sized_said, names
        if names == before or (self._pools and not names):
            return []
        return [self._explanations.not_sized(names)]

    def _say_what_is_lacking(self, observed: Observed) -> list[str]:
        """Of pools that others run: how many servers would carry what comes, where it is more."""
        lines, lacking = [], {}
        for name in (pool.name for pool in self._not_sized):
            there = observed.pools.get(name, PoolCondition())
            n = servers_wanted(there, filled=self._options.sizing.filled)
            if n > there.ready > 0:
                lacking[name] = n
            if lacking.get(name) != self._lacking.get(name):
                lines.append(self._explanations.lacking(name, there, n))
        self._lacking = lacking
        return lines

    def _read_prices(self, observed: Observed) -> list[str]:
        said = []
        for name, gpu in self._gpus.items():
            price = observed.usd_per_hour.get(name, gpu.usd_per_hour)
            if math.isfinite(price) and price >= 0.0:
                self._usd_per_hour[name] = price
            else:
                said.append(f"{name}: {price} is no price; the last one holds")
                self._usd_per_hour.setdefault(name, gpu.usd_per_hour)
        return said

    def _limits(self, observed: Observed) -> tuple[dict[str, Limits], dict[str, int]]:
        gpus = {}
        for name, gpu in self._gpus.items():
            there = observed.gpus_available.get(name, gpu.available)
            there = int(there if math.isfinite(there) else gpu.available)
            gpus[name] = max(0, there - self._gpus_not_sized(name))
        limits = {}
        for name, pool in self._pools.items():
            condition = observed.pools.get(name)
            lost = condition is not None and not condition.available
            most = 0 if lost else min(pool.replicas_max, gpus[_gpu(pool)] // pool.gpus_per_replica)
            if condition is not None:
                most = self._overdue.most(name, condition, observed.at_s, most)
            limits[name] = Limits(
                gpu=_gpu(pool),
                gpus_per_replica=pool.gpus_per_replica,
                least=min(pool.replicas_min, most),
                most=most,
            )
        return limits, gpus

    def _gpus_not_sized(self, gpu: str) -> int:
        """GPUs of a type that pools have which keep their replicas."""
        of = [pool for pool in self._not_sized if pool.gpu is not None and pool.gpu.name == gpu]
        return sum(pool.replicas * pool.gpus_per_replica for pool in of)

    # --- what becomes of it

    def _say_who_is_left_out(self, required: Requirement) -> list[str]:
        """When it begins, and when it is over."""
        expected, before = sum(required.demand.values()), self._left_out
        self._left_out = required.unmet > UNMET_LEAST * expected
        if self._left_out == before:
            return []
        if self._left_out:
            return [self._explanations.left_out(required.unmet, expected=expected)]
        return [self._explanations.carried_again(expected)]

    def _routers(self, observed: Observed, now: int) -> int:
        o, busy = self._options.routers, observed.router_busy_share
        if not (math.isfinite(busy) and busy >= 0.0):
            return now
        needed = {"routers": min(max(math.ceil(busy / o.busy_max - 1e-9), o.least), o.most)}
        limits = {"routers": Limits(gpu="", gpus_per_replica=1, least=o.least, most=o.most)}
        there, room = {"routers": now}, {"": o.most}
        settled = self._router_window.settle(observed.at_s, there, needed, limits, room)
        self._router_window.planned(observed.at_s, settled)
        return settled["routers"]


def servers_wanted(there: PoolCondition, *, filled: float) -> int:
    """Servers that would be as full as is planned with what is decided for them; 0: not known."""
    if not there.capacity_per_s:
        return 0
    return math.ceil(there.requests_per_s / (filled * there.capacity_per_s))


def _stepped(factor: float) -> float:
    """In steps of a twentieth: a hair's difference makes no new plan."""
    if not (math.isfinite(factor) and factor > 0.0):
        return 1.0
    return 1.05 ** round(math.log(factor, 1.05))


def _gpu(pool: PoolPlan) -> str:
    assert pool.gpu is not None
    return pool.gpu.name
