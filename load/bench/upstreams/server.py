"""A server that misbehaves as it is asked to: by the first part of the path.

    POST /3/v1/chat/completions ──▶ the steps of misbehaviour 3
    POST /sound/v1/chat/completions ──▶ a sound answer

Plain asyncio, because no HTTP library would send what is wanted here. It counts what it was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections import Counter
from collections.abc import Sequence

from load.bench.upstreams.misbehaviour import (
    DONE,
    STOP,
    Cut,
    Misbehaviour,
    Pause,
    Step,
    said,
    stream,
)

SOUND = "sound"
SOUND_TEXT = "a sound answer"
HEAD_S_MAX = 10.0


class MisbehavingServer:
    """Listens on a free port of 127.0.0.1 while it is entered."""

    def __init__(self, misbehaviours: Sequence[Misbehaviour]) -> None:
        self._steps = {str(i): one.steps for i, one in enumerate(misbehaviours)}
        self._server: asyncio.Server | None = None
        self.calls: Counter[str] = Counter()

    async def __aenter__(self) -> MisbehavingServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def url(self, name: str) -> str:
        """The base URL of one misbehaviour."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/{name}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(HEAD_S_MAX):
                name, body = await _request(reader)
            self.calls[name] += 1
            await _play(writer, self._sent(name, body))
        writer.close()

    def _sent(self, name: str, body: dict[str, object]) -> Sequence[Step]:
        if name == SOUND:
            return stream(said(SOUND_TEXT), STOP, DONE)
        return self._steps[name](body)


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, object]]:
    """The first part of the path, and the body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    return first.split("/")[1], json.loads(body)


async def _play(writer: asyncio.StreamWriter, steps: Sequence[Step]) -> None:
    for step in steps:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        elif isinstance(step, Cut):
            _reset(writer)
            return
        else:
            writer.write(step)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: what is lingering for no time at all is thrown away."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
