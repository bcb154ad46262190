"""Calls at given times whatever became of those before: rates, quantiles, what was refused.

    arrivals (Poisson) ──a thread sleeps until the next is due──▶ connections ──▶ what came of each

A call's time counts from when it was due, not from when it was sent, so a client that falls behind
shows (no coordinated omission). Nothing is left out: a call that never ends is lost.

Event loops' timers tick in milliseconds: a call sent at the next tick has waited 0.6 ms on average
in the client, and comes with all others of that millisecond. So a thread wakes the loop, to some
0.1 ms. Beyond some thousand calls a second the thread would wait for the interpreter's lock, and
send bursts; there the loop itself sends what is due, every millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from load.bench.speed.wire import Ask, Connection, Ended, connected

EACH_PER_S_MAX = 4000.0  # calls that are each woken for
TICK_S = 0.001  # between sendings beyond that
GRACE_S = 2.0  # for the last calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Calls of one kind."""

    name: str
    ask: Ask
    per_s: float
    deadline_s: float = float("inf")
    port: int = 0  # where it is another than the run's


@dataclass(slots=True)
class Seen:
    """What came of the calls of one kind."""

    sent: int = 0
    answered_s: list[float] = field(default_factory=list)  # times to answers
    in_time: int = 0  # answers before the deadline
    refused_s: list[float] = field(default_factory=list)  # times to refusals
    pushed_back: int = 0  # of the refusals, those that say when to try again
    statuses: dict[int | None, int] = field(default_factory=dict)

    def note(self, result: Ended, *, took_s: float, deadline_s: float) -> None:
        """Count one that has ended."""
        self.statuses[result.status] = self.statuses.get(result.status, 0) + 1
        if result.answered:
            self.answered_s.append(took_s)
            self.in_time += took_s <= deadline_s
        else:
            self.refused_s.append(took_s)
            self.pushed_back += result.pushback

    @property
    def lost(self) -> int:
        """Calls of which nothing came."""
        return self.sent - len(self.answered_s) - len(self.refused_s)


def poisson(rng: np.random.Generator, *, per_s: float, seconds: float) -> NDArray[np.float64]:
    """Arrivals of independent callers."""
    n = rng.poisson(per_s * seconds)
    return np.sort(rng.uniform(0.0, seconds, n))


class Drive:
    """One run of all streams. Calls due before `warm_s` are sent and not counted."""

    def __init__(
        self, streams: Sequence[Stream], rng: np.random.Generator, *, seconds: float, warm_s: float
    ) -> None:
        self.seen = {stream.name: Seen() for stream in streams}
        self._streams, self._warm_s = streams, warm_s
        kinds = [poisson(rng, per_s=stream.per_s, seconds=seconds) for stream in streams]
        due_s = np.concatenate(kinds)
        order = np.argsort(due_s, kind="stable")
        self._due_s: list[float] = due_s[order].tolist()
        self._kind: list[int] = np.repeat(np.arange(len(streams)), list(map(len, kinds)))[
            order
        ].tolist()
        total_per_s = sum(stream.per_s for stream in streams)
        self._by_tick = total_per_s > EACH_PER_S_MAX
        self._sent = self._under_way = 0
        self._begin_s = 0.0
        self._closed = False
        self._all_sent, self._all_ended = asyncio.Event(), asyncio.Event()

    async def run(self, port: int, n_connections: int) -> None:
        """Send every call at its time, then wait for the last ones."""
        ports = [stream.port or port for stream in self._streams]
        opened = {one: await connected(one, n_connections, self._ended) for one in {*ports}}
        by_kind, connections = [opened[one] for one in ports], [*chain(*opened.values())]

        def send() -> None:
            self._send_due(by_kind)
            for connection in connections:
                connection.flush()

        self._begin_s = time.monotonic()
        send()  # also where none is ever due
        if not self._by_tick:
            wake = partial(asyncio.get_running_loop().call_soon_threadsafe, send)
            threading.Thread(target=self._wake, args=(wake,), daemon=True).start()
        try:
            while self._by_tick and not self._all_sent.is_set():
                await asyncio.sleep(TICK_S)
                send()
            await self._all_sent.wait()
            if self._under_way:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._all_ended.wait(), GRACE_S)
        finally:
            self._closed = True
            for connection in connections:
                connection.close()

    def _wake(self, wake: Callable[[], object]) -> None:
        """In a thread: wake the loop whenever calls are due."""
        woken = 0
        while woken < len(self._due_s):
            due_s = self._begin_s + self._due_s[woken]
            time.sleep(max(due_s - time.monotonic(), 0.0))
            if self._closed:
                return
            woken = bisect_right(self._due_s, time.monotonic() - self._begin_s)
            wake()

    def _send_due(self, by_kind: Sequence[Sequence[Connection]]) -> None:
        now_s = time.monotonic() - self._begin_s
        while self._sent < len(self._due_s) and self._due_s[self._sent] <= now_s:
            number, self._sent = self._sent, self._sent + 1
            kind = self._kind[number]
            stream, connections = self._streams[kind], by_kind[kind]
            self.seen[stream.name].sent += self._due_s[number] >= self._warm_s
            self._under_way += 1
            connections[number % len(connections)].call(stream.ask, number)
        if self._sent == len(self._due_s):
            self._all_sent.set()

    def _ended(self, known_as: object, result: Ended) -> None:
        if self._closed:  # by us: nothing came of it
            return
        assert isinstance(known_as, int)
        self._under_way -= 1
        if not self._under_way and self._sent == len(self._due_s):
            self._all_ended.set()
        due_s = self._due_s[known_as]
        if due_s >= self._warm_s:
            stream = self._streams[self._kind[known_as]]
            took_s = time.monotonic() - self._begin_s - due_s
            self.seen[stream.name].note(result, took_s=took_s, deadline_s=stream.deadline_s)


async def drive(
    port: int,
    streams: Sequence[Stream],
    seconds: float,
    rng: np.random.Generator,
    *,
    warm_s: float = 0.0,
    n_connections: int = 8,
) -> dict[str, Seen]:
    """Send all for so many seconds; what came of each kind."""
    run = Drive(streams, rng, seconds=seconds, warm_s=warm_s)
    await run.run(port, n_connections)
    return run.seen


def quantile_ms(seconds: Sequence[float], q: float) -> float:
    """A quantile in milliseconds; 0 of nothing."""
    return float(np.quantile(seconds, q)) * 1000.0 if seconds else 0.0
