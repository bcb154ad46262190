"""One answer of several: a fan-out of which the best is given, or one that is written of all.

    fan-out ──all answers, whole──┬▶ agreement │ judge ─▶ the best ──▶ streamed as the only answer
                                  ├▶ fuse ─▶ a model's, of all of them ─▶ streamed as it comes
                                  └▶ they agree less than they must ─▶ the last resort's

Nothing is streamed before all have ended: whoever asks for this waits for the slowest. The answers
that are not given were answers all the same: each is paid for, learned from and in the reply's
attempts. By agreement the best is the one nearest to all (of two, the chosen model's); by the judge
the one with most points. Where the judge can't say, agreement does; where that can't, rank does.
An answer that failed is never the best, and if all failed the request fails.

Where nobody can fuse them, or nobody is left to decide between answers that contradict each other,
the best is given and its end says why it should not be relied on (`Ended.unsure`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from serve.dispatch.answers import Ended, Event, Merge, Routed, Streamed
from serve.dispatch.caller import AnswerState
from serve.dispatch.judging.by_model import ModelJudge
from serve.dispatch.judging.fused import FuseOptions, fusing
from serve.dispatch.judging.judging import Collected, Given
from serve.dispatch.strategies.agreement import agreement
from serve.dispatch.strategies.fan_out import FanOut
from serve.dispatch.strategies.last_resort import last_resort
from serve.dispatch.strategies.one_answer import OneAnswer
from serve.errors import AttemptFailed, DeadlinePassed

CONTRADICT = "the answers agree by {found:.2f} only, and {least:g} is asked for"
ALONE = "one answered of {n} that were asked, so nobody agrees with it"
NOT_FUSED = "the answers were not fused: {why}"
NOT_ALLOWED = "the model that does may not be asked for this request"
NO_WORDS = "some have no words"


@dataclass(slots=True)
class _Attempted:
    """What became of asking one more model."""

    began: bool = False
    problem: str = ""


@dataclass(slots=True)
class _Came:
    """All events of a fan-out, and its whole answers."""

    events: list[Event] = field(default_factory=list)
    whole: dict[int, Given] = field(default_factory=dict)


class Merged:
    """Asks several models and gives one answer. Used from one event loop."""

    def __init__(
        self, fan_out: FanOut, one: OneAnswer, judge: ModelJudge | None, fuse: FuseOptions
    ) -> None:
        self._fan_out, self._one, self._judge, self._fuse = fan_out, one, judge, fuse

    async def events(
        self, request: AnswerState, merge: Merge, collected: Collected
    ) -> AsyncGenerator[Event, None]:
        """The answer's events, numbered 0; `collected` is told of all. Raises as fan-out does."""
        asked = request.dispatch
        # Nobody sees an answer before its end: one that breaks off is tried again.
        request.dispatch = replace(asked, whole=True)
        came = await self._all(request, collected)
        request.dispatch = asked
        unsure, nearest = "", _nearest(came.whole)
        if contradiction := _contradiction(request, nearest):
            unsure, further = contradiction, last_resort(request, contradiction)
        elif merge == "fuse":
            texts = [given.text for given in came.whole.values()]
            further = fusing(request, texts, self._fuse) if all(texts) else None
            unsure = NOT_FUSED.format(why=NOT_ALLOWED if all(texts) else NO_WORDS)
        else:
            further = None
        tried = _Attempted()
        if further is not None:
            async with aclosing(self._further(further, tried)) as events:
                async for event in events:
                    yield event
            if tried.began:
                return
            if merge == "fuse" and not contradiction:
                unsure = NOT_FUSED.format(why=tried.problem)
        best = await self._best(request, merge, came.whole, nearest)
        for event in _given(request, came.events, best, unsure):
            yield event

    async def _all(self, request: AnswerState, collected: Collected) -> _Came:
        """Raises what the first failed with, where none is whole."""
        came = _Came()
        async with aclosing(self._fan_out.events(request)) as events:
            async for event in events:
                collected.note(event)
                came.events.append(event)
        came.whole = {at: given for at, given in collected.answers.items() if given.whole}
        if not came.whole:
            raise _problem(came.events)
        return came

    async def _further(
        self, request: AnswerState, tried: _Attempted
    ) -> AsyncGenerator[Event, None]:
        """One more model's answer; none where it fails before it begins."""
        try:
            async with aclosing(self._one.events(request)) as events:
                async for event in events:
                    tried.began = True
                    yield event
        except (AttemptFailed, DeadlinePassed) as error:
            if tried.began:
                raise
            tried.problem = str(error)

    async def _best(
        self,
        request: AnswerState,
        merge: Merge,
        whole: dict[int, Given],
        nearest: dict[int, float],
    ) -> int:
        """The number of the answer that is given."""
        points = await self._judged(request, whole) if merge == "judge" else {}
        return max(whole, key=lambda at: (points.get(at, -1.0), nearest[at], -at))

    async def _judged(self, request: AnswerState, whole: dict[int, Given]) -> dict[int, float]:
        """What the judge says of each; of all or of none, since others are no fair comparison."""
        if self._judge is None:
            return {}
        asked = [self._judge.quality(request, given.text) for given in whole.values()]
        found = dict(zip(whole, await asyncio.gather(*asked), strict=True))
        said = {at: quality for at, quality in found.items() if quality is not None}
        return said if len(said) == len(whole) else {}


def _given(request: AnswerState, came: list[Event], best: int, unsure: str) -> list[Event]:
    """The events of the answer that is given, as the only one."""
    attempts, ends = request.records(), [one for one in came if isinstance(one, Ended)]
    found: list[Event] = []
    for event in (one for one in came if one.answer == best):
        if isinstance(event, Routed):
            others = tuple(a for a in attempts if a.model != event.model)
            found.append(replace(event, answer=0, attempts=(*event.attempts, *others)))
        elif isinstance(event, Streamed):
            found.append(replace(event, answer=0))
        else:
            found.append(
                replace(
                    event,
                    answer=0,
                    paid_usd=math.fsum(attempt.cost_usd for attempt in attempts),
                    latency_ms=max(one.latency_ms for one in ends),
                    attempts=attempts,
                    unsure=unsure,
                )
            )
    return found


def _problem(came: list[Event]) -> Exception:
    """What the first of several answers failed with, none of which is whole."""
    return next(one.problem for one in came if isinstance(one, Ended) and one.problem)


def _contradiction(request: AnswerState, nearest: dict[int, float]) -> str:
    """Why no answer can be relied on; "" where enough of them agree."""
    least, n = request.dispatch.agreement_min, len(nearest)
    if not least:
        return ""
    if n == 1:
        return ALONE.format(n=request.dispatch.fan_out)
    found = max(nearest.values())
    return CONTRADICT.format(found=found, least=least) if found < least else ""


def _nearest(whole: dict[int, Given]) -> dict[int, float]:
    """How far each answer agrees with the others, on average."""
    texts, others = {at: given.text for at, given in whole.items()}, max(1, len(whole) - 1)
    return {
        at: math.fsum(agreement(text, texts[other]) or 0.0 for other in texts if other != at)
        / others
        for at, text in texts.items()
    }
