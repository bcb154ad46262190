"""An OpenAI-compatible server whose every byte a test decides, and one that follows a `Script`.

    async with Server(handle) as server:      `async def handle(talk)` per request
        OpenAiOptions(url=server.url, …)
    with in_a_thread(handle) as server:       for callers that block

Of fake servers there are two: this one in the test's process, and the program `openai_program.py`.

It speaks just enough HTTP over a plain socket, because tests break HTTP, too.

It knows when a client hangs up, at once and whether or not it is sending.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

from made_up_endpoint import Script

from serve.dispatch.backend import Call
from serve.errors import (
    AnswerGarbled,
    AttemptFailed,
    CallRefused,
    EndpointFailed,
    EndpointOverloaded,
)

STATUS = {CallRefused: 400, EndpointOverloaded: 429, EndpointFailed: 500}


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def chunk(delta: dict | None = None, finish_reason: str | None = None, **more: object) -> dict:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason}
    if "logprobs" in more:
        choice["logprobs"] = more.pop("logprobs")
    return {"object": "chat.completion.chunk", "choices": [choice], **more}


ROLE = event(chunk({"role": "assistant", "content": ""}))
DONE = b"data: [DONE]\n\n"


def usage(prompt_tokens: int, output_tokens: int, **more: object) -> dict:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens, **more}
    return {"object": "chat.completion.chunk", "choices": [], "usage": counts}


@dataclass(kw_only=True)
class Talk:
    """One request and the way to answer it."""

    path: str
    headers: dict[str, str]
    body: dict
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # the client hung up
    chunked: bool = False

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def begin(self, content_type: str = "text/event-stream") -> None:
        self.chunked = True
        await self.raw(
            f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n".encode()
            + b"Transfer-Encoding: chunked\r\n\r\n"
        )

    async def send(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def stream(self, *parts: bytes) -> None:
        """A whole streamed response."""
        await self.begin()
        for part in parts:
            await self.send(part)
        await self.end()

    async def answer(
        self, status: int, body: object, content_type: str = "application/json", **headers: str
    ) -> None:
        """A whole response of one piece."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        more = "".join(f"{name.replace('_', '-')}: {v}\r\n" for name, v in headers.items())
        await self.raw(
            f"HTTP/1.1 {status} Whatever\r\nContent-Type: {content_type}\r\n{more}"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def break_off(self) -> None:
        """End the connection as a killed process does."""
        self.writer.transport.abort()


class Server:
    """Listens on a free port of this host for the length of an `async with` block."""

    def __init__(self, handle: Callable[[Talk], Awaitable[None]]) -> None:
        self._handle = handle
        self.talks: list[Talk] = []
        self.connections = 0
        self.running = 0
        self.broken_off = 0  # by clients, while an answer was being made
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.add(asyncio.current_task())
        early = b""  # of the next request, read while listening for the client to hang up
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    talk = await _request(early, reader, writer)
                    self.talks.append(talk)
                    early = await self._answer(talk, reader)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._tasks.discard(asyncio.current_task())
            writer.transport.abort()

    async def _answer(self, talk: Talk, reader: asyncio.StreamReader) -> bytes:
        """Run the handler, and end it when the client hangs up before it is done."""
        self.running += 1
        handling = asyncio.ensure_future(self._handle(talk))
        listening = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({handling, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not handling.done() and not listening.result():
                self.broken_off += 1
                talk.gone.set()
                raise ConnectionResetError
            await handling
            return listening.result() if listening.done() else b""
        except ConnectionError:
            talk.gone.set()
            raise
        finally:
            self.running -= 1
            handling.cancel()
            listening.cancel()
            await asyncio.gather(handling, listening, return_exceptions=True)


@contextlib.contextmanager
def in_a_thread(handle: Callable[[Talk], Awaitable[None]]) -> Iterator[Server]:
    """A server whose loop runs beside the test."""
    with asyncio.Runner() as runner:
        server = runner.run(Server(handle).__aenter__())
        over = asyncio.Event()
        thread = threading.Thread(target=runner.run, args=(over.wait(),))
        thread.start()
        try:
            yield server
        finally:
            runner.get_loop().call_soon_threadsafe(over.set)
            thread.join()
            runner.run(server.__aexit__())


async def _request(
    early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Talk:
    head = (early + await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Talk(
        path=first.split()[1], headers=headers, body=json.loads(body or b"{}"), writer=writer
    )


def follow(script: Script) -> Callable[[Talk], Awaitable[None]]:
    """A handler that does over HTTP what a `FakeEndpoint` does in memory with this script."""

    async def handle(talk: Talk) -> None:
        call = Call(body=talk.body, prompt_tokens=7, confidence=bool(talk.body.get("logprobs")))
        pieces = script.pieces(call)
        for i in range(len(pieces) + 1):
            if not await _step(script, i, talk):
                return
            if not talk.chunked:
                await talk.begin()
                await talk.send(ROLE)
            if i < len(pieces):
                piece = pieces[i]
                said = chunk(dict(piece.delta), piece.finish_reason, logprobs=piece.logprobs)
                await talk.send(event(said))
        if script.usage == "given" and talk.body.get("stream_options"):
            await talk.send(event(usage(call.prompt_tokens, len(pieces))))
        await talk.send(DONE)
        await talk.end()

    return handle


async def _step(script: Script, i: int, talk: Talk) -> bool:
    """True if the answer goes on."""
    try:
        await script.step(i)
    except AttemptFailed as error:
        said = {"error": {"message": error.problem}}
        if isinstance(error, AnswerGarbled):
            await (talk.send if talk.chunked else talk.stream)(b"data: {nonsense\n\n")
        elif type(error) not in STATUS:
            talk.break_off()
        elif talk.chunked:
            await talk.send(event(said))
        else:
            await talk.answer(STATUS[type(error)], said)
        return False
    return True
