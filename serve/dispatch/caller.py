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

from serve.dispatch.answers import AttemptRecord, DispatchInput, Kind
from serve.dispatch.attempt import Attempt, Place, began
from serve.dispatch.backend import Call, Pools
from serve.dispatch.retickets import Reticket, Retickets
from serve.errors import NoAnswer
from serve.health.health import EndpointLease, Health
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live
from serve.routing.sessions import Sessions

# Why an able pool was passed over.
SESSION_ELSEWHERE, SLOW = "the session is in another pool", "far slower than it was"


@dataclass(slots=True, kw_only=True, eq=False)
class AnswerState:
    """One answer being made. Stages of a cascade share their list of attempts."""

    dispatch: DispatchInput
    decision: pb.Decision
    live: Live  # the view it was decided by, or one a moment younger; kept to the end
    call: Call
    began_s: float
    deadline_s: float
    places: Sequence[Place]  # by rank
    kind: Kind = "first"  # of its first attempt
    answer: int = 0
    hedged: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    n_before: int = 0  # attempts of the stages before this one

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

    def begin(
        self, request: AnswerState, kind: Kind, *, is_retry: bool, places: Sequence[Place] = ()
    ) -> Attempt:
        """Call the best place that can be called. Raises NoAnswer."""
        now_s = self._now_s()
        for place in self._in_order(request, places or request.places, now_s):
            lease = self._lease(request, place, now_s)
            if lease is not None:
                return self._called(request, place, lease, kind, is_retry, now_s)
        raise self.no_answer(request, "no pool has an endpoint that can be called")

    def _lease(self, request: AnswerState, place: Place, now_s: float) -> EndpointLease | None:
        """An endpoint of a pool: the session's, or another than the last one tried there."""
        prefer = avoid = ""
        if here := [attempt.lease.address for attempt in request.own if attempt.place == place]:
            avoid = here[-1]
        elif held := self._sessions.held(request.dispatch.route.session, self._now_ms()):
            prefer = held.endpoint if held.pool == place.pool else ""
        return self._health.pick(
            place.pool, now_s, uniform=self._uniform(), prefer=prefer, avoid=avoid
        )

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
            why = f"{decided.pool}: {self._reason(decided.pool) or SESSION_ELSEWHERE}"
        try:
            ticket = self._ticket(request, place, kind)
            endpoint = self._pools.endpoints(place.pool)[lease.address]
            stream, first = began(endpoint, request.call)
        except BaseException:
            lease.cancelled(now_s)
            raise
        hedge_s = health.hedge_delay_s(place.pool, now_s)
        timeout_s = health.first_token_timeout_s(place.pool, now_s, request.deadline_s - now_s)
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
            # A deadline that leaves less than most requests wait is no fault of the pool.
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
        ordered = self._health.order(ranked, now_s)
        if len(ordered) > 1:
            ordered.sort(key=lambda pool: self._rank(pool, now_s))
        return map(place_of.__getitem__, ordered)

    def _rank(self, pool: str, now_s: float) -> tuple[bool, bool]:
        """Pools that can't answer come last, those far slower than they were before them."""
        health = self._health
        return health.reason(pool, now_s) != "", health.slow(pool, now_s)

    def _update_health(self, pool: str, now_s: float) -> None:
        """Give health the pool's endpoints, if they have changed."""
        addresses = tuple(self._pools.endpoints(pool))
        if self._known.get(pool) != addresses:
            self._health.set_endpoints(pool, addresses, now_s)
            self._known[pool] = addresses

    def _ticket(self, request: AnswerState, place: Place, kind: Kind) -> Reticket:
        """The decision's own ticket for the first attempt where it says; else a new one."""
        decision = request.decision
        taken = any(attempt.ticket.ticket == decision.ticket for attempt in request.attempts)
        if place == request.decided and not taken and request.answer == 0:
            return Reticket(decision.decision_id, decision.ticket)
        return self._retickets.issue(decision, request.dispatch.route, *place, kind, request.live)

    def beside(self, request: AnswerState, late: Attempt) -> Place | None:
        """Where a late attempt is doubled: its pool, if that has another endpoint, or the next."""
        now_s, tried = self._now_s(), {attempt.place for attempt in request.own}
        others = [place for place in request.places if place not in tried]
        if len(self._pools.endpoints(late.place.pool)) > 1:
            others.insert(0, late.place)
        for place in others:
            self._update_health(place.pool, now_s)
            if not self._health.reason(place.pool, now_s):
                return place
        return None

    def no_answer(self, request: AnswerState, why: str) -> NoAnswer:
        """An error that says all that was tried."""
        records = listed(request.records())
        reasons = [(p.pool, self._reason(p.pool) or "able") for p in request.places[:8]]
        places = ", ".join(f"{pool} ({reason})" for pool, reason in reasons)
        return NoAnswer("dispatch", f"{why}. Attempts: {records or 'none'}. Pools: {places}")

    def _reason(self, pool: str) -> str:
        """Why a pool comes behind others; "" if it does not."""
        unable, slow = self._rank(pool, now_s := self._now_s())
        return self._health.reason(pool, now_s) if unable else SLOW if slow else ""


def listed(records: Sequence[AttemptRecord]) -> str:
    """Attempts in a sentence, for whoever gets no answer."""
    return "; ".join(
        f"{a.kind} at {a.pool} ({a.endpoint}): {a.outcome}, {a.detail[:200]}" for a in records
    )
