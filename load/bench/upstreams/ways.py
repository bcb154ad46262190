"""Three ways to ask a dispatcher, each as a caller sees it: a whole answer, or what went wrong.

    http_streamed   OpenAI's API, server-sent events
    http_whole      OpenAI's API, one JSON object
    grpc            Dispatch

An answer counts as whole only with a proper end: a finish reason and, streamed over HTTP, `[DONE]`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc

from load.bench.upstreams.answers import Message, put_together
from serve.proto.fairlead.v1 import dispatch_pb2 as pb
from serve.proto.fairlead.v1 import dispatch_pb2_grpc, router_pb2

ASK_S_MAX = 30.0
QUESTION = {"messages": [{"role": "user", "content": "What is a fairlead?"}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """What became of one question."""

    model: str = ""  # that answered
    message: Message | None = None  # None: no whole answer
    finish_reason: str = ""
    problem: str = ""  # why it is not whole


# Of a body and the models that are allowed.
Ask = Callable[[Mapping[str, object], Sequence[str]], Awaitable[Got]]


def over_http(session: aiohttp.ClientSession, port: int, *, stream: bool) -> Ask:
    """Ask OpenAI's API at a port of 127.0.0.1."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"

    async def ask(body: Mapping[str, object], models: Sequence[str]) -> Got:
        ours = {"model": "auto", "stream": stream, "fairlead": {"allowed_models": list(models)}}
        async with session.post(url, json={**QUESTION, **body, **ours}) as response:
            text = await response.text()
            if response.status != 200:
                return Got(problem=f"{response.status}: {text[:300]}")
        return _streamed(text) if stream else _whole(json.loads(text))

    return _patiently(ask)


def over_grpc(stub: dispatch_pb2_grpc.DispatcherStub) -> Ask:
    """Ask Dispatch."""

    async def ask(body: Mapping[str, object], models: Sequence[str]) -> Got:
        request = pb.DispatchRequest(
            route=router_pb2.RouteRequest(allowed_models=models),
            options_json=json.dumps({**QUESTION, **body}),
        )
        return _dispatched([reply async for reply in stub.Dispatch(request)])

    return _patiently(ask)


def _patiently(ask: Ask) -> Ask:
    """What fails is an answer that did not come."""

    async def limited(body: Mapping[str, object], models: Sequence[str]) -> Got:
        try:
            async with asyncio.timeout(ASK_S_MAX):
                return await ask(body, models)
        except TimeoutError:
            return Got(problem=f"no answer within {ASK_S_MAX:.0f} s")
        except grpc.aio.AioRpcError as error:
            return Got(problem=f"{error.code().name}: {str(error.details())[:300]}")
        except (aiohttp.ClientError, ValueError) as error:
            return Got(problem=f"{type(error).__name__}: {error}")

    return limited


def _streamed(text: str) -> Got:
    """Of server-sent events; comments between them say nothing."""
    data = [part[6:] for part in text.split("\n\n") if part.startswith("data: ")]
    chunks = [json.loads(one) for one in data if one != "[DONE]"]
    for chunk in chunks:
        if "error" in chunk:
            return Got(problem=f"broken off: {chunk['error'].get('message', '')[:300]}")
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    if not reasons or data[-1] != "[DONE]":
        return Got(problem="a stream without an end")
    message = put_together(choice["delta"] for choice in choices)
    return Got(model=chunks[-1]["model"], message=message, finish_reason=reasons[-1])


def _whole(completion: Mapping[str, Any]) -> Got:
    (choice,) = completion["choices"]
    return Got(
        model=completion["model"],
        message=choice["message"],
        finish_reason=choice["finish_reason"] or "",
    )


def _dispatched(replies: Sequence[pb.DispatchReply]) -> Got:
    pieces = [reply.piece for reply in replies if reply.HasField("piece")]
    reasons = [piece.finish_reason for piece in pieces if piece.finish_reason]
    (model,) = {reply.routed.model for reply in replies if reply.HasField("routed")}
    if not reasons or not replies[-1].HasField("ended"):
        return Got(problem="a stream without an end")
    return Got(model=model, message=put_together(map(_delta, pieces)), finish_reason=reasons[-1])


def _delta(piece: pb.AnswerPiece) -> Message:
    return json.loads(piece.delta_json) if piece.delta_json else {"content": piece.text}
