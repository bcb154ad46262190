"""One answer from its first token to its end.

    race ──winner──▶ Routed, Streamed, Streamed, …, Ended ──▶ reported
                              └── fails: AnswerBroken; nothing is tried again

Time spent waiting for whoever reads the answer is not counted against the pool. A piece that is
there at once when it is asked for had been waiting; one that is not is the pool's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from serve.dispatch.answers import Ended, Event, Routed, Streamed
from serve.dispatch.attempt import Attempt
from serve.dispatch.backend import Piece
from serve.dispatch.caller import AnswerState
from serve.dispatch.race import Race
from serve.dispatch.settlement import Settlement
from serve.errors import AnswerBroken, AttemptFailed, DeadlinePassed

READY_S = 0.001  # what came sooner after it was asked for, had come before


class OneAnswer:
    """Streams what wins a race. Used from one event loop."""

    def __init__(self, race: Race, settlement: Settlement, now_s: Callable[[], float]) -> None:
        self._race, self._settlement, self._now_s = race, settlement, now_s

    async def events(self, request: AnswerState) -> AsyncGenerator[Event, None]:
        """Race to the first token, then stream the winner.

        Raises CallRefused, DeadlinePassed, NoAnswer before the first event, AnswerBroken after.
        """
        if request.dispatch.whole:
            async with aclosing(self._at_once(request)) as events:
                async for event in events:
                    yield event
            return
        attempt, piece = await self._race.first_token(request)
        try:
            first_ms = request.since_ms(self._now_s())
            came_s = self._now_s()
            yield self.routed(request, attempt)
            more: Piece | None = piece
            while more is not None:
                yield Streamed(answer=request.answer, piece=more)
                asked_s, paused_s = self._now_s(), came_s
                more = await attempt.more()
                came_s = self._now_s()
                if came_s - asked_s < READY_S:
                    attempt.held_up_s += asked_s - paused_s
            self._settlement.answered(attempt, request.began_s)
            yield self.ended(request, attempt, first_ms)
        except AttemptFailed as error:
            raise self._broken(request, attempt, error) from error
        finally:
            self.let_go(request, attempt)

    async def words(self, request: AnswerState, within_s: float) -> str:
        """The words of a whole answer, for a reader within Fairlead.

        Raises what `events` does, and TimeoutError where that takes longer.
        """
        async with asyncio.timeout(within_s), aclosing(self.events(request)) as events:
            words = [event.piece.text async for event in events if isinstance(event, Streamed)]
        return "".join(words)

    async def _at_once(self, request: AnswerState) -> AsyncGenerator[Event, None]:
        """The events of an answer whose reader waits for the end: one that breaks off is retried.

        The line is the reader's first byte, not the pool's first token.
        """
        while True:
            attempt, piece = await self._race.first_token(request)
            first_ms = request.since_ms(self._now_s())
            try:
                pieces = await self.collected(request, attempt, piece)
                break
            except AttemptFailed:
                continue  # settled; the race says when it has been enough
        yield self.routed(request, attempt)
        for one in pieces:
            yield Streamed(answer=request.answer, piece=one)
        self._settlement.answered(attempt, request.began_s)
        yield self.ended(request, attempt, first_ms)

    async def collected(
        self, request: AnswerState, attempt: Attempt, piece: Piece | None
    ) -> list[Piece]:
        """All pieces of a winner's answer, not settled yet. Raises AttemptFailed, DeadlinePassed.

        An attempt that did not give a whole answer is settled.
        """
        pieces: list[Piece] = []
        try:
            async with asyncio.timeout(max(0.0, request.deadline_s - self._now_s())):
                while piece is not None:
                    pieces.append(piece)
                    piece = await attempt.more()
            self._settlement.complete(attempt)
        except AttemptFailed as error:
            self._settlement.failed(attempt, request.began_s, error)
            raise
        except TimeoutError:
            raise DeadlinePassed(
                f"{attempt.where} had not finished its answer at the deadline, "
                f"{request.since_ms(self._now_s()):.0f} ms after the request came"
            ) from None
        finally:
            if attempt.ended_s is None:
                self.let_go(request, attempt)
        return pieces

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
            escalated=request.escalated,
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
            escalated=request.escalated,
        )
