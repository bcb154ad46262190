"""Whoever tries to get in: what it knows of a site, and the calls that it makes.

An attempt is a name and a call that tells what came of it. Controls must be answered,
because where nothing is answered at all, refusals prove nothing.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from load.bench.operate.intrusion.door import Door, Headers, Reply, get
from load.bench.operate.site import Attacked
from serve.openai_api.request import write_ticket
from serve.proto.fairlead.v1 import admin_pb2 as pb_admin
from serve.proto.fairlead.v1 import dispatch_pb2 as dispatch
from serve.proto.fairlead.v1 import router_pb2 as pb

ROUTER, DISPATCHER, ADMIN = (f"/fairlead.v1.{name}/" for name in ("Router", "Dispatcher", "Admin"))
CHAT = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).encode()
SLOWER = pb_admin.ChangeRequest(
    kind=pb_admin.KIND_MODELS,
    name="small",
    action=pb_admin.ACTION_SET,
    settings=[pb_admin.Setting(key="latency_ms", value_json="600")],
    dry_run=True,  # whoever gets in has shown it by that
)
OPERATORS = {  # path and a sound message of what changes the site itself
    "List": (ADMIN + "List", pb_admin.ListRequest(kind=pb_admin.KIND_EDITS).SerializeToString()),
    "Change": (ADMIN + "Change", SLOWER.SerializeToString()),
}
STREAMED = ("RouteStream", "Dispatch")
Tried = Callable[[], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to get in."""

    name: str
    tried: Tried


@dataclass(frozen=True, slots=True)
class Attack:
    """The site, and what its rightful callers were given."""

    at: Attacked
    door: Door
    ticket: bytes  # of a decision for acme
    measured: bytes  # of a call that the dispatcher made for acme

    def bearer(self, name: str) -> Headers:
        """The header of one of the site's tokens."""
        return [("authorization", f"Bearer {self.at.tokens[name]}")]

    def outcome_json(self) -> bytes:
        """A sound report over HTTP."""
        return json.dumps({"ticket": write_ticket(self.ticket), "quality": 1.0}).encode()

    def messages(self) -> dict[str, tuple[str, bytes]]:
        """Path and a sound message of every method."""
        ask = pb.RouteRequest(text="hello")
        outcome = pb.Outcome(ticket=self.ticket, quality=1.0)
        found = {
            "Route": ask,
            "RouteBatch": pb.RouteBatchRequest(requests=[ask]),
            "RouteColumns": pb.RouteColumnsRequest(embeddings_f32=bytes(4)),
            "RouteStream": ask,
            "RouteArm": pb.RouteArmRequest(request=ask),
            "RouteArmBatch": pb.RouteArmBatchRequest(requests=[pb.RouteArmRequest(request=ask)]),
            "SendFeedback": pb.FeedbackRequest(outcomes=[outcome]),
            "TraceFeedback": pb.TraceFeedbackRequest(ticket=self.ticket),
            "Explain": pb.ExplainRequest(ticket=self.ticket),
        }
        made = {name: (ROUTER + name, one.SerializeToString()) for name, one in found.items()}
        message = dispatch.DispatchRequest(route=ask, options_json='{"max_tokens": 2}')
        return (
            made | {"Dispatch": (DISPATCHER + "Dispatch", message.SerializeToString())} | OPERATORS
        )

    async def grpc(self, method: str, headers: Headers, *, port: int = -1) -> Reply:
        """One method with a sound message; at the dispatcher's port, which has all of them."""
        path, message = self.messages()[method]
        at = self.at.ports[1] if port < 0 else port
        return await self.door.grpc(at, path, message, headers, streamed=method in STREAMED)

    async def http(self, path: str, headers: Headers = (), body: bytes = b"") -> Reply:
        """One path, as a POST where there is a body."""
        method = "POST" if body else "GET"
        request = get(path, headers, method=method, body=body)
        return await self.door.http(self.at.ports[2], request)


def controls(on: Attack) -> Iterator[Attempt]:
    """What must be answered."""
    for method in on.messages():
        # A matrix of one number is of no encoder's length, and arms are not declared there.
        if method not in ("RouteColumns", "RouteArm"):
            token = on.bearer("operator" if method in OPERATORS else "all")
            yield Attempt(f"{method} with its token", partial(on.grpc, method, token))
    yield Attempt("/v1/models with its token", partial(on.http, "/v1/models", on.bearer("read")))
    yield Attempt(
        "a chat with its token",
        partial(on.http, "/v1/chat/completions", on.bearer("dispatch"), CHAT),
    )
    yield Attempt("health of HTTP", partial(on.http, "/health"))
