"""When all that were asked fail or contradict each other: one more model, named beforehand.

    nobody answered, or no two agree ──▶ why ─▶ `escalate_to` ─▶ its answer, marked with why

So a failure of several is an escalation that is stated, counted and told, never silence: the answer
says why it is one, its decision in the log has the policy `last-resort` and a tag, and pools count
such calls. The model must be one that the request, the rules and the budgets allow; where it is
not, or none is named, or it fails too, callers see the failure itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from serve.dispatch.answers import Event
from serve.dispatch.caller import AnswerState
from serve.dispatch.strategies.one_answer import OneAnswer
from serve.errors import AttemptFailed

TAG = "last-resort"  # of the request from then on: it is a hard one
NOBODY = "nobody that was asked answered"


def last_resort(request: AnswerState, why: str) -> AnswerState | None:
    """The request as it is asked for the last time; None where nobody is named who may be asked."""
    model = request.dispatch.escalate_to
    places = [place for place in request.places if place.model == model]
    if not places:
        return None
    return replace(
        request,
        places=places,
        kind="last-resort",
        answer=0,
        n_before=len(request.attempts),
        tags=(*request.tags, TAG),
        escalated=why,
    )


async def rescued(
    one: OneAnswer, request: AnswerState, plan: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    """The events of a plan; where it fails before any, those of the last resort."""
    began = False
    try:
        async with aclosing(plan) as events:
            async for event in events:
                began = True
                yield event
    except AttemptFailed as error:
        last = None if began else last_resort(request, f"{NOBODY} ({error.kind})")
        if last is None:
            raise
        async with aclosing(one.events(last)) as events:
            async for event in events:
                yield event
