"""A lean client for loads beyond a server's capacity: HTTP/2 frames, made once, sent many times.

    call ──▶ HEADERS + DATA, the stream's number put in ──▶ socket
    frames back ──▶ DATA: answered │ no DATA before the end: refused │ RST_STREAM: cancelled

A client library takes as much of a processor for a call as the server does; on a machine that
both share, it would measure itself. Here a call takes some 10 µs. This is no gRPC client: it
does not decode headers. It asks the server to do without a header table, so that a status stands
in the bytes as it is.

Flow control is honoured for what is sent: calls wait while the server's window is used up, as they
would in any client, and that counts as part of their time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4
WINDOW = (1 << 31) - 1
FIRST_WINDOW = 65_535
HEAD_BYTES = 9
STATUS = b"grpc-status"
PUSHBACK = b"grpc-retry-pushback-ms"
CANCELLED = 1


class Ended(NamedTuple):
    """What came of a call."""

    answered: bool
    status: int | None  # where it stands in the bytes as it is
    pushback: bool  # the server said when to try again


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that enters no table."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


@dataclass(frozen=True, slots=True)
class Ask:
    """One call, ready to be sent on any stream."""

    head: bytes  # up to the stream's number
    between: bytes  # from there to the number in DATA
    rest: bytes
    window: int  # of flow control, that it takes

    @classmethod
    def of(cls, path: str, message: bytes, deadline_ms: int = 0) -> Ask:
        """A unary call of `path` with a serialised message."""
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"bench"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ]
        if deadline_ms:
            headers.append((b"grpc-timeout", b"%dm" % deadline_ms))
        block = b"".join(_literal(name, value) for name, value in headers)
        body = b"\x00" + len(message).to_bytes(4, "big") + message
        first = frame(HEADERS, END_HEADERS, 0, block)
        second = frame(DATA, END_STREAM, 0, body)
        between = first[HEAD_BYTES:] + second[: HEAD_BYTES - 4]
        return cls(first[: HEAD_BYTES - 4], between, second[HEAD_BYTES:], len(body))


class Connection(asyncio.Protocol):
    """One connection. `ended` is called once for every call that was sent."""

    def __init__(self, ended: Callable[[object, Ended], None]) -> None:
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._next = 1
        self._calls: dict[int, object] = {}  # by stream: whatever the caller knows it by
        self._answered: set[int] = set()
        self._waiting: deque[tuple[Ask, object]] = deque()
        self._window = FIRST_WINDOW
        self._streams_max = 1 << 31
        self._unsent: list[bytes] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say how it is to be talked to."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        wide = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + WINDOW.to_bytes(4, "big")
        no_table = HEADER_TABLE_SIZE.to_bytes(2, "big") + bytes(4)
        more = (WINDOW - FIRST_WINDOW).to_bytes(4, "big")
        first = frame(SETTINGS, 0, 0, wide + no_table) + frame(WINDOW_UPDATE, 0, 0, more)
        self._transport.write(PREFACE + first)

    def connection_lost(self, _error: Exception | None) -> None:
        """End all calls."""
        self.lost = True
        for stream in list(self._calls):
            self._end(stream, None, False)
        while self._waiting:
            self._ended(self._waiting.popleft()[1], Ended(False, None, False))

    def call(self, ask: Ask, known_as: object) -> None:
        """Send a call with the next `flush`; on a lost connection it ends at once."""
        if self.lost:
            self._ended(known_as, Ended(False, None, False))
        else:
            self._waiting.append((ask, known_as))

    def flush(self) -> None:
        """Send what there is room for, in one write."""
        unsent, calls = self._unsent, self._calls
        while self._waiting and len(calls) < self._streams_max:
            ask, known_as = self._waiting[0]
            if ask.window > self._window:
                break
            self._waiting.popleft()
            self._window -= ask.window
            number = self._next.to_bytes(4, "big")
            calls[self._next] = known_as
            self._next += 2
            unsent += (ask.head, number, ask.between, number, ask.rest)
        if unsent and self._transport is not None:
            self._transport.write(b"".join(unsent))
            unsent.clear()

    def close(self) -> None:
        """End it; calls under way end with it."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take whole frames."""
        received = self._received
        received += data
        at, end = 0, len(received)
        while end - at >= HEAD_BYTES:
            length = int.from_bytes(received[at : at + 3], "big")
            ends = at + HEAD_BYTES + length
            if ends > end:
                break
            stream = int.from_bytes(received[at + 5 : at + 9], "big")
            self._take(received[at + 3], received[at + 4], stream, at + HEAD_BYTES, ends)
            at = ends
        del received[:at]
        self.flush()

    def _take(self, kind: int, flags: int, stream: int, begins: int, ends: int) -> None:
        if kind == DATA and ends > begins:
            self._answered.add(stream)
        if kind in (DATA, HEADERS):
            if flags & END_STREAM:
                block = bytes(self._received[begins:ends]) if kind == HEADERS else b""
                self._end(stream, _status_in(block), PUSHBACK in block)
        elif kind == RST_STREAM:
            self._end(stream, CANCELLED, False)
        else:
            self._take_control(kind, flags, stream, bytes(self._received[begins:ends]))

    def _take_control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                if int.from_bytes(payload[at : at + 2], "big") == MAX_CONCURRENT_STREAMS:
                    self._streams_max = int.from_bytes(payload[at + 2 : at + 6], "big")
            self._unsent.append(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._unsent.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")

    def _end(self, stream: int, status: int | None, pushback: bool) -> None:
        known_as = self._calls.pop(stream, None)
        if known_as is not None:
            answered = stream in self._answered
            self._answered.discard(stream)
            self._ended(known_as, Ended(answered and not status, status, pushback))


def _status_in(block: bytes) -> int | None:
    """The gRPC status in a block of headers that are literals; None where it is not to be seen."""
    at = block.find(STATUS)
    if at < 0:
        return None
    at += len(STATUS)
    digits = block[at + 1 : at + 1 + block[at]]
    return int(digits) if digits.isdigit() else None


async def connected(port: int, n: int, ended: Callable[[object, Ended], None]) -> list[Connection]:
    """So many connections to a port of this host."""
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Connection(ended), "127.0.0.1", port) for _ in range(n)
    ]
    await asyncio.sleep(0.05)  # for the server's settings
    return [protocol for _, protocol in made]
