"""Messages of too many parts are refused before they are parsed."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from serve.errors import InvalidRequest
from serve.grpc_api import repeated
from serve.grpc_api.listener import ROUTER, Listener, ListenerOptions
from serve.grpc_api.repeated import (
    LIMITS,
    PARTS_MAX,
    PARTS_MAX_WITHIN,
    UNSEEN,
    borne,
    first_in_excess,
    part_check,
)
from serve.proto.fairlead.v1 import dispatch_pb2, router_pb2
from serve.routing.request import BATCH_MAX, MODELS_LISTED_MAX

BATCH = router_pb2.RouteBatchRequest.DESCRIPTOR
KINDS = {
    name: GetMessageClass(message)
    for file in (router_pb2, dispatch_pb2)
    for message in file.DESCRIPTOR.message_types_by_name.values()
    for name in [message.full_name]
}


def parts(of: str, name: str) -> list[object]:
    """One part: a message, or a text."""
    return [{}] if KINDS[of].DESCRIPTOR.fields_by_name[name].message_type else ["m"]


FULL = {  # every message that is limited, with as many parts as it may have
    (of, name): KINDS[of](**{name: parts(of, name) * borne(most)})
    for of, fields in LIMITS.items()
    for name, most in fields.items()
}


@pytest.mark.parametrize(("of", "name"), FULL)
def test_as_many_parts_as_are_allowed_are_taken_and_one_more_is_refused(of, name):
    """The error names the field, how many there are at least, and the limit."""
    check, most = part_check(KINDS[of].DESCRIPTOR), LIMITS[of][name]
    full = FULL[of, name].SerializeToString()
    check(full)

    one = KINDS[of](**{name: parts(of, name)}).SerializeToString()
    with pytest.raises(InvalidRequest) as refused:
        check(full + one)

    said = f"{name} is at least {borne(most) + 1:,} long; it must be at most {most:,} long"
    assert str(refused.value) == said


def test_every_repeated_field_that_a_caller_fills_has_a_limit():
    """One that is added to a request's proto is to be thought about."""
    asked = [
        method.input_type
        for file in (router_pb2, dispatch_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    found = {(m.full_name, f.name) for m in asked for f in m.fields if f.is_repeated}
    limited = {(of, name) for of, fields in LIMITS.items() for name in fields}
    assert found == limited


def nested(message: bytes, number: int) -> bytes:
    """A message as the part of another one."""
    length, n = b"", len(message)
    while n > 0x7F:
        length, n = length + bytes([n & 0x7F | 0x80]), n >> 7
    return bytes([number << 3 | 2]) + length + bytes([n]) + message


@pytest.mark.parametrize(
    ("of", "number", "part"),
    [
        ("RouteBatchRequest", 1, b"\x4a\x00"),  # `requests`, each with empty names of models
        ("RouteBatchRequest", 1, b"\x98\x06\x01"),  # with a field that nobody knows
        ("DispatchRequest", 1, b"\x4a\x00"),  # `route`
        ("RouteColumnsRequest", 3, b"\x52\x00"),  # `shared`
    ],
)
def test_parts_within_parts_are_counted_too(of, number, part):
    """Eight million of them fit into a message, and took eleven seconds to parse."""
    message = KINDS[f"fairlead.v1.{of}"].DESCRIPTOR
    most = PARTS_MAX_WITHIN.get(message.full_name, PARTS_MAX)
    each = most // BATCH_MAX if of == "RouteBatchRequest" else most
    n = BATCH_MAX if of == "RouteBatchRequest" else 1
    full = nested(part * (each - UNSEEN - 2), number) * n
    part_check(message)(full)
    with pytest.raises(InvalidRequest, match="within parts"):
        part_check(message)(nested(part * 2 * each, number) * n)


def test_what_is_within_the_limits_of_each_is_within_that_of_all():
    """The largest batch there may be: every request with as many models as it may name."""
    names = ["a model of some length"] * MODELS_LISTED_MAX
    one = router_pb2.RouteRequest(text="t", allowed_models=names, denied_models=names)
    part_check(BATCH)(router_pb2.RouteBatchRequest(requests=[one] * BATCH_MAX).SerializeToString())


def test_an_embedding_or_a_text_is_not_walked_through(monkeypatch):
    """A large batch costs two looks a request, at most."""
    looks = []
    varint = repeated._varint
    monkeypatch.setattr(repeated, "_varint", lambda *at: looks.append(at) or varint(*at))
    one = router_pb2.RouteRequest(request_id="r" * 100, embedding_f32=bytes(4096), tenant="t" * 60)
    batch = router_pb2.RouteBatchRequest(requests=[one] * BATCH_MAX).SerializeToString()
    part_check(BATCH)(batch)

    assert len(looks) <= 9 * BATCH_MAX


def test_a_field_that_is_not_repeated_or_not_known_is_limited_too():
    """A parser keeps the last, or all of what it does not know, and has read them all."""
    tenant, unknown = b"\x32\x00", b"\x98\x06\x01"  # number 6; number 99, a varint
    assert first_in_excess(tenant * PARTS_MAX, {}) is None
    assert first_in_excess(tenant * (PARTS_MAX + 1), {}) == 6
    with pytest.raises(InvalidRequest, match="field 99 is at least 100,001 long"):
        part_check(BATCH)(unknown * (PARTS_MAX + 1))


@pytest.mark.parametrize("kind", range(8))
def test_values_are_passed_over_whatever_they_hold(kind):
    """All kinds of the wire format. Bytes that are no message are the parser's to refuse."""
    values = {0: b"\xff\x01", 1: b"\n\x00" * 4, 2: b"\x81\x00" + b"\n", 5: b"\n\x00" * 2}
    part = bytes([9 << 3 | kind]) + values.get(kind, b"")
    n = 5 if kind in values or kind in (3, 4) else None
    found = first_in_excess(part * 6, {1: 0, 9: 5})
    assert found == (9 if n else None)
    assert first_in_excess(part * 5, {1: 0, 9: 5}) is None


@pytest.mark.parametrize("content", [b"\x0a", b"\xff", b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f"])
def test_bytes_that_are_cut_are_left_to_the_parser(content):
    assert first_in_excess(content, {}) is None


class Watched(bytes):
    """Bytes that know how far they were read."""

    furthest = 0

    def __getitem__(self, at):
        self.furthest = max(self.furthest, at)
        return super().__getitem__(at)


def test_millions_of_parts_are_read_no_further_than_the_limit():
    """What counts is how far it reads, not how long that takes."""
    parts = Watched(b"\x0a\x00" * 1_000_000)
    assert first_in_excess(parts, {1: BATCH_MAX}) == 1
    assert parts.furthest <= 2 * (BATCH_MAX + 1)


def test_a_number_that_does_not_end_is_read_no_further_than_numbers_go():
    """Shifted together, a million bytes of it would take minutes."""
    endless = Watched(b"\xff" * 1_000_000)
    assert first_in_excess(endless, {}) is None
    assert endless.furthest <= 10


def test_callers_get_the_refusal_as_of_any_bad_input():
    """Over a real connection, where a servicer is handed the error in the place of a message."""

    class Servicer:
        async def RouteBatch(self, request: object, context: grpc.aio.ServicerContext) -> object:
            assert isinstance(request, InvalidRequest)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(request))

        Route = RouteStream = RouteColumns = RouteArm = RouteArmBatch = SendFeedback = (
            TraceFeedback
        ) = Explain = RouteBatch

    async def body() -> None:
        listener = Listener({ROUTER: Servicer()}, ListenerOptions(port=0))
        await listener.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            call = channel.unary_unary(f"/{ROUTER}/RouteBatch")
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"\x0a\x00" * 1_000_000)
        await listener.stop()
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "requests is at least 16,385 long" in error.value.details()

    asyncio.run(body())
