"""A request becoming an answer: decide, call a pool, stream back, report what it took.

    decide ─▶ places by rank ─▶ race to the first token ─▶ stream ─▶ ended, reported
                                 (see `race`)              (see `one_answer`)

On request a cheap model is tried first (`cascade`), or several are asked at once (`fan_out`), and
all answers are given, or the best (`judging.merged`). Afterwards some answers are judged.

Whatever was called is settled once (see `settlement`), and nothing that happened on the way is
missing in the reply.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from learners.option import option
from serve.dispatch.answers import DispatchInput, Ended, Event, estimated_tokens
from serve.dispatch.attempt import Attempt, Place
from serve.dispatch.backend import Call, Pools
from serve.dispatch.budget import HedgeBudget, HedgeOptions, RetryBudget, RetryOptions
from serve.dispatch.caller import AnswerState, Caller
from serve.dispatch.features import Feature, features_of, modality_of
from serve.dispatch.judging.by_model import JudgeOptions, ModelJudge
from serve.dispatch.judging.fused import FuseOptions
from serve.dispatch.judging.judging import Collected, Judging, JudgingOptions
from serve.dispatch.judging.merged import Merged
from serve.dispatch.probes import DispatchProbeOptions, Probes
from serve.dispatch.race import Race
from serve.dispatch.retickets import Reticket, Retickets
from serve.dispatch.settlement import Settlement
from serve.dispatch.strategies.cascade import Cascade
from serve.dispatch.strategies.escalation import Escalation
from serve.dispatch.strategies.fan_out import FanOut
from serve.dispatch.strategies.last_resort import rescued
from serve.dispatch.strategies.one_answer import OneAnswer
from serve.dispatch.supported import deny_unable
from serve.errors import UnknownModel
from serve.health.health import Health, HealthOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live
from serve.routing.live_view import LiveView
from serve.routing.request import read_criticality
from serve.rules.dispatched import as_dispatched
from serve.rules.rule import Rule
from serve.sessions.held import Sessions

# To read what has come of an answer and to give it on takes some 0.3 ms of the event loop, however
# much it is, and each first token waits for that. It may take this share of the loop. Nobody reads
# faster than 50 times a second, and 16 times look no less fluent.
GIVE_ON_S, GIVE_ON_SHARE = 0.0003, 0.1
PACE_S_MIN, PACE_S_MAX = 0.02, 0.06


def pace_s(n_answers: int) -> float:
    """Seconds between two looks at an answer after its first token, beside so many answers.

    >>> pace_s(5), round(pace_s(15), 3), pace_s(100)
    (0.02, 0.045, 0.06)
    """
    return min(max(PACE_S_MIN, n_answers * GIVE_ON_S / GIVE_ON_SHARE), PACE_S_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchOptions:
    """How hard to try."""

    answer_s_max: float = option(
        600.0, "Seconds to the first token, with retries, unless less is asked.", gt=0, le=86_400
    )
    health: HealthOptions = field(default_factory=HealthOptions)
    retries: RetryOptions = field(default_factory=RetryOptions)
    hedges: HedgeOptions = field(default_factory=HedgeOptions)
    probes: DispatchProbeOptions = field(default_factory=DispatchProbeOptions)
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    judging: JudgingOptions = field(default_factory=JudgingOptions)
    fusing: FuseOptions = field(default_factory=FuseOptions)
    escalate_to: str = option(
        "",
        "A model that is asked where all that were asked failed or contradicted each other, "
        "unless the request names one. None: callers see the failure.",
    )


class Dispatcher:
    """Answers requests. Used from one event loop."""

    def __init__(
        self,
        decide: Callable[[pb.RouteRequest], Awaitable[pb.Decision]],
        view: LiveView,
        pools: Pools,
        retickets: Retickets,
        sessions: Sessions,
        report: Callable[..., object],
        options: DispatchOptions,
        now_s: Callable[[], float],
        now_ms: Callable[[], int],
        uniform: Callable[[], float],
        notice: Callable[[Attempt], None] = lambda attempt: None,
        rules: Sequence[Rule] = (),
        quality_weight: float = 1.0,
    ) -> None:
        """`report(Reticket, **values)` takes feedback and must not raise.

        `notice` sees every settled attempt. `rules` are the operator's; `quality_weight` is
        that of requests that state none.
        """
        self._rules = {rule.name: rule for rule in rules if rule.system_prompt or rule.extra}
        self._decide, self._view, self._sessions = decide, view, sessions
        self._report, self._options, self._now_s, self._now_ms = report, options, now_s, now_ms
        self.health = Health(options.health)
        self.retries, self.hedges = RetryBudget(options.retries), HedgeBudget(options.hedges)
        self._settlement = Settlement(report, notice, now_s)
        caller = Caller(pools, self.health, retickets, sessions, now_s, now_ms, uniform)
        race = Race(
            caller,
            self.retries,
            self.hedges,
            options.retries.attempts_max,
            sessions,
            self._settlement,
            now_s,
            now_ms,
        )

        def alone(settlement: Settlement) -> OneAnswer:
            """One attempt, and nothing of the budgets that requests live on."""
            no_retries = RetryBudget(RetryOptions(share_max=0.0))
            no_hedges = HedgeBudget(HedgeOptions(share_max=0.0))
            once = Race(caller, no_retries, no_hedges, 1, sessions, settlement, now_s, now_ms)
            return OneAnswer(once, settlement, now_s)

        self._unheard = Settlement(lambda *_, **__: None, lambda _: None, now_s)
        judge = None
        if options.judge.model and options.judge.budget_usd_per_day > 0:
            judge = ModelJudge(alone(self._unheard), options.judge, now_s, now_ms)
        self._judging = Judging(judge, report, options.judge, options.judging, uniform)
        self._probes = Probes(alone(self._settlement), report, options.probes, now_s, judge)
        self.refusals = caller.refusals
        self._one = OneAnswer(race, self._settlement, now_s)
        escalation = Escalation(quality_weight, uniform)
        self._cascade = Cascade(self._one, race, caller, self._settlement, escalation, now_s)
        self._fan_out = FanOut(self._one, now_s)
        self._merged = Merged(self._fan_out, self._one, judge, options.fusing)

    async def answer(self, dispatch: DispatchInput) -> AsyncGenerator[Event, None]:
        """The answer's events. Closing the generator ends every call it made.

        Raises what deciding raises; CallRefused, DeadlinePassed and NoAnswer before the first
        event, AnswerBroken after it.
        """
        began_s = self._now_s()
        dispatch = self._with_last_resort(dispatch)
        if not dispatch.route.HasField("prompt_tokens"):
            dispatch.route.prompt_tokens = estimated_tokens(dispatch.body)
        features = features_of(dispatch.body)
        dispatch.route.modality = dispatch.route.modality or modality_of(features)
        deny_unable(dispatch.route, features, self._view.current.catalogue)
        # Read before it is decided: a ticket that nobody is called in the name of is to be settled.
        priority = read_criticality("criticality", dispatch.route.criticality).priority
        dispatch.route.probe = self._probes.takes(dispatch)
        decision = await self._decide(dispatch.route)
        request = self._request(dispatch, decision, features, priority, began_s)
        self.retries.request_began()
        self.hedges.request_began()
        collected = Collected()
        try:
            plan = rescued(self._one, request, self._plan(request, collected))
            async with aclosing(plan) as events:
                async for event in events:
                    if dispatch.merge == "none":
                        collected.note(event)
                    if isinstance(event, Ended) and not dispatch.several:
                        self._judging.begin(request, collected)
                        if dispatch.fan_out == 1:
                            self._probes.begin(request, collected.answers[event.answer].text)
                    yield event
            if dispatch.several:
                self._judging.begin(request, collected)
        finally:
            self.retries.request_ended()
            if not any(t.ticket.ticket == decision.ticket for t in request.attempts):
                # Nobody was called in its name: it is settled, not unanswered.
                self._report(Reticket(decision.decision_id, decision.ticket), paid_usd=0.0)

    async def finish(self) -> None:
        """Wait until every call that was ended has let go of its endpoint."""
        await self._probes.finish()
        await self._judging.finish()
        await self._unheard.finish()
        await self._settlement.finish()

    def _with_last_resort(self, dispatch: DispatchInput) -> DispatchInput:
        """The request with the settings' last resort, where it names none. Raises UnknownModel."""
        named = dispatch.escalate_to
        if not named:
            return replace(dispatch, escalate_to=self._options.escalate_to)
        names = self._view.current.catalogue.names
        if named not in names:
            raise UnknownModel("escalate_to", named, names)
        return dispatch

    def _plan(self, request: AnswerState, collected: Collected) -> AsyncGenerator[Event, None]:
        if request.dispatch.merge != "none":
            return self._merged.events(request, request.dispatch.merge, collected)
        if request.dispatch.fan_out > 1:
            return self._fan_out.events(request)
        if request.dispatch.confidence_min is not None:
            return self._cascade.events(request, request.dispatch.confidence_min)
        return self._one.events(request)

    # --- what is asked, and where it may go

    def _request(
        self,
        dispatch: DispatchInput,
        decision: pb.Decision,
        features: frozenset[Feature],
        priority: int,
        began_s: float,
    ) -> AnswerState:
        deadline_s = began_s + self._options.answer_s_max
        if dispatch.route.HasField("deadline_unix_ms"):
            left_s = (dispatch.route.deadline_unix_ms - self._now_ms()) / 1000.0
            deadline_s = min(deadline_s, self._now_s() + left_s)
        live = self._view.current
        models = [decision.model, *(other.model for other in decision.fallbacks)]
        body = as_dispatched(
            dispatch.body, [self._rules[name] for name in decision.rules if name in self._rules]
        )
        call = Call(
            body=body,
            prompt_tokens=dispatch.route.prompt_tokens,
            priority=priority,
            pace_s=lambda: pace_s(self.retries.requests_in_flight),
        )
        return AnswerState(
            dispatch=dispatch,
            decision=decision,
            live=live,
            call=call,
            features=features,
            began_s=began_s,
            deadline_s=deadline_s,
            places=self._places(models, live, dispatch, decision),
        )

    def _places(
        self, models: Sequence[str], live: Live, dispatch: DispatchInput, decision: pb.Decision
    ) -> list[Place]:
        """Pools model by model: the session's, the decided one, then by rank."""
        held = self._sessions.held(dispatch.route.tenant, dispatch.route.session, self._now_ms())
        first = (held.pool if held else "", decision.pool)
        return [
            Place(model, pool)
            for model in models
            for pool in sorted(live.pools_of.get(model, ()), key=lambda p: [p != f for f in first])
        ]
