"""Probes of dispatched requests: a second model answers, too, after the first has, to learn from.

    answer ended ──▶ in the background: call the probe's model ──▶ judge ──▶ its own outcome

A probe begins when the request has been answered, so it takes nothing from it. It is called once,
at the pool that was suggested, with the lowest priority, without retries, hedges or session; what
it took is settled as of any attempt, under its own ticket (see `settlement`). Whatever fails in it
stays in it.

How good its answer is says a *judge*. The one that is built in is agreement with the answer that
was given: for questions that have one answer that is much, for free text it is little, so there is
none by default. Where there is no judge nothing is bought.

    agreement    F1 of the two answers' words, 0 to 1 (see `strategies.agreement`)
    model        another model is asked, within the budget of `[judge]` (see `judging.by_model`)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from learners.criticality import Criticality
from learners.option import option
from serve.dispatch.answers import DispatchInput
from serve.dispatch.attempt import Place
from serve.dispatch.caller import AnswerState
from serve.dispatch.judging.by_model import JUDGE, ModelJudge
from serve.dispatch.retickets import Reticket
from serve.dispatch.strategies.agreement import AGREEMENT, agreement
from serve.dispatch.strategies.one_answer import OneAnswer
from serve.errors import ServeError
from serve.proto.fairlead.v1 import router_pb2 as pb

logger = logging.getLogger(__name__)

SOURCES = {"agreement": AGREEMENT, "model": JUDGE}


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchProbeOptions:
    """How probes of dispatched requests are judged, and how long they may take."""

    judge: Literal["none", "agreement", "model"] = option(
        "none",
        "How answers of probes are judged in Dispatch. none: nothing is bought there. agreement: "
        "by the words that they share with the answer that was given. model: by that of [judge].",
    )
    answer_s_max: float = option(
        120.0, "Dispatch: seconds that a probe's answer may take.", gt=0, le=86_400
    )
    ongoing_max: int = option(
        64, "Dispatch: probes under way in one process at most.", ge=1, le=100_000
    )


class Probes:
    """Runs probes in the background. Used from one event loop."""

    def __init__(
        self,
        one: OneAnswer,
        report: Callable[..., object],
        options: DispatchProbeOptions,
        now_s: Callable[[], float],
        model: ModelJudge | None = None,
    ) -> None:
        """`one` makes no second attempts; `report(Reticket, **values)` must not raise.

        `model` judges where the options say so.
        """
        self._one, self._report, self._options, self._now_s = one, report, options, now_s
        self._model = model
        self._tasks: set[asyncio.Task[None]] = set()

    def takes(self, dispatch: DispatchInput) -> bool:
        """Whether a probe may be suggested for a request: one answer in words, and a judge."""
        asks_tools = bool(dispatch.body.get("tools") or dispatch.body.get("functions"))
        busy = len(self._tasks) >= self._options.ongoing_max
        judges = {"none": False, "agreement": True, "model": self._model is not None}
        able = judges[self._options.judge] and dispatch.fan_out == 1
        return able and not asks_tools and not busy

    def begin(self, request: AnswerState, given: str) -> None:
        """The request was answered: call its probe's model, if it has one."""
        if not request.decision.HasField("probe") or not given:
            return
        task = asyncio.get_running_loop().create_task(self._run(self._part(request), given))
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """End what is under way; it is settled as cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _part(self, request: AnswerState) -> AnswerState:
        """The probe as a request of its own."""
        probe, now_s = request.decision.probe, self._now_s()
        route = pb.RouteRequest()
        route.CopyFrom(request.dispatch.route)
        route.session = ""
        decision = pb.Decision(
            decision_id=probe.decision_id, model=probe.model, pool=probe.pool, ticket=probe.ticket
        )
        return replace(
            request,
            dispatch=replace(request.dispatch, route=route, confidence_min=None, whole=False),
            decision=decision,
            call=replace(request.call, priority=Criticality.SHEDDABLE.priority, confidence=False),
            began_s=now_s,
            deadline_s=now_s + self._options.answer_s_max,
            places=[Place(probe.model, probe.pool)],
            kind="first",
            attempts=[],
            n_before=0,
            refusals={},
            suspected=[],
        )

    async def _run(self, part: AnswerState, given: str) -> None:
        ticket = Reticket(part.decision.decision_id, part.decision.ticket)
        try:
            answer = await self._one.words(part, self._options.answer_s_max + 1.0)
            quality = await self._judged(part, answer, given)
            if quality is not None:
                self._report(ticket, quality=quality, source=SOURCES[self._options.judge])
        except (ServeError, TimeoutError) as error:
            logger.debug("a probe gave no answer: %s", error)
            if not part.attempts:
                self._report(ticket, paid_usd=0.0)  # nobody was called in its name
        except Exception as error:
            logger.error("a probe failed with an internal error", exc_info=error)

    async def _judged(self, part: AnswerState, answer: str, given: str) -> float | None:
        """How good a probe's answer is, 0 to 1; None where that can't be said."""
        if self._options.judge == "agreement":
            return agreement(answer, given)
        return await self._model.quality(part, answer) if self._model else None
