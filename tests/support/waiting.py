"""Waiting for what must come: on conditions, never for a length of time.

    until(lambda: server.requests == 3, "the third request")
    await soon(lambda: server.broken_off == 1)

A test passes as soon as the condition holds; the limit only ends a test that would fail anyway, and is generous,
because other work may have the machine's cores meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = (
    300.0  # only a test that fails waits so long; a cluster that starts on busy cores takes minutes
)
PAUSE_S_MAX = 0.25  # some conditions are calls to the very processes that are waited for
T = TypeVar("T")


def until(condition: Callable[[], T], what: str = "it", seconds: float = PATIENCE_S) -> T:
    """Wait until `condition()` is true, and return it."""
    deadline_s, pause_s = time.monotonic() + seconds, 0.005
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"waited {seconds} s for {what}"
        time.sleep(pause_s)
        pause_s = min(PAUSE_S_MAX, 1.1 * pause_s)  # what is long in coming is asked for less often
    return found


async def soon(condition: Callable[[], object], what: str = "it") -> None:
    """The same in an event loop, where other tasks go on meanwhile."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {PATIENCE_S} s for {what}"
        await asyncio.sleep(0.001)
