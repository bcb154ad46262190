"""One HTTP connection within limits: uvicorn's protocol has none for what comes before a body.

    bytes ──▶ BoundedProtocol ──▶ httptools ──▶ app
                 ├─ 431  a head, or anything else that is no body, longer than `head_bytes_max`
                 ├─ 408  a head that is not whole after `head_s_max`
                 ├─ 503  more than `connections_max` connections at once
                 └─ cut  a client that reads nothing of its answer for `stalled_s_max`

httptools joins the parts of a header as they come, so one without end costs time that grows with
the square of its length, and nothing that an app checks comes before it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from learners.option import option, same_as
from serve.openai_api.errors import error_body

HEADER_OVERHEAD_BYTES = 4  # ": " and the end of the line


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """How much of a process one connection, and all of them, may take."""

    # nginx and Node take 32 and 16 KiB; a ticket in a header and a long key fit in.
    head_bytes_max: int = 32 * 1024
    head_s_max: float = 30.0  # a head is one packet or two; this is a very slow network
    # 26 KB each while idle: 100 MB.
    connections_max: int = option(
        4096,
        "Open HTTP connections of one dispatcher.",
        key="http_connections_max",
        ge=1,
        le=100_000,
    )
    # What nobody reads holds a slot of a pool: as long as proxies wait for a client (nginx: 60 s).
    stalled_s_max: float = same_as(60.0, "listener.stream_stalled_s_max")


class BoundedProtocol(HttpToolsProtocol):
    """Made by uvicorn for each connection; `bounded` gives it its limits."""

    limits: ClassVar[ConnectionOptions] = ConnectionOptions()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._beside_bytes = 0  # received since the last thing that was of use: no part of a body
        self._too_long = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    # --- what comes in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection beyond the limit is told so and closed."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections_max:
            self._refuse(503, f"{self.limits.connections_max} connections are open already")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        _cancel(self._head_timer, self._stall_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, unless too much has come that is no part of a body."""
        if self.transport.is_closing():
            return
        self._beside_bytes += len(data)
        before = self._beside_bytes
        super().data_received(data)
        # What has been parsed since is counted from there; the rest is still without an end.
        if self._beside_bytes == before > self.limits.head_bytes_max:
            self._refuse_length()

    def on_message_begin(self) -> None:
        """Count a head by its parts, too: a whole one may come in one piece with its body."""
        super().on_message_begin()
        self._head_bytes = 0
        if self._head_timer is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._count(len(name) + len(value) + HEADER_OVERHEAD_BYTES)
        super().on_header(name, value)

    def _count(self, n_bytes: int) -> None:
        self._head_bytes += n_bytes
        if self._head_bytes > self.limits.head_bytes_max:
            self._too_long = True
            raise ValueError("the head is too long")  # ends parsing; see send_400_response

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._beside_bytes = 0
        _cancel(self._head_timer)
        self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body, which the app bounds."""
        self._beside_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole; what follows is the next one's head."""
        self._beside_bytes = 0
        super().on_message_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_s_max, self._head_late)

    def _head_late(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, f"no whole request in {self.limits.head_s_max:g} s")

    # --- what goes out

    def pause_writing(self) -> None:
        """The client does not read as fast as its answer comes."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.limits.stalled_s_max, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        _cancel(self._stall_timer)
        super().resume_writing()

    # --- refusals

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's answer to what httptools can't parse, in OpenAI's form."""
        if self._too_long:
            self._refuse_length()
        else:
            self._refuse(400, msg)

    def _refuse_length(self) -> None:
        limit = self.limits.head_bytes_max
        self._refuse(431, f"the request's head is longer than {limit} bytes, which is the limit")

    def _refuse(self, status: int, problem: str) -> None:
        """Answer and close, unless an answer is being written: then only close."""
        answering: Any = self.cycle  # None before the first request
        if answering is None or answering.response_complete:
            body = error_body(HTTPException(status, problem))
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            closing = f"{head}connection: close\r\n\r\n".encode()
            self.transport.write(STATUS_LINE[status] + closing + body)
        self.transport.close()


def bounded(limits: ConnectionOptions) -> type[BoundedProtocol]:
    """The protocol with these limits, as a class, because uvicorn makes the instances."""
    return type("Bounded", (BoundedProtocol,), {"limits": limits})


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()
