"""Endpoints and pools that do what a test's script says, in memory.

    FakeEndpoint("a:1", Script(words=("Hi", " there")))             answers every call
    FakeEndpoint("a:1", Script(fails=failed()), Script())           fails once, then answers
    FakeEndpoint("a:1", Script(gates={0: gate}))                    waits for `gate.open()` first
    FakePools({"small": [FakeEndpoint("a:1")], "large": []})

Steps are numbered by the piece they come before: 0 is before the first, `len(words)` after the last.

A fake keeps the contract of `serve.dispatch.backend.Endpoint` (tests/pools/test_openai_endpoint.py
holds both to it), except where a script says `usage="missing"`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from serve.dispatch.backend import Call, Piece, Usage
from serve.errors import AttemptFailed, EndpointFailed


class Gate:
    """Holds a script up until it is opened; `reached` tells a test that a call stands before it."""

    def __init__(self) -> None:
        self.reached, self._opened = asyncio.Event(), asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        self.reached.set()
        await self._opened.wait()


def failed(problem: str = "as the script says") -> EndpointFailed:
    """An error of an endpoint, where any will do."""
    return EndpointFailed("made up", problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What one call does: waits, pieces and the end, in this order at every step:
    sleep `delays_s[i]`, pass `gates[i]`, fail, yield piece i.
    """

    words: tuple[str, ...] = ("one", " two", " three")  # a piece each
    deltas: tuple[Mapping[str, object], ...] | None = None  # instead of words: tool calls, …
    finish_reason: str = "stop"  # on the last piece
    probability: float | None = None  # of every token, if the call asks for confidence
    # given: in the endpoint's name; counted: as if the server had not said; missing: none at all
    usage: Usage | Literal["given", "counted", "missing"] = "given"
    delays_s: Mapping[int, float] = field(default_factory=dict)  # by the loop's clock
    gates: Mapping[int, Gate] = field(default_factory=dict)
    fails: AttemptFailed | None = None
    fails_at: int = 0  # after that many pieces
    hangs_at: int | None = None  # after that many pieces nothing comes any more
    full_s: float = 0.0  # said with the first piece

    def pieces(self, call: Call) -> list[Piece]:
        deltas = self.deltas
        if deltas is None:
            deltas = tuple({"content": word} for word in self.words)
        return [
            Piece(
                full_s=0.0 if i else self.full_s,
                delta=delta,
                finish_reason=self.finish_reason if i == len(deltas) - 1 else None,
                logprobs=self._logprobs(delta) if call.confidence else None,
            )
            for i, delta in enumerate(deltas)
        ]

    def _logprobs(self, delta: Mapping[str, object]) -> Mapping[str, object] | None:
        if self.probability is None:
            return None
        logprob = math.log(self.probability)
        return {"content": [{"token": delta.get("content", ""), "logprob": logprob}]}

    async def step(self, i: int) -> None:
        if i in self.delays_s:
            await asyncio.sleep(self.delays_s[i])
        if i in self.gates:
            await self.gates[i].passed()
        if self.fails is not None and i == self.fails_at:
            # A fresh one each time: an exception collects the traces of where it was raised.
            raise type(self.fails)(*self.fails.args)
        if i == self.hangs_at:
            await asyncio.Event().wait()


def answers(n_tokens: int, **script: object) -> Script:
    """A script of that many tokens."""
    return Script(words=tuple(f" w{i}" for i in range(n_tokens)), **script)


class FakeEndpoint:
    """Implements `serve.dispatch.backend.Endpoint`: the n-th call follows the n-th script, later ones the last."""

    def __init__(self, address: str = "made-up:1", *scripts: Script) -> None:
        self.address = address
        self.scripts: Sequence[Script] = scripts or (Script(),)
        self.calls: list[Call] = []  # those that began, that is: were iterated
        self.cancelled = 0  # closed or cancelled before their end
        self.failed = 0
        self.answered = 0
        self.running_max = 0

    @property
    def called(self) -> int:
        return len(self.calls)

    @property
    def running(self) -> int:
        """Calls that have begun and not ended in any way."""
        return self.called - self.cancelled - self.failed - self.answered

    async def stream(self, call: Call) -> AsyncGenerator[Piece | Usage, None]:
        script = self.scripts[min(self.called, len(self.scripts) - 1)]
        self.calls.append(call)
        self.running_max = max(self.running_max, self.running)
        try:
            pieces = script.pieces(call)
            for i, piece in enumerate(pieces):
                await script.step(i)
                yield piece
            await script.step(len(pieces))
            if (usage := _usage(script, call, len(pieces))) is not None:
                yield usage
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        except AttemptFailed:
            self.failed += 1
            raise
        self.answered += 1


def _usage(script: Script, call: Call, n_pieces: int) -> Usage | None:
    if isinstance(script.usage, Usage):
        return script.usage
    if script.usage == "missing":
        return None
    return Usage(
        prompt_tokens=call.prompt_tokens,
        output_tokens=n_pieces,
        counted=script.usage == "given",
    )


class FakePools:
    """Implements `serve.dispatch.backend.Pools` over lists that a test may change meanwhile."""

    def __init__(self, pools: Mapping[str, Sequence[FakeEndpoint]]) -> None:
        self.pools = {pool: list(endpoints) for pool, endpoints in pools.items()}
        self.started, self.stopped = 0, 0
        self.starts_s: dict[str, float] = {}

    async def start(self) -> None:
        self.started += 1

    async def stop(self) -> None:
        self.stopped += 1

    def endpoints(self, pool: str) -> Mapping[str, FakeEndpoint]:
        return {endpoint.address: endpoint for endpoint in self.pools.get(pool, ())}

    def replica(self, address: str) -> str:
        return f"replica of {address}"

    def watched(self) -> tuple[()]:
        return ()

    def start_s(self, pool: str) -> float | None:
        return self.starts_s.get(pool)
