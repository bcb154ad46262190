"""Group commit: in a crowd, requests that arrive close together are scored together.

    scoring  █            ██                  █     █
    window    ░░░           ░░░░░░                        as long as the crowd is worth
    arriving ·   ··  · ·· · ·      ·          ·     ·   ◀─ alone: scored at once, no window

A lone request is scored as soon as the event loop turns to it, however soon after the last one.
Where many calls are under way at once (from Python's first sight of a call until its answer has
left), an adaptive batching window opens after a scoring, up to three times as long as that took:
requests that arrive within it are scored together at its end. So under load batches grow by
themselves, and scoring leaves the event loop most of its time for I/O.

Without a window a crowd's requests are scored one by one, because a loop iteration delivers one of
them and most of a scoring's cost is per batch. Measured with one replica and 64 callers on 2 cores:
no window 1,300 calls a second in batches of 1.2; one scoring long 1,500; three 3,000 in batches of
50; seven 1,200, with the replica idle. With a window after every scoring, one caller who asks
again as soon as it is answered waits most of its time: 3.3 ms a call instead of one.

The queue is bounded: beyond it a request is refused at once.
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
# frozen process or a busy machine; a window three times as long would make it worse.
WINDOW_S_MAX = 0.25

# So many calls under way make the window a whole one; fewer, a part of it.
CROWD = 4
# A whole crowd's window is at least as long, however quick the scoring: an iteration of the loop
# and a batch cost what they cost. Measured with 64 callers on a busy machine: 1,000 calls a second
# without it, 2,200 with it, and 400 µs of processor time a call instead of 700.
CROWD_S_MIN = 0.003
# Timers of event loops tick in milliseconds: what is shorter is waited for turn by turn.
TIMER_S_MIN = 0.001

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
    # Length of a window, in lengths of the scoring before it. 0: each request is scored at once.
    window_scorings: float = 3.0


class Batcher(Generic[Item, Result]):
    """Gives items to `score` in batches, in order of arrival, on the event loop."""

    def __init__(
        self,
        score: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        options: BatcherOptions,
        under_way: Callable[[], int] = lambda: CROWD + 1,
    ) -> None:
        """`score` returns a result or an exception per item, in order, and does not block.

        `under_way` is how many calls there are, the one asking included.
        """
        self._score, self._options, self._under_way = score, options, under_way
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._timer: asyncio.Handle | None = None  # of the next scoring
        self._scored_at_s = self._window_s = 0.0  # when the last scoring ended; a crowd's window

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue an item; the future has its result. Raises QueueFull."""
        if len(self._waiting) >= self._options.waiting_max:
            raise QueueFull(
                f"{len(self._waiting)} requests wait already, which is the limit; "
                f"try again later or at another router"
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._options.window_scorings:
            self._settle([(item, future)])
            return future
        self._waiting.append((item, future))
        if self._timer is None or len(self._waiting) == self._options.batch_max:
            self._schedule(loop)
        return future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Score when the window ends, or at once where a whole batch waits."""
        if self._timer is not None:
            self._timer.cancel()
        left_s = self._window_left_s()
        if left_s <= 0.0 or len(self._waiting) >= self._options.batch_max:
            self._timer = loop.call_soon(self._flush)
        elif left_s < TIMER_S_MIN:
            self._timer = loop.call_soon(self._schedule, loop)
        else:
            self._timer = loop.call_later(left_s, self._flush)

    def _window_left_s(self) -> float:
        """How long to wait for others; nothing where there are none."""
        others = min(self._under_way(), CROWD + 1) - 1
        if others <= 0:
            return 0.0
        window_s = self._window_s * others / CROWD
        if others >= CROWD and self._window_s:
            window_s = max(window_s, CROWD_S_MIN)
        return self._scored_at_s + window_s - time.monotonic()

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
        self._window_s = min(took_s * self._options.window_scorings, WINDOW_S_MAX)
        self._scored_at_s = began_s + took_s
        self._timer = None
        if self._waiting:
            self._schedule(loop)

    def _settle(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = self._score([item for item, _ in batch])
            assert len(results) == len(batch), "a result or an exception per item"
        except Exception as error:  # noqa: BLE001 - our bug; every caller must be told
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
