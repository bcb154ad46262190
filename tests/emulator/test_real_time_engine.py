"""The emulated engine driven by a clock: tokens come when they are due, by a clock of the test's."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math

import pytest

from infra.emulator.engine import Engine
from infra.emulator.errors import NeverFits
from infra.emulator.performance import Performance
from infra.emulator.real_time import TICK_S, RealTimeEngine

TURNS = 50  # of the event loop: more than any chain of callbacks here needs


def performance(**changed) -> Performance:
    """A token takes a second, a prompt no time."""
    values = {
        "fixed_s": 1.0,
        "per_sequence_s": 0.0,
        "per_context_token_s": 0.0,
        "per_prompt_token_s": 0.0,
        "request_s": 0.0,
        "prefill_tokens_max": 512,
        "kv_tokens_max": 10_000,
        "sequences_max": 8,
        "derived": False,
        "source": "made up",
    }
    return Performance(**values | changed)


class Clock:
    """Time that passes only in `run_until`, from one sleeper's end to the next."""

    def __init__(self) -> None:
        self.time_s, self.order, self.sleepers = 100.0, itertools.count(), []

    def now_s(self) -> float:
        return self.time_s

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.get_running_loop().create_future()
        heapq.heappush(self.sleepers, (self.time_s + seconds, next(self.order), awake))
        await awake

    async def run_until(self, time_s: float) -> None:
        await settle()
        while self.sleepers and self.sleepers[0][0] <= time_s:
            at_s, _, awake = heapq.heappop(self.sleepers)
            if not awake.done():
                self.time_s = max(self.time_s, at_s)
                awake.set_result(None)
                await settle()
        self.time_s = time_s
        await settle()


async def settle() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Caller:
    """Collects what a request receives, and when."""

    def __init__(self, engine: RealTimeEngine, clock: Clock, prompt: int, output: int) -> None:
        self.received: list[tuple[float, int]] = []
        self.clock, self.tokens = clock, engine.generate(prompt, output)
        self.task = asyncio.get_running_loop().create_task(self.listen())

    async def listen(self) -> None:
        async for new in self.tokens:
            self.received.append((round(self.clock.time_s - 100.0, 2), new))


def on_a_clock(test, **options) -> None:
    """Run `test(engine, clock, call)` in an event loop of its own."""

    async def main() -> None:
        clock = Clock()
        of = options.pop("of", performance())
        engine = RealTimeEngine(Engine(of), clock.now_s, sleep=clock.sleep, **options)
        callers = []

        def call(prompt: int = 10, output: int = 3) -> Caller:
            callers.append(Caller(engine, clock, prompt, output))
            return callers[-1]

        await test(engine, clock, call)
        for caller in callers:
            caller.task.cancel()
        await asyncio.gather(*(caller.task for caller in callers), return_exceptions=True)

    asyncio.run(main())


def test_tokens_come_when_they_are_made():
    """
    One a second, each as it is made.
    """

    async def test(engine, clock, call):
        caller = call(output=3)
        await clock.run_until(110.0)
        assert caller.received == [(1.0, 1), (2.0, 1), (3.0, 1)]
        assert caller.task.done()

    on_a_clock(test)


def test_requests_are_batched():
    """
    The second joins at the next boundary, and both get a token per iteration.
    """

    async def test(engine, clock, call):
        first = call(output=4)
        await clock.run_until(101.5)
        second = call(output=2)
        await clock.run_until(110.0)
        assert first.received == [(1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1)]
        assert second.received == [(3.0, 1), (4.0, 1)]

    on_a_clock(test)


def test_a_late_loop_tells_all_tokens_that_are_due_at_once():
    """
    When the event loop was held up, nothing is lost and nothing sent twice.
    """

    async def test(engine, clock, call):
        caller = call(output=6)
        await clock.run_until(101.2)
        clock.time_s = 104.5  # nobody was woken meanwhile
        await clock.run_until(110.0)
        assert caller.received == [(1.0, 1), (4.5, 3), (5.0, 1), (6.0, 1)]

    on_a_clock(test)


def test_a_caller_who_leaves_is_cancelled_in_the_engine():
    """
    Its place is free for others.
    """

    async def test(engine, clock, call):
        caller, other = call(output=1000), call(output=3)
        await clock.run_until(101.5)
        assert engine.engine.running == 2

        caller.task.cancel()
        await settle()

        assert engine.engine.running == 1
        await clock.run_until(110.0)
        assert len(other.received) == 3
        assert engine.engine.next_change_s() == math.inf

    on_a_clock(test)


def test_closing_the_generator_cancels_too():
    """
    As a server does when its client disconnects.
    """

    async def test(engine, clock, call):
        tokens = engine.generate(10, 1000)
        first = asyncio.ensure_future(anext(tokens))
        await clock.run_until(101.0)
        assert await first == 1

        await tokens.aclose()

        assert (engine.engine.running, engine.engine.queued) == (0, 0)

    on_a_clock(test)


def test_speed_divides_all_times():
    """
    Twenty times faster: a token in 50 ms.
    """

    async def test(engine, clock, call):
        caller = call(output=3)
        await clock.run_until(100.5)
        assert caller.received == [(0.05, 1), (0.1, 1), (0.15, 1)]

    on_a_clock(test, speed=20.0)


def test_a_slowdown_begins_and_ends_at_once():
    """
    Time that has passed stays as it was: half of the second token's time, then half at a quarter
    of the pace.
    """

    async def test(engine, clock, call):
        caller = call(output=4)
        await clock.run_until(101.5)
        engine.slowdown = 4.0
        await clock.run_until(103.9)
        engine.slowdown = 1.0
        await clock.run_until(110.0)
        assert caller.received == [(1.0, 1), (3.5, 1), (4.8, 1), (5.8, 1)]

    on_a_clock(test)


def test_what_never_fits_is_refused_at_once():
    """
    The caller hears it, and nothing of it stays behind.
    """

    async def test(engine, clock, call):
        with pytest.raises(NeverFits):
            await anext(engine.generate(100, 100))
        assert engine.engine.next_change_s() == math.inf
        caller = call(output=1)
        await clock.run_until(105.0)
        assert caller.received == [(1.0, 1)]

    on_a_clock(test, of=performance(kv_tokens_max=50))


def test_the_driver_rests_when_nobody_listens():
    """
    And comes back for the next.
    """

    async def test(engine, clock, call):
        call(output=1)
        await clock.run_until(105.0)
        assert engine._task.done()

        caller = call(output=1)
        await clock.run_until(110.0)
        assert caller.received == [(6.0, 1)]

    on_a_clock(test)


def test_a_failing_engine_fails_its_callers():
    """
    Nobody waits for ever for a token that will not come.
    """

    async def test(engine, clock, call):
        caller = call(output=100)
        await clock.run_until(101.5)
        engine.engine.advance = None  # our own bug, whatever it is
        await clock.run_until(105.0)
        assert isinstance(caller.task.exception(), TypeError)

    on_a_clock(test)


def test_a_sleep_that_ends_early_is_not_a_busy_loop():
    """
    The driver pauses for a tick at least.
    """

    async def test(engine, clock, call):
        pauses = []

        async def early(seconds: float) -> None:
            pauses.append(seconds)
            await clock.sleep(min(seconds, 0.4))

        engine._sleep = early
        call(output=1)
        await clock.run_until(105.0)
        assert len(pauses) <= 4
        assert min(pauses) >= TICK_S

    on_a_clock(test)
