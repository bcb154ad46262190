"""Writes an answer's events to gRPC: the first token at once, the others at most so often.

    events ──▶ write
         └──▶ waiting ──merged──▶ write     pieces that come within 20 ms of a write

A message costs grpc.aio some 150 µs of its event loop, whatever is in it: with 100 streams of
fast models that is more than everything else a dispatcher does, and each first token would wait
for it. Nobody reads faster than 50 times a second, and a slower model's pieces are written as they
come. Who answers is written with the first token, the last piece with the end.

Nothing is reordered, and nothing that was read is lost, also when reading fails. So nothing is
written after what could not be.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from serve.dispatch.answers import Ended, Event, Routed, Streamed
from serve.dispatch.backend import Piece

PACE_S = 0.02  # between two writes of pieces
WAITING_MAX = 64  # pieces; a pool that sends more within the pace is not waited for


class PacedWriter:
    """Writes one call's events. Used once, from one event loop."""

    def __init__(self, write: Callable[[Sequence[Event]], Awaitable[None]]) -> None:
        """`write` takes events that are there together, at least one."""
        self._write = write
        self._waiting: list[Event] = []
        self._writing = asyncio.Lock()  # writers take their turns, so that order is kept
        self._timer: asyncio.TimerHandle | None = None
        self._later: asyncio.Task[None] | None = None  # what a timer writes
        self._wrote_s = -math.inf  # pieces, by the loop's clock
        self._failed: Exception | None = None  # what a write ended with

    async def send(self, events: AsyncGenerator[Event, None]) -> None:
        """Write all events. Raises what reading them raises, after what came before it.

        A reader who is slow holds the answer up: nothing is read while a write takes its time.
        """
        self._loop = asyncio.get_running_loop()  # asked once: each time is a call of the kernel
        try:
            async with aclosing(events):
                async for event in events:
                    await self._take(event)
        except Exception:
            await self._flush()
            raise
        else:
            await self._flush()
        finally:
            await self._end_timer()

    async def _take(self, event: Event) -> None:
        """Write an event at once, unless another follows it, or it is a piece soon after others."""
        self._waiting.append(event)
        rest_s = self._rest_s(event)
        if rest_s <= 0.0 or len(self._waiting) >= WAITING_MAX or self._failed:
            await self._flush()
        elif self._timer is None or self._timer.when() > self._loop.time() + rest_s:
            self._stop_timer()
            self._timer = self._loop.call_later(rest_s, self._flush_later)

    def _rest_s(self, event: Event) -> float:
        """How long an event waits for others, if none comes."""
        if isinstance(event, Ended):
            return 0.0
        if isinstance(event, Routed) or event.piece.followed:
            return PACE_S
        begun = self._wrote_s > -math.inf
        if begun and event.piece.finish_reason:
            return PACE_S
        return self._wrote_s + PACE_S - self._loop.time()

    def _flush_later(self) -> None:
        self._timer = None
        if self._later is None or self._later.done():  # else it writes what waits by now, too
            self._later = self._loop.create_task(self._flush_all())

    async def _flush_all(self) -> None:
        with contextlib.suppress(Exception):  # the next event raises it
            while self._waiting:
                await self._flush()

    async def _flush(self) -> None:
        """Write what waits. Raises what a write has ever failed with."""
        async with self._writing:
            if self._failed is not None:
                raise self._failed
            waiting, self._waiting = self._waiting, []
            self._stop_timer()
            if any(isinstance(event, Streamed) for event in waiting):
                self._wrote_s = self._loop.time()
            try:
                if waiting:
                    await self._write(tuple(merged(waiting)))
            except Exception as error:
                self._failed = error
                raise

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _end_timer(self) -> None:
        self._stop_timer()
        if self._later is not None:
            self._later.cancel()  # nothing waits any more, or nobody does
            await asyncio.gather(self._later, return_exceptions=True)


def merged(events: Sequence[Event]) -> Iterator[Event]:
    """The events, pieces that are nothing but text joined to those before them."""
    run: list[Streamed] = []  # that become one piece
    for event in events:
        if run and not _joins(run[-1], event):
            yield _joined(run)
            run = []
        if isinstance(event, Streamed):
            run.append(event)
        else:
            yield event
    if run:
        yield _joined(run)


def _joined(run: Sequence[Streamed]) -> Streamed:
    if len(run) == 1:
        return run[0]
    text = "".join(one.piece.text for one in run)
    return replace(run[-1], piece=replace(run[-1].piece, delta={"content": text}))


def _is_text(piece: Piece) -> bool:
    """Whether it is nothing but text."""
    return (
        set(piece.delta) == {"content"}
        and isinstance(piece.delta["content"], str)
        and not piece.logprobs
    )


def _joins(one: Streamed, other: Event) -> bool:
    return (
        isinstance(other, Streamed)
        and one.answer == other.answer
        and one.piece.finish_reason is None
        and _is_text(one.piece)
        and _is_text(other.piece)
    )
