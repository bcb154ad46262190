"""A dispatcher that plays a script, behind the real HTTP listener: what tests of the API talk to."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import httpcore2
import openai
import uvloop
from httpx2._config import DEFAULT_TIMEOUT_CONFIG

from serve.access.tokens import Token
from serve.dispatch.answers import AttemptRecord, DispatchInput, Ended, Event, Routed, Streamed
from serve.dispatch.backend import Piece, Usage
from serve.openai_api.app import HttpOptions, make_app
from serve.openai_api.http_listener import HttpListener, HttpListenerOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue, Model, Pool

# HTTP clients share what they trust: reading the system's certificates takes each 25 ms.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)

PATIENCE_S = 120.0  # for what should come at once; only a failing test waits so long
# They wait for five seconds, which may pass while others have the processors.
DEFAULT_TIMEOUT_CONFIG.connect = DEFAULT_TIMEOUT_CONFIG.read = PATIENCE_S
DEFAULT_TIMEOUT_CONFIG.write = DEFAULT_TIMEOUT_CONFIG.pool = PATIENCE_S
NOW_S = 1_800_000_000.7
DECISION_ID = "0123456789abcdef01234567"
TICKET = b"\xfb\xff\x00a ticket"  # in base64url it has both of the letters that plain base64 lacks

CATALOGUE = Catalogue(
    models=[
        Model(name="small", usd_per_1m_input_tokens=0.1, usd_per_1m_output_tokens=0.4, quality=0.6),
        Model(name="org/large", usd_per_1m_input_tokens=3.0, context_tokens_max=128_000.0),
    ],
    pools=[
        Pool(name="small-a", model="small", region="eu"),
        Pool(name="small-b", model="small"),
        Pool(name="large-a", model="org/large"),
    ],
)

FIRST = AttemptRecord(
    model="org/large", pool="large-a", endpoint="10.0.0.9:8000", kind="first", outcome="unreachable",
    detail="connection refused", began_ms=0.5, took_ms=2.25, cost_usd=0.0,
)  # fmt: skip
SECOND = replace(
    FIRST, model="small", pool="small-a", kind="reroute", outcome="answered", detail="",
    began_ms=3.0, took_ms=97.0, cost_usd=0.001,
)  # fmt: skip


class Pause:
    """A step of a script: wait until the test says to go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._may_go = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached.set()
        await self._may_go.wait()

    def end(self) -> None:
        assert self.reached.wait(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._may_go.set)


class Scripted:
    """Answers every ask with the same steps: events, pauses, and an error to raise."""

    def __init__(self) -> None:
        self.asks: list[DispatchInput] = []
        self.feedback: list[pb.FeedbackRequest] = []
        self.problem: Exception | None = None  # of feedback
        self.play()

    def play(self, *steps: Event | Pause | Exception) -> None:
        self.steps = steps
        self.asks.clear()
        self.feedback.clear()
        self.problem = None
        self.closed = threading.Event()

    async def answer(self, ask: DispatchInput) -> AsyncGenerator[Event, None]:
        self.asks.append(ask)
        closed = self.closed
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Pause):
                    await step.wait()
                else:
                    yield step
        finally:
            await asyncio.sleep(0)  # what a dispatcher cancels, it waits for
            closed.set()

    async def send_feedback(self, request: pb.FeedbackRequest) -> pb.FeedbackReply:
        if self.problem is not None:
            raise self.problem
        self.feedback.append(request)
        return pb.FeedbackReply(accepted=len(request.outcomes))


def routed(answer: int = 0, **changes: object) -> Routed:
    decision = pb.Decision(decision_id=DECISION_ID, model="org/large", snapshot_version=41)
    plain = Routed(
        answer=answer, decision=decision, model="small", pool="small-a", endpoint="10.0.0.1:8000",
        ticket=TICKET, attempts=(FIRST,),
    )  # fmt: skip
    return replace(plain, **changes)


def piece(text: str, answer: int = 0, **fields: object) -> Streamed:
    return Streamed(answer=answer, piece=Piece(delta={"content": text}, **fields))


def delta(answer: int = 0, finish_reason: str | None = None, **fields: object) -> Streamed:
    return Streamed(answer=answer, piece=Piece(delta=fields, finish_reason=finish_reason))


def ended(answer: int = 0, **changes: object) -> Ended:
    plain = Ended(
        answer=answer, usage=Usage(prompt_tokens=11, output_tokens=2, cached_tokens=8),
        cost_usd=0.001, paid_usd=0.003, first_token_ms=40.0, latency_ms=100.0, confidence=0.75,
        attempts=(FIRST, SECOND),
    )  # fmt: skip
    return replace(plain, **changes)


HELLO = (routed(), delta(role="assistant", content=""), piece("Hel"), piece("lo"),
         delta(finish_reason="stop"), ended())  # fmt: skip


class Api:
    """A listener in a thread of its own, with a loop as a replica has."""

    def __init__(
        self, options: HttpOptions, listener: HttpListenerOptions, tokens: Sequence[Token] = ()
    ) -> None:
        self.dispatcher = Scripted()
        app = make_app(
            self.dispatcher.answer, lambda: CATALOGUE, self.dispatcher.send_feedback, options,
            now_s=lambda: NOW_S, tokens=tokens,
        )  # fmt: skip
        self.listener = HttpListener(app, listener)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self) -> None:
        self._thread.start()
        self.run(self.listener.start())

    def run(self, work):
        """The result of a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def begin(self, work):
        """The future of one."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        self.run(self.listener.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.listener.port}"

    def client(self, **options: object) -> openai.OpenAI:
        plain = {"base_url": f"{self.root}/v1", "api_key": "any", "max_retries": 0}
        return openai.OpenAI(**{**plain, "timeout": PATIENCE_S, **options})

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.root}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S
        )


ANYONE = HttpOptions()
ANYWHERE = HttpListenerOptions(port=0, grace_s=5.0)


@contextmanager
def api(
    options: HttpOptions = ANYONE,
    listener: HttpListenerOptions = ANYWHERE,
    tokens: Sequence[Token] = (),
) -> Iterator[Api]:
    up = Api(options, listener, tokens)
    up.start()
    try:
        yield up
    finally:
        up.stop()
