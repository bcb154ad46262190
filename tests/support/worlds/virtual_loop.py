"""An event loop whose time is a number: it jumps to the next timer when nothing else can happen.

    with virtual_loop() as loop:
        loop.run_until_complete(work())      a thousand seconds of waiting pass at once
        loop.time()                          1000.0

So time-outs, hedges and deadlines are tested exactly, and without sleeping. Nothing but timers can
wake it: no sockets, no threads.

What would wait for ever is a failure, said at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stuck(Exception):
    """Every task waits, and no timer is set: nothing will ever happen."""


class _Jump(selectors.SelectSelector):
    """Instead of waiting, sets the loop's time."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list:
        if timeout is None:
            raise Stuck
        if timeout > 0.0:
            self.loop.jump()
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See above. Collects what tasks fail with when nobody asks for it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.complaints: list[str] = []
        selector = _Jump()
        super().__init__(selector)
        selector.loop = self
        self.set_exception_handler(lambda _, context: self.complaints.append(str(context)))

    def time(self) -> float:
        return self.now_s

    def jump(self) -> None:
        """To the next timer, exactly."""
        self.now_s = max(self.now_s, self._scheduled[0].when())

    def settle(self) -> None:
        """Run what can run without time passing."""
        for _ in range(50):
            self.run_until_complete(asyncio.sleep(0))

    def run(self, work: Any) -> Any:
        return self.run_until_complete(work)


@contextmanager
def virtual_loop() -> Iterator[VirtualLoop]:
    """A loop for the length of a `with` block; afterwards no task may be left."""
    loop = VirtualLoop()
    try:
        yield loop
        loop.settle()
        left = asyncio.all_tasks(loop)
        assert not left, left
        assert not loop.complaints, loop.complaints
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
