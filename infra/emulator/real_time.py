"""The emulated engine driven by a clock, for asyncio: tokens come when a real one would make them.

    generate ──submit──▶ Engine ◀──advance── one task, which sleeps until the next token or change
       ▲                                       │
       └──────────── new tokens ───────────────┘

The engine lives in its own virtual time. It runs `speed` times as fast as the clock, and
`slowdown` times slower while a fault is injected; changing either moves no time that has passed.

Whoever stops listening is cancelled in the engine too.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from infra.emulator.engine import FINISHED, Engine

# A token is reported at most this late or early, in seconds of the clock. Shorter sleeps would only
# burn time: an event loop's own are no more precise.
TICK_S = 0.001


class RealTimeEngine:
    """An `Engine` in an event loop. Not thread-safe."""

    def __init__(
        self,
        engine: Engine,
        now_s: Callable[[], float],
        *,
        speed: float = 1.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`now_s` is a monotonic clock and `sleep` waits by it; `speed` 20 is 20 times faster."""
        self.engine = engine
        self._now_s, self._sleep = now_s, sleep
        self._speed, self._slowdown = speed, 1.0
        self._anchor_s = now_s()  # of the clock, at `_engine_s` of the engine
        self._engine_s = engine.now_s
        self._ids = itertools.count()
        self._tokens: dict[int, asyncio.Queue[int | None]] = {}  # new ones; None: we failed
        self._reported: dict[int, tuple[int, int]] = {}  # tokens so far, and all that will be
        self._changed = asyncio.Event()  # a request came, or the pace changed
        self._task: asyncio.Task[None] | None = None

    @property
    def slowdown(self) -> float:
        """How many times slower than it should be; a fault to inject."""
        return self._slowdown

    @slowdown.setter
    def slowdown(self, times: float) -> None:
        assert times > 0.0, "time goes on"
        self._engine_s, self._anchor_s = self.engine_now_s(), self._now_s()
        self._slowdown = times
        self._changed.set()

    def engine_now_s(self) -> float:
        """The engine's time."""
        passed_s = (self._now_s() - self._anchor_s) * self._speed / self._slowdown
        return max(self._engine_s + passed_s, self.engine.now_s)

    def advance(self) -> None:
        """Bring the engine to the present, as whoever reads its state wants it."""
        self._tell()

    async def generate(
        self, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0, priority: int = 0
    ) -> AsyncGenerator[int, None]:
        """Yield the number of new tokens each time some are made. Raises NeverFits.

        Close the generator, or cancel who iterates it, to cancel the request.
        """
        request = next(self._ids)
        self.engine.submit(
            request, prompt_tokens, output_tokens, self.engine_now_s(), cached_tokens, priority
        )
        queue = self._tokens[request] = asyncio.Queue()
        self._reported[request] = (0, output_tokens)
        self._wake()
        try:
            left = output_tokens
            while left:
                new = await queue.get()
                if new is None:
                    assert self._task is not None
                    self._task.result()  # raises what went wrong
                    continue
                left -= new
                yield new
        finally:
            if self._tokens.pop(request, None) is not None:
                self._reported.pop(request, None)
                self.engine.cancel(request, self.engine_now_s())
                self._wake()

    def _wake(self) -> None:
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drive())

    async def _drive(self) -> None:
        """Tell tokens as they are made, until nobody listens."""
        try:
            while self._tokens:
                self._changed.clear()
                self._tell()
                if self._tokens:
                    await self._rest(self._due_s())
        finally:  # nobody may wait for ever, whatever ended this
            for queue in self._tokens.values():
                queue.put_nowait(None)

    def _due_s(self) -> float:
        """Seconds of the clock until the next token or change."""
        due_s = self.engine.next_token_s()
        if math.isinf(due_s):
            return math.inf
        return (due_s - self.engine_now_s()) * self._slowdown / self._speed

    async def _rest(self, seconds: float) -> None:
        """Sleep, unless something changes meanwhile."""
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._changed.wait())]
        if not math.isinf(seconds):
            waiting.append(asyncio.ensure_future(self._sleep(max(TICK_S, seconds))))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    def _tell(self) -> None:
        now_s = self.engine_now_s()
        finished = {e.request_id for e in self.engine.advance(now_s) if e.kind == FINISHED}
        for request, (reported, output) in list(self._reported.items()):
            made = output if request in finished else self.engine.tokens_made(request, now_s)
            if made > reported:
                self._reported[request] = (made, output)
                self._tokens[request].put_nowait(made - reported)
            if made == output:
                del self._reported[request], self._tokens[request]
