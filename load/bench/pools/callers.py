"""Callers who ask at random times, whatever becomes of what they asked before.

    rate, seconds ─▶ times ─▶ POST /v1/chat/completions, streamed ─▶ Asked: what came of each

The one rule: every request that was started is in the result.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import aiohttp
import numpy as np

REFUSED = (429, 503)
SAY_S = 10.0  # how often whoever waits is told how far it is
Outcome = Literal["answered", "refused", "timed_out", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request; seconds since the beginning."""

    at_s: float
    ended_s: float
    outcome: Outcome
    criticality: str = ""
    said: str = ""  # where it failed


class Callers:
    """Of one dispatcher. Used from one event loop."""

    def __init__(
        self, url: str, session: aiohttp.ClientSession, *, patience_s: float, began_s: float
    ) -> None:
        """`url` is OpenAI's base URL; `began_s` when it all began, on the monotonic clock."""
        self._url, self._session = f"{url}/chat/completions", session
        self._patience_s, self._began_s = patience_s, began_s
        self.found: Counter[str] = Counter()  # of all requests so far: asked, and what came of them

    async def ask(
        self,
        models: Sequence[str],
        rng: np.random.Generator,
        *,
        per_s: float,
        seconds: float,
        criticalities: Sequence[str] = ("critical",),
    ) -> list[Asked]:
        """Ask one of these models so often, from now on; wait for all answers.

        Requests have these criticalities by turns.
        """
        start_s, found = self._now_s(), list[Asked]()
        times = np.sort(rng.uniform(0.0, seconds, rng.poisson(per_s * seconds)))
        async with asyncio.TaskGroup() as group:
            for number, at_s in enumerate(times.tolist()):
                await asyncio.sleep(max(0.0, start_s + at_s - self._now_s()))
                criticality = criticalities[number % len(criticalities)]
                group.create_task(self._one(models, number, criticality, found.append))
        return found

    async def _one(
        self, models: Sequence[str], number: int, criticality: str, done: Callable[[Asked], None]
    ) -> None:
        at_s = self._now_s()
        self.found["asked"] += 1
        try:
            async with asyncio.timeout(self._patience_s):
                outcome, said = await self._answer(models, number, criticality)
        except TimeoutError:
            outcome, said = "timed_out", ""
        except (aiohttp.ClientError, OSError) as error:
            outcome, said = "failed", str(error) or type(error).__name__
        ended_s = self._now_s()
        self.found[outcome] += 1
        done(Asked(at_s=at_s, ended_s=ended_s, outcome=outcome, criticality=criticality, said=said))

    async def _answer(
        self, models: Sequence[str], number: int, criticality: str
    ) -> tuple[Outcome, str]:
        words = {"role": "user", "content": f"{number}: what is a fairlead?"}
        ours = {"allowed_models": list(models), "criticality": criticality}
        body = {"model": "auto", "stream": True, "messages": [words], "fairlead": ours}
        async with self._session.post(self._url, json=body) as response:
            text = await response.text()
        if response.status in REFUSED:
            return "refused", text[:200]
        if response.status == 200 and text.rstrip().endswith("data: [DONE]"):
            return "answered", ""
        return "failed", f"{response.status}: {text[-200:]}"

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    @asynccontextmanager
    async def said(self, say: Callable[[str], None], every_s: float = SAY_S) -> AsyncIterator[None]:
        """Meanwhile say every few seconds how far it is."""

        async def again_and_again() -> None:
            while True:
                await asyncio.sleep(every_s)
                counts = ", ".join(f"{n:,} {what}" for what, n in self.found.items())
                say(f"{self._now_s():.0f} s: {counts or 'nothing is asked yet'}")

        saying = asyncio.create_task(again_and_again())
        try:
            yield
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
