"""What to buy: for every trade-off of cost and quality the cheapest fleet that keeps the target.

    weights of cost ─▶ sized ─▶ simulated on the busiest stretch ─┬─ too slow ─▶ emptier pools
                                                                  └─ in time ──▶ frontier
    frontier, budget, least quality ─▶ chosen ─▶ trimmed ─▶ simulated on all of the trace

How full pools may be is first taken from the queueing model, then from what the simulation shows of
this very trace. A fleet that was simulated once is not simulated again.

The one rule: nothing is answered that was not simulated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from load.data.traces import Trace
from load.planning.events import Events
from load.planning.figures.summary import summary
from load.planning.questions import Questions, traffic_of
from load.planning.simulating import Say, SimulateOptions, simulated
from load.planning.site import Site
from load.planning.sizing import Demand, Sized, carried_per_s, demand_of, sized
from load.shares import percent
from load.simulation.loop.results import Run
from load.traces.made import Scaling, kept_of
from load.traces.reading import TraceFile

Floats = NDArray[np.float64]
# Of how full the queueing model lets pools be: tried from where the last search ended.
FILLED = (1.3, 1.15, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
BEGIN = 2
TIMES = (1.25, 1.5, 1.75, 2.0, 2.5)  # as many replicas of all, for a hedge
TRIES_MAX = 24  # fleets a replica away from the one that was chosen
CARRIED_MIN = 0.7  # of what a fleet carries by the queueing model: with less none is tried


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What is wanted."""

    share: float = 0.99  # of requests within the target, in the busiest stretch and in all
    budget_usd_per_h: float | None = None
    quality_min: float | None = None
    unlimited: bool = False  # as many GPUs as it takes, whatever `available` says
    stretch_s: float = 600.0  # around the busiest minute
    points: int = 4  # of the frontier, beside the site's own weight of cost
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Point:
    """A fleet, and what a simulation shows of it."""

    per_usd: float  # the routers' weight of a US dollar
    sized: Sized
    figures: dict[str, float]  # within_target, quality, usd_per_h, …
    meets: bool

    @property
    def usd_per_h(self) -> float:
        """Of its GPUs, and by the token."""
        return self.figures["usd_per_h"]

    @property
    def hosted_usd_per_h(self) -> float:
        """What is paid by the token alone, in the busiest stretch."""
        return self.usd_per_h - self.sized.usd_per_h


@dataclass(slots=True, eq=False)
class Search:
    """Of one site and trace. Simulations are kept by fleet and weight."""

    site: Site
    file: TraceFile
    questions: Questions
    options: PlanOptions
    say: Say
    stretch: TraceFile = field(init=False)
    _demand: Demand = field(init=False)
    _carries: dict[str, float] = field(init=False)
    _begin: int = BEGIN
    _seen: dict[tuple[object, ...], Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stretch = stretch_of(self.file, self.options.stretch_s)
        traffic = traffic_of(
            self.stretch, self.questions, np.random.default_rng([self.options.seed, 1])
        )
        self._demand = demand_of(traffic, self.site, self.questions, self.stretch.clock_s)
        self._carries = carried_per_s(self._demand, self.site)

    # --- the frontier

    def frontier(self) -> list[Point]:
        """Of all that was tried the fleets in time that no other beats; all, where none is in time.

        Tried are the cheapest of every weight of cost, and those on the way to them; others'
        machines alone, where there are any; and one model alone, as one would by hand: it may be
        better than what estimates would have.
        """
        for weight in self._weights():
            self.cheapest(weight)
            if self.site.hosted:
                site = self.site.with_cost_weight(weight)
                self.tried(site, fleet_of_replicas(site, {}))
        self._alone()
        return self.best()

    def best(self) -> list[Point]:
        """The frontier of what was tried so far."""
        tried = list(self._seen.values())
        alike: dict[tuple[float, float], Point] = {}
        for point in sorted((p for p in tried if p.meets), key=self._strange):
            same = round(point.usd_per_h, 4), round(point.figures["quality"], 6)
            alike.setdefault(same, point)
        in_time = list(alike.values())
        return [p for p in in_time if not any(beats(q, p) for q in in_time)] or tried

    def _strange(self, point: Point) -> float:
        """How far a point's weight of cost is from the site's own."""
        return abs(point.per_usd - self.site.preference[1])

    def _weights(self) -> list[float]:
        """The site's own, and those at which requests' preferences turn over; where answers are
        bought of others, too, quality alone: what is dearest is not the largest own model.
        """
        own, n = self.site.preference[1], self.options.points
        alone = {0.0} if n and self.site.hosted else set()
        return sorted({own, *alone, *turning_points(self._demand, n)})

    def _alone(self) -> None:
        """Models alone, of those that everybody may have: the best, and by the site's own weight of
        cost until one is in time.
        """
        quality, per_usd, _, _ = self.site.preference
        worth, usd = self._demand.worth.mean(axis=0), self._demand.usd.mean(axis=0)
        names, may = self.site.catalogue.names, np.asarray(self._demand.may.all(axis=0))
        all_may = {name for name, one in zip(names, may.tolist(), strict=True) if one}
        own = {p.model for p in self.site.fleet.pools if p.name not in self.site.hosted}
        own &= all_may
        best = names[int(np.where(may, worth, -np.inf).argmax())]
        if best in own:
            self.cheapest(per_usd, alone=best)
        for column in np.argsort(per_usd * usd - quality * worth, kind="stable"):
            if names[column] in own and self.cheapest(per_usd, alone=names[column]).meets:
                return

    def cheapest(self, per_usd: float, alone: str | None = None) -> Point:
        """The cheapest fleet in time with this weight: as full as may be, else the emptiest."""
        site, at = self.site.with_cost_weight(per_usd), self._begin
        tried = self._try(site, FILLED[at], alone)
        step = -1 if tried.meets else 1  # fuller while it goes well, emptier until it does
        while 0 <= at + step < len(FILLED):
            other = self._try(site, FILLED[at + step], alone)
            if step < 0 and not other.meets:
                break
            tried, at = other, at + step
            if step > 0 and tried.meets:
                break
        self._begin = at
        return tried

    def _grow(self, site: Site, fleet: Sized) -> None:
        """Try the next larger fleet of the same kind, if there is one: pools are filled less."""
        alone = only_model(site, fleet)
        for filled in FILLED:
            more = self._sized(site, filled, alone)
            if more.usd_per_h > fleet.usd_per_h:
                self.tried(site, more)
                return

    def more_of(self, site: Site, fleet: Sized) -> None:
        """Try the same fleet with more replicas of every pool, until one is in time."""
        for times in TIMES:
            each = {name: math.ceil(n * times) for name, n in fleet.replicas.items()}
            more = fleet_of_replicas(site, each)
            if self._can_be_had(site, more) and self.tried(site, more).meets:
                return

    def _can_be_had(self, site: Site, fleet: Sized) -> bool:
        there = {gpu.name: gpu.available for gpu in site.fleet.gpus}
        enough = all(n <= there[gpu] for gpu, n in gpus_of(site, fleet).items())
        servers = all(fleet.replicas.get(name, 0) <= n for name, n in site.servers.items())
        return servers and (enough or self.options.unlimited)

    def _try(self, site: Site, filled: float, alone: str | None) -> Point:
        return self.tried(site, self._sized(site, filled, alone))

    def _sized(self, site: Site, filled: float, alone: str | None) -> Sized:
        unlimited = self.options.unlimited
        return sized(self._demand, site, filled=filled, unlimited=unlimited, alone=alone)

    def will_do(self, point: Point) -> bool:
        """Whether a point is in time, good enough and affordable."""
        o = self.options
        good = point.figures["quality"] >= (o.quality_min or 0.0)
        paid = o.budget_usd_per_h is None or point.usd_per_h <= o.budget_usd_per_h
        return point.meets and good and paid

    def keeps(self, *, within_target: float, quality: float) -> bool:
        """Whether a run is in time and good enough."""
        return within_target >= self.options.share and quality >= (self.options.quality_min or 0.0)

    def fell_short(self, point: Point, *, within_target: float, quality: float) -> None:
        """On all of the trace a fleet is not what it was in its busiest stretch.

        One that is too slow keeps no target, nor does a cheaper one of its kind, with the same
        weight of cost; a larger one is tried.
        """
        site = self.site.with_cost_weight(point.per_usd)
        failed = {"within_target": within_target, "quality": quality}
        self._seen[_key(site, point.sized)] = replace(point, figures=point.figures | failed)
        if within_target >= self.options.share:
            return
        kind = point.per_usd, only_model(site, point.sized)
        for key, other in self._seen.items():
            same = (other.per_usd, only_model(site, other.sized)) == kind
            if same and other.usd_per_h <= point.usd_per_h:
                self._seen[key] = replace(other, meets=False)
        self._grow(site, point.sized)

    def tried(self, site: Site, fleet: Sized) -> Point:
        """What a simulation of the busiest stretch shows of a fleet."""
        key = _key(site, fleet)
        if key not in self._seen:
            run = self.simulate(site, fleet, self.stretch)
            point = self._point(site, fleet, run)
            self._seen[key] = point
            self.say(self._line(point))
        return self._seen[key]

    def _line(self, point: Point) -> str:
        found, known = point.figures, self.questions.quality_known
        return (
            f"{machines(self.site, point.sized)} at preference.cost {point.per_usd:g}: "
            f"{percent(found['within_target'])} within target, ${point.usd_per_h:.2f}/h"
            + (f", quality {found['quality']:.4f}" if known else "")
        )

    def simulate(self, site: Site, fleet: Sized, file: TraceFile) -> Run:
        """Routers know what they know, and learn nothing: fleets are compared, not luck."""
        options = SimulateOptions(seed=self.options.seed, feedback_share=0.0, scales=False)
        return simulated(able(site, fleet), file, self.questions, Events(), options, self.say)

    def _point(self, site: Site, fleet: Sized, run: Run) -> Point:
        found = summary(run, site, quality_known=True)
        span_s = max(float(run.traffic.at_s[-1]), 1e-9)
        figures = {
            "within_target": found["within_target"],
            "quality": found["quality"],
            "usd_per_h": fleet.usd_per_h + 3600.0 * found["cost"]["hosted_usd"] / span_s,
            "joules_per_request": found["energy"]["joules_per_request"],
            "over_budget": float(sum(run.ruled.over_budget.values())),
        }
        meets = found["within_target"] >= self.options.share
        return Point(per_usd=site.preference[1], sized=fleet, figures=figures, meets=meets)

    # --- the choice

    def chosen(self, frontier: Sequence[Point]) -> tuple[Point | None, str]:
        """The point that is wanted; None, and why, where there is none."""
        o = self.options
        in_time = [point for point in frontier if point.meets]
        if not in_time:
            best = max(frontier, key=lambda point: point.figures["within_target"])
            return None, (
                f"no fleet of the GPUs there are keeps {percent(o.share)} within target; the best, "
                f"{machines(self.site, best.sized)}, keeps "
                f"{percent(best.figures['within_target'])}. "
                "More GPUs (`available`, --unlimited), a looser target, or a smaller model"
                + self._over_budget(best)
            )
        good = [p for p in in_time if p.figures["quality"] >= (o.quality_min or 0.0)]
        if not good:
            best = max(in_time, key=lambda point: point.figures["quality"])
            return None, (
                f"no fleet that was tried reaches quality {o.quality_min:g}; the best is "
                f"{best.figures['quality']:.4f} at ${best.usd_per_h:.2f}/h. More --points try more"
            )
        budget = np.inf if o.budget_usd_per_h is None else o.budget_usd_per_h
        paid = [p for p in good if p.usd_per_h <= budget]
        if not paid:
            best = min(good, key=lambda point: point.usd_per_h)
            return None, (
                f"no fleet costs at most ${o.budget_usd_per_h:g}/h; the cheapest that will do is "
                f"${best.usd_per_h:.2f}/h"
            )
        return min(paid, key=self._rank), ""

    def _over_budget(self, point: Point) -> str:
        """That no GPU helps where budgets refuse."""
        n = round(point.figures["over_budget"])
        return f"; [[budgets]] refuse {n:,} requests of the busiest stretch" if n else ""

    def _rank(self, point: Point) -> tuple[float, float]:
        """Lowest first: the cheapest of the good enough, else the best of the affordable."""
        if self.options.quality_min is not None:
            return point.usd_per_h, -point.figures["quality"]
        if self.options.budget_usd_per_h is not None:
            return -point.figures["quality"], point.usd_per_h
        quality, per_usd, _, _ = self.site.preference
        usd = self.usd_per_request(point)
        return per_usd * usd - quality * point.figures["quality"], point.usd_per_h

    def usd_per_request(self, point: Point) -> float:
        """On all of the trace: GPUs are paid for in quiet hours, too."""
        by_hour = point.sized.usd_per_h / _per_s(self.file.trace)
        return (by_hour + point.hosted_usd_per_h / _per_s(self.stretch.trace)) / 3600.0

    def trimmed(self, point: Point) -> Point:
        """Without what it can do without: a replica less, or cheaper ones instead of it.

        What saves most is tried first, then again from there.
        """
        site, tried = self.site.with_cost_weight(point.per_usd), 0
        fleets = self._cheaper(site, point.sized)
        while tried < TRIES_MAX and (fleet := next(fleets, None)):
            tried += 1
            less = self.tried(site, fleet)
            if self.will_do(less) and self._rank(less) < self._rank(point):
                point, fleets = less, self._cheaper(site, fleet)
        return point

    def _cheaper(self, site: Site, fleet: Sized) -> Iterator[Sized]:
        """Fleets a replica away, the cheapest first, that may carry what this one does."""
        found = [fleet_of_replicas(site, each) for each in neighbours(site, fleet.replicas)]
        enough = CARRIED_MIN * self._carried(fleet)
        for one in sorted(found, key=lambda one: one.usd_per_h):
            less = all(n <= fleet.replicas.get(name, 0) for name, n in one.replicas.items())
            carries = self._carried(one) >= enough or (less and (one.usd_per_h or site.hosted))
            if one.usd_per_h < fleet.usd_per_h and carries and self._can_be_had(site, one):
                yield one

    def _carried(self, fleet: Sized) -> float:
        return sum(n * self._carries.get(name, 0.0) for name, n in fleet.replicas.items())


def neighbours(site: Site, replicas: dict[str, int]) -> Iterator[dict[str, int]]:
    """A replica less, or an eighth of a pool; and as many of its model's other pools instead, or
    twice or half as many.
    """
    pools = [plan for plan in site.fleet.pools if plan.name not in site.hosted]
    for plan in pools:
        n = replicas.get(plan.name, 0)
        others = [o.name for o in pools if o.model == plan.model and o.name != plan.name]
        for step in sorted({1, max(1, n // 8)}):
            if step <= n:
                yield replicas | {plan.name: n - step}
            for name in others:
                there = replicas.get(name, 0)
                for gone, come in ((step, step), (step, 2 * step), (2 * step, step)):
                    if gone <= n:
                        yield replicas | {plan.name: n - gone, name: there + come}


def _per_s(trace: Trace) -> float:
    return len(trace) / max(float(trace.at_s[-1]), 1e-9)


def fleet_of_replicas(site: Site, replicas: dict[str, int]) -> Sized:
    """So many of each pool, none of others."""
    own = [plan for plan in site.fleet.pools if plan.name not in site.hosted]
    each = {plan.name: replicas.get(plan.name, 0) for plan in own}
    usd = sum(plan.usd_per_hour * each[plan.name] for plan in own)
    return Sized(replicas=each, unmet=0.0, usd_per_h=usd)


def _key(site: Site, fleet: Sized) -> tuple[object, ...]:
    return site.preference, tuple(sorted(fleet.replicas.items()))


def only_model(site: Site, fleet: Sized) -> str | None:
    """The model that all its replicas run; None where they run several."""
    models = {plan.model for plan in site.fleet.pools if fleet.replicas.get(plan.name)}
    return models.pop() if len(models) == 1 else None


def beats(one: Point, other: Point) -> bool:
    """Whether it is no dearer and no worse, and not the same."""
    a = (one.usd_per_h, -one.figures["quality"])
    b = (other.usd_per_h, -other.figures["quality"])
    return a != b and a[0] <= b[0] and a[1] <= b[1]


def able(site: Site, fleet: Sized) -> Site:
    """The site with a fleet, and with as many GPUs as that needs at least."""
    site = site.with_replicas(fleet.replicas)
    used = gpus_of(site, fleet)
    gpus = tuple(
        replace(g, available=max(g.available, used.get(g.name, 0))) for g in site.fleet.gpus
    )
    by_name = {gpu.name: gpu for gpu in gpus}
    pools = tuple(replace(p, gpu=by_name[p.machine.name]) for p in site.fleet.pools)
    return replace(site, fleet=replace(site.fleet, gpus=gpus, pools=pools))


def gpus_of(site: Site, fleet: Sized) -> dict[str, int]:
    """How many GPUs of each type a fleet has."""
    found: dict[str, int] = {}
    for plan in site.fleet.pools:
        n = fleet.replicas.get(plan.name, 0) * plan.gpus_per_replica
        if n:
            found[plan.machine.name] = found.get(plan.machine.name, 0) + n
    return found


def machines(site: Site, fleet: Sized) -> str:
    """For people: 2 h100_sxm + 1 l4."""
    return " + ".join(f"{n} {gpu}" for gpu, n in gpus_of(site, fleet).items()) or "no GPUs"


def stretch_of(file: TraceFile, seconds: float) -> TraceFile:
    """The part of a trace around its busiest minute."""
    trace: Trace = file.trace
    span_s = float(trace.at_s[-1])
    if span_s <= seconds:
        return file
    ends = np.searchsorted(trace.at_s, trace.at_s + min(60.0, seconds))
    busiest_s = float(trace.at_s[int((ends - np.arange(len(trace))).argmax())])
    begin_s = min(max(0.0, busiest_s + 30.0 - seconds / 2.0), span_s - seconds)
    wanted = Scaling(begin_s=begin_s, end_s=begin_s + seconds)
    part = trace.between(wanted.begin_s, end_s=wanted.end_s)
    return file.with_trace(part, kept_of(trace, wanted), from_s=begin_s)


def turning_points(demand: Demand, n: int) -> list[float]:
    """Weights of cost from where quality alone counts to where the cheapest takes nearly all."""
    none = demand.barred
    best, cheap = (demand.worth + none).argmax(axis=1), (demand.usd - none).argmin(axis=1)
    rows = np.arange(len(best))
    more = demand.worth[rows, best] - demand.worth[rows, cheap]
    usd = demand.usd[rows, best] - demand.usd[rows, cheap]
    even = more[usd > 0.0] / usd[usd > 0.0]
    if not len(even) or n < 1:
        return []
    quantiles = np.quantile(even, np.linspace(0.02, 0.98, n))
    return [float(f"{weight:.3g}") for weight in quantiles if weight > 0.0]
