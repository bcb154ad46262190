"""More calls than a replica can take in: the surplus is ended at once, without Python's help."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future

import grpc
import pytest
import router_bench
from certificates import self_signed
from router_bench import PATIENCE_S, Router, embedding, router
from waiting import until

import fairlead
from infra.pools.ports import free_ports
from serve.access.tokens import Token, digest_of
from serve.grpc_api.asking.admission import PUSHBACK_KEY
from serve.grpc_api.listener import ListenerOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1.router_pb2_grpc import RouterStub

PENDING_MAX = 8
CALLS = 60
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def up(tmp_path, monkeypatch):
    narrow = lambda **said: ListenerOptions(**said, pending_max=PENDING_MAX)  # noqa: E731
    monkeypatch.setattr(router_bench, "ListenerOptions", narrow)
    with router(tmp_path) as made:
        yield made


class Held:
    """The replica's event loop does nothing for the length of a `with` block."""

    def __init__(self, up: Router) -> None:
        self._up, self._go_on, self._held = up, threading.Event(), threading.Event()

    async def _hold(self) -> None:
        self._held.set()
        self._go_on.wait(PATIENCE_S)

    def __enter__(self) -> None:
        self._holding: Future = self._up.run(self._hold(), wait=False)
        assert self._held.wait(PATIENCE_S)

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self._holding.result(PATIENCE_S)


def test_calls_that_nobody_can_take_in_are_ended_at_once_and_the_others_are_answered(up):
    """
    While the event loop is busy gRPC's core keeps a few calls and ends all others: no queue
    grows unseen in which calls wait until their deadlines have passed.
    """
    request = pb.RouteRequest(embedding_f32=embedding())
    up.stub.Route(request, timeout=PATIENCE_S)
    with Held(up):
        calls = [up.stub.Route.future(request, timeout=PATIENCE_S) for _ in range(CALLS)]
        until(lambda: sum(call.done() for call in calls) >= CALLS - 2 * PENDING_MAX)
        assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.CANCELLED}

    for call in calls:
        call.exception(PATIENCE_S)  # its end; some may have come to the core just now
    answered = [call.result() for call in calls if call.code() is grpc.StatusCode.OK]

    assert {call.code() for call in calls} == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert PENDING_MAX <= len(answered) <= 2 * PENDING_MAX
    assert all(decision.model for decision in answered)


def test_who_calls_the_reserved_port_is_not_lost_when_the_other_is_flooded(tmp_path, monkeypatch):
    """
    Its calls wait in a queue of their own, so they are answered once the event loop is free.
    """
    port = reserved_beside(monkeypatch, pending_max=PENDING_MAX)
    request = pb.RouteRequest(embedding_f32=embedding(), criticality=pb.CRITICAL_PLUS)
    with router(tmp_path) as up, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert up.replica.reserved_port == port
        reserved = RouterStub(channel)
        for stub in (up.stub, reserved):
            stub.Route(request, timeout=PATIENCE_S)
        with Held(up):
            flood = [up.stub.Route.future(request, timeout=PATIENCE_S) for _ in range(CALLS)]
            until(lambda: sum(call.done() for call in flood) >= CALLS - 2 * PENDING_MAX)
            calls = [reserved.Route.future(request, timeout=PATIENCE_S) for _ in range(PENDING_MAX)]

        assert all(call.result().model for call in calls)


def reserved_beside(monkeypatch, **said) -> int:
    """Have routers listen at a reserved port as well; which one."""
    (port,) = free_ports(1)
    both = lambda **other: ListenerOptions(**other, **said, reserved_port=port)  # noqa: E731
    monkeypatch.setattr(router_bench, "ListenerOptions", both)
    return port


@pytest.fixture
def nobody():
    """An address that is held, and at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


TOP, USUAL = {"embedding": embedding(), "criticality": "critical_plus"}, {"embedding": embedding()}
BATCHES = [[fairlead.Request(**one) for one in many] for many in ([TOP, TOP], [TOP, USUAL])]


def test_a_client_sends_the_highest_criticality_to_the_reserved_port(up, nobody):
    """
    Nobody listens at the other target, so what is answered has gone to the reserved one.
    """
    there = f"127.0.0.1:{up.replica.port}"
    with fairlead.Client(nobody, reserved_target=there, timeout_s=PATIENCE_S) as client:
        assert client.route(**TOP).model
        assert [one.model != "" for one in client.route_batch(BATCHES[0])] == [True, True]
        # It has no arms, and says so itself.
        with pytest.raises(fairlead.FairleadError, match=f"RouteArm at {there}"):
            client.route_arm(**TOP)


@pytest.mark.parametrize("reserved", [True, False])
def test_a_client_sends_all_else_to_its_target(up, nobody, reserved):
    """
    A mixed batch counts as its lowest request; without a reserved target all goes to the one.
    """
    told = {"reserved_target": nobody} if reserved else {}
    with fairlead.Client(f"127.0.0.1:{up.replica.port}", timeout_s=PATIENCE_S, **told) as client:
        decision = client.route(**USUAL if reserved else TOP)
        assert [one.model != "" for one in client.route_batch(BATCHES[1])] == [True, True]
        with pytest.raises(fairlead.InvalidRequest):  # of the router: an empty one has no class
            client.route_batch([])
        client.send_feedback(decision.ticket, quality=1.0)
        assert client.healthy()


def test_an_error_names_the_target_that_was_called(up, nobody):
    there = f"127.0.0.1:{up.replica.port}"
    with fairlead.Client(there, reserved_target=nobody, timeout_s=0.05) as client:
        with pytest.raises(fairlead.DeadlineExceeded, match=f"Route at {nobody}"):
            client.route(**TOP)
        client.close()
        with pytest.raises(fairlead.ClientClosed, match=f"Route at {nobody}"):
            client.route(**TOP)


def test_the_reserved_port_is_called_with_the_same_tls_and_token(tmp_path, monkeypatch, nobody):
    key, certificate = self_signed()
    port = reserved_beside(monkeypatch, tls_key=key, tls_certificate=certificate)
    tokens = [Token(name="mine", sha256=digest_of(b"secret"))]

    async def routed(token: str) -> fairlead.Decision:
        async with fairlead.AsyncClient(
            nobody,
            reserved_target=f"localhost:{port}",
            root_certificates=certificate,
            token=token,
            timeout_s=PATIENCE_S,
        ) as client:
            return await client.route(**TOP)

    with router(tmp_path, tokens=tokens):
        assert asyncio.run(routed("secret")).model
        with pytest.raises(fairlead.NotAllowed, match=f"Route at localhost:{port}"):
            asyncio.run(routed("another"))


def test_a_refusal_says_when_to_try_again(up):
    """
    By the trailing metadata that gRPC's own clients obey.
    """
    up.replica.servicer._admission.limit = 0.0
    up.replica.servicer._admission._under_way["other"] = 1

    with pytest.raises(grpc.RpcError) as refused:
        up.route(tenant="", criticality=pb.SHEDDABLE)

    said = dict(refused.value.trailing_metadata())
    assert refused.value.code() is FULL
    assert int(said[PUSHBACK_KEY]) > 0
