"""What everybody may call without a token is as hard to upset as the rest, and so is the server itself."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from waiting import PATIENCE_S, soon

from load.bench.speed.wire import PREFACE, Ask, frame
from serve.grpc_api import open_services
from serve.grpc_api.listener import ROUTER, Listener, ListenerOptions
from serve.grpc_api.streams import StreamOptions, Streams
from serve.proto.fairlead.v1 import router_pb2 as pb

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NO_MESSAGE = b"\x0a\x12cut"


class Servicer:
    async def Route(self, request: object, context: object) -> pb.Decision:
        return pb.Decision(model="m")

    RouteBatch = RouteColumns = RouteArm = RouteArmBatch = RouteStream = SendFeedback = (
        TraceFeedback
    ) = Explain = Route


def run(work):
    """Run `work(listener, channel)` beside a listener."""

    async def body():
        listener = Listener({ROUTER: Servicer()}, ListenerOptions(port=0, grace_s=0.1))
        await listener.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
                async with asyncio.timeout(PATIENCE_S):
                    return await work(listener, channel)
        finally:
            await listener.stop()

    return asyncio.run(body())


async def routed(channel: grpc.aio.Channel) -> str:
    call = channel.unary_unary("/fairlead.v1.Router/Route")
    return pb.Decision.FromString(await call(b"", wait_for_ready=True)).model


@pytest.mark.parametrize("path", [HEALTH + "Check", HEALTH + "Watch", REFLECTION])
def test_bytes_that_are_no_message_are_the_callers_fault(path, caplog):
    """
    By itself gRPC would answer UNKNOWN, and log a trace for each.
    """

    async def work(_: Listener, channel: grpc.aio.Channel) -> grpc.StatusCode:
        call = channel.stream_stream(path)([NO_MESSAGE])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _reply in call:
                pass
        return refused.value.code()

    assert run(work) is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in caplog.text


def test_sound_messages_are_answered():
    async def work(_: Listener, channel: grpc.aio.Channel) -> None:
        check = channel.unary_unary(HEALTH + "Check")
        asked = health_pb2.HealthCheckRequest(service=ROUTER).SerializeToString()
        assert health_pb2.HealthCheckResponse.FromString(await check(asked)).status == 1

        watch = channel.unary_stream(HEALTH + "Watch")(asked)
        assert health_pb2.HealthCheckResponse.FromString(await watch.read()).status == 1
        watch.cancel()

        request = reflection_pb2.ServerReflectionRequest(list_services="")
        listed = channel.stream_stream(REFLECTION)([request.SerializeToString()])
        reply = reflection_pb2.ServerReflectionResponse.FromString(await listed.read())
        names = {one.name for one in reply.list_services_response.service}
        assert names == {
            ROUTER,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }

    run(work)


def test_open_streams_without_a_token_are_bounded(monkeypatch):
    """
    A stream costs memory as long as it is open, and nobody has to show anything for one.
    """
    few = Streams(StreamOptions(open_max=2))
    monkeypatch.setattr(open_services, "Streams", lambda _: few)

    async def work(_: Listener, channel: grpc.aio.Channel) -> grpc.StatusCode:
        watches = []
        for _ in range(2):
            watches.append(channel.unary_stream(HEALTH + "Watch")(b""))
            assert isinstance(await watches[-1].read(), bytes)
        watches.append(channel.unary_stream(HEALTH + "Watch")(b""))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await watches[2].read()
        for one in watches:
            one.cancel()
        return refused.value.code()

    assert run(work) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_path_that_is_no_text_does_not_end_the_server(caplog):
    """
    grpc.aio (1.85) decodes the path where an error ends the whole server: anybody could, with one call and no token.
    What is under way goes on, and the next call is answered at the same port.
    """

    async def upset(port: int) -> asyncio.StreamWriter:
        ask = Ask.of("/fairlead.v1.Router/Route", b"")
        between = ask.between.replace(b"v1.Router", b"v1.R\xf6uter")
        assert between != ask.between
        number = (1).to_bytes(4, "big")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        settings = frame(4, 0, 0, b"")
        writer.write(PREFACE + settings + ask.head + number + between + number + ask.rest)
        await writer.drain()
        return writer

    async def work(listener: Listener, channel: grpc.aio.Channel) -> None:
        watch = channel.unary_stream(HEALTH + "Watch")(b"")
        await watch.read()
        for _ in range(3):
            server = listener._server
            writer = await upset(listener.port)
            await soon(lambda before=server: listener._server is not before, "another server")
            writer.close()
            assert await routed(channel) == "m"
        assert not watch.done()
        watch.cancel()

    run(work)
    assert "is started anew" in caplog.text
