"""Signs of life in a stream that has nothing to say: comments, which readers of events skip.

    piece … silence for `period_s` ──▶ ": waiting" … piece

Proxies and load balancers cut connections that are silent for 30 to 100 s, and a model may well
think for longer. A comment is sent between events and never within one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

COMMENT = b": waiting\n\n"


@asynccontextmanager
async def heartbeat(
    beat: Callable[[], Awaitable[None]], last_s: Callable[[], float], period_s: float
) -> AsyncIterator[None]:
    """Call `beat` whenever nothing was sent for so long; 0: never.

    `last_s` is when something was sent last, on the event loop's clock.
    """
    if not period_s:
        yield
        return
    beating = asyncio.create_task(_beating(beat, last_s, period_s))
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait((beating,))
    if not beating.cancelled():
        beating.result()  # raises what kept it from beating


async def _beating(
    beat: Callable[[], Awaitable[None]], last_s: Callable[[], float], period_s: float
) -> None:
    now_s = asyncio.get_running_loop().time
    while True:
        left_s = last_s() + period_s - now_s()
        if left_s > 0:
            await asyncio.sleep(left_s)
        else:
            await beat()
