"""One answer from its first token to its end.

    race ──winner──▶ Routed, Streamed, Streamed, …, Ended ──▶ reported
                              └── fails: AnswerBroken; nothing is tried again

Time spent waiting for whoever reads the answer is not counted against the pool. A piece that is
there at once when it is asked for had been waiting; one that is not is the pool's.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable

from serve.dispatch.answers import Ended, Event, Routed, Streamed
from serve.dispatch.attempt import Attempt
from serve.dispatch.caller import AnswerState
from serve.dispatch.race import Race
from serve.dispatch.settlement import Settlement
from serve.errors import AnswerBroken, AttemptFailed

READY_S = 0.001  # what came sooner after it was asked for, had come before


class OneAnswer:
    """Streams what wins a race. Used from one event loop."""

    def __init__(self, race: Race, settlement: Settlement, now_s: Callable[[], float]) -> None:
        self._race, self._settlement, self._now_s = race, settlement, now_s

    async def events(self, request: AnswerState) -> AsyncGenerator[Event, None]:
        """Race to the first token, then stream the winner.

        Raises CallRefused, DeadlinePassed, NoAnswer before the first event, AnswerBroken after.
        """
        attempt, piece = await self._race.first_token(request)
        try:
            first_ms = request.since_ms(self._now_s())
            came_s = self._now_s()
            yield self.routed(request, attempt)
            while piece is not None:
                yield Streamed(answer=request.answer, piece=piece)
                asked_s, paused_s = self._now_s(), came_s
                piece = await attempt.more()
                came_s = self._now_s()
                if came_s - asked_s < READY_S:
                    attempt.held_up_s += asked_s - paused_s
            self._settlement.answered(attempt, request.began_s)
            yield self.ended(request, attempt, first_ms)
        except AttemptFailed as error:
            raise self._broken(request, attempt, error) from error
        finally:
            self.let_go(request, attempt)

    def _broken(self, request: AnswerState, attempt: Attempt, error: AttemptFailed) -> AnswerBroken:
        self._settlement.failed(attempt, request.began_s, error)
        return AnswerBroken(
            attempt.where,
            f"the answer broke off after {attempt.n_pieces} pieces ({error.problem}). What was "
            f"streamed can't be taken back, so no other pool was asked",
        )

    def let_go(self, request: AnswerState, attempt: Attempt) -> None:
        """Whoever reads the answer has left, or something failed on our side."""
        if attempt.settled is None:
            self._settlement.cancelled(attempt, request.began_s, "the request ended")

    def routed(self, request: AnswerState, attempt: Attempt) -> Routed:
        """Who answers."""
        return Routed(
            answer=request.answer,
            decision=request.decision,
            model=attempt.place.model,
            pool=attempt.place.pool,
            endpoint=attempt.lease.address,
            ticket=attempt.ticket.ticket,
            attempts=request.records(),
        )

    def ended(self, request: AnswerState, attempt: Attempt, first_token_ms: float) -> Ended:
        """How it went; the attempt is settled."""
        assert attempt.settled is not None
        records = request.records()
        return Ended(
            answer=request.answer,
            usage=attempt.used,
            cost_usd=attempt.settled.cost_usd,
            paid_usd=math.fsum(record.cost_usd for record in records),
            first_token_ms=first_token_ms,
            latency_ms=request.since_ms(self._now_s()),
            confidence=attempt.confidence,
            attempts=records,
        )
