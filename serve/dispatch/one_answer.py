"""One answer from its first token to its end.

    race ──winner──▶ Routed, Streamed, Streamed, …, Ended ──▶ reported
                              └── fails: AnswerBroken; nothing is tried again

The one rule: time spent waiting for whoever reads the answer is not counted against the pool. A
piece that is there at once when it is asked for had been waiting; one that is not is the pool's.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable

from serve.dispatch.answers import Ended, Event, Routed, Streamed
from serve.dispatch.backend import Piece
from serve.dispatch.caller import Request
from serve.dispatch.race import Race
from serve.dispatch.settlement import Settlement
from serve.dispatch.trial import Trial
from serve.errors import AnswerBroken, AttemptFailed

READY_S = 0.001  # what came sooner after it was asked for, had come before


class OneAnswer:
    """Streams what wins a race. Used from one event loop."""

    def __init__(self, race: Race, settlement: Settlement, now_s: Callable[[], float]) -> None:
        self._race, self._settlement, self._now_s = race, settlement, now_s

    async def events(self, request: Request) -> AsyncGenerator[Event, None]:
        """Race to the first token, then stream the winner.

        Raises CallRefused, DeadlinePassed, NoAnswer before the first event, AnswerBroken after.
        """
        piece: Piece | None
        trial, piece = await self._race.first_token(request)
        try:
            first_ms = request.since_ms(self._now_s())
            came_s = self._now_s()
            yield self.routed(request, trial)
            while piece is not None:
                yield Streamed(answer=request.answer, piece=piece)
                asked_s, paused_s = self._now_s(), came_s
                piece = await trial.more()
                came_s = self._now_s()
                if came_s - asked_s < READY_S:
                    trial.held_up_s += asked_s - paused_s
            self._settlement.answered(trial, request.began_s)
            yield self.ended(request, trial, first_ms)
        except AttemptFailed as error:
            raise self._broken(request, trial, error) from error
        finally:
            self.let_go(request, trial)

    def _broken(self, request: Request, trial: Trial, error: AttemptFailed) -> AnswerBroken:
        self._settlement.failed(trial, request.began_s, error)
        return AnswerBroken(
            trial.where,
            f"the answer broke off after {trial.n_pieces} pieces ({error.problem}). What was "
            f"streamed can't be taken back, so no other pool was asked",
        )

    def let_go(self, request: Request, trial: Trial) -> None:
        """Whoever reads the answer has left, or something failed on our side."""
        if trial.settled is None:
            self._settlement.cancelled(trial, request.began_s, "the request ended")

    def routed(self, request: Request, trial: Trial) -> Routed:
        """Who answers."""
        return Routed(
            answer=request.answer,
            decision=request.decision,
            model=trial.place.model,
            pool=trial.place.pool,
            endpoint=trial.lease.address,
            ticket=trial.ticket.ticket,
            attempts=request.attempts(),
        )

    def ended(self, request: Request, trial: Trial, first_token_ms: float) -> Ended:
        """How it went; the trial is settled."""
        assert trial.settled is not None
        attempts = request.attempts()
        return Ended(
            answer=request.answer,
            usage=trial.used,
            cost_usd=trial.settled.cost_usd,
            paid_usd=math.fsum(attempt.cost_usd for attempt in attempts),
            first_token_ms=first_token_ms,
            latency_ms=request.since_ms(self._now_s()),
            confidence=trial.confidence,
            attempts=attempts,
        )
