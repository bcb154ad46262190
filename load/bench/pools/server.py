"""A server of models that is none: it takes so many requests at once, the rest waits in a queue.

    python -m load.bench.pools.server KIND HOST PORT [--slots 4] [--seconds 0.8] [--start-s 0]

An answer takes `--seconds` from when a slot is free, whoever else is answered: so the server does
slots / seconds requests a second, and that is all there is to know of it. Whoever leaves, leaves
its slot. /metrics is as its KIND has it (`pages`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Self

from load.bench.pools.pages import KINDS, Doing

OUTPUT_TOKENS = 8
HEAD = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
END = b"data: [DONE]\n\n"
EVENTS, TEXT, JSON = "text/event-stream", "text/plain; version=0.0.4", "application/json"


class StandIn:
    """One server, while it is entered. Used from one event loop."""

    def __init__(self, kind: str, slots: int, answer_s: float, host: str, port: int) -> None:
        self._page = KINDS[kind]
        self._answer_s, self._slots = answer_s, asyncio.Semaphore(slots)
        self.doing = Doing(slots)
        self._host, self._port = host, port
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        server = await asyncio.start_server(self._serve, self._host, self._port)
        self._stack.callback(server.close)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # whoever asked has left, or this ends
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request of a connection; whether there may be another."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b" ", 2)
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        body = await reader.readexactly(length)
        if method == b"POST":
            return await self._chat(reader, writer, json.loads(body))
        if path == b"/metrics":
            page = self._page and self._page(self.doing)
            await _reply(writer, 200 if page else 404, TEXT, (page or "").encode())
        else:
            await _reply(writer, 200, JSON, b'{"object": "list", "data": []}')
        return True

    async def _chat(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[str, object]
    ) -> bool:
        """An answer at its pace, unless whoever asked leaves."""
        answering = asyncio.create_task(self._answer(writer, len(str(asked.get("messages"))) // 4))
        leaving = asyncio.create_task(reader.read(1))
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        left = leaving.done()
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)
        return not left

    async def _answer(self, writer: asyncio.StreamWriter, prompt_tokens: int) -> None:
        doing, came_s = self.doing, time.monotonic()
        doing.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            doing.waiting -= 1
        doing.running += 1
        try:
            await self._words(writer, prompt_tokens, came_s)
        finally:
            doing.running -= 1
            self._slots.release()

    async def _words(self, writer: asyncio.StreamWriter, prompt_tokens: int, came_s: float) -> None:
        """The first token after a quarter of the time, the others at its end."""
        _start(writer, 200, EVENTS)
        await asyncio.sleep(self._answer_s / 4)
        first_s = time.monotonic() - came_s
        await _more(writer, _event({"role": "assistant", "content": "w "}))
        await asyncio.sleep(self._answer_s * 3 / 4)
        rest = _event({"content": "w " * (OUTPUT_TOKENS - 1)}, finish_reason="stop")
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": OUTPUT_TOKENS}
        used = _data({"choices": [], "usage": usage | {"total_tokens": sum(usage.values())}})
        self.doing.note(first_s, prompt_tokens, OUTPUT_TOKENS)
        await _more(writer, rest + used + END)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _data({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def _data(part: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(HEAD | part).encode() + b"\n\n"


def _start(writer: asyncio.StreamWriter, status: int, kind: str) -> None:
    head = f"HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
    writer.write(head.encode())


async def _more(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
    await writer.drain()


async def _reply(writer: asyncio.StreamWriter, status: int, kind: str, body: bytes) -> None:
    head = f"HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _run(options: argparse.Namespace) -> None:
    await asyncio.sleep(options.start_s)  # loading the model, so to speak
    at = (options.host, options.port)
    async with StandIn(options.kind, options.slots, options.seconds, *at):
        await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.8)
    parser.add_argument("--start-s", type=float, default=0.0)
    asyncio.run(_run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
