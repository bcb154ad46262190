"""What becomes of attempts: each is paid for and learned from exactly once.

    Attempt ─┬▶ answered   latency, cost, tokens, no error    is learned
             ├▶ failed     an error, and what was wasted      the error is learned
             ├▶ suspected  an error that may be the caller's  until the race is over
             └▶ unsure, compared, cancelled, refused          what was wasted; nothing is learned

Settling finishes the lease, reports on the ticket, and writes the attempt's line into the request's
attempts. What was cancelled, or not sure enough, has nothing to teach: half an answer's latency
says nothing about an answer's. Nor does that of an answer whose reader was slow, so it is left out.

Every attempt that began is settled once, whatever becomes of the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from serve.dispatch.answers import AttemptRecord
from serve.dispatch.attempt import Attempt
from serve.dispatch.retickets import Reticket
from serve.errors import AnswerLate, AttemptFailed, EndpointOverloaded
from streams.feedback.report import COST_USD_MAX, LATENCY_MS_MAX

logger = logging.getLogger(__name__)

# With its reader in the way for longer than both, how long an answer would have taken is not known.
HELD_UP_SHARE_MAX, HELD_UP_S_MIN = 0.1, 0.1
LET_GO_S_MAX = 5.0  # for endpoints to let go of ended calls, when stopping


class Settlement:
    """Pays for attempts and reports on them. Used from one event loop."""

    def __init__(
        self,
        report: Callable[..., object],
        notice: Callable[[Attempt], None],
        now_s: Callable[[], float],
    ) -> None:
        """`report(Reticket, **values)` and `notice`, which sees what is settled, must not raise."""
        self._report, self._notice, self._now_s = report, notice, now_s
        self._closing: set[asyncio.Task[None]] = set()

    def complete(self, attempt: Attempt) -> None:
        """The whole answer has come: its endpoint has done its part, whatever becomes of it."""
        attempt.ended_s = self._now_s()
        attempt.lease.succeeded(attempt.ended_s)

    def answered(self, attempt: Attempt, origin_s: float) -> AttemptRecord:
        """Its answer was taken: its outcome is learned."""
        if attempt.ended_s is None:
            self.complete(attempt)
        settled = self._settle(attempt, origin_s, "answered", "", _cost_usd(attempt))
        self._report(
            attempt.ticket,
            latency_ms=_latency_ms(attempt),
            cost_usd=settled.cost_usd,
            output_tokens=attempt.used.output_tokens,
            error=False,
        )
        return settled

    def unsure(self, attempt: Attempt, origin_s: float, why: str) -> AttemptRecord:
        """It answered, but another model's answer is taken."""
        return self._not_taken(attempt, origin_s, "unsure", why)

    def compared(self, attempt: Attempt, origin_s: float) -> AttemptRecord:
        """It answered, for another answer to be compared with."""
        return self._not_taken(attempt, origin_s, "compared", "")

    def _not_taken(
        self, attempt: Attempt, origin_s: float, outcome: str, why: str
    ) -> AttemptRecord:
        assert attempt.ended_s is not None, "half an answer is not judged"
        settled = self._settle(attempt, origin_s, outcome, why, _cost_usd(attempt))
        self._report(attempt.ticket, paid_usd=settled.cost_usd)
        return settled

    def replaced(self, former: Reticket) -> None:
        """An attempt was given another ticket: nothing comes of its former one."""
        self._report(former, paid_usd=0.0)

    def failed(self, attempt: Attempt, origin_s: float, error: AttemptFailed) -> AttemptRecord:
        """It failed. Before the first token that is taken to be free, unless we gave it up."""
        self._blame(attempt, error)
        free = attempt.n_pieces == 0 and not isinstance(error, AnswerLate)
        paid_usd = 0.0 if free else _cost_usd(attempt)
        settled = self._settle(attempt, origin_s, error.kind, error.problem, paid_usd)
        self._report(attempt.ticket, error=True, paid_usd=settled.cost_usd)
        self.close(attempt)
        return settled

    def suspected(self, attempt: Attempt, origin_s: float, error: AttemptFailed) -> None:
        """The server answered with an error of its own: by its own fault, or by what it was sent?

        Where the same request fails like this from pool to pool, it is the request. So who is to
        blame is said when the race is over: by `convict` or `acquit`.
        """
        attempt.lease.cancelled(self._now_s())
        self._settle(attempt, origin_s, error.kind, error.problem, 0.0)
        self.close(attempt)

    def convict(self, attempt: Attempt) -> None:
        """A suspected failure was the pool's."""
        assert attempt.settled is not None
        attempt.lease.blamed(self._now_s(), attempt.settled.outcome)
        self._report(attempt.ticket, error=True, paid_usd=0.0)

    def acquit(self, attempt: Attempt) -> None:
        """A suspected failure was the request's: nothing is learned from it."""
        attempt.acquitted = True
        self._report(attempt.ticket, paid_usd=0.0)

    def _blame(self, attempt: Attempt, error: AttemptFailed) -> None:
        """Finish the lease. Who said when to come back is left alone until then."""
        now_s = self._now_s()
        if isinstance(error, EndpointOverloaded) and error.retry_after_s:
            attempt.lease.overloaded(now_s, error.kind, pause_s=error.retry_after_s)
        else:
            attempt.lease.failed(now_s, error.kind, was_late=isinstance(error, AnswerLate))

    def refused(self, attempt: Attempt, origin_s: float, error: AttemptFailed) -> AttemptRecord:
        """It said that the call is wrong: no fault of the pool, and nothing to learn."""
        attempt.lease.succeeded(self._now_s())
        settled = self._settle(attempt, origin_s, error.kind, error.problem, 0.0)
        self._report(attempt.ticket, paid_usd=0.0)
        self.close(attempt)
        return settled

    def cancelled(self, attempt: Attempt, origin_s: float, why: str) -> AttemptRecord:
        """We ended it. The prompt had been sent, so it is taken to have been paid."""
        if attempt.ended_s is None:
            attempt.lease.cancelled(self._now_s())
        settled = self._settle(attempt, origin_s, "cancelled", why, _cost_usd(attempt))
        self._report(attempt.ticket, paid_usd=settled.cost_usd)
        self.close(attempt)
        return settled

    def close(self, attempt: Attempt) -> None:
        """End its call without waiting for an endpoint that is slow to let go."""
        attempt.first.cancel()
        self._in_background(_closed(attempt))

    async def finish(self) -> None:
        """Wait until all that was ended has let go, but not for ever."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=LET_GO_S_MAX)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._closing.discard)

    def _settle(
        self, attempt: Attempt, origin_s: float, outcome: str, detail: str, cost_usd: float
    ) -> AttemptRecord:
        assert attempt.settled is None, "an attempt is settled once"
        end_s = self._now_s() if attempt.ended_s is None else attempt.ended_s
        attempt.settled = attempt_of(
            attempt, origin_s, end_s=end_s, outcome=outcome, detail=detail, cost_usd=cost_usd
        )
        self._notice(attempt)
        return attempt.settled


def attempt_of(
    attempt: Attempt, origin_s: float, *, end_s: float, outcome: str, detail: str, cost_usd: float
) -> AttemptRecord:
    """An attempt as the line people see."""
    return AttemptRecord(
        model=attempt.place.model,
        pool=attempt.place.pool,
        endpoint=attempt.lease.address,
        kind=attempt.kind,
        outcome=outcome,
        detail="; ".join(filter(None, (attempt.why, detail))),
        began_ms=(attempt.began_s - origin_s) * 1000.0,
        took_ms=(end_s - attempt.began_s) * 1000.0,
        cost_usd=cost_usd,
    )


def _cost_usd(attempt: Attempt) -> float:
    """What it cost, by list prices."""
    used = attempt.used
    cost = attempt.catalogue.cost_usd(
        attempt.place.model,
        used.prompt_tokens,
        used.output_tokens,
        cached_tokens=max(0, used.cached_tokens),
    )
    return min(cost, COST_USD_MAX)


def _latency_ms(attempt: Attempt) -> float | None:
    """How long the pool took for its answer; None where its reader was in the way."""
    assert attempt.ended_s is not None
    took_s = attempt.ended_s - attempt.began_s
    if attempt.held_up_s > max(HELD_UP_SHARE_MAX * took_s, HELD_UP_S_MIN):
        return None
    return min(max((took_s - attempt.held_up_s) * 1000.0, 0.0), LATENCY_MS_MAX)


async def _closed(attempt: Attempt) -> None:
    """Take the first piece's task to its end, then the stream's: a running one can't be closed."""
    await asyncio.gather(attempt.first, return_exceptions=True)
    try:
        await attempt.stream.aclose()
    except Exception as error:  # noqa: BLE001 - settled already: nobody is left to be told
        logger.warning("%s did not let go of its call: %r", attempt.where, error)
