"""One request's body: received within limits, and parsed where it holds up nobody.

    head ─▶ encoding, length ─▶ bytes, counted ─▶ shape ─▶ parsed
             415      413        408, 413, 429     400

Checks come in the order of their cost: what the head says, before anything is read; how much
arrives, while it does; how many values there are and how deep they lie, before any is made. Parsing
keeps Python's lock: a thread does not help against 1.4 million empty lists (2.7 s), a bound on
their number does. What is left of a large body's cost goes to a thread all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

from learners.option import option
from serve.errors import InvalidRequest, QueueFull

Read = TypeVar("Read")

PLAIN = (b"", b"identity")
CLOSING = {"connection": "close"}  # what is left of a body nobody wants is not read to its end
OPENING, CLOSING_BRACKETS = b"{[", b"}]"


class ClientGone(Exception):
    """Nobody is there to be answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyOptions:
    """What a process takes in."""

    # As much as gRPC's messages have: a photo of 10 MB in base64, or a context of a million tokens.
    bytes_max: int = option(
        16 * 1024 * 1024,
        "Bytes of a request's body over HTTP; a longer one is refused with 413.",
        key="body_bytes_max",
        ge=1024,
        le=128 * 1024 * 1024,
    )
    # Of all bodies that are being received or parsed; values in memory take several times that.
    bytes_max_together: int = 128 * 1024 * 1024
    s_max: float = 60.0  # for the whole of one: 16 MiB at 2 Mbit/s
    # Numbers, texts, lists and objects in a body. A long conversation with tools has thousands;
    # 100,000 empty lists, the dearest of all, are 50 ms of parsing.
    values_max: int = 100_000
    depth_max: int = 128  # of JSON within JSON; Python's stack ends at about a thousand
    aside_bytes_min: int = 64 * 1024  # parsed in a thread from here on: about a millisecond


class Bodies:
    """Receives and parses the bodies of one process's requests, on one event loop."""

    def __init__(self, options: BodyOptions) -> None:
        self._options = options
        self._held_bytes = 0

    async def read(self, scope: Scope, receive: Receive, parse: Callable[[bytes], Read]) -> Read:
        """What `parse` makes of a request's body.

        Raises HTTPException, QueueFull, InvalidRequest and ClientGone, and whatever `parse` does.
        """
        headers = dict(scope["headers"])
        self._check_encoding(headers)
        self._check_length(_stated(headers))
        content = bytearray()
        try:
            async with asyncio.timeout(self._options.s_max):
                await self._receive(receive, content)
            return await self._parsed(bytes(content), parse)
        except TimeoutError as error:
            limit = f"the body was not whole after {self._options.s_max:g} s"
            raise HTTPException(408, limit, CLOSING) from error
        finally:
            self._held_bytes -= len(content)

    def _check_encoding(self, headers: Mapping[bytes, bytes]) -> None:
        if (encoding := headers.get(b"content-encoding", b"").lower()) not in PLAIN:
            named = encoding[:40].decode("latin-1")
            problem = f"content-encoding {named!r} is not taken here; send the body as it is"
            raise HTTPException(415, problem, CLOSING)

    def _check_length(self, n_bytes: int) -> None:
        limit = self._options.bytes_max
        if n_bytes > limit:
            problem = f"the body is longer than {limit} bytes, which is the limit"
            raise HTTPException(413, f"{problem} (`dispatch.body_bytes_max`)", CLOSING)

    async def _receive(self, receive: Receive, content: bytearray) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            content += part
            self._held_bytes += len(part)
            self._check_length(len(content))
            self._check_room()
            if not message.get("more_body", False):
                return

    def _check_room(self) -> None:
        if self._held_bytes > self._options.bytes_max_together:
            raise QueueFull(
                f"{self._held_bytes} bytes of requests are being received, and the limit is "
                f"{self._options.bytes_max_together}; try again later or at another dispatcher"
            )

    async def _parsed(self, content: bytes, parse: Callable[[bytes], Read]) -> Read:
        def checked() -> Read:
            check_shape(content, self._options.values_max, self._options.depth_max)
            return parse(content)

        if len(content) < self._options.aside_bytes_min:
            return checked()
        return await asyncio.to_thread(checked)


def _stated(headers: Mapping[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0


def check_shape(content: bytes, values_max: int, depth_max: int) -> None:
    """Refuse JSON of too many values, or too deep, without making any. Raises InvalidRequest.

    Outside of texts every value but the first follows a comma, a colon or a bracket that opens, so
    their number bounds that of values. Inside of texts quotes are escaped, by backslashes in pairs.
    """
    if len(content) <= values_max and len(content) <= depth_max:
        return
    plain = content
    if b"\\" in content:
        plain = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    letters = np.frombuffer(plain, np.uint8)
    outside = ~np.logical_xor.accumulate(letters == ord('"'))
    opens, closes = _any_of(letters, OPENING), _any_of(letters, CLOSING_BRACKETS)
    opens &= outside
    closes &= outside
    n_values = 1 + int(np.count_nonzero(opens | (outside & _any_of(letters, b",:"))))
    if n_values > values_max:
        raise InvalidRequest("body", f"up to {n_values:,} values", f"at most {values_max:,} values")
    at = np.flatnonzero(opens | closes)
    depth = int(np.cumsum(np.where(opens[at], 1, -1)).max(initial=0))
    if depth > depth_max:
        raise InvalidRequest("body", f"{depth:,} levels deep", f"at most {depth_max} levels deep")


def _any_of(letters: np.ndarray, of: bytes) -> np.ndarray:
    return (letters == of[0]) | (letters == of[1])
