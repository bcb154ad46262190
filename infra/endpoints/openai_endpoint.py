"""One OpenAI-compatible server as an endpoint: vLLM, SGLang, TGI, llama.cpp, a cloud's API.

    Call ──POST {url}/chat/completions, stream: true──▶ server
    Piece, Piece, …, Usage ◀──ChatAnswer── server-sent events ◀──┘

How bytes become pieces is in `openai_stream`, whose fault a refusal is in `blame`. Here is
what lies between: the request, its time limits, and its end.

When the generator ends, however it ends, the request has ended: an answer that
nobody reads any more is broken off at once, so that the server stops working on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from infra.endpoints.blame import bounded, exhausted_s, refusal
from infra.endpoints.connections import Connections
from infra.endpoints.openai_stream import ChatAnswer
from infra.endpoints.options import OpenAiOptions
from serve.dispatch.backend import Call, Piece, Usage
from serve.errors import (
    AnswerGarbled,
    AnswerLate,
    AttemptFailed,
    CallRefused,
    EndpointUnreachable,
)

logger = logging.getLogger(__name__)

# With the finish reason an answer is whole; only its usage is still to come, and servers send that
# in the same breath. The same for the text of an error after its status.
TAIL_S = 2.0
# After [DONE] comes only the mark that ends the transfer, mostly in the same packet. It is waited
# for this long, because without it the connection can't be used again.
LAST_MARK_S = 0.1
# Bytes that aiohttp can't read as HTTP; it raises the second as it is from within a body.
NO_HTTP = (aiohttp.ClientResponseError, HttpProcessingError)
NETWORK = (aiohttp.ClientError, HttpProcessingError, OSError)  # TimeoutError is an OSError
# A time limit that runs out so much late says that this process was away, not what the server did.
AWAY_S = 0.05
CONNECTS_MAX = 3  # then the server is to blame all the same: somebody waits
REFUSAL_BYTES_MAX = 64 * 1024  # of an error's text that are read
# An event that says that an answer is whole is not held up; it is the last one of its bytes.
DONE, DONE_WITHIN = b"[DONE]", 16
GATHERED_MAX = 64 * 1024  # bytes that wait for others
GATHERED_LATE_S = 0.02  # and how much longer than the pace, where nothing else comes
# What is given on later gives way: a token for each answer comes in one moment, an engine's step,
# and the first ones of answers are waited for.
GIVE_WAY_S = 0.002
# What is added to a call: to learn its tokens, and how sure the model was.
STREAM_OPTIONS: dict[str, object] = {"stream_options": {"include_usage": True}}
LOGPROBS: dict[str, object] = {"logprobs": True}


class OpenAiEndpoint:
    """Implements `serve.dispatch.backend.Endpoint`."""

    def __init__(self, pool: str, options: OpenAiOptions, connections: Connections) -> None:
        """`pool` is for messages. `connections` are borrowed, their owner closes them."""
        base = options.url.rstrip("/")
        self.address = base.split("://", 1)[1].removesuffix("/v1")
        self._where = f"{pool}/{self.address}"
        self._options, self._connections = options, connections
        self._url = URL(f"{base}/chat/completions")
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if options.api_key is not None:
            self._headers["Authorization"] = f"Bearer {options.api_key}"
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=options.connect_timeout_s, sock_connect=None, sock_read=None
        )
        # Fields of ours that the server need not know; those that it has refused are left out.
        self._optional = dict(STREAM_OPTIONS) if options.include_usage and options.stream else {}
        self._refused: set[str] = set()

    async def stream(self, call: Call) -> AsyncGenerator[Piece | Usage, None]:
        """The answer, piece by piece, then its usage. Closing the generator breaks the call off.

        The time to the first piece is not limited here. Raises AttemptFailed: EndpointUnreachable,
        EndpointOverloaded, EndpointFailed, AnswerGarbled, AnswerLate, CallRefused.
        """
        options = self._options
        response = await self._open(call)
        answer = ChatAnswer(
            self._where,
            line_bytes_max=options.line_bytes_max,
            answer_bytes_max=options.answer_bytes_max,
            secret=options.api_key or "",
        )
        full_s = exhausted_s(response.headers)
        late_at: float | None = None  # on the loop's clock
        gather_until = 0.0  # likewise
        loop = asyncio.get_running_loop()
        try:
            while not answer.over:
                data = await self._gathered(response, gather_until)
                data = data or await self._read(response, late_at)
                came_s, fresh = loop.time(), False
                for piece in _linked(answer.feed(data) if data else answer.end()):
                    fresh = True
                    yield replace(piece, full_s=full_s) if full_s else piece
                    full_s = 0.0
                if fresh:  # signs of life between pieces are none of an answer
                    gather_until = came_s + call.pace_s()
                    late_at = loop.time() + (TAIL_S if answer.finished else options.idle_timeout_s)
            await self._last_mark(response)
        except AttemptFailed:
            if not answer.finished:
                raise
        finally:
            response.close()
        yield answer.usage(call.prompt_tokens)

    async def _open(self, call: Call) -> aiohttp.ClientResponse:
        """The response that begins with a 2xx status.

        What we add of our own accord and the server refuses, it is asked again without.
        """
        ours = self._optional | (LOGPROBS if call.confidence else {})
        unwanted = set(self._refused)
        while True:
            added = {name: value for name, value in ours.items() if name not in unwanted}
            response = await self._post(call, added)
            if response.status < 300:
                self._leave_out(unwanted)
                return response
            error = await self._refusal(response)
            named = {name for name in added if name in error.problem and name not in call.body}
            if not named or response.status >= 500:
                raise error
            unwanted |= named

    def _leave_out(self, unwanted: set[str]) -> None:
        """Remember what the server refused, now that it has taken a call without."""
        for name in unwanted - self._refused:
            logger.info("%s refuses %s: left out from now on", self._where, name)
        self._refused = unwanted

    async def _post(self, call: Call, added: Mapping[str, object]) -> aiohttp.ClientResponse:
        """The response; a connection that came too late for us alone is made once more."""
        loop, body = asyncio.get_running_loop(), self._body(call, added)
        for connects_left in reversed(range(CONNECTS_MAX)):
            away_at = loop.time() + self._options.connect_timeout_s + AWAY_S
            try:
                return await self._connections.post(
                    self._url,
                    data=body,
                    headers={**self._headers, **call.headers} if call.headers else self._headers,
                    timeout=self._timeout,
                    allow_redirects=False,  # the key is for this address
                )
            except NETWORK as error:
                was_away = isinstance(error, aiohttp.ConnectionTimeoutError)
                if not (was_away and loop.time() > away_at and connects_left):
                    raise self._broken(error) from None
        raise AssertionError("the last one returns or raises")

    def _body(self, call: Call, added: Mapping[str, object]) -> bytes:
        options = self._options
        body = {**call.body, **added}
        if options.priority:
            body["priority"] = call.priority
        body |= {**options.extra, "model": options.model, "stream": options.stream}
        try:
            return msgspec.json.encode(body)
        except (TypeError, ValueError, RecursionError) as error:
            raise CallRefused(self._where, f"it can't be written as JSON: {error}") from None

    async def _read(self, response: aiohttp.ClientResponse, late_at: float | None) -> bytes:
        """Whatever has come; b"" at the end."""
        try:
            async with asyncio.timeout_at(late_at):
                return await response.content.readany()
        except TimeoutError:
            idle_s = self._options.idle_timeout_s
            raise AnswerLate(self._where, f"no further piece within {idle_s} s") from None
        except NETWORK as error:
            raise self._broken(error) from None

    async def _gathered(self, response: aiohttp.ClientResponse, until: float) -> bytes:
        """What comes by then, or up to its end; of a connection that fails, what came before.

        To take bytes costs a fraction of what it costs to read pieces in them and to give them on.
        A clock is asked when something comes: a timer that runs out each time costs as much again.
        """
        loop, came = asyncio.get_running_loop(), list[bytes]()
        if until > loop.time():
            with contextlib.suppress(*NETWORK):  # the next one to read is told
                async with asyncio.timeout_at(until + GATHERED_LATE_S):
                    while not _is_enough(came) and (more := await response.content.readany()):
                        came.append(more)
                        if loop.time() >= until and not _is_enough(came):
                            await asyncio.sleep(GIVE_WAY_S)
                            break
        return b"".join(came)

    async def _last_mark(self, response: aiohttp.ClientResponse) -> None:
        """Read to the end of the transfer, after which the connection is free for another call."""
        late_at = asyncio.get_running_loop().time() + LAST_MARK_S
        while await self._read(response, late_at):
            pass

    async def _refusal(self, response: aiohttp.ClientResponse) -> AttemptFailed:
        """Why it is no answer, in the server's words as far as they come in time."""
        late_at = asyncio.get_running_loop().time() + TAIL_S
        body = b""
        try:
            while len(body) < REFUSAL_BYTES_MAX and (more := await self._read(response, late_at)):
                body += more
        except AttemptFailed:  # the status says enough
            pass
        finally:
            response.close()
        secret = self._options.api_key or ""
        return refusal(self._where, response.status, response.headers, body, secret)

    def _broken(self, error: Exception) -> AttemptFailed:
        """What a failure of the connection means."""
        words = bounded(str(error) or type(error).__name__, self._options.api_key or "")
        if isinstance(error, NO_HTTP):
            return AnswerGarbled(self._where, f"not HTTP: {words}")
        if isinstance(error, TimeoutError):
            words = f"no connection within {self._options.connect_timeout_s} s"
        return EndpointUnreachable(self._where, words)


def _linked(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, each of which says whether another has come with it. Raises what they raise."""
    last: Piece | None = None
    try:
        for piece in pieces:
            if last is not None:
                yield replace(last, followed=True)
            last = piece
    except AttemptFailed:
        if last is not None:
            yield last
        raise
    if last is not None:
        yield last


def _is_enough(came: Sequence[bytes]) -> bool:
    """Whether an answer's end has come, or as much as may wait."""
    return bool(came) and (DONE in came[-1][-DONE_WITHIN:] or sum(map(len, came)) > GATHERED_MAX)
