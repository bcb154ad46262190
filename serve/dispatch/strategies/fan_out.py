"""Several models asked at once; whoever asked compares.

    chosen model ─┐
    next best ────┼─▶ events as they come, each with the number of its answer
    …            ─┘

Every answer has its own attempts, ticket and end. One that fails ends with its problem, before or
after its `Routed`, and the others go on; if none of them ever began, the last problem is raised.

Events of one answer keep their order.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from serve.dispatch.answers import Ended, Event, Routed
from serve.dispatch.backend import Usage
from serve.dispatch.caller import AnswerState
from serve.dispatch.strategies.one_answer import OneAnswer
from serve.errors import ServeError

logger = logging.getLogger(__name__)

WAITING_MAX = 64  # events that nobody has read yet


class FanOut:
    """Asks several models at once. Used from one event loop."""

    def __init__(self, one: OneAnswer, now_s: Callable[[], float]) -> None:
        self._one, self._now_s = one, now_s

    async def events(self, request: AnswerState) -> AsyncGenerator[Event, None]:
        """All answers' events. Raises what the last answer failed with, if none began."""
        models = [case.model for case in request.cases()][: request.dispatch.fan_out]
        events: asyncio.Queue[Event] = asyncio.Queue(WAITING_MAX)
        parts = [
            replace(
                request,
                answer=i,
                places=[place for place in request.places if place.model == model],
                kind="fan-out" if i else "first",
                attempts=[],
                refusals={},
                suspected=[],
            )
            for i, model in enumerate(models)
        ]
        pumps = [asyncio.ensure_future(self._pump(part, events)) for part in parts]
        failed: list[Ended] = []  # before anybody began to answer
        try:
            left, routed = len(parts), False
            while left:
                event = await events.get()
                routed |= isinstance(event, Routed)
                left -= isinstance(event, Ended)
                if isinstance(event, Ended) and event.problem and not routed:
                    failed.append(event)
                    if not left:
                        raise event.problem  # none of them answered
                    continue
                for one in failed:
                    yield one
                failed.clear()
                yield event
        finally:  # which may be cancelled, too, at its only wait
            request.attempts.extend(attempt for part in parts for attempt in part.attempts)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, part: AnswerState, events: asyncio.Queue[Event]) -> None:
        """Put one answer's events into the queue; its failure becomes its end."""
        try:
            async with aclosing(self._one.events(part)) as own:
                async for event in own:
                    await events.put(event)
        except Exception as error:
            if not isinstance(error, ServeError):
                logger.error("an answer of several failed with an internal error", exc_info=error)
            records = part.records()
            await events.put(
                Ended(
                    answer=part.answer,
                    usage=Usage(prompt_tokens=0, output_tokens=0, counted=False),
                    cost_usd=0.0,
                    paid_usd=math.fsum(record.cost_usd for record in records),
                    first_token_ms=0.0,
                    latency_ms=part.since_ms(self._now_s()),
                    confidence=None,
                    attempts=records,
                    problem=error,
                )
            )
