"""Where a request goes next, and the call that takes it there.

    places by rank ──health──▶ able ones first ──▶ endpoint ──ticket──▶ call begun: an Attempt
                                                      └── the session's, if it has one

A place that can't be called is passed over without an attempt: where it was the decided one, that
is a reroute, and costs no budget. Which endpoints pools have is asked anew for every attempt.

An attempt that was begun is in its request's list, so that it will be settled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from learners.criticality import Criticality
from serve.dispatch.answers import AttemptRecord, DispatchInput, Kind
from serve.dispatch.attempt import Attempt, Place, began
from serve.dispatch.backend import Call, Pools
from serve.dispatch.features import Feature, Refusals, refused_features
from serve.dispatch.retickets import Reticket, Retickets
from serve.errors import (
    CallRefused,
    EndpointOverloaded,
    NoAnswer,
    PoolsOverloaded,
    PoolsStarting,
)
from serve.health.health import Health
from serve.health.lease import EndpointLease
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live
from serve.sessions.held import Sessions

# Why an able pool was passed over.
SESSION_ELSEWHERE, SLOW = "the session is in another pool", "far slower than it was"
REFUSES = "it has refused such a call"
NOBODY_STARTS = (
    "None of them has a server, and nobody starts one: state `replicas` for a pool of this model, "
    "or have pools sized (`[autoscaling] enabled = true`, with a GPU that the pool states)"
)

# Until a full pool may have room again: most answers take longer, and others come first.
FULL_S = 1.0


@dataclass(kw_only=True, eq=False)
class AnswerState:
    """One answer being made. Stages of a cascade share their list of attempts."""

    dispatch: DispatchInput
    decision: pb.Decision
    live: Live  # the view it was decided by, or one a moment younger; kept to the end
    call: Call
    features: frozenset[Feature]  # what it asks for beyond text
    began_s: float
    deadline_s: float
    places: Sequence[Place]  # by rank
    kind: Kind = "first"  # of its first attempt
    answer: int = 0
    hedged: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    n_before: int = 0  # attempts of the stages before this one
    refusals: dict[str, CallRefused] = field(default_factory=dict)  # by model, of this stage
    suspected: list[Attempt] = field(default_factory=list)  # see `Settlement.suspected`
    escalated: str = ""  # why it is asked for the last time (`strategies.last_resort`)
    tags: tuple[str, ...] = ()  # what answers say of the request (`strategies.self_consistency`)

    @property
    def open_places(self) -> list[Place]:
        """Those whose model has not refused the call."""
        return [place for place in self.places if place.model not in self.refusals]

    @property
    def criticality(self) -> Criticality:
        """How much depends on its answer."""
        return Criticality(max(Criticality) - self.call.priority)

    @property
    def decided(self) -> Place:
        """Where the decision says to go."""
        return Place(self.decision.model, self.decision.pool)

    def cases(self) -> list[pb.Decision | pb.Alternative]:
        """Every model that could answer, the decided one first."""
        return [self.decision, *self.decision.fallbacks]

    def since_ms(self, now_s: float) -> float:
        """Time since the request came in."""
        return (now_s - self.began_s) * 1000.0

    @property
    def own(self) -> list[Attempt]:
        """The attempts of this stage."""
        return self.attempts[self.n_before :]

    @property
    def n_failed(self) -> int:
        """Attempts of this stage that failed; whose model refused the call has not."""
        return sum(a.settled is None or a.settled.outcome != CallRefused.kind for a in self.own)

    def records(self) -> tuple[AttemptRecord, ...]:
        """What has been tried so far, as people see it."""
        return tuple(attempt.settled for attempt in self.attempts if attempt.settled is not None)


class Caller:
    """Begins attempts. Used from one event loop."""

    def __init__(
        self,
        pools: Pools,
        health: Health,
        retickets: Retickets,
        sessions: Sessions,
        now_s: Callable[[], float],
        now_ms: Callable[[], int],
        uniform: Callable[[], float],
    ) -> None:
        self._pools, self._health = pools, health
        self._retickets, self._sessions = retickets, sessions
        self._now_s, self._now_ms, self._uniform = now_s, now_ms, uniform
        self._known: dict[str, tuple[str, ...]] = {}  # endpoints that health knows
        self._missed_s: dict[str, float] = {}  # when a pool was first asked for without having any
        self.refusals = Refusals()

    def begin(
        self, request: AnswerState, kind: Kind, *, is_retry: bool, places: Sequence[Place] = ()
    ) -> Attempt:
        """Call the best place that can be called. Raises NoAnswer."""
        now_s = self._now_s()
        for place in self._in_order(request, places or request.open_places, now_s):
            lease = self._lease(request, place, now_s)
            if lease is not None:
                return self._called(request, place, lease, kind, is_retry, now_s)
        refused = next(iter(request.refusals.values()), None)
        raise refused or self.no_answer(request, "no pool has an endpoint that can be called")

    def _lease(self, request: AnswerState, place: Place, now_s: float) -> EndpointLease | None:
        """An endpoint of a pool: the session's, or another than the last one tried there."""
        prefer = avoid = ""
        route = request.dispatch.route
        if here := [attempt.lease.address for attempt in request.own if attempt.place == place]:
            avoid = here[-1]
        elif held := self._sessions.held(route.tenant, route.session, self._now_ms()):
            prefer = held.endpoint if held.pool == place.pool else ""
        tokens = request.call.prompt_tokens
        return self._health.pick(
            place.pool,
            now_s,
            uniform=self._uniform(),
            prefer=prefer,
            avoid=avoid,
            prompt_tokens=tokens,
            most=self._most(request, place.pool),
        )

    @staticmethod
    def _most(request: AnswerState, pool: str) -> float:
        """How many requests a server of a pool may hold, for this one to be sent there, too."""
        return request.live.held_most(pool, request.criticality)

    def _called(
        self,
        request: AnswerState,
        place: Place,
        lease: EndpointLease,
        kind: Kind,
        is_retry: bool,
        now_s: float,
    ) -> Attempt:
        """Begin an attempt."""
        health, decided, why = self._health, request.decided, ""
        if kind == "first" and place != decided:
            kind = "reroute"
            why = f"{decided.pool}: {self._reason(request, decided.pool) or SESSION_ELSEWHERE}"
        try:
            ticket = self._ticket(request, place, kind)
            endpoint = self._pools.endpoints(place.pool)[lease.address]
            stream, first = began(endpoint, request.call)
        except BaseException:
            lease.cancelled(now_s)
            raise
        tokens = request.call.prompt_tokens
        hedge_s = health.hedge_delay_s(place.pool, now_s, prompt_tokens=tokens)
        timeout_s = health.first_token_timeout_s(place.pool, now_s, prompt_tokens=tokens)
        attempt = Attempt(
            place=place,
            decided=decided,
            kind=kind,
            ticket=ticket,
            lease=lease,
            stream=stream,
            first=first,
            prompt_tokens=request.call.prompt_tokens,
            tenant=request.dispatch.route.tenant,
            catalogue=request.live.catalogue,
            why=why,
            began_s=now_s,
            # By what the pool does, whatever the caller's deadline: that one is not its fault.
            late_at_s=now_s + max(hedge_s, timeout_s),
            hedge_at_s=now_s + hedge_s,
            is_retry=is_retry,
        )
        request.attempts.append(attempt)
        return attempt

    def _in_order(
        self, request: AnswerState, places: Sequence[Place], now_s: float
    ) -> Iterable[Place]:
        """Places that can answer before those that can't, untried ones before tried ones."""
        for place in places:
            self._update_health(place.pool, now_s)
        place_of = {place.pool: place for place in places}
        tried = {attempt.place.pool for attempt in request.own}
        ranked = sorted(place_of, key=tried.__contains__) if tried else list(place_of)
        most = {pool: self._most(request, pool) for pool in ranked}
        ordered = self._health.order(ranked, now_s, most)
        if len(ordered) > 1:
            ordered.sort(key=lambda pool: self._rank(request, pool, now_s))
        return map(place_of.__getitem__, ordered)

    def _rank(self, request: AnswerState, pool: str, now_s: float) -> tuple[bool, bool, bool]:
        """Pools that can't answer come last, before them those that refused such a call.

        And before those the ones that are far slower than they were.
        """
        health = self._health
        unable = health.reason(pool, now_s, most=self._most(request, pool)) != ""
        slow = health.slow(pool, now_s)
        return unable, self._refuses(request, pool, now_s), slow

    def _refuses(self, request: AnswerState, pool: str, now_s: float) -> bool:
        tokens = request.call.prompt_tokens
        return self.refusals.refuses(pool, request.features, tokens, now_s=now_s)

    def note_refusal(self, request: AnswerState, attempt: Attempt, error: CallRefused) -> None:
        """Its model has refused the call: no other pool of it is asked, and that is remembered."""
        request.refusals.setdefault(attempt.place.model, error)
        words, tokens = error.problem, request.call.prompt_tokens
        features = refused_features(words, request.features)
        self.refusals.note(attempt.place.pool, features, tokens, words, now_s=self._now_s())

    def note_answer(self, request: AnswerState, attempt: Attempt) -> None:
        """It has begun to answer, so what it was remembered to refuse is forgotten."""
        tokens = request.call.prompt_tokens
        self.refusals.undo(attempt.place.pool, request.features, tokens)

    def _update_health(self, pool: str, now_s: float) -> None:
        """Give health the pool's endpoints, if they have changed."""
        addresses = tuple(self._pools.endpoints(pool))
        if self._known.get(pool) != addresses:
            self._health.set_endpoints(pool, addresses, now_s)
            self._known[pool] = addresses
        if addresses:
            self._missed_s.pop(pool, None)
        else:
            self._missed_s.setdefault(pool, now_s)

    def _ticket(self, request: AnswerState, place: Place, kind: Kind) -> Reticket:
        """The decision's own ticket for the first attempt where it says; else a new one."""
        decision = request.decision
        taken = any(attempt.ticket.ticket == decision.ticket for attempt in request.attempts)
        own = place == request.decided and not request.tags
        if own and not taken and request.answer == 0:
            return Reticket(decision.decision_id, decision.ticket)
        return self._new_ticket(request, place, kind)

    def _new_ticket(self, request: AnswerState, place: Place, kind: Kind) -> Reticket:
        route, live, tags = request.dispatch.route, request.live, request.tags
        return self._retickets.issue(request.decision, route, *place, kind, live, tags)

    def ticket_again(self, request: AnswerState, attempt: Attempt) -> Reticket:
        """Have an attempt's ticket say what its request is known to be by now; the former one."""
        former = attempt.ticket
        attempt.ticket = self._new_ticket(request, attempt.place, attempt.kind)
        return former

    def beside(self, request: AnswerState, late: Attempt) -> Place | None:
        """Where a late attempt is doubled: its pool, if that has another endpoint, or the next."""
        now_s, tried = self._now_s(), {attempt.place for attempt in request.own}
        others = [place for place in request.open_places if place not in tried]
        if len(self._pools.endpoints(late.place.pool)) > 1:
            others.insert(0, late.place)
        for place in others:
            self._update_health(place.pool, now_s)
            if not self._health.reason(place.pool, now_s, most=self._most(request, place.pool)):
                return place
        return None

    def no_answer(self, request: AnswerState, why: str) -> NoAnswer:
        """An error that says all that was tried; that all pools are overloaded, where they are."""
        records = listed(request.records())
        reasons = [(p.pool, self._reason(request, p.pool) or "able") for p in request.places[:8]]
        places = ", ".join(f"{pool} ({reason})" for pool, reason in reasons)
        problem = f"{why}. Attempts: {records or 'none'}. Pools: {places}"
        if (after_s := self._overloaded_for_s(request)) is not None:
            return PoolsOverloaded("dispatch", problem, after_s)
        there = [bool(self._pools.endpoints(pool)) for _, pool in request.open_places]
        if there and not any(there):
            return self._without_servers(request, problem)
        return NoAnswer("dispatch", problem)

    def _without_servers(self, request: AnswerState, problem: str) -> NoAnswer:
        """None of its pools has one: when one may be there, or that nobody starts one."""
        now_s = self._now_s()
        starts = [
            start_s - (now_s - self._missed_s.get(pool, now_s))
            for _, pool in request.open_places
            if (start_s := self._pools.start_s(pool)) is not None
        ]
        if starts:
            return PoolsStarting("dispatch", problem, max(1.0, min(starts)))
        return NoAnswer("dispatch", f"{problem}. {NOBODY_STARTS}")

    def _overloaded_for_s(self, request: AnswerState) -> float | None:
        """Seconds until the first of its pools wants to be asked again; None: one is not paused.

        Those that all said they were overloaded, and not for how long, are asked again soon.
        """
        now_s = self._now_s()
        there = [pool for _, pool in request.open_places if self._pools.endpoints(pool)]
        pauses = [self._paused_for_s(request, pool, now_s) for pool in there]
        paused = [pause for pause in pauses if pause is not None]
        if paused and len(paused) == len(pauses):
            return min(paused)
        outcomes = {record.outcome for record in request.records()}
        return FULL_S if outcomes == {EndpointOverloaded.kind} else None

    def _paused_for_s(self, request: AnswerState, pool: str, now_s: float) -> float | None:
        """Seconds until it may be asked again, because it wants to be left alone, or is full."""
        full = self._health.reason(pool, now_s, most=self._most(request, pool)) == "full"
        return self._health.paused_for_s(pool, now_s) or (FULL_S if full else None)

    def _reason(self, request: AnswerState, pool: str) -> str:
        """Why a pool comes behind others; "" if it does not."""
        unable, refuses, slow = self._rank(request, pool, now_s := self._now_s())
        if unable:
            return self._health.reason(pool, now_s, most=self._most(request, pool))
        return REFUSES if refuses else SLOW if slow else ""


def listed(records: Sequence[AttemptRecord]) -> str:
    """Attempts in a sentence, for whoever gets no answer."""
    return "; ".join(
        f"{a.kind} at {a.pool} ({a.endpoint}): {a.outcome}, {a.detail[:200]}" for a in records
    )
