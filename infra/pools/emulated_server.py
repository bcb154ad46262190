"""An emulated replica as a server that speaks OpenAI's API, like the ones it stands for.

    POST /v1/chat/completions ─▶ words at the pace of the emulated engine, streamed or whole
    GET  /metrics                a page as real servers have one (`infra.server_metrics`)
    GET  /emulator/state         queued, running, cache use, tokens made, joules, watts
    PUT  /emulator/fault         make it misbehave, for experiments: slow, errors, silent, garbage

The answer is numbered words ("w0 w1 w2 …"), so that one that is lost, doubled or out of order can
be seen. How many depends on the conversation alone: a log-normal around the model's typical answer,
drawn from a hash of the messages; `min_tokens` and `ignore_eos` make it longer, as vLLM's do. A
conversation that goes on finds its former messages, and the
answers to them, in the prefix cache (see `emulated_prefixes`). `priority` is read as by a vLLM that
was started with `--scheduling-policy priority`.

To whoever calls, nothing but the words tells it from a real server.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.capacity.fleet import Emulation
from infra.capacity.latency_target import LatencyTarget
from infra.emulator.engine import WATERMARK, Engine
from infra.emulator.real_time import RealTimeEngine
from infra.errors import InfraError
from infra.pools.emulated_answers import (
    ChatRequest,
    Planned,
    chunk,
    completion,
    event,
    last_chunk,
    refusal,
    text,
)
from infra.pools.emulated_prefixes import Prefixes
from infra.pools.replica_meter import ReplicaMeter
from streams.telemetry.pool_window import ReplicaIdentity

SPREAD = 0.5  # standard deviation of the logarithm of answers' lengths
JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"
JSON_HEADERS = {"content-type": "application/json"}
METRICS = "fairlead_emulator_"
TOO_LONG = "context_length_exceeded"  # OpenAI's code for it
Fault = Literal["none", "slow", "errors", "silent", "garbage"]

encode = msgspec.json.Encoder().encode


class FaultOrder(msgspec.Struct, forbid_unknown_fields=True):
    """How to misbehave."""

    kind: Fault
    factor: Annotated[float, Meta(gt=0, le=1e6)] = 20.0  # slow: times as slow
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5  # errors: of the requests


class TooLong(InfraError):
    """A prompt leaves no room for an answer."""

    def __init__(self, tokens: int, context_tokens_max: int) -> None:
        super().__init__(tokens, context_tokens_max)
        self.tokens, self.context_tokens_max = tokens, context_tokens_max

    def __str__(self) -> str:
        return (
            f"the prompt has {self.tokens} tokens, but with its answer it must be within the "
            f"model's context of {self.context_tokens_max}; shorten it"
        )


class EmulatedServer:
    """One replica."""

    def __init__(
        self, name: str, emulation: Emulation, now_s: Callable[[], float], unix_s: Callable[[], int]
    ) -> None:
        self._name, self._emulation, self._unix_s = name, emulation, unix_s
        self._now_s = now_s
        self.engine = Engine(emulation.performance, emulation.power, now_s())
        identity = ReplicaIdentity(pool=name, model=name, replica=name)
        self.meter = ReplicaMeter(identity, self.engine, LatencyTarget())  # or of who reports
        self.clock = RealTimeEngine(self.engine, now_s, speed=emulation.speed)
        self._fault = FaultOrder(kind="none")
        self._n_requests = 0
        performance = emulation.performance
        self._prefixes = Prefixes(performance.kv_tokens_max)
        # The engine never admits a prompt that leaves nothing of its cache free.
        room = int(performance.kv_tokens_max * (1 - WATERMARK))
        self.context_tokens_max = min(emulation.context_tokens_max, room)
        self._answered = [0, 0, 0]  # requests, tokens of their prompts, of these cached
        self._looked: tuple[float, float] | None = None  # the engine's time and energy
        self._rng = np.random.default_rng(0)  # of faults alone
        self.app: ASGIApp = Starlette(
            routes=[
                Route("/v1/chat/completions", _Chat(self), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/emulator/state", self._state),
                Route("/emulator/fault", self._order_fault, methods=["PUT"]),
            ]
        )

    # --- what is answered

    def plan(self, request: ChatRequest) -> Planned:
        """How long the answer will be, and what of the prompt is cached. Raises TooLong."""
        found = self._prefixes.read(request.messages)
        room = self.context_tokens_max - found.tokens
        if room < 1:
            raise TooLong(found.tokens, self.context_tokens_max)
        rng = np.random.default_rng(found.seed)
        factor = math.exp(rng.normal(0.0, SPREAD) - SPREAD**2 / 2)
        natural = max(1, round(self._emulation.output_tokens * factor), request.min_tokens or 0)
        most = min(request.max_completion_tokens or request.max_tokens or room, room)
        natural = room if request.ignore_eos else natural
        self._n_requests += 1
        return Planned(
            id=f"chatcmpl-{self._name}-{self._n_requests}",
            model=request.model,
            created=self._unix_s(),
            prompt_tokens=found.tokens,
            cached_tokens=min(found.cached_tokens, found.tokens - 1),  # the last one is computed
            output_tokens=min(natural, most),
            finish_reason="stop" if natural <= most else "length",
            logprob=math.log(self._confidence(rng)) if request.logprobs else None,
            messages=request.messages,
            priority=request.priority,
        )

    def _confidence(self, rng: np.random.Generator) -> float:
        """A conversation's probability of tokens: spread around the model's, never 0 or 1."""
        mean = self._emulation.confidence
        return float(np.clip(rng.beta(8 * mean, 8 * (1 - mean)), 0.01, 0.999))

    async def words(self, planned: Planned) -> AsyncIterator[tuple[int, int]]:
        """Which words are ready now: from, to. At the engine's pace."""
        made, came_s = 0, self._now_s()
        first_s = came_s
        read = planned.prompt_tokens - planned.cached_tokens
        self.meter.count_request(read, planned.output_tokens)
        generated = self.clock.generate(
            planned.prompt_tokens,
            planned.output_tokens,
            planned.cached_tokens,
            planned.priority,
        )
        async with aclosing(generated) as steps:
            async for n in steps:
                if not made:  # the prompt has been read
                    self._prefixes.keep(planned.messages)
                    first_s = self._now_s()
                    self.meter.count_first_token((first_s - came_s) * 1000.0)
                yield made, made + n
                made += n
        new = (1, planned.prompt_tokens, planned.cached_tokens)
        self._answered = [a + b for a, b in zip(self._answered, new, strict=True)]
        if made > 1:
            self.meter.count_answer((self._now_s() - first_s) * 1000.0 / (made - 1))
        answer = {"role": "assistant", "content": text(0, made)}
        self._prefixes.keep([*planned.messages, answer])

    def misbehaviour(self) -> Fault:
        """What to do to the next request."""
        fault = self._fault
        if fault.kind == "errors" and self._rng.random() >= fault.share:
            return "none"
        return fault.kind

    # --- the other routes

    async def _models(self, request: Request) -> Response:
        del request
        one = {"id": self._name, "object": "model", "created": 0, "owned_by": "fairlead"}
        return Response(encode({"object": "list", "data": [one]}), 200, JSON_HEADERS)

    async def _health(self, request: Request) -> Response:
        del request
        return Response(b"{}", 200, JSON_HEADERS)

    async def _metrics(self, request: Request) -> Response:
        """What a real server says of itself, under names of our own."""
        del request
        self.clock.advance()
        engine, (finished, prompts, cached) = self.engine, self._answered
        page = {
            "requests_running": ("gauge", engine.running),
            "requests_waiting": ("gauge", engine.queued),
            "kv_cache_use": ("gauge", engine.kv_use),
            "requests_finished_total": ("counter", finished),
            "prompt_tokens_total": ("counter", prompts),
            "cached_tokens_total": ("counter", cached),
            "output_tokens_total": ("counter", engine.tokens_made_total),
        }
        lines = [
            f"# TYPE {METRICS}{name} {kind}\n{METRICS}{name} {value}\n"
            for name, (kind, value) in page.items()
        ]
        return Response("".join(lines), 200, {"content-type": "text/plain; version=0.0.4"})

    async def _state(self, request: Request) -> Response:
        """What telemetry would read of a real server's metrics and of its GPUs'."""
        del request
        self.clock.advance()
        engine = self.engine
        state = {
            "queued": engine.queued,
            "running": engine.running,
            "kv_use": engine.kv_use,
            "tokens_made_total": engine.tokens_made_total,
            "energy_j": engine.energy_j,
            "watts": self._watts(),
            "fault": self._fault.kind,
        }
        return Response(encode(state), 200, JSON_HEADERS)

    def _watts(self) -> float:
        """Mean power since the last look; both in the time of what is emulated."""
        now_s, energy_j = self.engine.now_s, self.engine.energy_j
        then_s, then_j = self._looked or (now_s, energy_j)
        self._looked = now_s, energy_j
        if now_s > then_s:
            return (energy_j - then_j) / (now_s - then_s)
        return self._emulation.power.idle_w

    async def _order_fault(self, request: Request) -> Response:
        try:
            self._fault = msgspec.json.decode(await request.body(), type=FaultOrder)
        except msgspec.DecodeError as error:
            return Response(refusal(str(error), "invalid_request_error"), 400, JSON_HEADERS)
        self.clock.slowdown = self._fault.factor if self._fault.kind == "slow" else 1.0
        return Response(b"{}", 200, JSON_HEADERS)


class _Chat:
    """The route that answers: raw ASGI, because a chunk must cost microseconds."""

    def __init__(self, server: EmulatedServer) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            asked = msgspec.json.decode(await Request(scope, receive).body(), type=ChatRequest)
        except msgspec.DecodeError as error:
            await _whole(send, 400, refusal(str(error), "invalid_request_error"))
            return
        except ClientDisconnect:
            return
        fault = self._server.misbehaviour()
        if fault == "errors":
            await _whole(send, 500, refusal("as ordered", "server_error"))
            return
        try:
            planned = self._server.plan(asked)
        except TooLong as error:
            await _whole(send, 400, refusal(str(error), "invalid_request_error", TOO_LONG))
            return
        answering = asyncio.create_task(self._answer(send, asked, planned, fault))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, send: Send, asked: ChatRequest, planned: Planned, fault: Fault) -> None:
        if fault == "silent":
            await asyncio.Event().wait()
        if fault == "garbage":
            await _whole(send, 200, b"\x00\xffdata: {not json\n\n" * 4, EVENTS)
        elif asked.stream:
            await self._stream(send, asked, planned)
        else:
            async for _ in self._server.words(planned):
                pass
            await _whole(send, 200, encode(completion(planned)))

    async def _stream(self, send: Send, asked: ChatRequest, planned: Planned) -> None:
        await _start(send, 200, EVENTS)
        async for first, end in self._server.words(planned):
            await _more(send, event(chunk(planned, first, end)))
        if (asked.stream_options or {}).get("include_usage"):
            await _more(send, event(last_chunk(planned)))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, kind: bytes) -> None:
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _whole(send: Send, status: int, body: bytes, kind: bytes = JSON) -> None:
    await _start(send, status, kind)
    await send({"type": "http.response.body", "body": body})
