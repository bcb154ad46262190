"""One router replica, assembled: view, decider, outboxes, listener. Knows nothing of Ray.

Whatever is started here is stopped here, in the reverse order.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from learners.arms.shortlist import ArmOptions
from learners.estimates.learned import MemoryOptions
from learners.option import option, same_as
from learners.policies.newcomers import NewcomerOptions
from learners.policies.policy import Policy
from learners.policies.probes import ProbeOptions
from serve.access.rates import Rate, Rates
from serve.access.tokens import Access, Token
from serve.admin.changes import Control
from serve.admin.servicer import AdminServicer
from serve.arms.decider import ArmDecider
from serve.arms.listed import Arm
from serve.budgets.ledger import Ledger, Left
from serve.changes.trial import Trial
from serve.deploy.router_alarms import RouterAlarms
from serve.deploy.tracer import Tracer
from serve.deploy.vitals import Vitals
from serve.dispatch.retickets import REASONS
from serve.encoders import EncoderOptions, identity, make_encoder
from serve.grpc_api.listener import ADMIN, ROUTER, Listener, ListenerOptions
from serve.grpc_api.reporting import Reporting
from serve.grpc_api.servicer import RouterServicer, ServicerOptions
from serve.grpc_api.streams import StreamOptions
from serve.routing.catalogue import Catalogue, CatalogueSource
from serve.routing.chooser import Chooser
from serve.routing.decider import Decider
from serve.routing.live import Live, LiveOptions
from serve.routing.live_view import LiveView
from serve.routing.placement import PlacementOptions
from serve.routing.probing import Prober
from serve.routing.request import PreferenceDefaults
from serve.routing.writing.records import counted
from serve.rules.rule import Rule
from serve.rules.rulebook import Rulebook
from serve.sessions.held import SessionOptions, Sessions
from serve.sessions.states import SessionStates
from serve.shared_memory import shared_file
from serve.tracing.calls import TracedCalls
from serve.tracing.tracing import TracingOptions, opened, shown
from streams.alarms import ROUTER_ROLE, Board
from streams.errors import OptionRefused
from streams.feedback import decisions
from streams.feedback.feedback import FeedbackOptions, Ingest
from streams.feedback.report import PROBE
from streams.feedback.ticket import ISSUER_BYTES, Issuer, Sealer, key_of
from streams.log.contract import DECISIONS, FEEDBACK, TELEMETRY, Log
from streams.log.outbox import Outbox, OutboxOptions
from streams.telemetry.received import SILENT_MS
from streams.telemetry.records import Telemetry, encode_all
from streams.telemetry.window import SOURCE_BYTES, TELEMETRY_OUTBOX, Reporter, RouterWindow
from streams.training.change import ChangeOptions
from streams.training.snapshots import Store

logger = logging.getLogger(__name__)

# Nobody waits for the decision log, nor for what a dispatcher reports. Four writes a second take
# 1 % of a core; one per batch took 15, and while one is made, the event loop waits for the
# interpreter. What a caller sends is waited for, so it is written at once.
LINGER_S = 0.25
# The event loop shares the interpreter with the threads that write the log and solve new views.
# Whichever computes gives it up only after so long: by default 5 ms, which a call waits each time
# that the loop has slept.
SWITCH_S = 0.0005


def settle() -> None:
    """What is loaded by now stays to the end, and the event loop comes first.

    Otherwise each full collection of garbage walks through all modules and weights, 50 ms of the
    event loop; and it would wait longer for the threads beside it, see `SWITCH_S`.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """All a replica is set up with, except what it shares with the trainer."""

    encoder: EncoderOptions
    policy: Policy
    memory: MemoryOptions
    live: LiveOptions
    servicer: ServicerOptions
    listener: ListenerOptions
    outbox: OutboxOptions
    feedback: FeedbackOptions
    sessions: SessionOptions = SessionOptions()
    placement: PlacementOptions = PlacementOptions()
    newcomers: NewcomerOptions = NewcomerOptions()
    probes: ProbeOptions = ProbeOptions()
    change: ChangeOptions = ChangeOptions()
    candidate: Policy | None = None  # of the change
    tokens: tuple[Token, ...] = ()
    rates: tuple[Rate, ...] = ()
    n_routers: int = same_as(0, "router.replicas")
    n_dispatchers: int = same_as(0, "dispatch.replicas")
    dispatches: bool = False  # it is within a dispatcher
    rules: tuple[Rule, ...] = ()
    arms: tuple[Arm, ...] = ()
    arm_ranking: ArmOptions = ArmOptions()
    tracing: TracingOptions = TracingOptions()
    rules_match: Literal["all", "first"] = option(
        "all", "Of `[[rules]]`: all that match count, or the first alone."
    )
    session_state_s: float = option(
        86_400.0,
        "Seconds that a session keeps the state that a rule gave it, after its last request.",
        gt=0,
        le=31_536_000,
    )
    log_decisions: bool = option(True, "Write every decision to the decision log.")
    log_prompts: bool = option(
        False, "Put prompts into the decision log, too. They may be personal data."
    )
    # A few records a second are nothing to a log.
    telemetry_s: float = option(
        1.0,
        "Seconds between reports; below 0.1 counts as 0.1. 0: none. A process that is "
        "silent for 10 s is taken to be gone.",
        key="telemetry.period_s",
        ge=0,
        le=5,
    )


def _trial(options: ReplicaOptions, catalogue: Catalogue) -> Trial | None:
    """The change that is under trial. Raises OptionRefused."""
    change = options.change
    if change.mode == "off":
        return None
    if change.model and change.model not in catalogue.column_of:
        raise OptionRefused("change.model", change.model, "a model of the catalogue")
    return Trial(change, options.candidate, catalogue.column_of.get(change.model, 0))


class Replica:
    """Start it on an event loop, stop it on the same."""

    def __init__(
        self,
        options: ReplicaOptions,
        log: Log,
        store: Store,
        source: CatalogueSource,
        ticket_keys: list[bytes],
        seed: int | Sequence[int] | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        control: Control | None = None,
    ) -> None:
        """Load encoder and view. Raises EncoderUnavailable, OptionRefused, SnapshotForeign.

        `seed` makes the draws repeatable; without one they come from the system. Without `control`
        nothing can be changed while running.
        """
        encoder = make_encoder(options.encoder)
        self._options, self._encoder = options, encoder
        self.log, self._store, self.now_ms = log, store, now_ms
        self.rng = np.random.default_rng(seed)
        self.sealer = Sealer(ticket_keys)
        self.issuer = Issuer(secrets.randbits(8 * ISSUER_BYTES))
        self.sessions = Sessions(options.sessions, self._shared("sessions"))
        self.reporter = Reporter(secrets.token_hex(SOURCE_BYTES), now_ms())
        self.tracing = opened(options.tracing)
        self.view = self._live_view(source)
        patient = replace(options.outbox, linger_s=LINGER_S)
        self.decisions: Outbox[decisions.DecisionBatch] = Outbox(
            log, DECISIONS, decisions.encode, patient
        )
        self.feedback: Outbox[tuple[bytes, bytes]] = Outbox(log, FEEDBACK, list, patient)
        self._arms = self._arm_decider()
        self.window = RouterWindow(counted) if options.telemetry_s else None
        chooser = self._chooser(_trial(options, source.read()))
        self.servicer = self._router_servicer(self._decider(chooser))
        self.telemetry: Outbox[Sequence[Telemetry]] | None = None
        self.vitals: Vitals | None = None
        if self.window is not None:
            self.telemetry = Outbox(log, TELEMETRY, encode_all, TELEMETRY_OUTBOX)
            self.vitals = self._reports(self.window, self.telemetry, chooser)
        self.servicers: dict[str, object] = {ROUTER: self.servicer}  # others may be added
        self._access = Access(options.tokens)
        if control is not None:
            self.servicers[ADMIN] = AdminServicer(control, self._access, self._now_s)
        self._listeners: list[Listener] = []

    def _live_view(self, source: CatalogueSource) -> LiveView:
        """The newest snapshot, kept at hand; alarms and arms are told of each look and each one."""
        board = Board(self._store.folder, ROUTER_ROLE, secrets.token_hex(SOURCE_BYTES), self.now_ms)
        self._alarms = RouterAlarms(board, self.now_ms)
        return LiveView(
            self._store,
            source,
            identity(self._encoder),
            self._options.memory,
            self._options.live,
            on_swap=self._refresh_arms,
            on_look=self._alarms.look,
            since_ms=self.now_ms() - SILENT_MS,
            reports_as=self.reporter.source,
        )

    def _chooser(self, trial: Trial | None) -> Chooser:
        options = self._options
        return Chooser(
            options.policy,
            options.placement,
            self.rng,
            options.newcomers,
            self.reporter.source,
            trial,
            self._ledger(),
        )

    def _decider(self, chooser: Chooser) -> Decider:
        rulebook = self._rulebook()
        return Decider(
            self._encoder,
            chooser,
            self.sealer,
            self.issuer,
            self.now_ms,
            self.sessions,
            log_prompts=self._options.log_prompts,
            prober=Prober(self._options.probes),
            rulebook=rulebook,
            states=self._states(rulebook),
        )

    def _states(self, rulebook: Rulebook) -> SessionStates | None:
        """The table of the site's sessions on this machine, where rules give them states."""
        if not rulebook.states:
            return None
        kept_s = self._options.session_state_s
        return SessionStates(rulebook.states, kept_s, self._shared("states"))

    def _shared(self, kind: str) -> Path:
        """The site's file of a kind on this machine."""
        return shared_file(self._store.folder.uri, kind)

    @property
    def _hard_budgets(self) -> bool:
        return any(budget.hard for budget in self._options.placement.pricing.budgets)

    def _ledger(self) -> Ledger | None:
        """Where it is kept what this replica spends; None where nothing has to be, or can be."""
        if not self._hard_budgets:
            return None
        try:
            return Ledger(self._shared("spent"), self.reporter.source)
        except OSError as error:
            logger.warning("what is left of slices is lost if this replica dies: %s", error)
            return None

    def _rulebook(self) -> Rulebook:
        options = self._options
        return Rulebook(options.rules, self._encoder, first_only=options.rules_match == "first")

    def _router_servicer(self, decider: Decider) -> RouterServicer:
        options = self._options
        return RouterServicer(
            decider,
            self._encoder,
            self.view,
            self.sealer,
            self.decisions if options.log_decisions else None,
            self._reporting(),
            [repr(options.policy), *REASONS, PROBE],
            options.servicer,
            self.now_ms,
            self.window,
            Rates(options.rates, self._n_alike) if options.rates else None,
            self._arms,
        )

    def _reporting(self) -> Reporting:
        """Where callers' outcomes go, and what becomes of them."""
        return Reporting(
            self.sealer,
            Ingest(self.sealer, key_of(identity(self._encoder)), self._options.feedback),
            self.feedback,
            Tracer(self.log, self._store),
            self.now_ms,
            shown if self.tracing else lambda: None,
        )

    def _reports(
        self, window: RouterWindow, telemetry: Outbox[Sequence[Telemetry]], chooser: Chooser
    ) -> Vitals:
        """What is said of this replica, once a second."""
        return Vitals(
            window,
            telemetry,
            self.view,
            self.servicer.counts,
            self.reporter,
            self._options.telemetry_s,
            self.now_ms,
            chooser.spending,
            Left(self._shared("spent")) if self._hard_budgets else None,
        )

    def _arm_decider(self) -> ArmDecider | None:
        """What decides among arms, by what is known now; None where there are none."""
        options = self._options
        if not options.arms:
            return None
        found = ArmDecider(
            options.arms,
            self._encoder,
            options.arm_ranking,
            options.policy,
            self.sealer,
            self.issuer,
            self.now_ms,
            self.rng,
            self.decisions.offer if options.log_decisions else None,
            self._rulebook(),
        )
        live = self.view.current
        found.refresh(self.view.arms, live.version, live.published_at_ms)
        return found

    def _refresh_arms(self, live: Live) -> None:
        """Take what a newer snapshot knows of arms; in the thread that watches for them."""
        if self._arms is not None:
            self._arms.refresh(self.view.arms, live.version, live.published_at_ms)

    @property
    def preference(self) -> PreferenceDefaults:
        """The weights of requests that state none."""
        return self._options.servicer.preference

    @property
    def logs_decisions(self) -> bool:
        """Whether decisions go into the log."""
        return self._options.log_decisions

    @property
    def tokens(self) -> tuple[Token, ...]:
        """What callers must show, also those of other servicers."""
        return self._options.tokens

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The operator's rules, also for who dispatches."""
        return self._options.rules

    @property
    def streams(self) -> StreamOptions:
        """The limits of open streams, also those of other servicers."""
        return self._options.servicer.streams

    @property
    def port(self) -> int:
        """The port being listened on; 0 before `start`."""
        return self._listeners[0].port if self._listeners else 0

    @property
    def reserved_port(self) -> int:
        """Likewise, of callers who must not be lost; 0 where there is none."""
        return self._listeners[1].port if self._listeners[1:] else 0

    async def start(self) -> None:
        """Watch the store and answer calls. Raises RuntimeError if a port can't be bound."""
        self.view.start()
        options = self._options.listener
        around = partial(TracedCalls, tracing=self.tracing) if self.tracing else None
        for port in (options.port, *filter(None, [options.reserved_port])):
            there = replace(options, port=port)
            listener = Listener(self.servicers, there, self._access, self._now_s, around)
            await listener.start()
            self._listeners.append(listener)
        if self.vitals is not None:
            self.vitals.start()

    def _n_alike(self) -> int:
        """Routers, or dispatchers, that callers are spread over now."""
        options, known = self._options, self.view.current.n_routers_known()
        if options.dispatches:
            return max(1, options.n_dispatchers)
        return max(1, known - options.n_dispatchers if known else options.n_routers)

    def _now_s(self) -> float:
        return self.now_ms() / 1000

    def problem(self) -> str:
        """Why this replica should be replaced; "" while it is well."""
        return "" if self.view.watching else "the thread that watches for snapshots has died"

    async def stop_listening(self) -> None:
        """End connections; answer what has come by them, but for new requests of open streams."""
        self.servicer.draining = True
        await asyncio.gather(*(listener.stop() for listener in self._listeners))
        self._listeners.clear()

    async def stop(self) -> None:
        """Refuse new calls, finish those under way, write what waits, let go of the rest."""
        await self.stop_listening()
        if self.vitals is not None:
            await self.vitals.stop()
        self.view.stop()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        self._alarms.close()
        # Together: where the log is away, each waits for it as long as it may.
        closes = [one.close for one in (self.feedback, self.decisions, self.telemetry) if one]
        await asyncio.gather(*map(asyncio.to_thread, closes))
        self.log.close()
