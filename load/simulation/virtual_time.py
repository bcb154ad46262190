"""The loop of a simulation: from tick to tick, and what is due at the end of each.

    _until ──▶ ask what arrives ──▶ let time pass ──▶ starts, shocks, telemetry, scaling ──▶ again

A tick ends when something is due, at the latest after `tick_s` or `tick_requests` arrivals. See
`simulation` for what belongs together, and the files of the parts for what each does.

At one time engines come first, then what changes the fleet, then who looks at it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from infra.autoscaling.contract import Scaler
from infra.capacity.fleet import Fleet
from infra.capacity.latency_target import LatencyTarget
from learners.novelty import GuardOptions
from learners.policies.policy import Policy, default_policy
from load.data.table_contexts import contexts_of, encoder_of
from load.data.tables import OutcomeTable
from load.data.traffic import Traffic
from load.simulation.loop.answers import Ledger, Report
from load.simulation.loop.arrivals import Arrivals
from load.simulation.loop.asking import Asking, RuledAsking, Ruler, Ruleset
from load.simulation.loop.bills import Bill, Bills
from load.simulation.loop.dispatch import Dispatch
from load.simulation.loop.mail import Mail
from load.simulation.loop.results import Answers, Happened
from load.simulation.loop.router import VirtualRouter
from load.simulation.loop.rulings import Rulings
from load.simulation.loop.split import Split
from load.simulation.loop.telemetry import VirtualTelemetry
from load.simulation.loop.trainer import VirtualTrainer, blind
from load.simulation.machines.fleet import UNIX_MS, VirtualFleet, unix_ms
from load.simulation.machines.offered import NOBODY, Lost
from load.simulation.observer import Series, observed, repriced
from load.simulation.shocks import (
    Available,
    Drifted,
    FeedbackAway,
    FeedbackLate,
    Garbled,
    PoolBack,
    PoolLost,
    RegionBack,
    RegionLost,
    Repriced,
    Shock,
    Silent,
    What,
)
from serve.routing.catalogue import Catalogue
from serve.routing.chooser import Chooser
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from streams.feedback.ticket import KEY_BYTES, Issuer, Sealer
from streams.log.contract import FEEDBACK
from streams.log.memory_log import MemoryLog, Storage
from streams.telemetry.records import AnyTelemetry, EndedReplica
from streams.telemetry.window import Reporter
from streams.training.budgets import Accounts
from streams.training.state import State
from streams.training.trainer import TrainerOptions

Ended = Callable[[Traffic, Answers], None]  # takes requests whose fate is known, in their order
OPENING_S = (-2.0, -1.0, 0.0)  # when routers first report, before the first request
TICKET_KEY = bytes(KEY_BYTES)  # nobody has to be kept from a simulation's tickets


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """What is simulated, and how finely."""

    target: LatencyTarget = field(default_factory=LatencyTarget)
    # Weights of quality, US dollars, seconds, kilojoules: the router's own defaults.
    preference: tuple[float, float, float, float] = (1.0, 20.0, 0.01, 0.0)
    policy: Policy = field(default_factory=default_policy)
    placement: PlacementOptions = field(default_factory=PlacementOptions)
    router_priced: bool = True  # False: it is blind to pools, knows neither loads nor prices
    routers: int = 1  # to begin with
    decision_s: float = 3e-4  # of a router's event loop; only the scaler of routers sees it
    feedback_share: float = 0.05  # of requests whose outcome somebody reports …
    feedback_s: float = 10.0  # … in lumps, so often
    judged: bool = True  # False: nobody knows how good answers are, only what they took
    publish_s: float = 300.0  # between views of what was learned, at most
    telemetry_s: float = 2.0  # between records of a replica, and between views of them
    scale_s: float = 10.0  # between steps of the scaler
    # As in a real batch: what is known is so old, and so many requests, at most. Telemetry comes
    # every `telemetry_s`, so a smaller batch would know hardly more, and costs more to decide.
    tick_s: float = 0.5
    tick_requests: int = 256
    # Of requests that say something, or that rules, limits or the guard are for; None: they are
    # plain, and views of what was learned leave out what only others need.
    ruleset: Ruleset | None = None
    guard: GuardOptions = field(default_factory=GuardOptions)
    began_ms: int = UNIX_MS  # Unix time of its beginning: budgets and rules go by the clock
    tail_s: float = 60.0  # after the last arrival, so that late answers come to their end
    seed: int = 0


class Simulation:
    """One run, from the beginning to the end."""

    def __init__(
        self,
        parts: Iterable[Traffic],
        table: OutcomeTable,
        fleet: Fleet,
        catalogue: Catalogue,
        scaler: Scaler,
        options: SimulationOptions,
        shocks: Sequence[Shock],
        start: Callable[[], State | None],
        storage: Storage | None,
        ended: Ended,
    ) -> None:
        self._options, self._scaler, self._ended = options, scaler, ended
        self._arrivals = arrivals = Arrivals(parts)
        self._shocks = deque(sorted(shocks, key=lambda shock: shock.at_s))
        self._now_s, self._n_asked = 0.0, 0
        seeds = np.random.SeedSequence(options.seed).spawn(4)
        machines, dispatch, noise, self._routing = map(np.random.default_rng, seeds)
        self._log = MemoryLog(storage or Storage(), self._now_ms)
        self._log.ensure_topics()
        self._sealer = Sealer([TICKET_KEY])
        self._trainer = VirtualTrainer(
            self._log,
            catalogue,
            self._sealer,
            encoder_of(table),
            contexts_of(table),
            TrainerOptions(pricing=options.placement.pricing),
            options.publish_s,
            self._now_ms,
            start,
            LiveOptions(guard=options.guard),
            keep_log=storage is not None,
            plain_requests=options.ruleset is None,
        )
        self._fleet = VirtualFleet(fleet, options.target, machines, began_ms=options.began_ms)
        self._ledger = Ledger(arrivals, table, catalogue, judged=options.judged)
        self._ledger.hold()
        self._dispatch = Dispatch(arrivals, catalogue, self._fleet, self._ledger, dispatch)
        self._telemetry = VirtualTelemetry(self._log, noise)
        self._asking = _asking(arrivals, options)
        self._rulings = Rulings(options.placement)
        self._bills = Bills(options.placement, catalogue)
        self._split = None
        if not options.router_priced:
            self._split = Split(arrivals.held, catalogue, self._fleet, options.target)
        self._routers: list[VirtualRouter] = []
        self._set_routers(options.routers)
        self._series = Series(self._fleet)
        self._again: list[int] = []  # to be routed again: their replica was lost
        self._telemetry_at_s, self._scale_at_s = options.telemetry_s, options.scale_s
        self._feedback_at_s, self._mail = options.feedback_s, Mail[Report]()
        self._billing = Mail[Bill]()
        self._ended_routers: list[EndedReplica] = []  # said until it is in the accounts
        self._n_ticks = 0
        self._live = self._view()
        if options.placement.pricing.budgets:
            self._open_accounts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._trainer.close()

    def _now_ms(self) -> int:
        return unix_ms(self._now_s, self._options.began_ms)

    # --- time

    def run(self) -> None:
        """To the end."""
        self._series.look(0.0)
        while self._now_s < self._end_s:
            self._tick()
        self._ledger.left(self._fleet.close(self._end_s))
        self._ended(*self._ledger.let_go(len(self._arrivals.held)))

    def _tick(self) -> None:
        """Ask what arrives, let it be answered, and do what is due then."""
        n_asked, to_s = self._until()
        arriving = np.arange(self._n_asked, n_asked)
        again, self._again = self._again, []
        numbers = np.concatenate([np.array(again, np.intp), arriving]) if again else arriving
        if len(numbers):
            self._ask(numbers, len(again))
        self._n_asked, self._now_s = n_asked, to_s
        answered = self._fleet.advance(to_s)
        self._ledger.answered(answered, self._routers[0])
        self._bills.answered(answered, self._arrivals, self._ledger)
        self._do_what_is_due()

    def _until(self) -> tuple[int, float]:
        """Up to which request this tick goes, and until when."""
        options, arrivals = self._options, self._arrivals
        held = len(arrivals.held)
        arrivals.until(self._now_s + options.tick_s)
        if len(arrivals.held) > held:
            self._ledger.hold()
            self._let_go()
        shock_s = self._shocks[0].at_s if self._shocks else math.inf
        to_s = min(
            self._now_s + options.tick_s,
            self._telemetry_at_s,
            self._scale_at_s,
            self._fleet.next_start_s(),
            max(shock_s, self._now_s),
            self._end_s,
        )
        n_asked = arrivals.until(to_s)
        if n_asked - self._n_asked > options.tick_requests:
            n_asked = self._n_asked + options.tick_requests
            to_s = arrivals.at_s(n_asked)
        return n_asked, to_s

    def _let_go(self) -> None:
        """Of those that have ended, with all before them."""
        if n := self._ledger.n_ended:
            self._ended(*self._ledger.let_go(n))

    @property
    def _end_s(self) -> float:
        """Known when the last request is."""
        return self._arrivals.last_s + self._options.tail_s

    def _do_what_is_due(self) -> None:
        now_s = self._now_s
        if self._fleet.next_start_s() <= now_s:
            self._fleet.start(now_s)
        while self._shocks and self._shocks[0].at_s <= now_s:
            self._strike(self._shocks.popleft())
        if now_s >= self._telemetry_at_s:
            self._telemetry_at_s += self._options.telemetry_s
            self._report()
        if now_s >= self._scale_at_s:
            self._scale_at_s += self._options.scale_s
            self._scale()

    # --- routing

    def _ask(self, numbers: np.ndarray, n_again: int) -> None:
        """Decide for requests, and send them on; the first `n_again` have lost their replica."""
        self._n_ticks += 1
        router, now_ms = self._routers[self._n_ticks % len(self._routers)], self._now_ms()
        chosen = router.choose(numbers, self._live, now_ms)
        asked, decisions = chosen.asked, chosen.decisions
        self._rulings.asked(asked, n_again)
        self._ledger.ruled_out(asked.refused)
        if decisions is None:
            return
        numbers, choices = asked.numbers, decisions.choices
        self._rulings.decided(decisions)
        goes = choices.fits & ~choices.shed
        chance = self._routing.random(len(numbers))
        reporting = np.flatnonzero(goes & (chance < self._options.feedback_share))
        tickets: dict[int, bytes] = {}
        if len(reporting):
            tickets = dict(zip(reporting.tolist(), router.seal(decisions[reporting]), strict=True))
        self._dispatch.send(numbers, choices, self._live, tickets, self._now_s)
        self._bills.decided(numbers, decisions, self._ledger)

    def _set_routers(self, n: int) -> None:
        """Have so many routers, one at least. What a leaving one has not reported is lost, but for
        what it spent of budgets.
        """
        for leaving in self._routers[max(1, n) :]:
            self._ended_routers += leaving.end(self._now_ms())
        del self._routers[max(1, n) :]
        while len(self._routers) < n:
            rng, options = self._routing.spawn(1)[0], self._options
            issuer = Issuer(int(rng.integers(1 << 56)))
            reporter = Reporter(rng.bytes(8).hex(), self._now_ms())
            chooser = Chooser(options.policy, options.placement, rng, source=reporter.source)
            self._routers.append(
                VirtualRouter(self._asking, chooser, self._sealer, issuer, reporter, self._split)
            )

    def _view(self) -> Live:
        live = self._trainer.live
        return live if self._options.router_priced else blind(live)

    # --- telemetry, learning

    def _open_accounts(self) -> None:
        """Routers say that they are there, and get their first slices of budgets: a site that has
        served before has them. What one record says is in the accounts when the next one comes.
        """
        for self._now_s in OPENING_S:
            self._telemetry.send(self._router_records(), self._now_s)
            self._trainer.step()
        self._live = self._view()

    def _router_records(self) -> list[AnyTelemetry]:
        now_ms, decision_s = self._now_ms(), self._options.decision_s
        ended = self._ended_routers
        return [
            record
            for router in self._routers
            for record in router.records(
                self._live, decision_s, now_ms, ended if router is self._routers[0] else ()
            )
        ]

    def _report(self) -> None:
        """A window ends: everybody reports, the trainer learns, routers see it."""
        records = [*self._router_records(), *self._fleet.reports(self._now_s)]
        self._telemetry.send(records, self._now_s)
        if self._now_s >= self._feedback_at_s:
            self._feedback_at_s += self._options.feedback_s
            self._mail.send(self._ledger.take_reports(), self._now_s)
            self._log.append(FEEDBACK, self._mail.arrived(self._now_s))
        self._billing.send(self._bills.take(), self._now_s)
        self._trainer.settle(self._billing.arrived(self._now_s))
        self._trainer.step()
        self._live = self._view()
        accounts = self._live.prices.accounts
        self._ended_routers = [one for one in self._ended_routers if not is_ended(one, accounts)]
        self._rulings.note(accounts)

    # --- scaling

    def _scale(self) -> None:
        plan = self._scaler.step(
            observed(
                self._trainer.state,
                self._trainer.live,
                self._fleet,
                len(self._routers),
                self._now_ms(),
            )
        )
        self._fleet.resize(plan.replicas, self._now_s)
        self._set_routers(plan.routers)
        self._series.look(self._now_s, plan.lines)

    # --- shocks

    def _strike(self, shock: Shock) -> None:
        lost = self._strike_machines(shock.what)
        if lost is None:
            self._strike_the_rest(shock.what)
        else:
            self._again += self._ledger.lost(lost)
            self._bills.lost(lost.numbers)

    def _strike_machines(self, what: What) -> Lost | None:
        """The requests that are lost; None where it is no machine that is struck."""
        fleet, now_s = self._fleet, self._now_s
        match what:
            case Available():
                return fleet.set_available(what.gpu, what.gpus, now_s)
            case RegionLost():
                return fleet.lose_region(what.region, now_s)
            case RegionBack():
                fleet.return_region(what.region, now_s)
            case PoolLost():
                return fleet.lose_pool(what.pool, now_s)
            case PoolBack():
                fleet.return_pool(what.pool, now_s)
            case _:
                return None
        return NOBODY

    def _strike_the_rest(self, what: What) -> None:
        fleet, now_s = self._fleet, self._now_s
        match what:
            case Repriced():
                fleet.tariff.change(what.gpu, what.usd_per_hour, at_s=now_s)
                self._trainer.restate(repriced(self._trainer.live.catalogue, fleet.described()))
                self._live = self._view()
            case Drifted():
                self._ledger.drift(what.model, what.quality_times)
            case FeedbackLate():
                for mail in (self._mail, self._billing):
                    mail.late(until_s=now_s + what.for_s, late_s=what.late_s)
            case FeedbackAway():
                for mail in (self._mail, self._billing):
                    mail.away(until_s=now_s + what.for_s)
            case Silent():
                self._telemetry.silence(until_s=now_s + what.for_s)
            case Garbled():
                self._telemetry.garble(until_s=now_s + what.for_s)

    # --- the end

    def result(self, cpu_s: float) -> Happened:
        """What came of it, but for the requests."""
        return Happened(
            target=self._options.target,
            n_requests=self._n_asked,
            replicas=self._series.columns(),
            lines=self._series.lines(),
            gpu_usd=dict(self._fleet.usd),
            gpu_prices=self._fleet.tariff.steps(),
            joules=self._fleet.joules,
            replica_changes=self._fleet.changes,
            end_s=self._end_s,
            ended_ms=self._now_ms(),
            ruled=self._rulings.result(),
            cpu_s=cpu_s,
        )


def is_ended(router: EndedReplica, accounts: Accounts) -> bool:
    """Whether accounts know that a router spends no more."""
    return any(router.source in account.ended for account in accounts.values())


def _asking(arrivals: Arrivals, options: SimulationOptions) -> Asking | RuledAsking:
    if options.ruleset is not None:
        return RuledAsking(arrivals=arrivals, ruler=Ruler(options.ruleset, options.preference))
    return Asking(
        arrivals=arrivals,
        criticality=np.array(arrivals.held.criticality, np.int8),
        preference=options.preference,
    )
