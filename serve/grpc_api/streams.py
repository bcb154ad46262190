"""Open streams within limits: how many there are, how long one may be idle, or unread.

An idle stream costs 26 KB and a task; one whose reader has stopped holds up what was made for it,
a slot of a pool in the end. gRPC by itself ends neither: the peer is alive, and answers pings.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from learners.option import option
from serve.errors import NotServing, QueueFull

Message = TypeVar("Message")
ABORT_S = 1.0  # for a status to get through to a reader that may have stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How long, and how many."""

    open_max: int = option(
        1024, "Open streams of one replica, at 26 KB each.", key="streams_max", ge=1, le=100_000
    )
    per_tenant_max: int = option(
        256,
        "Of these, those of one tenant: whom a stream's first request names.",
        key="streams_per_tenant_max",
        ge=1,
        le=100_000,
    )
    idle_s_max: float = option(
        600.0,
        "Seconds without a request until a stream is ended: its client opens another one.",
        key="stream_idle_s_max",
        gt=0,
        le=86_400,
    )
    stalled_s_max: float = option(
        60.0,
        "Seconds in which nothing of a stream, or of an answer over HTTP, is read until it is "
        "ended.",
        key="stream_stalled_s_max",
        gt=0,
        le=86_400,
    )


class Streams:
    """Counts the streams of one servicer. Used from one event loop."""

    def __init__(self, options: StreamOptions) -> None:
        self._options = options
        self._open = 0
        self._by_tenant: Counter[str] = Counter()

    @contextlib.contextmanager
    def opened(self) -> Iterator[Tenancy]:
        """Count a stream while it is open. Raises QueueFull."""
        limit = self._options.open_max
        if self._open >= limit:
            raise QueueFull(f"{limit} streams are open, which is the limit; use another router")
        self._open += 1
        tenancy = Tenancy(self._by_tenant, self._options.per_tenant_max)
        try:
            yield tenancy
        finally:
            self._open -= 1
            tenancy.end()

    async def answer(
        self,
        requests: AsyncIterator[Message],
        write: Callable[[bytes], Awaitable[None]],
        tenancy: Tenancy,
        reply: Callable[[Message, Flow], Awaitable[bytes]],
        ongoing_max: int,
    ) -> None:
        """Answer requests as they are ready; reading pauses when too many are ongoing."""
        done, flow = asyncio.Queue[bytes | None](), Flow()
        room = asyncio.Semaphore(ongoing_max)

        async def answer(request: Message) -> None:
            done.put_nowait(await reply(request, flow))

        async def read() -> None:
            try:
                async with asyncio.TaskGroup() as ongoing:
                    async for request in self.reading(requests):
                        tenancy.belongs_to(getattr(request, "tenant", ""))
                        await room.acquire()
                        ongoing.create_task(answer(request))
            finally:
                done.put_nowait(None)  # also when reading fails: nobody may wait for ever

        reading = asyncio.create_task(read())
        try:
            while (answered := await done.get()) is not None:
                await self.written(write(answered))
                room.release()
            await reading
        except ExceptionGroup as group:  # a task group's, of the one error that ended reading
            raise group.exceptions[0] from group
        finally:
            reading.cancel()

    async def reading(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        """The requests, until none has come for too long. Raises NotServing."""
        idle_s_max = self._options.idle_s_max
        more = aiter(requests)
        while True:
            try:
                async with asyncio.timeout(idle_s_max):
                    request = await anext(more)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                problem = f"this stream had no request for {idle_s_max:g} s; open another one"
                raise NotServing(problem) from error
            yield request

    async def written(self, writing: Awaitable[None]) -> None:
        """Wait for a reply to be taken, but not for ever. Raises NotServing.

        If its reader leaves meanwhile, gRPC lets the write fail, and cancels the call after it.
        """
        stalled_s_max = self._options.stalled_s_max
        try:
            async with asyncio.timeout(stalled_s_max):
                await writing
        except TimeoutError as error:
            problem = f"nothing of this stream has been read for {stalled_s_max:g} s"
            raise NotServing(problem) from error
        except grpc.aio.InternalError as error:
            raise NotServing("whoever read this stream has left") from error


class Tenancy:
    """Whose stream it is, as soon as that is known."""

    def __init__(self, by_tenant: Counter[str], limit: int) -> None:
        self._by_tenant, self._limit = by_tenant, limit
        self._tenant: str | None = None

    def belongs_to(self, tenant: str) -> None:
        """Say whose it is; only the first time counts. Raises QueueFull."""
        if self._tenant is not None:
            return
        if self._by_tenant[tenant] >= self._limit:
            raise QueueFull(
                f"tenant {tenant[:64]!r} has {self._limit} streams open, which is the limit"
            )
        self._tenant = tenant
        self._by_tenant[tenant] += 1

    def end(self) -> None:
        """It is closed."""
        if self._tenant is not None:
            self._by_tenant[self._tenant] -= 1
            if not self._by_tenant[self._tenant]:
                del self._by_tenant[self._tenant]


class Flow:
    """One stream's requests that are under way: admitted like any others', but made to wait first.

    A caller who sends faster than it is answered is held up as long as there are answers to come to
    this very stream; where there are none, a request that is not let in is refused.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, admit: Callable[[], None]) -> None:
        """Wait until `admit` lets one in; `leave` follows. Raises QueueFull, as `admit` does."""
        while True:
            try:
                admit()
            except QueueFull:
                if not self._under_way:
                    raise
                turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                await turn
            else:
                self._under_way += 1
                return

    def leave(self) -> None:
        """One is answered: another tries; all that wait do, if none is left to wait for."""
        self._under_way -= 1
        n = min(1, len(self._waiting)) if self._under_way else len(self._waiting)
        for _ in range(n):
            turn = self._waiting.popleft()
            if not turn.done():  # or its caller has gone
                turn.set_result(None)


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    code: grpc.StatusCode,
    message: str,
    trailing: Sequence[tuple[str, str | bytes]] = (),
) -> None:
    """End a stream with a status, also one whose reader has stopped: then without it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ABORT_S):
            await context.abort(code, message, tuple(trailing))
