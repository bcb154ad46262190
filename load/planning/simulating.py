"""A site's settings under a trace, on the virtual clock: the same arguments give the same bits.

    Site, TraceFile, Questions, Events ─seed─▶ simulate ─▶ Run, with every request
    Site, TraceParts, …               ─seed─▶ simulate ─▶ Totals, however many requests

Replicas are as the settings state them, or follow demand where the settings say so. Routers begin
with what the outcome table's other half taught them, with what a snapshot's models were worth on
average, or with nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from infra.autoscaling.contract import Observed, Plan, Scaler
from infra.autoscaling.live.site_scaling import planner_options
from infra.autoscaling.planner import Planner
from load.data.kinds import Kind
from load.data.tables import OutcomeTable
from load.data.traffic import Traffic
from load.errors import TraceRefused
from load.planning.events import Events, surged
from load.planning.figures.totals import Totals
from load.planning.questions import Questions, traffic_of
from load.planning.ruled import ruleset_of
from load.planning.site import Site
from load.simulation.loop.results import Happened, Run
from load.simulation.machines.fleet import UNIX_MS
from load.simulation.simulation import SimulationOptions, simulate, simulate_parts
from load.simulation.warm_start import learned_state
from load.traces.parts import TraceParts
from load.traces.reading import TraceFile
from streams.training.state import State

# Of answers somebody judges, so many are reported: a table's rows come again and again, which
# prompts do not, and more would be learning by heart.
FEEDBACK_SHARE = 0.02
SAID_EVERY_S = 2.0  # how far it is


Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """How it is run."""

    seed: int = 0
    feedback_share: float = FEEDBACK_SHARE
    warm: bool = True  # routers have served before
    scales: bool | None = None  # None: as the settings say
    means: Mapping[str, float] | None = None  # of a snapshot: what each model was worth
    by_clock: bool | None = None  # as the trace has it; None: where rules or budgets go by it


class Clocked(Protocol):
    """A trace, whole or in parts."""

    @property
    def clock_s(self) -> float:
        """Unix time of its beginning."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A scaler that never changes anything."""

    replicas: Mapping[str, int]
    routers: int

    def step(self, observed: Observed) -> Plan:
        """What it always says."""
        return Plan(replicas=self.replicas, routers=max(self.routers, observed.routers))


class Watched:
    """A scaler that says every few seconds how far a simulation is: it is asked all the time."""

    def __init__(
        self,
        scaler: Scaler,
        span_s: float,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scaler, self._span_s, self._say, self._clock = scaler, span_s, say, clock
        self._began_s: float | None = None  # of the simulation
        self._said_s = clock()

    def step(self, observed: Observed) -> Plan:
        """What the scaler says."""
        began_s = self._began_s = observed.at_s if self._began_s is None else self._began_s
        if (now_s := self._clock()) - self._said_s >= SAID_EVERY_S:
            self._said_s = now_s
            done = min(1.0, (observed.at_s - began_s) / max(self._span_s, 1e-9))
            self._say(f"{100.0 * done:.0f} % simulated")
        return self._scaler.step(observed)


def simulated(
    site: Site,
    file: TraceFile,
    questions: Questions,
    events: Events,
    options: SimulateOptions,
    say: Say = lambda text: None,
) -> Run:
    """Run it to the end of the trace."""
    (traffic,) = _traffic([file], questions, events, options.seed)
    return simulate(
        traffic,
        questions.asked,
        site.fleet,
        site.catalogue,
        Watched(_scaler(site, questions, options), float(file.trace.at_s[-1]), say),
        _options(site, questions, options, file, file.trace.kinds),
        events.shocks,
        start=_start(site, questions, events, options, _began_ms(site, options, file)),
    )


def added_up(
    site: Site,
    parts: TraceParts,
    questions: Questions,
    events: Events,
    options: SimulateOptions,
    say: Say = lambda text: None,
) -> tuple[Happened, Totals]:
    """The same of a trace of any length, whose requests are added up as they end.

    Raises TraceRefused where events leave nobody: nothing could be said of answers.
    """
    how = _options(site, questions, options, parts, parts.kinds)
    totals = Totals(site, site.target, parts.span_s + how.tail_s)
    done = simulate_parts(
        _traffic(parts, questions, events, options.seed),
        questions.asked,
        site.fleet,
        site.catalogue,
        Watched(_scaler(site, questions, options), parts.span_s, say),
        how,
        events.shocks,
        totals.add,
        start=_start(site, questions, events, options, how.began_ms),
    )
    if not done.n_requests:
        raise TraceRefused(parts.name, "", "has no request left: events of `load` are 0 all along")
    return done, totals


def _traffic(
    parts: Iterable[TraceFile], questions: Questions, events: Events, seed: int
) -> Iterator[Traffic]:
    """Of each part, with its surges."""
    asked, more = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    for part in parts:
        file = part
        if events.surges:
            file = part.with_trace(surged(part.trace, events.surges, more, later=part.later))
        yield traffic_of(file, questions, asked)


def _options(
    site: Site,
    questions: Questions,
    options: SimulateOptions,
    trace: Clocked,
    kinds: Sequence[Kind],
) -> SimulationOptions:
    return SimulationOptions(
        target=site.target,
        preference=site.preference,
        policy=site.policy,
        placement=replace(site.placement, pricing=site.pricing),
        routers=site.routers,
        feedback_share=options.feedback_share,
        judged=questions.quality_known,
        ruleset=ruleset_of(site, kinds, questions),
        guard=site.guard,
        began_ms=_began_ms(site, options, trace),
        seed=options.seed,
    )


def _began_ms(site: Site, options: SimulateOptions, trace: Clocked) -> int:
    """By the trace's clock, where it matters; else all traces begin at one time."""
    by_clock = site.goes_by_the_clock if options.by_clock is None else options.by_clock
    return round(1e3 * trace.clock_s) if by_clock else UNIX_MS


def _scaler(site: Site, questions: Questions, options: SimulateOptions) -> Scaler:
    scales = site.scales if options.scales is None else options.scales
    replicas = {plan.name: plan.replicas for plan in site.fleet.pools}
    if not scales:
        return Fixed(replicas, site.routers)
    planned = planner_options(site.settings)
    hosted = site.hosted
    return Planner(
        site.fleet,
        {plan.name: plan.rates for plan in site.fleet.pools if plan.name not in hosted},
        site.target,
        _mean_quality(questions.asked),
        replace(planned, sizing=replace(planned.sizing, value_usd=_value_usd(site))),
    )


def _mean_quality(table: OutcomeTable) -> dict[str, float]:
    return dict(zip(table.models, table.quality.mean(axis=0).tolist(), strict=True))


def _value_usd(site: Site) -> float:
    """What a point of quality is worth to callers, in US dollars."""
    quality, per_usd, _, _ = site.preference
    return quality / per_usd if per_usd else site.placement.value_usd


def _start(
    site: Site, questions: Questions, events: Events, options: SimulateOptions, began_ms: int
) -> Callable[[], State | None]:
    """What routers know to begin with; nothing of models that come later."""
    known = questions.known
    if options.means is not None:
        known = _of_means(questions.asked, options.means)
    if known is None or not options.warm:
        return lambda: None
    models = [name for name in known.models if name not in events.newcomers]
    return lambda: learned_state(questions.asked, known.only(models), site.catalogue, began_ms)


def _of_means(asked: OutcomeTable, means: Mapping[str, float]) -> OutcomeTable:
    """As if every prompt had been answered by each known model as it answers on average."""
    models = tuple(name for name in asked.models if name in means)
    quality = np.tile([means[name] for name in models], (len(asked), 1))
    return OutcomeTable(
        asked.name, models, asked.embeddings, asked.prompt_tokens, quality, np.zeros_like(quality)
    )
