"""Writes an answer's events to gRPC: the first token at once, the others at most so often.

    events ──read──▶ waiting ──merged──▶ write
                       └── for 20 ms after a write, pieces wait for those that come next

A message costs grpc.aio some 150 µs of its event loop, whatever is in it: with 100 streams of
fast models that is more than everything else a dispatcher does, and each first token would wait
for it. Nobody reads faster than 50 times a second, and a slower model's pieces are written as they
come.

The one rule: nothing is reordered, and nothing that was read is lost, also when reading fails.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from serve.answers import Event, Streamed

PACE_S = 0.02  # between two writes of pieces
WAITING_MAX = 256  # then a reader who is slow holds the answer up


class PacedWriter:
    """Writes one call's events. Used once."""

    def __init__(self, write: Callable[[Event], Awaitable[None]]) -> None:
        self._write = write
        self._waiting: list[Event] = []
        self._ready, self._room = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._wrote_s = -math.inf  # pieces, by the loop's clock

    async def send(self, events: AsyncGenerator[Event, None]) -> None:
        """Write all events. Raises what reading them raises, after what came before it."""
        reading = asyncio.ensure_future(self._read(events))
        reading.add_done_callback(lambda task: self._ready.set())
        try:
            while self._waiting or not reading.done():
                await self._ready.wait()
                self._ready.clear()
                await self._flush()
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if self._timer is not None:
                self._timer.cancel()

    async def _read(self, events: AsyncGenerator[Event, None]) -> None:
        async with aclosing(events):
            async for event in events:
                self._waiting.append(event)
                self._schedule(event)
                while len(self._waiting) >= WAITING_MAX:
                    self._room.clear()
                    self._ready.set()
                    await self._room.wait()

    def _schedule(self, event: Event) -> None:
        """Have it written at once, unless it is a piece soon after others."""
        loop = asyncio.get_running_loop()
        rest_s = self._wrote_s + PACE_S - loop.time()
        if rest_s <= 0.0 or not isinstance(event, Streamed):
            self._ready.set()
        elif self._timer is None:
            self._timer = loop.call_later(rest_s, self._ready.set)

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if any(isinstance(event, Streamed) for event in waiting):
            self._wrote_s = asyncio.get_running_loop().time()
        for event in merged(waiting):
            await self._write(event)
        self._room.set()


def merged(events: Sequence[Event]) -> Iterator[Event]:
    """The events, pieces that are nothing but text joined to those before them."""
    last: Event | None = None
    for event in events:
        if last is not None and _joins(last, event):
            assert isinstance(last, Streamed) and isinstance(event, Streamed)
            text = last.piece.text + event.piece.text
            last = replace(event, piece=replace(event.piece, delta={"content": text}))
            continue
        if last is not None:
            yield last
        last = event
    if last is not None:
        yield last


def _joins(one: Event, other: Event) -> bool:
    return (
        isinstance(one, Streamed)
        and isinstance(other, Streamed)
        and one.answer == other.answer
        and one.piece.finish_reason is None
        and all(set(e.piece.delta) == {"content"} and not e.piece.logprobs for e in (one, other))
    )
