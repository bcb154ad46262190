"""How many requests a server holds, and what it finished meanwhile: fields of a `pool` record.

    a page's looks (running, waiting), its counts ─▶ HeldRequests.window ─┐
    callers' answers (found, took) ─────────────────▶ HeldRequests.answers ─┴─▶ held, served, …

Two looks are joined by a straight line: a second's window is as long as many answers, and what a
look is off by is off the other way as often. A caller knows of each answer how many it found there
(`learners.servers.service` says what that tells).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from learners.servers.service import bucket_of
from learners.work import WorkRates

# Looks are put together for so long: within a second that finishes more, fewer are held.
LOOKS_US = 5_000_000
NONE = (0, 0, 0, 0)
RECENT_S = 5.0  # as long as an emulated replica's load is averaged over: prices are damped for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What is stated, measured or derived of one server, before anything is learned of it."""

    rates: WorkRates = WorkRates()
    known: bool = False  # False: the rates are but a guess
    held_max: int = 0  # requests at once; 0: not stated
    idle_w: float = 0.0  # power, by the figures of its GPU
    busy_w: float = 0.0

    def per_s(self, prompt_tokens: float, *, output_tokens: float) -> float:
        """Requests of such lengths that it can do a second; 0: not known."""
        work_s = self.rates.work_s(prompt_tokens, output_tokens=output_tokens)
        return 1.0 / work_s if self.known and work_s else 0.0


class HeldRequests:
    """Of one server."""

    def __init__(self, stated: Stated) -> None:
        self._stated = stated
        self._last: tuple[float, float] | None = None  # held and waiting, at the last look
        self._recent = 0.0
        self._looks: tuple[int, ...] = NONE
        self._served: dict[int, tuple[int, ...]] = {}
        self._squared: Counter[int] = Counter()  # by bucket, of answers: milliseconds²
        self._lengths = [0.0, 0.0, 0.0]  # of what was finished lately: requests, tokens in and out

    def window(
        self, held: float, window_ms: int, *, waiting: float, finished: int | None
    ) -> dict[str, Any]:
        """The fields of a window that ends with a look at the server's page.

        `finished` is None where nobody counted: then nothing is learned from it.
        """
        before, self._last = self._last or (held, waiting), (held, waiting)
        held_us = round(500.0 * (before[0] + held) * window_ms)
        waited_us = round(500.0 * (before[1] + waiting) * window_ms)
        new = (1000 * window_ms, held_us, waited_us, finished or 0)
        kept = self._looks if finished is not None else NONE
        self._looks = tuple(a + b for a, b in zip(kept, new, strict=True))
        if self._looks[0] >= LOOKS_US and self._looks[1] and finished is not None:
            self._served[bucket_of(self._looks[1] / self._looks[0])], self._looks = (
                self._looks,
                NONE,
            )
        elif finished is None or self._looks[0] >= LOOKS_US:
            self._looks = NONE
        return self._taken(held, window_ms)

    def answer(self, found: int, took_s: float) -> None:
        """Count an answer to a request that was the `found`th in the server."""
        bucket, took_us = bucket_of(found), round(1e6 * took_s)
        before = self._served.get(bucket, (0, 0, 0, 0))
        new = (max(1, took_us // found), took_us, 0, 1)
        self._served[bucket] = tuple(a + b for a, b in zip(before, new, strict=True))
        self._squared[bucket] += round(1e3 * took_s) ** 2

    def answers(self, held: float, window_ms: int) -> dict[str, Any]:
        """The fields of a window in which these answers came; `held` at its end."""
        return self._taken(held, window_ms)

    def lengths(self, finished: int, prompt_tokens: int, output_tokens: int) -> None:
        """Note lengths of the last hundred requests or so: what is stated depends on them."""
        kept = 0.99**finished
        new = (finished, prompt_tokens, output_tokens)
        self._lengths = [kept * a + b for a, b in zip(self._lengths, new, strict=True)]

    def _taken(self, held: float, window_ms: int) -> dict[str, Any]:
        served, self._served = self._served, {}
        squared, self._squared = self._squared, Counter()
        kept = math.exp(-window_ms / 1000.0 / RECENT_S)
        self._recent = kept * self._recent + (1.0 - kept) * held
        n, prompts, outputs = self._lengths
        return {
            "held": self._recent,
            "stated_per_s": self._stated.per_s(prompts / n, output_tokens=outputs / n)
            if n
            else 0.0,
            "held_max": self._stated.held_max,
            "served": [(bucket, *of) for bucket, of in sorted(served.items())],
            "squared": sorted(squared.items()),
        }

    def power(self, held: float, window_ms: int) -> dict[str, Any]:
        """Power by the figures of the GPU: it draws what it draws at work while it holds any."""
        stated = self._stated
        if not stated.busy_w:
            return {}
        watts = stated.idle_w + (stated.busy_w - stated.idle_w) * min(1.0, held)
        return {"watts": watts, "joules": watts * window_ms / 1000.0, "watts_from": "figures"}
