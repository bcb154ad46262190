"""One chat completion over HTTP: an answer is written as it comes, without layers in between.

    body ─read_chat─▶ DispatchInput ─answer─▶ Routed, Streamed, … ─writer─▶ one JSON object, or SSE

A call's status is decided when the first token has come: until then any failure has its own, and
headers say who answers. A failure after that ends the stream with an `error` event instead. Where
the first token is late, a stream begins with a comment (`heartbeat`) and without these headers.

When a client is gone, or the server stops, the answer is closed at once, wherever it is. Tokens
that nobody reads are paid for all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from serve.dispatch.answers import DispatchInput, Event, Routed, Streamed
from serve.errors import NotServing
from serve.openai_api.body import Bodies, ClientGone
from serve.openai_api.errors import error_body, response_of
from serve.openai_api.heartbeat import COMMENT, heartbeat
from serve.openai_api.reply import StreamWriter, WholeWriter, headers_of
from serve.openai_api.request import Chat, read_chat
from serve.routing.catalogue import Catalogue

logger = logging.getLogger(__name__)

Answers = Callable[[DispatchInput], AsyncGenerator[Event, None]]  # `Dispatcher.answer`

TENANT = "fairlead.tenant"  # in the scope of a call whose token has a tenant
JSON = {"content-type": "application/json"}
EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold tokens back
}


class ChatCompletions:
    """The ASGI app of one path."""

    def __init__(
        self,
        answer: Answers,
        models: Callable[[], Catalogue],
        bodies: Bodies,
        heartbeat_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self._answer, self._models = answer, models
        self._bodies, self._heartbeat_s, self._now_s = bodies, heartbeat_s, now_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        reply = Reply(send)
        try:
            models = self._models()
            chat = await self._bodies.read(scope, receive, lambda body: read_chat(body, models))
            if tenant := scope.get(TENANT):
                chat.dispatch.route.tenant = tenant
            await _while_there(receive, self._write(chat, reply))
        except ClientGone:
            pass
        except asyncio.CancelledError:  # only a stopping server cancels a call
            await reply.fail(NotServing("stopped before the answer was whole; ask again"))
        except Exception as error:  # noqa: BLE001 - logged, and becomes a status
            _log_bug(error)
            await reply.fail(error)

    async def _write(self, chat: Chat, reply: Reply) -> None:
        created_s, fan_out = int(self._now_s()), chat.dispatch.several
        async with aclosing(self._answer(chat.dispatch)) as events:
            if chat.stream:
                writer = StreamWriter(created_s, include_usage=chat.include_usage, fan_out=fan_out)
                await _stream(events, writer, reply, self._heartbeat_s)
            else:
                await _whole(events, WholeWriter(created_s, fan_out=fan_out), reply)


async def _stream(
    events: AsyncGenerator[Event, None], writer: StreamWriter, reply: Reply, heartbeat_s: float
) -> None:
    """Send pieces as they come; the head with the first answer's `Routed`, or sooner."""
    waiting = b""  # pieces that came with others
    async with heartbeat(lambda: reply.comment(writer), lambda: reply.last_s, heartbeat_s):
        try:
            async for event in events:
                waiting += writer.write(event)
                if isinstance(event, Routed) and not reply.begun:
                    await reply.begin(writer, EVENTS | headers_of(event))
                if waiting and not (isinstance(event, Streamed) and event.piece.followed):
                    sending, waiting = waiting, b""
                    await reply.send(sending)
        except Exception:
            if waiting:
                await reply.send(waiting)
            raise
    writer.progress.check_answered()
    await reply.finish(writer.end())


async def _whole(events: AsyncGenerator[Event, None], writer: WholeWriter, reply: Reply) -> None:
    """Collect all pieces, then send."""
    async for event in events:
        writer.add(event)
    writer.progress.check_answered()
    await reply.whole(200, JSON | headers_of(writer.progress.first), writer.end())


async def _while_there(receive: Receive, work: Coroutine[object, object, None]) -> None:
    """Do the work, unless the client leaves: then cancel it, and raise ClientGone.

    Two tasks for a whole answer. Asking after every piece whether someone is there would cost two
    for each.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:  # also when the server cuts this call off
        leaving.cancel()
        working.cancel()
        await asyncio.wait((working, leaving))
    if working.cancelled():
        raise ClientGone
    working.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Reply:
    """One response, written in raw ASGI messages: a Starlette response would add to every piece."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._writer: StreamWriter | None = None
        self._now_s = asyncio.get_running_loop().time
        self.last_s = self._now_s()  # when something was sent last

    @property
    def begun(self) -> bool:
        """Whether a stream's head has been sent: its status can't be changed any more."""
        return self._writer is not None

    async def begin(self, writer: StreamWriter, headers: Mapping[str, str]) -> None:
        """Send the head of a stream."""
        self._writer = writer
        await self._head(200, headers)

    async def _head(self, status: int, headers: Mapping[str, str]) -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes) -> None:
        """A part of a stream."""
        self.last_s = self._now_s()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def comment(self, writer: StreamWriter) -> None:
        """Say that an answer is being waited for, if need be as the stream's beginning."""
        if not self.begun:
            await self.begin(writer, EVENTS)
        await self.send(COMMENT)

    async def finish(self, data: bytes) -> None:
        """The last part."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A response that is no stream."""
        await self._head(status, {**headers, "content-length": str(len(body))})
        await self.finish(body)

    async def fail(self, error: Exception) -> None:
        """Say what went wrong: with a status, or where it is too late for one, in the stream."""
        if self._writer is not None:
            await self.finish(self._writer.broken(error))
        else:
            status, _, headers = response_of(error)
            await self.whole(status, {**JSON, **headers}, error_body(error))


def _log_bug(error: Exception) -> None:
    """What is not in the table of errors is ours to mend."""
    if response_of(error).status == 500:
        logger.error("a call failed with an internal error", exc_info=error)
