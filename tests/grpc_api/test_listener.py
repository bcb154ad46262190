"""The gRPC listener at any kind of address, with old connections, anxious clients and proxies."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from fairlead.channels import RetryOptions, opened
from serve.grpc_api import listener
from serve.grpc_api.listener import ROUTER, Listener, ListenerOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc

PIECES = 4


class Slow:
    """Streams one reply after another, each when the test says so."""

    def __init__(self) -> None:
        self.wanted = asyncio.Semaphore(0)

    async def Route(self, request: pb.RouteRequest, context: object) -> pb.Decision:
        return pb.Decision(model="m")

    async def RouteBatch(self, request: object, context: object) -> Empty:
        raise NotImplementedError

    SendFeedback = TraceFeedback = Explain = RouteColumns = RouteArm = RouteArmBatch = RouteBatch

    async def RouteStream(self, requests: object, context: object):
        for i in range(PIECES):
            await self.wanted.acquire()
            yield pb.RouteReply(request_id=str(i))


def run_with(options: ListenerOptions, work) -> None:
    async def body() -> None:
        slow = Slow()
        listener = Listener({ROUTER: slow}, options)
        await listener.start()
        try:
            async with asyncio.timeout(60):
                await work(listener, slow)
        finally:
            await listener.stop()

    asyncio.run(body())


def test_a_listener_that_is_told_to_stop_while_it_starts_stops_in_order():
    """
    A server that is started by half ended in a trace of gRPC's own, printed when it was collected.
    """
    said: list[dict[str, object]] = []

    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: said.append(what))
        listener = Listener({ROUTER: Slow()}, ListenerOptions(port=0))
        starting = asyncio.create_task(listener.start())
        await asyncio.sleep(0)  # it is within the server's start
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        await listener.stop()
        gc.collect()

    asyncio.run(body())

    assert said == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "::", "localhost", "0.0.0.0"])
def test_every_kind_of_address_is_listened_at(host):
    """
    With or without brackets, a name, all addresses of either kind.
    """

    async def work(listener: Listener, _: Slow) -> None:
        reach = "[::1]" if ":" in host else "127.0.0.1"
        async with opened(grpc.aio, f"{reach}:{listener.port}", None, RetryOptions()) as channel:
            reply = await router_pb2_grpc.RouterStub(channel).Route(pb.RouteRequest())
        assert reply.model == "m"

    run_with(ListenerOptions(host=host, port=0), work)


def test_an_old_connection_finishes_the_calls_it_has():
    """
    Connections are renewed every so often; an answer that takes longer is not cut for that.
    """

    async def work(listener: Listener, slow: Slow) -> None:
        target = f"127.0.0.1:{listener.port}"
        async with opened(grpc.aio, target, None, RetryOptions()) as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            stream = stub.RouteStream(iter([pb.RouteRequest()]))
            slow.wanted.release()
            await stream.read()
            # Older than its age by far: other calls of the channel go to a new connection by then.
            state = channel.get_state()
            while state is grpc.ChannelConnectivity.READY:
                await channel.wait_for_state_change(state)
                state = channel.get_state()
            reading = asyncio.ensure_future(stream.read())
            done, _ = await asyncio.wait([reading], timeout=0.5)
            assert not done
            slow.wanted.release()
            assert (await reading).request_id == "1"
            for _ in range(PIECES - 2):
                slow.wanted.release()
                assert await stream.read() is not grpc.aio.EOF
            assert await stream.read() is grpc.aio.EOF

    run_with(ListenerOptions(port=0, connection_age_s_max=0.2, grace_s=0.0), work)


@pytest.mark.slow
def test_a_client_may_ask_whether_we_live_while_it_waits_for_a_first_token(monkeypatch):
    """
    A server of default settings throws out whoever asks three times without data between.
    """
    monkeypatch.setattr(listener, "PING_INTERVAL_MS_MIN", 50)
    asks = [("grpc.keepalive_time_ms", 200), ("grpc.http2.max_pings_without_data", 0)]

    async def work(listener: Listener, slow: Slow) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}", asks) as channel:
            stream = router_pb2_grpc.RouterStub(channel).RouteStream(iter([pb.RouteRequest()]))
            reading = asyncio.ensure_future(stream.read())
            done, _ = await asyncio.wait([reading], timeout=8.0)  # gRPC notices after 4
            assert not done
            slow.wanted.release()
            assert (await reading).request_id == "0"
            stream.cancel()

    run_with(ListenerOptions(port=0), work)


def test_the_client_uses_no_proxy_unless_told(monkeypatch):
    """
    `http_proxy` is set on many machines, and a router is in one's own network.
    """
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(30)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, address)
        monkeypatch.delenv("no_proxy", raising=False)

        async def work(listener: Listener, _: Slow) -> None:
            target = f"127.0.0.1:{listener.port}"
            async with opened(grpc.aio, target, None, RetryOptions()) as channel:
                await router_pb2_grpc.RouterStub(channel).Route(pb.RouteRequest(), timeout=30)
            told = opened(grpc.aio, target, None, RetryOptions(), use_proxy=True)
            call = router_pb2_grpc.RouterStub(told).Route(pb.RouteRequest(), timeout=30)
            asked, _ = await asyncio.to_thread(proxy.accept)
            assert (await asyncio.to_thread(asked.recv, 7)) == b"CONNECT"
            asked.close()
            call.cancel()
            await told.close()

        run_with(ListenerOptions(port=0), work)
