"""Others' names and forged tickets: a tenant is what the token says, a ticket what was sealed here.

another tenant's name beside a token that says whose it is
tickets that were forged, changed, or sealed by a stranger
reports of what the dispatcher has measured itself
one outcome reported many times: it counts once
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from infra.status.status import Status
from load.bench.operate.intrusion.attack import DISPATCHER, ROUTER, Attack, Attempt
from load.bench.operate.intrusion.door import Reply
from load.errors import LoopStuck
from serve.openai_api.request import read_ticket
from serve.proto.fairlead.v1 import dispatch_pb2 as dispatch
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.feedback.ticket import KEY_BYTES, MEASURED_VERSION, VERSION, Sealer

LEARNED_S_MAX, QUIET_S = 20.0, 2.0


def forgeries(on: Attack) -> Iterator[Attempt]:
    """All of them."""
    yield from _other_tenants(on)
    yield from _tickets(on)
    yield Attempt("reports of what the dispatcher has measured", partial(_overwritten, on))
    yield Attempt("one outcome reported ten times", partial(_replayed, on))


def _other_tenants(on: Attack) -> Iterator[Attempt]:
    """A tenant is what the token says: what is decided must not be another one's."""
    theirs = pb.RouteRequest(text="hello", tenant="umbrella")
    batch = pb.RouteBatchRequest(requests=[theirs])
    asked = dispatch.DispatchRequest(route=theirs, options_json='{"max_tokens": 2}')
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    router, dispatcher, _ = on.at.ports

    async def tenant_of(ticket: bytes) -> Reply:
        """Got in where the ticket is another tenant's."""
        message = pb.ExplainRequest(ticket=ticket).SerializeToString()
        found = await on.door.grpc(router, ROUTER + "Explain", message, on.bearer("all"))
        if not found.ok:
            return Reply("OK", b"its ticket can't be opened")
        tenant = pb.Explanation.FromString(found.body).tenant
        return Reply("as acme" if tenant == "acme" else "OK", tenant.encode())

    async def over_grpc(path: str, message: bytes, port: int, *, streamed: bool) -> bytes:
        found = await on.door.grpc(port, path, message, on.bearer("all"), streamed=streamed)
        return found.body

    async def route() -> Reply:
        made = await over_grpc(ROUTER + "Route", theirs.SerializeToString(), router, streamed=False)
        return await tenant_of(pb.Decision.FromString(made).ticket)

    async def many() -> Reply:
        path = ROUTER + "RouteBatch"
        made = await over_grpc(path, batch.SerializeToString(), router, streamed=False)
        return await tenant_of(pb.RouteBatchReply.FromString(made).replies[0].decision.ticket)

    async def stream() -> Reply:
        path = ROUTER + "RouteStream"
        made = await over_grpc(path, theirs.SerializeToString(), router, streamed=True)
        return await tenant_of(pb.RouteReply.FromString(made).decision.ticket)

    async def dispatched() -> Reply:
        path = DISPATCHER + "Dispatch"
        made = await over_grpc(path, asked.SerializeToString(), dispatcher, streamed=True)
        return await tenant_of(dispatch.DispatchReply.FromString(made).routed.ticket)

    async def chatted(more: dict[str, object]) -> Reply:
        body = json.dumps(chat | more).encode()
        found = await on.http("/v1/chat/completions", on.bearer("all"), body)
        ticket = json.loads(found.body)["fairlead"]["ticket"]
        return await tenant_of(read_ticket(ticket))

    yield Attempt("Route for another tenant", route)
    yield Attempt("RouteBatch for another tenant", many)
    yield Attempt("RouteStream for another tenant", stream)
    yield Attempt("Dispatch for another tenant", dispatched)
    yield Attempt("a chat for another user", partial(chatted, {"user": "umbrella"}))
    yield Attempt(
        "a chat for another tenant", partial(chatted, {"fairlead": {"tenant": "umbrella"}})
    )


def _tickets(on: Attack) -> Iterator[Attempt]:
    good, measured = on.ticket, on.measured
    forged = {
        "one bit changed": good[:-1] + bytes([good[-1] ^ 1]),
        "another id": good[:2] + bytes([good[2] ^ 1]) + good[3:],
        "cut short": good[:-20],
        "longer": good + bytes(16),
        "another version": bytes([good[0] ^ 7]) + good[1:],
        "two halves": good[: len(good) // 2] + measured[len(good) // 2 :],
        "no bytes of ours": bytes(len(good)),
        "taken for measured": bytes([MEASURED_VERSION]) + good[1:],
        "measured, taken for a caller's": bytes([VERSION]) + measured[1:],
        "sealed by a stranger": _sealed_elsewhere(on),
    }
    for name, ticket in forged.items():
        outcome = pb.Outcome(ticket=ticket, quality=1.0)
        yield Attempt(f"feedback with a ticket: {name}", partial(_reported, on, outcome))
        opened = pb.ExplainRequest(ticket=ticket).SerializeToString()
        yield Attempt(
            f"Explain of a ticket: {name}",
            partial(on.door.grpc, on.at.ports[0], ROUTER + "Explain", opened, on.bearer("all")),
        )


def _sealed_elsewhere(on: Attack) -> bytes:
    """All that our ticket says, sealed with another key."""
    opened = Sealer(on.at.site.ticket_keys()).open(on.ticket)
    sealer = Sealer([secrets.token_bytes(KEY_BYTES)])
    (made,) = sealer.seal(
        [opened.decision_id],
        np.array([opened.head]),
        opened.candidates[np.newaxis],
        [opened.tenant.encode()],
    )
    return made


async def _reported(on: Attack, outcome: pb.Outcome) -> Reply:
    message = pb.FeedbackRequest(outcomes=[outcome]).SerializeToString()
    path = ROUTER + "SendFeedback"
    return await on.door.grpc(on.at.ports[0], path, message, on.bearer("feedback"))


async def _replayed(on: Attack, times: int = 10) -> Reply:
    """Got in where it is learned more than once."""
    message = on.messages()["Route"][1]
    made = await on.door.grpc(on.at.ports[0], ROUTER + "Route", message, on.bearer("route"))
    outcome = pb.Outcome(ticket=pb.Decision.FromString(made.body).ticket, quality=1.0)
    learned = await _learned(on, [outcome] * times)
    return Reply("OK", b"counted twice") if learned != 1 else Reply("counted once")


async def _overwritten(on: Attack) -> Reply:
    """Got in where a caller's word counts for what the dispatcher has measured."""
    told = [
        pb.Outcome(ticket=on.measured, cost_usd=0.0),
        pb.Outcome(ticket=on.measured, latency_ms=1.0),
        pb.Outcome(ticket=on.measured, error=True),
        pb.Outcome(ticket=on.measured, paid_usd=1.0),
    ]
    learned = await _learned(on, told)
    return Reply("OK", b"it counted") if learned else Reply("not counted")


async def _learned(on: Attack, outcomes: Sequence[pb.Outcome]) -> int:
    """How many of these are learned from, with nothing else under way."""
    before = await _settled(on)
    for outcome in outcomes:
        await _reported(on, outcome)
    after = await _settled(on, before.records + len(outcomes))
    return after.learned - before.learned


async def _settled(on: Attack, records: int = 0) -> Status:
    """Once so many records are read, and none has come for a while. Raises LoopStuck."""
    ends_s, seen, since_s = time.monotonic() + LEARNED_S_MAX, -1, 0.0
    while True:
        now = await asyncio.to_thread(on.at.status)
        if now.records != seen:
            seen, since_s = now.records, time.monotonic()
        if seen >= records and time.monotonic() - since_s > QUIET_S:
            return now
        if time.monotonic() > ends_s:
            raise LoopStuck(f"{records} outcomes were not read within {LEARNED_S_MAX:.0f} s")
        await asyncio.sleep(0.1)
