"""Group commit: in a crowd, requests that arrive close together are scored together.

    crowd    score│accept│accept│accept│···still│score│accept│accept│    never idle
    alone    score│reply│        idle        │accept│score│reply│        scored at once

A request is scored where it comes in if the loop has been idle since the last scoring, for as long
as scoring one alone takes: then nobody else was waiting. If it has not, others may well wait in
gRPC's core, where Python can't see them: it is handed one call a turn, and to score each at once
would leave the rest there for as long as the crowd lasts. So the loop takes in what there is, until
nothing has come for a moment, and scores that together. A moment is what scoring one alone takes,
which is what one more request in the batch saves: what a replica does not compute, callers on the
same machine can.

What one alone takes is smoothed, and no less than a share of a batch, nor more than all of it.
Were it the last scoring, however large, one slow scoring would make the next wait, which makes a
batch, which is slow: of calls that come at their own times, a thousand a second, every hundredth
would wait 5 ms beside idle cores.

What shows a crowd is the loop's own idleness (wall-clock time less processor time of its thread),
not the number of calls under way: with 64 callers Python sees one or two of them. A caller that
answers faster than a moment looks like a crowd; gathering that finds nobody is therefore skipped
once, then 3, 7 … 63 times, until it finds somebody.

Measured with 64 callers on two cores, in turns with an empty handler (docs/speed.md): scoring each
at once .29 of its rate, a window of three scorings .32, this .80 to .92.

The queue is bounded: beyond it a request is refused at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from learners.option import option
from serve.errors import QueueFull

# A loop that was idle for longer has handed over all there was. A caller alone on this machine
# takes 250 to 550 µs to ask again; in a crowd 0 to 150 pass while gRPC's thread wakes the loop.
IDLE_S = 0.0002
# Nothing has come for so long: it takes gRPC 100 to 200 µs to hand over the next call.
STILL_S, STILL_S_MAX = 0.0003, 0.002
# Looks that find nobody, after which it ends, however long they took: who holds the core keeps
# gRPC's threads, which hand over calls, from it; so such a look gives them a turn.
EMPTY_LOOKS = 2
# Event loops' timers tick in milliseconds: what is shorter is waited for turn by turn.
TIMER_S_MIN = 0.001
SKIPPED_MAX = 63  # scorings without gathering, after it found nobody
SMOOTHED = 0.125  # weight of the last one scored alone

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
    # A crowd's requests are gathered for no longer. 0: each request is scored at once.
    gather_s_max: float = 0.005


class Batcher(Generic[Item, Result]):
    """Gives items to `score` in batches, in order of arrival, on the event loop."""

    def __init__(
        self,
        score: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        options: BatcherOptions,
        *,
        now_s: Callable[[], float] = time.monotonic,
        busy_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """`score` returns a result or an exception per item, in order, and does not block.

        `busy_s` is the processor time that the event loop's thread has taken.
        """
        self._score, self._options, self._now_s, self._busy_s = score, options, now_s, busy_s
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._next: asyncio.Handle | None = None  # scoring, or another look whether more have come
        self._ended_s = self._ended_busy_s = 0.0  # the last scoring
        self._alone_s = 0.0  # that scoring one alone takes
        self._began_s = self._grew_s = 0.0  # gathering began, and found the last one
        self._found = self._empty_looks = 0  # looks since it found the last one
        self._futile = self._to_skip = 0  # gatherings to be skipped after one that found nobody

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue an item; the future has its result. Raises QueueFull."""
        if len(self._waiting) >= self._options.waiting_max:
            raise QueueFull(
                f"{len(self._waiting)} requests wait already, which is the limit; "
                f"try again later or at another router"
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if self._next is None and not self._crowded():
            self._timed([(item, future)])
            return future
        self._waiting.append((item, future))
        if self._next is None:
            self._begin(loop)
        return future

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Gather."""
        self._began_s = self._grew_s = self._now_s()
        self._found, self._empty_looks = len(self._waiting), 0
        self._next = loop.call_soon(self._gather, loop)

    def _crowded(self) -> bool:
        """Whether the loop was idle for less than scoring one takes, or has not been at all."""
        if not self._options.gather_s_max:
            return False
        elapsed_s = self._now_s() - self._ended_s
        idle_s = elapsed_s - (self._busy_s() - self._ended_busy_s)
        if idle_s >= max(IDLE_S, min(self._alone_s, STILL_S_MAX)):
            return False
        self._to_skip -= 1
        return self._to_skip < 0

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop take in calls for as long as they keep coming."""
        moment_s = min(max(STILL_S, self._alone_s), STILL_S_MAX)
        asleep = moment_s >= TIMER_S_MIN
        if self._complete(moment_s, empty_looks=1 if asleep else EMPTY_LOOKS):
            self._flush(loop)
        elif asleep:
            self._next = loop.call_later(moment_s, self._gather, loop)
        else:
            os.sched_yield()
            self._next = loop.call_soon(self._gather, loop)

    def _complete(self, moment_s: float, empty_looks: int) -> bool:
        """Whether no more are waited for, as seen by this look."""
        now_s, n = self._now_s(), len(self._waiting)
        self._empty_looks += 1
        if n > self._found:
            self._found, self._grew_s, self._empty_looks = n, now_s, 0
        late = now_s - self._began_s >= self._options.gather_s_max
        still = now_s - self._grew_s >= moment_s and self._empty_looks >= empty_looks
        return still or late or n >= self._options.batch_max

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Score one batch, then let the event loop read what has arrived meanwhile."""
        alone = len(self._waiting) == 1
        self._futile = min(2 * self._futile + 1, SKIPPED_MAX) if alone else 0
        self._to_skip = self._futile
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._options.batch_max:
            item, future = self._waiting.popleft()
            if not future.done():  # its caller has gone: nothing to score
                batch.append((item, future))
        if batch:
            self._timed(batch)
        self._next = None
        if self._waiting:
            self._begin(loop)

    def _timed(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        """Score a batch, and remember when it ended."""
        began_s = self._now_s()
        self._settle(batch)
        self._ended_s, self._ended_busy_s = self._now_s(), self._busy_s()
        self._note(len(batch), self._ended_s - began_s)

    def _note(self, n: int, took_s: float) -> None:
        """Learn what scoring one alone takes: at most what a batch takes, at least its share."""
        alone_s = self._alone_s
        if n == 1 and alone_s:
            self._alone_s += SMOOTHED * (took_s - alone_s)
        else:
            self._alone_s = min(max(alone_s, took_s / n), took_s)

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
