"""Try cheap, escalate when the answer is not sure.

    cheapest model ──whole answer──▶ sure?  ──yes──▶ it is streamed
                                       └─no, time is left──▶ the best model's is streamed instead

Sure is the geometric mean of the tokens' probabilities. A pool that gives none is believed, and the
reply has no confidence to show. The cheap answer is kept until the better one has begun: if that
never comes, the cheap one is still an answer. If the cheap one never comes, whoever else can answer
is asked, the best one first: nothing has been streamed yet.

Both calls are paid for, and only the one whose answer is streamed is learned from.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from learners.targets import Target
from serve.dispatch.answers import Event, Routed, Streamed
from serve.dispatch.attempt import Attempt, Place
from serve.dispatch.backend import Piece
from serve.dispatch.caller import AnswerState
from serve.dispatch.race import Race
from serve.dispatch.settlement import Settlement
from serve.dispatch.strategies.one_answer import OneAnswer
from serve.errors import AttemptFailed, DeadlinePassed
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live

Case = pb.Decision | pb.Alternative


class Cascade:
    """Runs cascades. Used from one event loop."""

    def __init__(
        self, one: OneAnswer, race: Race, settlement: Settlement, now_s: Callable[[], float]
    ) -> None:
        self._one, self._race, self._settlement, self._now_s = one, race, settlement, now_s

    async def events(
        self, request: AnswerState, confidence_min: float
    ) -> AsyncGenerator[Event, None]:
        """The events of the answer that is taken. Raises as `OneAnswer.events` does."""
        cheap, better, others = _ladder(request)
        small = replace(
            request, places=cheap, kind="cascade", call=replace(request.call, confidence=True)
        )
        attempt, pieces = await self._whole(small, fatal=not (better or others))
        large = replace(request, kind="escalation", n_before=len(request.attempts))
        if attempt is None:
            large.places = [*better, *others]
            async with aclosing(self._one.events(large)) as events:
                async for event in events:
                    yield event
            return
        try:
            if better and _unsure(attempt, confidence_min) and self._time_for(better, request):
                large.places = better
                async with aclosing(self._escalated(large, attempt)) as events:
                    async for event in events:
                        yield event
            if attempt.settled is None:
                async with aclosing(self._kept(small, attempt, pieces)) as events:
                    async for event in events:
                        yield event
        finally:
            self._one.let_go(request, attempt)

    async def _escalated(self, large: AnswerState, cheap: Attempt) -> AsyncGenerator[Event, None]:
        """The better model's events; if it never begins none, and `cheap` is not settled."""
        try:
            async with aclosing(self._one.events(large)) as events:
                async for event in events:
                    if isinstance(event, Routed):
                        self._settlement.unsure(cheap, large.began_s)
                        yield replace(event, attempts=large.records())
                    else:
                        yield event
        except (AttemptFailed, DeadlinePassed):
            if cheap.settled is not None:
                raise

    async def _kept(
        self, small: AnswerState, attempt: Attempt, pieces: Sequence[Piece]
    ) -> AsyncGenerator[Event, None]:
        """The cheap answer, from memory."""
        first_ms = small.since_ms(self._now_s())
        yield self._one.routed(small, attempt)
        for piece in pieces:
            yield Streamed(answer=small.answer, piece=piece)
        self._settlement.answered(attempt, small.began_s)
        yield self._one.ended(small, attempt, first_ms)

    async def _whole(
        self, request: AnswerState, *, fatal: bool
    ) -> tuple[Attempt | None, list[Piece]]:
        """A whole answer, not settled yet; None if it failed, unless that is `fatal`.

        Raises DeadlinePassed, and where it is fatal CallRefused, NoAnswer and others.
        """
        try:
            attempt, piece = await self._race.first_token(request)
            return attempt, await self._one.collected(request, attempt, piece)
        except AttemptFailed:  # also CallRefused: it may be that we asked for probabilities
            if fatal:
                raise
            return None, []

    def _time_for(self, places: Sequence[Place], request: AnswerState) -> bool:
        """Whether the model of these places can be expected to answer before the deadline."""
        route = request.dispatch.route
        deadline_s = request.deadline_s if route.HasField("deadline_unix_ms") else math.inf
        if route.HasField("latency_ms_max"):
            deadline_s = min(deadline_s, request.began_s + route.latency_ms_max / 1000.0)
        (latency_ms,) = {
            case.latency_ms.mean for case in request.cases() if case.model == places[0].model
        }
        return self._now_s() + latency_ms / 1000.0 <= deadline_s


def _unsure(attempt: Attempt, confidence_min: float) -> bool:
    return attempt.confidence is not None and attempt.confidence < confidence_min


def _ladder(request: AnswerState) -> tuple[list[Place], list[Place], list[Place]]:
    """Places of the cheapest model, of the best one if another, and of the rest."""
    cases = request.cases()
    cheap = min(cases, key=lambda case: case.cost_usd.mean).model
    best = _best(cases, request.live, cheap)
    return (
        [place for place in request.places if place.model == cheap],
        [place for place in request.places if place.model == best != cheap],
        [place for place in request.places if place.model not in (cheap, best)],
    )


def _best(cases: Sequence[Case], live: Live, cheap: str) -> str:
    """The model with the best predicted quality, unless it can't be told from the cheapest's.

    Before anything is learned no two models can: the cheapest would be the best, and nothing ever
    escalated. So of those that are as good within what their estimates are off, it is the one with
    the best stated quality, and then the dearest: a price says something of quality, too.
    """
    top = max(cases, key=lambda case: case.quality.mean)
    off = {case.model: _off(case, live) for case in cases}
    alike = [
        case
        for case in cases
        if top.quality.mean - case.quality.mean <= math.hypot(off[top.model], off[case.model])
    ]
    if cheap not in {case.model for case in alike}:
        return top.model
    return max(alike, key=lambda case: (_stated(case, live), case.cost_usd.mean)).model


def _off(case: Case, live: Live) -> float:
    """Standard deviation of a predicted quality itself, without the noise of single outcomes."""
    noise = float(live.estimator.noise[live.catalogue.column_of[case.model], Target.QUALITY])
    return math.sqrt(max(0.0, case.quality.deviation**2 - noise**2))


def _stated(case: Case, live: Live) -> float:
    """The quality that is stated of a model; where none is, what is predicted."""
    stated = float(live.catalogue.quality[live.catalogue.column_of[case.model]])
    return case.quality.mean if math.isnan(stated) else stated
