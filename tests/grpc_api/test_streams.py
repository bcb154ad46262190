"""Open streams are bounded in number and time: idle ones, unread ones, those of one tenant."""

from __future__ import annotations

import asyncio
import math
import queue
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from grpc._cython.cygrpc import ExecuteBatchError
from router_bench import PATIENCE_S, Router, embedding, router
from waiting import until

from learners.criticality import Criticality
from serve.errors import NotServing
from serve.grpc_api.asking.admission import Admission, AdmissionOptions
from serve.grpc_api.listener import ROUTER, Listener, ListenerOptions
from serve.grpc_api.servicer import RouterServicer
from serve.grpc_api.streams import StreamOptions, Streams, abort
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


class Open:
    """One stream, asked on by hand."""

    def __init__(self, up: Router) -> None:
        self._asked: queue.Queue = queue.Queue()
        self.replies = up.stub.RouteStream(iter(self._asked.get, None), timeout=PATIENCE_S)

    def ask(self, tenant: str = "") -> None:
        self._asked.put(pb.RouteRequest(embedding_f32=embedding(), tenant=tenant))

    def end(self) -> None:
        self._asked.put(None)

    def ended_with(self) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as ended:
            list(self.replies)
        self.end()
        return ended.value.code()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Router]:
    with router(tmp_path_factory.mktemp("router")) as up:
        yield up


@contextmanager
def limited(up: Router, **limits: float) -> Iterator[Streams]:
    streams = up.replica.servicer._streams = Streams(StreamOptions(**limits))
    yield streams


@pytest.mark.parametrize("n_asked", [0, 1])
def test_idle_stream_is_ended(shared, n_asked):
    with limited(shared, idle_s_max=0.2) as streams:
        stream = Open(shared)
        for _ in range(n_asked):
            stream.ask()

        assert stream.ended_with() is grpc.StatusCode.UNAVAILABLE
        assert "open another one" in stream.replies.details()
        assert streams._open == 0


def test_stream_in_use_is_not_ended(shared):
    """
    The limit is on a pause, not on a stream.
    """
    with limited(shared, idle_s_max=PATIENCE_S):
        stream = Open(shared)
        for _ in range(4):
            later(shared._loop, 0.4 * PATIENCE_S)
            stream.ask()
            assert next(stream.replies).decision.model
        stream.end()
        assert list(stream.replies) == []


def later(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """So much has passed for all who wait there, at once and for good."""
    now_s = loop.time
    loop.time = lambda: now_s() + seconds


class Flood(RouterServicer):
    """Writes more than any window holds, as a long answer does."""

    def __init__(self) -> None:
        self._streams = Streams(StreamOptions(stalled_s_max=0.3))
        self.ended, self.why = asyncio.Event(), ""

    async def RouteStream(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        reply = pb.RouteReply(request_id="x" * 100_000)
        try:
            with self._streams.opened():
                while True:
                    await self._streams.written(context.write(reply))
        except NotServing as error:
            self.ended.set()
            self.why = str(error)
            await abort(context, grpc.StatusCode.UNAVAILABLE, str(error))


def test_reader_that_stalls_is_ended():
    """
    Its place is free again, though the connection lives and answers pings.
    """

    async def work() -> None:
        flood = Flood()
        listener = Listener({ROUTER: flood}, ListenerOptions(port=0, grace_s=0.1))
        await listener.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            call = router_pb2_grpc.RouterStub(channel).RouteStream()
            await call.write(pb.RouteRequest())
            await asyncio.wait_for(flood.ended.wait(), PATIENCE_S)
            assert flood._streams._open == 0
        await listener.stop()
        assert "0.3 s" in flood.why

    asyncio.run(work())


def test_a_reader_who_leaves_in_the_midst_of_a_write_is_no_internal_error():
    """
    gRPC fails the write first and cancels the call after it.
    """

    async def write() -> None:
        raise ExecuteBatchError

    with pytest.raises(NotServing, match="has left"):
        asyncio.run(Streams(StreamOptions()).written(write()))


def test_streams_are_bounded(shared):
    with limited(shared, open_max=2) as streams:
        held = [Open(shared), Open(shared)]
        for stream in held:
            stream.ask()
            next(stream.replies)
        assert Open(shared).ended_with() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for stream in held:
            stream.end()
            assert list(stream.replies) == []
        until(lambda: streams._open == 0)
        assert shared.route().model


def test_one_tenant_does_not_take_all_streams(shared):
    with limited(shared, per_tenant_max=1) as streams:
        held = [Open(shared), Open(shared)]
        for stream, tenant in zip(held, ("a", "b"), strict=True):
            stream.ask(tenant)
            next(stream.replies)
        greedy = Open(shared)
        greedy.ask("a")
        assert greedy.ended_with() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for stream in held:
            stream.end()
            list(stream.replies)
        until(lambda: streams._open == 0)
        assert not streams._by_tenant


def answers_of(up: Router, n: int, **said: object) -> list[pb.RouteReply]:
    asked = (
        pb.RouteRequest(request_id=f"r{i}", embedding_f32=embedding(i % 5), **said)
        for i in range(n)
    )
    return list(up.stub.RouteStream(asked, timeout=PATIENCE_S))


@contextmanager
def full(up: Router, *, limit: int) -> Iterator[Admission]:
    """A replica that takes in so many requests, of which others hold as many."""
    usual = up.replica.servicer._admission
    fixed = AdmissionOptions(limit_min=limit, limit_max=limit)
    admission = up.replica.servicer._admission = Admission(fixed)
    for _ in range(limit):
        admission.enter("other", Criticality.CRITICAL, math.inf, now_s=0.0)
    try:
        yield admission
    finally:
        up.replica.servicer._admission = usual


def test_stream_is_admitted_by_criticality_as_single_calls_are(shared):
    """
    Where a replica is full, the top class has places beyond the limit, in a stream as in calls of
    their own; the others' requests are refused, each alone, and nothing of them is scored.
    """
    with full(shared, limit=40) as admission:
        top = answers_of(shared, 30, tenant="other", criticality=pb.CRITICAL_PLUS)
        others = answers_of(shared, 30, tenant="other", criticality=pb.SHEDDABLE)

        assert admission.under_way == 40
    assert all(reply.decision.model for reply in top)
    assert {reply.problem.code for reply in others} == {FULL.value[0]}
    assert len({reply.request_id for reply in others}) == 30


def test_stream_that_sends_too_fast_is_held_up_and_not_refused(shared):
    """
    A replica that is full of a stream's own requests answers them one after the other.
    """
    with full(shared, limit=4) as admission:
        for _ in range(4):
            admission.leave("other", 0.01, now_s=0.0)
        replies = answers_of(shared, 200, criticality=pb.SHEDDABLE)

        until(lambda: admission.under_way == 0)
    assert sorted(r.request_id for r in replies) == sorted(f"r{i}" for i in range(200))
    assert all(reply.decision.model for reply in replies)
