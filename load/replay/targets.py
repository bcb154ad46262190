"""Whom a request is sent to, and what comes back: Fairlead over gRPC, or anybody's OpenAI API.

    HOST:PORT  ── route ──────▶ a decision          ── batch ──▶ decisions, many in one call
               ── dispatch ───▶ a streamed answer
    http://…/v1 ──────────────▶ a streamed answer

The one rule: whatever goes wrong is an answer, too: its `failed` says what, and `said` is how the
other side put it.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol

import aiohttp
import grpc

from load.data.kinds import UNSAID, Kind
from serve.proto.fairlead.v1 import dispatch_pb2, dispatch_pb2_grpc, router_pb2_grpc
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import BYTES_PER_TOKEN

TEXT_CHARACTERS_MAX = 256  # of a prompt that is only decided for: its length is said beside it
STATUS = {code.value[0]: code.name for code in grpc.StatusCode}  # names by number
# What comes of an answer that is no JSON, or not as OpenAI's.
GARBAGE = (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, RecursionError)
SAID_CHARACTERS_MAX = 200
HTTP = ("http://", "https://")  # what an address of OpenAI's API begins with
# What a delta of OpenAI's API has text in; the latter two are how others stream thoughts.
TEXTS = ("content", "reasoning_content", "reasoning")
FIELDS = (b"", b"event", b"id", b"retry")  # of a stream of server-sent events, beside `data`
WORDS = "the fleet sails at dawn and every line runs fair "


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request."""

    number: int  # in the trace
    prompt_tokens: int
    output_tokens: int
    row: int  # of the outcome table; −1: none
    kind: Kind = UNSAID  # what it says of itself
    session: str = ""  # the conversation that it belongs to


@dataclass(slots=True, kw_only=True)
class Answered:
    """What came back."""

    failed: str = ""
    said: str = ""  # of what failed: the beginning of what the other side says about it
    first_s: float = 0.0  # by the clock of `time.perf_counter`; when it was decided, or began
    ended_s: float = 0.0
    model: str = ""
    tokens: int = 0
    usd: float = 0.0
    ticket: bytes = b""
    decision_id: str = ""
    # Fairlead's dispatcher: seconds from when it got the request to its decision and first token.
    decided_s: float | None = None
    inside_s: float = 0.0


class Connect(Protocol):
    """Opens channels to an address. Handed in: how a client connects is above this folder."""

    def __call__(
        self, target: str, connections: int, root_certificates: bytes | None = None
    ) -> Sequence[grpc.aio.Channel]:
        """So many; with TLS where there are certificates to trust."""


class Target(Protocol):
    """Takes requests, each alone or several at once."""

    async def ask(self, asked: Sequence[Asked]) -> list[Answered]:
        """Send them off; their answers, in order. Never raises."""

    async def report(self, ticket: bytes, quality: float) -> bool:
        """Report an outcome; False where there is nobody to report to."""

    async def close(self) -> None:
        """Let go of connections."""


def prompt_of(asked: Asked, characters_max: int | None = None) -> str:
    """Text that counts as so many tokens, unlike all others from its first word on."""
    begin = f"Request {asked.number}, question {asked.row}: "
    characters = max(len(begin), round(BYTES_PER_TOKEN * asked.prompt_tokens))
    text = begin + WORDS * (characters // len(WORDS) + 1)
    return text[: min(characters, characters_max or characters)]


def said_of(asked: Asked) -> dict[str, Any]:
    """The fields of a RouteRequest that a request says of itself."""
    kind = asked.kind
    said: dict[str, Any] = {"session": asked.session} if asked.session else {}
    if kind != UNSAID:
        said |= {name: getattr(kind, name) for name in ("tenant", "task", "tags", "modality")}
        said["criticality"] = pb.Criticality.Value(kind.criticality.name)
    return said


class RouteTarget:
    """Fairlead's router: a decision is all that is asked for."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], timeout_s: float, token: str) -> None:
        self._channels, self._turn = channels, 0
        self._stubs = [router_pb2_grpc.RouterStub(channel) for channel in channels]
        self._how: dict[str, Any] = {"timeout": timeout_s}
        if token:
            self._how["metadata"] = (("authorization", f"Bearer {token}"),)

    def _stub(self) -> Any:
        self._turn += 1
        return self._stubs[self._turn % len(self._stubs)]

    async def ask(self, asked: Sequence[Asked]) -> list[Answered]:
        """One by `Route`, several by `RouteBatch`."""
        requests = [
            pb.RouteRequest(
                text=prompt_of(one, TEXT_CHARACTERS_MAX),
                prompt_tokens=max(1, one.prompt_tokens),
                **said_of(one),
            )
            for one in asked
        ]
        try:
            if len(requests) == 1:
                decisions = [await self._stub().Route(requests[0], **self._how)]
                problems = [("", "")]
            else:
                batch = pb.RouteBatchRequest(requests=requests)
                reply = await self._stub().RouteBatch(batch, **self._how)
                decisions = [one.decision for one in reply.replies]
                problems = [
                    (STATUS[one.problem.code], beginning(one.problem.message))
                    if one.HasField("problem")
                    else ("", "")
                    for one in reply.replies
                ]
        except grpc.aio.AioRpcError as error:
            said = beginning(error.details())
            return [Answered(failed=error.code().name, said=said) for _ in asked]
        now_s = time.perf_counter()
        return [
            Answered(
                failed=failed,
                said=said,
                first_s=now_s,
                ended_s=now_s,
                model=decision.model,
                ticket=decision.ticket,
                decision_id=decision.decision_id,
            )
            for decision, (failed, said) in zip(decisions, problems, strict=True)
        ]

    async def report(self, ticket: bytes, quality: float) -> bool:
        """By `SendFeedback`."""
        outcome = pb.Outcome(ticket=ticket, quality=quality)
        try:
            await self._stub().SendFeedback(pb.FeedbackRequest(outcomes=[outcome]), **self._how)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def close(self) -> None:
        """All channels."""
        for channel in self._channels:
            await channel.close()


class DispatchTarget(RouteTarget):
    """Fairlead's dispatcher: it decides, calls the pool, and streams the answer."""

    def __init__(
        self,
        channels: Sequence[grpc.aio.Channel],
        timeout_s: float,
        token: str,
        extra: Mapping[str, Any],
    ) -> None:
        super().__init__(channels, timeout_s, token)
        self._extra = extra
        self._dispatch = [dispatch_pb2_grpc.DispatcherStub(channel) for channel in channels]

    async def ask(self, asked: Sequence[Asked]) -> list[Answered]:
        """One at a time."""
        return [await self._one(one) for one in asked]

    async def _one(self, asked: Asked) -> Answered:
        found = Answered()
        request = dispatch_pb2.DispatchRequest(
            route=pb.RouteRequest(prompt_tokens=max(1, asked.prompt_tokens), **said_of(asked)),
            messages=[dispatch_pb2.ChatMessage(role="user", content=prompt_of(asked))],
            options_json=json.dumps({"max_tokens": asked.output_tokens, **self._extra}),
        )
        self._turn += 1
        stub = self._dispatch[self._turn % len(self._dispatch)]
        try:
            async for reply in stub.Dispatch(request, **self._how):
                part = reply.WhichOneof("part")
                if part == "routed":
                    found.model, found.ticket = reply.routed.model, reply.routed.ticket
                    found.first_s = time.perf_counter()
                elif part == "ended":
                    found.tokens = reply.ended.output_tokens
                    found.usd = reply.ended.paid_usd
                    found.inside_s = reply.ended.first_token_ms / 1e3
                    for attempt in reply.ended.attempts[:1]:
                        found.decided_s = attempt.began_ms / 1e3
        except grpc.aio.AioRpcError as error:
            found.failed, found.said = error.code().name, beginning(error.details())
        found.ended_s = time.perf_counter()
        if not found.failed and not found.first_s:
            found.failed = "NO_ANSWER"
        return found


class OpenAiTarget:
    """Any server that speaks OpenAI's chat completions, streamed."""

    def __init__(
        self,
        url: str,
        model: str,
        timeout_s: float,
        extra: dict[str, Any],
        token: str = "",
        root_certificates: bytes | None = None,
    ) -> None:
        self._url, self._model, self._extra = url.rstrip("/") + "/chat/completions", model, extra
        trusted = True if root_certificates is None else trusting(root_certificates)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=0, ssl=trusted),
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )

    async def ask(self, asked: Sequence[Asked]) -> list[Answered]:
        """One at a time."""
        return [await self._one(one) for one in asked]

    async def _one(self, asked: Asked) -> Answered:
        found = Answered(model=self._model)
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt_of(asked)}],
            "max_tokens": asked.output_tokens,
            "stream": True,
            **({"user": asked.kind.tenant} if asked.kind.tenant else {}),
            **self._extra,
        }
        try:
            async with self._session.post(self._url, json=body) as reply:
                if reply.status != 200:
                    found.failed = f"HTTP {reply.status}"
                    found.said = _problem(await reply.content.read(1 << 16))
                else:
                    ended = False
                    async for line in reply.content:
                        ended = _take(line, found) or ended
                    if not (found.failed or ended):
                        found.failed = "BROKEN_OFF" if found.first_s else "NO_ANSWER"
        except GARBAGE as error:
            found.failed, found.said = "GARBAGE", beginning(str(error))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            found.failed, found.said = type(error).__name__, beginning(str(error))
        found.ended_s = time.perf_counter()
        if not found.failed and not found.first_s:
            found.failed = "NO_ANSWER"
        return found

    async def report(self, ticket: bytes, quality: float) -> bool:
        """There is nobody to report to."""
        del ticket, quality
        return False

    async def close(self) -> None:
        """All connections."""
        await self._session.close()


def _take(line: bytes, found: Answered) -> bool:
    """One line of a stream of server-sent events; whether the answer is at its end.

    Raises one of GARBAGE where it is no such line.
    """
    if not line.startswith(b"data:"):
        if found.first_s or line.partition(b":")[0].strip() in FIELDS:
            return False
        found.failed = found.failed or "NO_STREAM"  # a page, or an answer in one piece
        found.said = beginning(f"{found.said} {line.decode(errors='replace')}")
        return True
    if line[5:].strip() == b"[DONE]":
        return True
    piece = json.loads(line[5:])
    if piece.get("error"):
        error = piece["error"]
        found.failed = beginning(str((isinstance(error, dict) and error.get("code")) or "error"))
        found.said = _problem(line[5:])
        return True
    found.model = beginning(str(piece.get("model") or found.model))
    choices = piece.get("choices") or ()
    for choice in choices:
        delta = choice.get("delta") or {}
        if any(delta.get(text) for text in TEXTS):
            found.first_s = found.first_s or time.perf_counter()
            found.tokens += 1
    # A piece may hold several tokens: who says how many there were, knows better.
    found.tokens = index((piece.get("usage") or {}).get("completion_tokens") or found.tokens)
    return any(choice.get("finish_reason") for choice in choices)


def _problem(body: bytes) -> str:
    """What a server says of an error: its message, as OpenAI's API words it, or all of it."""
    text = body.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        text = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # others word it as they like
    return beginning(str(text))


def beginning(text: str | None) -> str:
    """In one line, not too long, and of characters that can be written."""
    line = " ".join((text or "").encode(errors="replace").decode().split())
    return line if len(line) <= SAID_CHARACTERS_MAX else line[:SAID_CHARACTERS_MAX] + " …"


def trusting(root_certificates: bytes) -> ssl.SSLContext:
    """Who is believed to be who they say, by PEM. Raises ValueError where that is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:  # what is said between certificates, such as names with accents, is none of them
        context.load_verify_locations(cadata=root_certificates.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"holds no certificates as PEM: {error}") from error
    return context
