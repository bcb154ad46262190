"""Try cheap, escalate when the answer is not good enough.

    cheapest model ──whole answer──▶ good enough?  ──yes──▶ it is streamed
                                       └─no, time is left──▶ a better model's is streamed instead

What is good enough, and who is better, is `escalation`'s. By self-consistency the cheapest model is
asked several times at once, at a temperature, and the answer that most of its answers say is the
one that counts. A pool that gives no probabilities is believed, and the reply has no confidence to
show. The cheap answer is kept until the better one has begun: if that never comes, the cheap one is
still an answer. If the cheap one never comes, whoever else can answer is asked, the best one first:
nothing has been streamed yet.

Where an answer is given that was not good enough, because no time was left or nobody better
answered, its end says so (`Ended.unsure`): a failure of a failure is not passed over in silence.

All calls are paid for, and only the one whose answer is streamed is learned from.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from serve.dispatch.answers import PROBE_TEMPERATURE, Event, Routed, Streamed
from serve.dispatch.attempt import Attempt, Place
from serve.dispatch.backend import Call, Piece
from serve.dispatch.caller import AnswerState, Caller
from serve.dispatch.race import Race
from serve.dispatch.settlement import Settlement
from serve.dispatch.strategies.escalation import (
    Cheap,
    Escalation,
    best_of,
    cheapest_of,
    places_of,
)
from serve.dispatch.strategies.last_resort import last_resort
from serve.dispatch.strategies.one_answer import OneAnswer
from serve.dispatch.strategies.self_consistency import spread_of, tag_of
from serve.errors import AttemptFailed, DeadlinePassed

# Why an answer is given that was not good enough.
NO_TIME = "it was not good enough, and no time was left for a better model"
NOBODY_BETTER = "it was not good enough, and {model} did not answer"

Tried = tuple[Attempt, list[Piece]]


class Cascade:
    """Runs cascades. Used from one event loop."""

    def __init__(
        self,
        one: OneAnswer,
        race: Race,
        caller: Caller,
        settlement: Settlement,
        escalation: Escalation,
        now_s: Callable[[], float],
    ) -> None:
        self._one, self._race, self._settlement, self._now_s = one, race, settlement, now_s
        self._caller, self._escalation = caller, escalation

    async def events(
        self, request: AnswerState, confidence_min: float
    ) -> AsyncGenerator[Event, None]:
        """The events of the answer that is taken. Raises as `OneAnswer.events` does."""
        small = replace(request, places=places_of(request, cheapest_of(request)), kind="cascade")
        try:
            cheap = await self._cheap(small, fatal=not _others(request))
            large = replace(request, kind="escalation", n_before=len(request.attempts))
            if cheap is None:
                large.places = _others(request)
                events = self._one.events(large)
            else:
                events = self._judged(small, large, cheap, confidence_min)
            async with aclosing(events):
                async for event in events:
                    yield event
        finally:
            for attempt in request.attempts:
                self._one.let_go(request, attempt)

    async def _judged(
        self, small: AnswerState, large: AnswerState, cheap: Cheap, confidence_min: float
    ) -> AsyncGenerator[Event, None]:
        """The cheap answer's events, or a better one's."""
        unsure = ""
        large.tags = small.tags = () if cheap.spread is None else (tag_of(cheap.spread),)
        if better := self._escalation.better(large, cheap, confidence_min):
            unsure = NO_TIME
            if self._time_for(better, large):
                unsure = NOBODY_BETTER.format(model=better)
                async with aclosing(self._instead(large, cheap, better, unsure)) as events:
                    async for event in events:
                        yield event
        if cheap.attempt.settled is None:
            async with aclosing(self._kept(small, cheap, unsure)) as events:
                async for event in events:
                    yield event

    async def _instead(
        self, large: AnswerState, cheap: Cheap, better: str, unsure: str
    ) -> AsyncGenerator[Event, None]:
        """The better model's events; if it never begins, those of the last resort; or none."""
        asked = replace(large, places=places_of(large, better))
        async with aclosing(self._escalated(asked, cheap)) as events:
            async for event in events:
                yield event
        last = last_resort(large, unsure)
        if cheap.attempt.settled is None and last is not None and asked.places != last.places:
            async with aclosing(self._escalated(last, cheap)) as events:
                async for event in events:
                    yield event

    async def _escalated(self, large: AnswerState, cheap: Cheap) -> AsyncGenerator[Event, None]:
        """The better model's events; if it never begins none, and `cheap` is not settled."""
        attempt = cheap.attempt
        try:
            async with aclosing(self._one.events(large)) as events:
                async for event in events:
                    if isinstance(event, Routed):
                        self._settlement.unsure(attempt, large.began_s, cheap.because)
                        yield replace(event, attempts=large.records())
                    else:
                        yield event
        except (AttemptFailed, DeadlinePassed):
            if attempt.settled is not None:
                raise

    async def _kept(
        self, small: AnswerState, cheap: Cheap, unsure: str
    ) -> AsyncGenerator[Event, None]:
        """The cheap answer, from memory."""
        attempt, first_ms = cheap.attempt, small.since_ms(self._now_s())
        if small.tags:
            former = self._caller.ticket_again(small, attempt)
            if former.ticket != small.decision.ticket:  # that one is the dispatcher's
                self._settlement.replaced(former)
        yield self._one.routed(small, attempt)
        for piece in cheap.pieces:
            yield Streamed(answer=small.answer, piece=piece)
        self._settlement.answered(attempt, small.began_s)
        yield replace(self._one.ended(small, attempt, first_ms), unsure=unsure)

    # --- the first model

    async def _cheap(self, small: AnswerState, *, fatal: bool) -> Cheap | None:
        """The first model's answer; None if it failed, unless that is `fatal`.

        Raises DeadlinePassed, and where it is fatal CallRefused, NoAnswer and others.
        """
        several = small.dispatch.escalate == "self_consistency"
        try:
            return await (self._sampled(small) if several else self._once(small))
        except AttemptFailed:  # also CallRefused: it may be that we asked for probabilities
            if fatal:
                raise
            return None

    async def _once(self, small: AnswerState) -> Cheap:
        small.call = replace(small.call, confidence=True)
        attempt, pieces = await self._whole(small)
        sure = attempt.confidence
        because = "" if sure is None else f"confidence {sure:.3f}"
        return Cheap(attempt=attempt, pieces=pieces, because=because)

    async def _sampled(self, small: AnswerState) -> Cheap:
        """Several answers of it at once: the one that most say, and how many say it."""
        asked = small.dispatch
        call = _sampling(small.call, asked.probe_temperature)
        parts = [
            replace(small, call=call, answer=i, attempts=[], refusals={}, suspected=[], n_before=0)
            for i in range(asked.n_probes)
        ]
        try:
            came = await asyncio.gather(*map(self._whole, parts), return_exceptions=True)
        finally:
            small.attempts += [attempt for part in parts for attempt in part.attempts]
        whole: list[Tried] = [one for one in came if not isinstance(one, BaseException)]
        if not whole:
            raise next(one for one in came if isinstance(one, BaseException))
        given, spread = spread_of(["".join(p.text for p in pieces) for _, pieces in whole])
        because = f"{len(whole)} answers, of which {spread or 'too few to say'} agree"
        attempt, pieces = whole[given]
        for other, _ in whole:
            if other is not attempt:
                self._settlement.compared(other, small.began_s)
        return Cheap(attempt=attempt, pieces=pieces, spread=spread, because=because)

    async def _whole(self, request: AnswerState) -> Tried:
        """A whole answer, not settled yet. Raises AttemptFailed, DeadlinePassed."""
        attempt, piece = await self._race.first_token(request)
        return attempt, await self._one.collected(request, attempt, piece)

    def _time_for(self, model: str, request: AnswerState) -> bool:
        """Whether this model can be expected to answer before the deadline."""
        route = request.dispatch.route
        deadline_s = request.deadline_s if route.HasField("deadline_unix_ms") else math.inf
        if route.HasField("latency_ms_max"):
            deadline_s = min(deadline_s, request.began_s + route.latency_ms_max / 1000.0)
        latency_ms = next(c.latency_ms.mean for c in request.cases() if c.model == model)
        return self._now_s() + latency_ms / 1000.0 <= deadline_s


def _others(request: AnswerState) -> Sequence[Place]:
    """All places but the cheapest model's, those of whoever would be asked next first."""
    cheap = cheapest_of(request)
    first = best_of(request, cheap)
    if request.dispatch.escalate != "confidence":
        first = max(request.cases(), key=lambda case: (case.model != cheap, case.utility)).model
    others = [place for place in request.places if place.model != cheap]
    return sorted(others, key=lambda place: place.model != first)


def _sampling(call: Call, temperature: float | None) -> Call:
    """A call whose answers may differ: no seed, and a temperature, the caller's own if above 0."""
    body = {name: value for name, value in call.body.items() if name != "seed"}
    own = body.get("temperature")
    warm = isinstance(own, int | float) and own > 0
    if temperature is not None or not warm:
        body["temperature"] = PROBE_TEMPERATURE if temperature is None else temperature
    return replace(call, body=body)
