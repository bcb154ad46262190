"""The best of several answers: a fan-out of which one is given.

    fan-out ──all answers, whole──▶ agreement │ judge ─▶ the best ──▶ streamed as the only answer

Nothing is streamed before all have ended: whoever asks for this waits for the slowest. The answers
that are not given were answers all the same: each is paid for, learned from and in the reply's
attempts. By agreement the best is the one nearest to all (of two, the chosen model's); by the judge
the one with most points. Where the judge can't say, agreement does; where that can't, rank does.
An answer that failed is never the best, and if all failed the request fails.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from serve.dispatch.answers import Ended, Event, Merge, Routed, Streamed
from serve.dispatch.caller import AnswerState
from serve.dispatch.judging.by_model import ModelJudge
from serve.dispatch.judging.judging import Given, Heard
from serve.dispatch.strategies.agreement import agreement
from serve.dispatch.strategies.fan_out import FanOut


class Merged:
    """Asks several models and gives the best answer. Used from one event loop."""

    def __init__(self, fan_out: FanOut, judge: ModelJudge | None) -> None:
        self._fan_out, self._judge = fan_out, judge

    async def events(
        self, request: AnswerState, merge: Merge, heard: Heard
    ) -> AsyncGenerator[Event, None]:
        """The best answer's events, numbered 0; `heard` is told of all. Raises as fan-out does."""
        kept: list[Event] = []
        # Nobody sees an answer before its end: one that breaks off is tried again.
        request.dispatch = replace(request.dispatch, whole=True)
        async with aclosing(self._fan_out.events(request)) as events:
            async for event in events:
                heard.note(event)
                kept.append(event)
        whole = {at: given for at, given in heard.answers.items() if given.whole}
        if not whole:
            raise _problem(kept)
        best = await self._best(request, merge, whole)
        attempts = request.records()
        for event in (one for one in kept if one.answer == best):
            if isinstance(event, Routed):
                others = tuple(a for a in attempts if a.model != event.model)
                yield replace(event, answer=0, attempts=(*event.attempts, *others))
            elif isinstance(event, Ended):
                ends = [one for one in kept if isinstance(one, Ended)]
                yield replace(
                    event,
                    answer=0,
                    paid_usd=math.fsum(one.paid_usd for one in ends),
                    latency_ms=max(one.latency_ms for one in ends),
                    attempts=attempts,
                )
            elif isinstance(event, Streamed):
                yield replace(event, answer=0)

    async def _best(self, request: AnswerState, merge: Merge, whole: dict[int, Given]) -> int:
        """The number of the answer that is given."""
        points = await self._judged(request, whole) if merge == "judge" else {}
        nearest = _nearest(whole)
        return max(whole, key=lambda at: (points.get(at, -1.0), nearest[at], -at))

    async def _judged(self, request: AnswerState, whole: dict[int, Given]) -> dict[int, float]:
        """What the judge says of each; of all or of none, since others are no fair comparison."""
        if self._judge is None:
            return {}
        asked = [self._judge.quality(request, given.text) for given in whole.values()]
        found = dict(zip(whole, await asyncio.gather(*asked), strict=True))
        said = {at: quality for at, quality in found.items() if quality is not None}
        return said if len(said) == len(whole) else {}


def _problem(kept: list[Event]) -> Exception:
    """What the first of several answers failed with, none of which is whole."""
    return next(one.problem for one in kept if isinstance(one, Ended) and one.problem)


def _nearest(whole: dict[int, Given]) -> dict[int, float]:
    """How far each answer agrees with the others, on average."""
    texts = {at: given.text for at, given in whole.items()}
    return {
        at: math.fsum(agreement(text, texts[other]) or 0.0 for other in texts if other != at)
        for at, text in texts.items()
    }
