"""Group commit: requests that arrive close together are scored together.

    scoring  █            ██                  █
    resting   ░░░           ░░░░░░             ░░░     three times as long as the last scoring
    arriving ·   ··  · ·· · ·      ·          ·   ◀─ alone: scored at once

A lone request is scored as soon as the event loop turns to it. After scoring, the loop rests from
scoring for a while that is proportional to what scoring took, and reads what arrives meanwhile: so
under load batches grow by themselves, and scoring leaves the loop most of its time for I/O.

Without a rest requests are scored one by one, because a loop iteration delivers one of them and
most of a scoring's cost is per batch. Measured with one replica and 64 callers on 2 cores: no rest
1,300 calls a second in batches of 1.2; a rest of one scoring 1,500; of three 3,000 in batches of
50; of seven 1,200, waiting for nobody.

The one rule: the queue is bounded. Beyond it a request is refused at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from learners.option import option
from serve.errors import QueueFull

# A scoring that seemed to take longer than a third of this did not compute but was held up, by a
# frozen process or a busy machine; resting three times as long would make it worse.
REST_S_MAX = 0.25

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherOptions:
    """How many requests wait, and how many are scored together."""

    # At 10,000 a second this is 0.4 s of waiting.
    waiting_max: int = option(
        4096, "Requests that may wait in a replica; more are refused.", ge=1, le=1_000_000
    )
    batch_max: int = option(
        256, "Requests scored together: about 5 ms of the event loop.", ge=1, le=4096
    )
    # Length of a rest, in lengths of the scoring before it. 0: each request is scored at once.
    rests: float = 3.0


class Batcher(Generic[Item, Result]):
    """Gives items to `score` in batches, in order of arrival, on the event loop."""

    def __init__(
        self,
        score: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        options: BatcherOptions,
    ) -> None:
        """`score` returns a result or an exception per item, in order, and does not block."""
        self._score, self._options = score, options
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._scheduled = False
        self._rested_s = 0.0  # monotonic time from which scoring may begin again

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue an item; the future has its result. Raises QueueFull."""
        if len(self._waiting) >= self._options.waiting_max:
            raise QueueFull(
                f"{len(self._waiting)} requests wait already, which is the limit; "
                f"try again later or at another router"
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._options.rests:  # there is no crowd to wait for
            self._settle([(item, future)])
            return future
        self._waiting.append((item, future))
        if not self._scheduled:
            self._schedule(loop)
        return future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = True
        rest_s = self._rested_s - time.monotonic()
        if rest_s <= 0.0:
            loop.call_soon(self._flush)
        else:
            loop.call_later(rest_s, self._flush)

    def _flush(self) -> None:
        """Score one batch, then let the event loop read what has arrived meanwhile."""
        loop = asyncio.get_running_loop()
        began_s = time.monotonic()
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._options.batch_max:
            item, future = self._waiting.popleft()
            if not future.done():  # its caller has gone: nothing to score
                batch.append((item, future))
        if batch:
            self._settle(batch)
        took_s = time.monotonic() - began_s
        self._rested_s = began_s + took_s + min(took_s * self._options.rests, REST_S_MAX)
        self._scheduled = False
        if self._waiting:
            self._schedule(loop)

    def _settle(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = self._score([item for item, _ in batch])
            assert len(results) == len(batch), "a result or an exception per item"
        except Exception as error:  # noqa: BLE001 - our bug; every caller must hear of it
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
