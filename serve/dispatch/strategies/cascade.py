"""Try cheap, escalate when the answer is not sure.

    cheapest model ──whole answer──▶ good enough?  ──yes──▶ it is streamed
                                       └─no, time is left──▶ a better model's is streamed instead

By *confidence* it is good enough where the geometric mean of its tokens' probabilities is at least
what the request says; who escalates is then the best model. By *gain* a better model is asked where
what it is expected to be worth, its price and time taken off, is more than what this answer is
likely to be worth, which is paid for already (see `sureness`); it is then the one that gains most.
A pool that gives no probabilities is believed, and the reply has no confidence to show. The cheap
answer is kept until the better one has begun: if that never comes, the cheap one is still an
answer. If the cheap one never comes, whoever else can answer is asked, the best one first: nothing
has been streamed yet.

Where an answer is given that was not good enough, because no time was left or nobody better
answered, its end says so (`Ended.unsure`): a failure of a failure is not passed over in silence.

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
from serve.dispatch.strategies.sureness import Sureness
from serve.errors import AttemptFailed, DeadlinePassed
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live

Case = pb.Decision | pb.Alternative

# Why an answer is given that was not good enough.
NO_TIME = "it was not good enough, and no time was left for a better model"
NOBODY_BETTER = "it was not good enough, and {model} did not answer"


class Cascade:
    """Runs cascades. Used from one event loop."""

    def __init__(
        self,
        one: OneAnswer,
        race: Race,
        settlement: Settlement,
        now_s: Callable[[], float],
        quality_weight: float = 1.0,
    ) -> None:
        """`quality_weight` is that of requests that state none."""
        self._one, self._race, self._settlement, self._now_s = one, race, settlement, now_s
        self._quality_weight, self._sureness = quality_weight, Sureness()

    async def events(
        self, request: AnswerState, confidence_min: float
    ) -> AsyncGenerator[Event, None]:
        """The events of the answer that is taken. Raises as `OneAnswer.events` does."""
        cheap, better, others = _ladder(request)
        unsure = ""
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
            if better and self._is_short(attempt, request, better[0].model, confidence_min):
                unsure = NO_TIME
                if self._time_for(better, request):
                    unsure = NOBODY_BETTER.format(model=better[0].model)
                    large.places = better
                    async with aclosing(self._escalated(large, attempt)) as events:
                        async for event in events:
                            yield event
            if attempt.settled is None:
                async with aclosing(self._kept(small, attempt, pieces, unsure)) as events:
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

    def _is_short(
        self, attempt: Attempt, request: AnswerState, better: str, confidence_min: float
    ) -> bool:
        """Whether the cheap answer is not good enough."""
        if request.dispatch.escalate == "confidence":
            return attempt.confidence is not None and attempt.confidence < confidence_min
        cases = {case.model: case for case in request.cases()}
        cheap, preference = cases[attempt.place.model], request.dispatch.route.preference
        weight = preference.quality if preference.HasField("quality") else self._quality_weight
        quality = self._sureness.quality(
            cheap.model, predicted=cheap.quality.mean, confidence=attempt.confidence
        )
        return cases[better].utility > weight * quality

    async def _kept(
        self, small: AnswerState, attempt: Attempt, pieces: Sequence[Piece], unsure: str
    ) -> AsyncGenerator[Event, None]:
        """The cheap answer, from memory."""
        first_ms = small.since_ms(self._now_s())
        yield self._one.routed(small, attempt)
        for piece in pieces:
            yield Streamed(answer=small.answer, piece=piece)
        self._settlement.answered(attempt, small.began_s)
        yield replace(self._one.ended(small, attempt, first_ms), unsure=unsure)

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


def _ladder(request: AnswerState) -> tuple[list[Place], list[Place], list[Place]]:
    """Places of the cheapest model, of the best one if another, and of the rest."""
    cases = request.cases()
    cheap = min(cases, key=lambda case: case.cost_usd.mean).model
    best = _best(cases, request.live, cheap)
    if request.dispatch.escalate == "gain":
        best = max(cases, key=lambda case: (case.model != cheap, case.utility)).model
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
