"""What fuzzing starts from: sound messages, bodies, heads and frames of all that is served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from load.bench.speed.wire import DATA, HEADERS, PREFACE, Ask, frame
from serve.proto.fairlead.v1 import dispatch_pb2 as dispatch
from serve.proto.fairlead.v1 import router_pb2 as pb

ROUTER = "/fairlead.v1.Router/"
TICKET = bytes(range(256)) * 2
EVERYTHING = pb.RouteRequest(
    request_id="a-1",
    text="What is a fairlead?",
    prompt_tokens=9,
    tenant="acme",
    session="s-1",
    preference=pb.Preference(quality=1.0, cost=20.0, latency=0.01, energy=0.0),
    allowed_models=["sound", "other"],
    denied_models=["third"],
    cost_usd_max=1.0,
    latency_ms_max=60_000.0,
)
CHAT = {
    "model": "auto",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ],
    "max_tokens": 8,
    "temperature": 0.5,
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "acme",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "fairlead": {
        "tenant": "acme",
        "session": "s",
        "preference": {"quality": 1.0, "cost": 1.0},
        "allowed_models": ["sound"],
        "fan_out": 1,
        "criticality": "critical",
    },
}
OUTCOMES = {"outcomes": [{"ticket": "BQAA", "quality": 0.5, "cost_usd": 0.1, "latency_ms": 12.0}]}
ASKED = {
    "schema_version": "policy_router_v1",
    "route_id": "r-1",
    "candidates": [{"roster_id": "sound", "provider": "x"}, {"roster_id": "other"}],
    "execution_mode": "serving",
    "prompt_text": "hello",
    "organization_id": "acme",
    "client_session_id": "s",
    "estimated_input_tokens": 9,
    "training_allowed": True,
}
REPORTED = {"route_id": "r-1", "cost_usd": 0.1, "latency_ms": 9, "status": "ok", "rating": 0.5}
BODIES: Mapping[str, object] = {
    "/v1/chat/completions": CHAT,
    "/v1/feedback": OUTCOMES,
    "/internal/route": CHAT,
    "/route": ASKED,
    "/outcome": REPORTED,
    "/feedback": REPORTED,
}
HEADS = (
    b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"POST /v1/feedback HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    b"GET /dashboard/decision.json?ticket=00ff HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /v1/models/auto?a=b HTTP/1.1\r\nhost: a\r\ncookie: a=b\r\n\r\n",
)


def messages() -> Iterator[tuple[str, bytes]]:
    """Path and message: the simplest one first."""
    embedded = pb.RouteRequest(embedding=pb.Embedding(values=[0.1] * 8))
    flat = pb.RouteRequest(embedding_f32=np.ones(16, "<f4").tobytes())
    outcome = pb.Outcome(ticket=TICKET, quality=0.5, cost_usd=0.1, latency_ms=3.0, output_tokens=4)
    arms = pb.RouteArmRequest(request=EVERYTHING, groups=["a", "b"])
    columns = pb.RouteColumnsRequest(embeddings_f32=np.ones(64, "<f4").tobytes())
    for name, message in (
        ("Route", pb.RouteRequest(text="hello")),
        ("Route", EVERYTHING),
        ("Route", embedded),
        ("Route", flat),
        ("RouteBatch", pb.RouteBatchRequest(requests=[EVERYTHING, embedded, flat])),
        ("RouteColumns", columns),
        ("RouteStream", EVERYTHING),
        ("RouteArm", pb.RouteArmRequest(request=embedded, groups=["a", "b"])),
        ("RouteArmBatch", pb.RouteArmBatchRequest(requests=[arms, arms])),
        ("SendFeedback", pb.FeedbackRequest(outcomes=[outcome, outcome])),
        ("TraceFeedback", pb.TraceFeedbackRequest(ticket=TICKET)),
        ("Explain", pb.ExplainRequest(ticket=TICKET)),
    ):
        yield ROUTER + name, message.SerializeToString()
    asked = dispatch.DispatchRequest(
        route=EVERYTHING,
        messages=[dispatch.ChatMessage(role="user", content="hello")],
        options_json='{"max_tokens": 8, "temperature": 0.1}',
        fan_out=2,
    )
    yield "/fairlead.v1.Dispatcher/Dispatch", asked.SerializeToString()
    yield "/grpc.health.v1.Health/Check", b"\x0a\x12fairlead.v1.Router"


def frames() -> list[bytes]:
    """Whole connections, of one call and of several."""
    found = []
    for path, message in messages():
        ask = Ask.of(path, message)
        one = ask.head + (1).to_bytes(4, "big") + ask.between + (1).to_bytes(4, "big") + ask.rest
        found.append(PREFACE + frame(4, 0, 0, b"") + one)
    found.append(
        PREFACE + frame(4, 0, 0, b"\x00\x03\x00\x00\x00\x64") + frame(8, 0, 0, b"\0\0\1\0")
    )
    found.append(PREFACE + frame(HEADERS, 4, 1, b"\x82\x86\x84") + frame(DATA, 1, 1, b"\x01" * 9))
    return found
