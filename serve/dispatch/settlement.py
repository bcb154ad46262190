"""What becomes of trials: each is paid for and learned from exactly once.

    Trial ─▶ answered   latency, cost, tokens, no error     is learned
          ├▶ failed     an error; what was paid in vain     the error is learned
          └▶ unsure, cancelled, refused                     what was paid, and nothing to learn

Settling finishes the lease, reports on the ticket, and writes the trial's line into the request's
attempts. What was cancelled, or not sure enough, has nothing to teach: half an answer's latency
says nothing about an answer's. Nor does that of an answer whose reader was slow, so it is left out.

The one rule: every trial that began is settled once, whatever becomes of the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from serve.dispatch.answers import Attempt
from serve.dispatch.trial import Trial
from serve.errors import AnswerLate, AttemptFailed
from streams.feedback.feedback import COST_USD_MAX, LATENCY_MS_MAX

logger = logging.getLogger(__name__)

# With its reader in the way for longer than both, how long an answer would have taken is not known.
HELD_UP_SHARE_MAX, HELD_UP_S_MIN = 0.1, 0.1
LET_GO_S_MAX = 5.0  # for endpoints to let go of ended calls, when stopping


class Settlement:
    """Pays for trials and reports on them. Used from one event loop."""

    def __init__(
        self,
        report: Callable[..., object],
        notice: Callable[[Trial], None],
        now_s: Callable[[], float],
    ) -> None:
        """`report(Reticket, **values)` and `notice`, which sees what is settled, must not raise."""
        self._report, self._notice, self._now_s = report, notice, now_s
        self._closing: set[asyncio.Task[None]] = set()

    def complete(self, trial: Trial) -> None:
        """The whole answer has come: its endpoint has done its part, whatever becomes of it."""
        trial.ended_s = self._now_s()
        trial.lease.succeeded(trial.ended_s)

    def answered(self, trial: Trial, origin_s: float) -> Attempt:
        """Its answer was taken: its outcome is learned."""
        if trial.ended_s is None:
            self.complete(trial)
        settled = self._settle(trial, origin_s, "answered", "", _cost_usd(trial))
        self._report(
            trial.ticket,
            latency_ms=_latency_ms(trial),
            cost_usd=settled.cost_usd,
            output_tokens=trial.used.output_tokens,
            error=False,
        )
        return settled

    def unsure(self, trial: Trial, origin_s: float) -> Attempt:
        """It answered, but another model's answer is taken."""
        assert trial.ended_s is not None, "half an answer is not judged"
        detail = f"confidence {trial.confidence:.3f}"
        settled = self._settle(trial, origin_s, "unsure", detail, _cost_usd(trial))
        self._report(trial.ticket, paid_usd=settled.cost_usd)
        return settled

    def failed(self, trial: Trial, origin_s: float, error: AttemptFailed) -> Attempt:
        """It failed. Before the first token that is taken to be free, unless we gave it up."""
        trial.lease.failed(self._now_s(), error.kind)
        free = trial.n_pieces == 0 and not isinstance(error, AnswerLate)
        paid_usd = 0.0 if free else _cost_usd(trial)
        settled = self._settle(trial, origin_s, error.kind, error.problem, paid_usd)
        self._report(trial.ticket, error=True, paid_usd=settled.cost_usd)
        self.close(trial)
        return settled

    def refused(self, trial: Trial, origin_s: float, error: AttemptFailed) -> Attempt:
        """It said that the call is wrong: no fault of the pool, and nothing to learn."""
        trial.lease.succeeded(self._now_s())
        settled = self._settle(trial, origin_s, error.kind, error.problem, 0.0)
        self._report(trial.ticket, paid_usd=0.0)
        self.close(trial)
        return settled

    def cancelled(self, trial: Trial, origin_s: float, why: str) -> Attempt:
        """We ended it. The prompt had been sent, so it is taken to have been paid."""
        if trial.ended_s is None:
            trial.lease.cancelled(self._now_s())
        settled = self._settle(trial, origin_s, "cancelled", why, _cost_usd(trial))
        self._report(trial.ticket, paid_usd=settled.cost_usd)
        self.close(trial)
        return settled

    def close(self, trial: Trial) -> None:
        """End its call without waiting for an endpoint that is slow to let go."""
        trial.first.cancel()
        self._in_background(_closed(trial))

    async def finish(self) -> None:
        """Wait until all that was ended has let go, but not for ever."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=LET_GO_S_MAX)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._closing.discard)

    def _settle(
        self, trial: Trial, origin_s: float, outcome: str, detail: str, cost_usd: float
    ) -> Attempt:
        assert trial.settled is None, "a trial is settled once"
        end_s = self._now_s() if trial.ended_s is None else trial.ended_s
        trial.settled = attempt_of(
            trial, origin_s, end_s=end_s, outcome=outcome, detail=detail, cost_usd=cost_usd
        )
        self._notice(trial)
        return trial.settled


def attempt_of(
    trial: Trial, origin_s: float, *, end_s: float, outcome: str, detail: str, cost_usd: float
) -> Attempt:
    """A trial as the line people see."""
    return Attempt(
        model=trial.place.model,
        pool=trial.place.pool,
        endpoint=trial.lease.address,
        kind=trial.kind,
        outcome=outcome,
        detail="; ".join(filter(None, (trial.why, detail))),
        began_ms=(trial.began_s - origin_s) * 1000.0,
        took_ms=(end_s - trial.began_s) * 1000.0,
        cost_usd=cost_usd,
    )


def _cost_usd(trial: Trial) -> float:
    """What it cost, by list prices."""
    used = trial.used
    cost = trial.catalogue.cost_usd(trial.place.model, used.prompt_tokens, used.output_tokens)
    return min(cost, COST_USD_MAX)


def _latency_ms(trial: Trial) -> float | None:
    """How long the pool took for its answer; None where its reader was in the way."""
    assert trial.ended_s is not None
    took_s = trial.ended_s - trial.began_s
    if trial.held_up_s > max(HELD_UP_SHARE_MAX * took_s, HELD_UP_S_MIN):
        return None
    return min(max((took_s - trial.held_up_s) * 1000.0, 0.0), LATENCY_MS_MAX)


async def _closed(trial: Trial) -> None:
    """Take the first piece's task to its end, then the stream's: a running one can't be closed."""
    await asyncio.gather(trial.first, return_exceptions=True)
    try:
        await trial.stream.aclose()
    except Exception as error:  # noqa: BLE001 - settled already: nobody is left to be told
        logger.warning("%s did not let go of its call: %r", trial.where, error)
