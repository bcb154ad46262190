"""The race to an answer's first token: try, retry, hedge, reroute.

    places by rank ──▶ attempt ──first token──▶ the winner; the others are ended
          ▲              │ fails, or is late
          └── next place ◀┘ within the retry budget; or beside it, within the hedge budget

Until its first token an answer may come from anywhere: an attempt that fails, or stays silent too
long, is replaced by one at the next place that health expects to answer; beside one that is merely
late a second attempt is made (a hedge).

A retry over budget queues until a slot is free or the deadline passes: the budget bounds how much
extra work there is at once, and losing a request is no way of saving work.

When a race is over, all its attempts but the winner are settled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from serve.dispatch.attempt import Attempt
from serve.dispatch.backend import Piece, Usage
from serve.dispatch.budget import HedgeBudget, RetryBudget
from serve.dispatch.caller import AnswerState, Caller, listed
from serve.dispatch.settlement import Settlement
from serve.errors import (
    AnswerGarbled,
    AnswerLate,
    AttemptFailed,
    CallRefused,
    DeadlinePassed,
    EndpointFailed,
)
from serve.sessions.held import Held, Sessions

FASTER = "another was faster"
# While nobody else can answer a late attempt is waited for, and that is looked at so often.
AWAY_S = 0.25  # who looks so much too late was away itself, and its endpoints may have answered
LOOK_AGAIN_S = 1.0


class Race:
    """Runs races. Used from one event loop."""

    def __init__(
        self,
        caller: Caller,
        retries: RetryBudget,
        hedges: HedgeBudget,
        attempts_max: int,
        sessions: Sessions,
        settlement: Settlement,
        now_s: Callable[[], float],
        now_ms: Callable[[], int],
    ) -> None:
        self._caller, self._sessions, self._settlement = caller, sessions, settlement
        self._retries, self._hedges, self._attempts_max = retries, hedges, attempts_max
        self._now_s, self._now_ms = now_s, now_ms
        self._waiting: deque[asyncio.Future[None]] = deque()  # for room for a retry

    async def first_token(self, request: AnswerState) -> tuple[Attempt, Piece]:
        """The attempt whose first token came first, and that token. Settles all others.

        Raises CallRefused, DeadlinePassed, NoAnswer.
        """
        running: dict[asyncio.Future[Any], Attempt] = {}
        why = "the request ended"
        try:
            while True:
                if not running:
                    attempt = await self._next(request)
                    running[attempt.first] = attempt
                await asyncio.wait(
                    running,
                    timeout=self._rest_s(request, running),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                won = self._sift(request, running)
                if won is not None:
                    why = FASTER
                    return won
                self._check_deadline(request)
                hedge = self._hedge(request, running)
                if hedge is not None:
                    running[hedge.first] = hedge
        finally:
            for attempt in running.values():
                self._end_retry(attempt)
                self._settlement.cancelled(attempt, request.began_s, why)
            self._judge_suspects(request, answered=why == FASTER)

    def _judge_suspects(self, request: AnswerState, *, answered: bool) -> None:
        """An error that followed the request from pool to pool is the request's own."""
        suspected = list(request.suspected)
        request.suspected.clear()  # stages of one answer share the list
        follows = len({attempt.place.pool for attempt in suspected}) > 1 and not answered
        for attempt in suspected:
            (self._settlement.acquit if follows else self._settlement.convict)(attempt)

    def _rest_s(self, request: AnswerState, running: dict[asyncio.Future[Any], Attempt]) -> float:
        """How long nothing needs to be done unless something comes."""
        until_s = min(request.deadline_s, *(attempt.late_at_s for attempt in running.values()))
        if not request.hedged:
            until_s = min(until_s, *(attempt.hedge_at_s for attempt in running.values()))
        return max(0.0, until_s - self._now_s())

    def _sift(
        self, request: AnswerState, running: dict[asyncio.Future[Any], Attempt]
    ) -> tuple[Attempt, Piece] | None:
        """Settle what has failed or is late; the winner, if there is one."""
        now_s = self._now_s()
        won = None
        for first, attempt in list(running.items()):
            if not first.done() and not self._is_late(request, attempt, now_s):
                continue
            try:
                part = _came(attempt, now_s)
            except AttemptFailed as error:
                self._take_out(running, attempt)
                if isinstance(error, CallRefused):
                    self._caller.note_refusal(request, attempt, error)
                    self._settlement.refused(attempt, request.began_s, error)
                elif type(error) is EndpointFailed:
                    request.suspected.append(attempt)
                    self._settlement.suspected(attempt, request.began_s, error)
                else:
                    self._settlement.failed(attempt, request.began_s, error)
            else:
                if won is None:  # a second one in the same moment is ended like any loser
                    self._take_out(running, attempt)
                    won = self._won(request, attempt, part)
        return won

    def _is_late(self, request: AnswerState, attempt: Attempt, now_s: float) -> bool:
        """Whether a silent attempt is given up; not where nobody else could answer instead.

        Nor where it was late only because we had no CPU: it is looked at again, once.
        """
        if now_s < attempt.late_at_s:
            return False
        away = not attempt.excused and now_s > attempt.late_at_s + AWAY_S
        attempt.excused |= away
        if away or self._caller.beside(request, attempt) is None:
            attempt.late_at_s = now_s + LOOK_AGAIN_S
            return False
        return True

    def _take_out(self, running: dict[asyncio.Future[Any], Attempt], attempt: Attempt) -> None:
        del running[attempt.first]
        self._end_retry(attempt)

    def _won(
        self, request: AnswerState, attempt: Attempt, part: Piece | Usage
    ) -> tuple[Attempt, Piece]:
        attempt.first_s = self._now_s()
        attempt.lease.first_token(attempt.first_s)
        self._caller.note_answer(request, attempt)
        if request.answer == 0:  # with fan-out, the conversation goes on with the decided model
            held = Held(*attempt.place, attempt.lease.address, self._now_ms())
            route = request.dispatch.route
            self._sessions.hold(route.tenant, route.session, held)
        if isinstance(part, Usage):  # an answer without a word
            attempt.usage, part = part, Piece(delta={"content": ""}, finish_reason="stop")
        if part.full_s:
            attempt.lease.pause(attempt.first_s, pause_s=part.full_s)
        attempt.note(part)
        return attempt, part

    async def _next(self, request: AnswerState) -> Attempt:
        """The next attempt; a retry waits for its place in the budget.

        Where a model has refused the call, the next one is asked at once. Raises CallRefused if
        all have, NoAnswer and DeadlinePassed.
        """
        self._check_deadline(request)
        made = request.n_failed
        if made >= self._attempts_max:
            raise self._caller.no_answer(request, f"{made} attempts were made, which is the limit")
        if not made:
            kind = "reroute" if request.own else request.kind
            return self._caller.begin(request, kind, is_retry=False)
        await self._take_room(request, made)
        try:
            return self._caller.begin(request, "retry", is_retry=True)
        except BaseException:
            self._give_back()
            raise

    def _hedge(
        self, request: AnswerState, running: dict[asyncio.Future[Any], Attempt]
    ) -> Attempt | None:
        """A second attempt beside a late one, where there is a place and the budget has room."""
        if request.hedged or len(running) != 1:
            return None
        (late,) = running.values()
        if self._now_s() < late.hedge_at_s:
            return None
        request.hedged = True
        place = self._caller.beside(request, late)
        if place is None or len(request.own) >= self._attempts_max or not self._hedges.try_hedge():
            return None
        return self._caller.begin(request, "hedge", is_retry=False, places=[place])

    def _end_retry(self, attempt: Attempt) -> None:
        """A retry holds its place in the budget until it has a token, or will never have one."""
        if attempt.is_retry:
            attempt.is_retry = False
            self._give_back()

    # --- room for retries

    async def _take_room(self, request: AnswerState, made: int) -> None:
        """Take a place of the retry budget, in order of arrival. Raises DeadlinePassed."""
        while not self._retries.try_retry(attempts_made=made):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                left_s = max(0.0, request.deadline_s - self._now_s())
                await asyncio.wait((waiter,), timeout=left_s)
                self._check_deadline(request)
                waiter.cancel()  # where it was not woken: nobody listens to it any more
            except BaseException:
                if not waiter.cancel():  # it was woken, and has no use for it
                    self._wake_next()
                raise
        self._wake_next()

    def _give_back(self) -> None:
        self._retries.retry_ended()
        self._wake_next()

    def _wake_next(self) -> None:
        """Wake whoever waits longest, if there is room: one, because all would be thousands."""
        if self._retries.retries_in_flight < self._retries.retries_max:
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return

    def _check_deadline(self, request: AnswerState) -> None:
        if self._now_s() >= request.deadline_s:
            records = listed(request.records())
            after_ms = request.since_ms(self._now_s())
            raise DeadlinePassed(
                f"no pool had begun to answer at the deadline, {after_ms:.0f} ms after the request "
                f"came. Attempts: {records or 'none had failed'}"
            )


def _came(attempt: Attempt, now_s: float) -> Piece | Usage:
    """The first thing that came of an attempt. Raises AttemptFailed."""
    if not attempt.first.done():
        waited_ms = (now_s - attempt.began_s) * 1000.0
        raise AnswerLate(attempt.where, f"no first token after {waited_ms:.0f} ms")
    try:
        return attempt.first.result()
    except AttemptFailed:
        raise
    except StopAsyncIteration:
        raise AnswerGarbled(attempt.where, "the answer ended before it began") from None
    except asyncio.CancelledError:  # not by us: what we end is not asked again
        raise attempt.ended_from_within() from None
    except Exception as error:
        raise attempt.unforeseen(error) from error
