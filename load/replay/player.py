"""One process of a replay: sends its share of the requests at their times, come what may.

    every n-th request ─▶ due? ─▶ asked in a task of its own ─▶ measured from when it was *due*
                                                          └─▶ an outcome, later, perhaps

Open loop: nobody waits for an answer before the next request is sent. A sender that falls behind
its schedule measures that, as lag and as latency, and sends on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load.replay.measured import BESIDE, STEPS, Each, Measured, Phase
from load.replay.targets import (
    HTTP,
    Answered,
    Asked,
    Connect,
    DispatchTarget,
    OpenAiTarget,
    RouteTarget,
    Target,
)

LATE_S = 0.25  # a request that is sent later than that was not delivered as intended
BATCH_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """Whom to call, and how."""

    url: str  # HOST:PORT, or http://…/v1
    call: str = "route"  # route or dispatch, of Fairlead
    model: str = "auto"  # OpenAI's API
    timeout_s: float = 120.0
    connections: int = 8
    batch_ms: float = 0.0  # route: what is due within so long goes in one call
    extra: dict[str, Any] = field(default_factory=dict)  # put into every chat completion's body
    token: str = field(default="", repr=False)  # a bearer token, or the key of an API
    root_certificates: bytes | None = None  # PEM: call with TLS, trusting these

    @property
    def http(self) -> bool:
        """Whether it is OpenAI's API."""
        return self.url.startswith(HTTP)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackOptions:
    """What is reported of answers: the outcome table's quality, late, and not of all."""

    share: float = 1.0  # of answers that somebody judges
    delay_s_mean: float = 5.0  # exponentially distributed
    lost_share: float = 0.01  # of reports that never arrive


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """What one process plays."""

    at_s: NDArray[np.float64]  # (n,) ascending, from the beginning of the replay
    asked: Sequence[Asked]
    span_s: float  # of the whole replay
    warm_up_s: float
    drain_s: float  # waited for answers after the last request
    quality: dict[str, NDArray[np.float64]]  # by model, of the table's rows; empty: none reported
    feedback: FeedbackOptions
    seed: int
    keeps_each: bool = False  # see `Measured.each`


def target_of(options: TargetOptions, connect: Connect) -> Target:
    """Opened; within a running event loop."""
    if options.http:
        return OpenAiTarget(
            options.url,
            options.model,
            options.timeout_s,
            options.extra,
            options.token,
            options.root_certificates,
        )
    channels = connect(options.url, options.connections, options.root_certificates)
    if options.call == "dispatch":
        return DispatchTarget(channels, options.timeout_s, options.token, options.extra)
    return RouteTarget(channels, options.timeout_s, options.token)


class Player:
    """Used once."""

    def __init__(self, part: Part, options: TargetOptions, target: Target) -> None:
        self._part, self._options, self._target = part, options, target
        self._rng = np.random.default_rng(part.seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self.measured = Measured()
        self.in_flight = 0
        self._broken: BaseException | None = None
        for at_s in part.at_s.tolist():
            self._phase(at_s).intended += 1
            self._step(at_s).intended += 1

    async def play(self, begin_s: float) -> None:
        """All of it; `begin_s` is when by `time.time`, which all processes share."""
        zero_s = begin_s - time.time() + time.perf_counter()
        at_s, batch_s, i = self._part.at_s, self._options.batch_ms / 1e3, 0
        while i < len(at_s):
            wait_s = zero_s + at_s[i] + batch_s - time.perf_counter()
            await asyncio.sleep(max(0.0, wait_s))  # also answers are read meanwhile
            last = i + 1
            if batch_s:
                due = np.searchsorted(at_s, time.perf_counter() - zero_s, side="right")
                last = min(max(last, int(due)), i + BATCH_MAX)
            self._begin(self._send(list(range(i, last)), zero_s))
            i = last
        await self._drain(zero_s)

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (broken := task.exception()) is not None:
            self._broken = broken

    async def _drain(self, zero_s: float) -> None:
        """Wait for what is under way, but not for ever."""
        end_s = zero_s + self._part.span_s + self._part.drain_s
        while self._tasks and (left_s := end_s - time.perf_counter()) > 0.0:
            await asyncio.wait(list(self._tasks), timeout=left_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._broken is not None:  # what a server does is an answer: this is ours
            raise self._broken

    async def _send(self, rows: list[int], zero_s: float) -> None:
        part, sent_s = self._part, time.perf_counter() - zero_s
        for row in rows:
            at_s = float(part.at_s[row])
            phase = self._phase(at_s)
            phase.sent += 1
            phase.on_time += sent_s - at_s <= LATE_S
            phase.note("lag", sent_s - at_s)
            self._step(sent_s).sent += 1
        self.in_flight += len(rows)
        try:
            answers = await self._target.ask([part.asked[row] for row in rows])
        finally:
            self.in_flight -= len(rows)
        for row, answer in zip(rows, answers, strict=True):
            self._note(row, answer, zero_s, sent_s)

    def _note(self, row: int, answer: Answered, zero_s: float, sent_s: float) -> None:
        at_s = float(self._part.at_s[row])
        took_s = {} if answer.failed else _took_s(answer, at_s + zero_s, sent_s + zero_s)
        for phase in (self._phase(at_s), self._step(at_s)):
            if answer.failed:
                phase.fail(answer.failed, answer.said)
                continue
            phase.finished += 1
            phase.tokens += answer.tokens
            for kind, seconds in took_s.items():
                phase.note(kind, seconds)
        if self._part.keeps_each:
            each = Each(answer.failed, took_s | {"lag": sent_s - at_s})
            self.measured.each[self._part.asked[row].number] = each
        if not answer.failed:
            quality = self._quality(row, answer.model)
            if at_s >= self._part.warm_up_s:
                known = quality is not None
                self.measured.answers_of(answer.model).add(1, int(known), quality or 0.0)
                self.measured.usd += answer.usd
            self._judge(answer, quality)

    def _quality(self, row: int, model: str) -> float | None:
        """What the outcome table says of the answer, if it knows prompt and model."""
        quality, at = self._part.quality.get(model), self._part.asked[row].row
        return None if quality is None or at < 0 else float(quality[at])

    def _judge(self, answer: Answered, quality: float | None) -> None:
        """Report the answer's quality, later, if somebody judges it."""
        options = self._part.feedback
        if quality is None or not answer.ticket or self._rng.random() >= options.share:
            return
        if self._rng.random() >= options.lost_share:
            delay_s = self._rng.exponential(options.delay_s_mean)
            self._begin(self._report(answer.ticket, quality, delay_s))

    async def _report(self, ticket: bytes, quality: float, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self.measured.reported += await self._target.report(ticket, quality)

    def _phase(self, at_s: float) -> Phase:
        return self.measured.warm_up if at_s < self._part.warm_up_s else self.measured.main

    def _step(self, at_s: float) -> Phase:
        step = int(at_s / max(self._part.span_s, 1e-9) * STEPS)
        return self.measured.steps[min(STEPS - 1, max(0, step))]


def _took_s(answer: Answered, due_s: float, sent_s: float) -> dict[str, float]:
    """By kind: of an answer to what was due, and sent, by the clock that its own times are of."""
    found = {"ttft": answer.first_s - due_s, "latency": answer.ended_s - due_s}
    if answer.decided_s is not None:
        pool_s = answer.inside_s - answer.decided_s
        found |= {"way": answer.first_s - sent_s - answer.inside_s, "decision": answer.decided_s}
        found |= {"pool": pool_s, BESIDE: found["ttft"] - pool_s}
    return found
