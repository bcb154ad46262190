"""The public client against a router that writes down what it was asked and answers by script.

Nearly all tests run twice: over `Client`, and over `AsyncClient` on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import inspect
import ipaddress
import pickle
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import fairlead
from fairlead import errors, messages
from fairlead.embeddings import to_f32
from learners.criticality import Criticality
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc

PATIENCE_S = 120.0  # for what must happen; no test waits this long unless it fails
SHORT_S = 0.05  # for what must not happen

DECISION = pb.Decision(
    request_id="r1",
    decision_id="0123456789abcdef01234567",
    model="haiku",
    pool="haiku-on-l4",
    propensity=0.75,
    utility=0.5,
    quality=pb.Estimate(mean=0.875, deviation=0.125),
    cost_usd=pb.Estimate(mean=0.25, deviation=0.0625),
    latency_ms=pb.Estimate(mean=800.0, deviation=90.0),
    energy_j=450.0,
    fallbacks=[
        pb.Alternative(
            model="opus",
            pool="opus-on-h100",
            utility=0.25,
            propensity=0.125,
            quality=pb.Estimate(mean=0.9375, deviation=0.5),
            cost_usd=pb.Estimate(mean=4.0, deviation=2.0),
            latency_ms=pb.Estimate(mean=3000.0, deviation=100.0),
            energy_j=1200.5,
        )
    ],
    snapshot_version=7,
    snapshot_age_ms=1500,
    ticket=b"\x00sealed\xff",
)

TRACE = pb.FeedbackTrace(
    decision_id="0123456789abcdef01234567",
    snapshot_version=7,
    learned=["quality"],
    quality=0.5,
    records=[
        pb.TracedRecord(
            partition=2,
            offset=17,
            appended_at_unix_ms=1_700_000_000_123,
            became="refused",
            reason="too_late",
            detail="8 days",
            decisions=3,
            said_json='{"quality":0.5}',
        )
    ],
    complete=True,
)
EXPLANATION = pb.Explanation(
    decision_id="0123456789abcdef01234567",
    tenant="library",
    decided_at_unix_ms=1_700_000_000_123,
    snapshot_version=7,
    encoder="wordllama-256",
    context=[0.5, -0.25, 1.0],
    preference=pb.Preference(quality=1.0, cost=0.0, energy=0.25),
    policy="squarecb",
    models=[
        pb.Considered(
            model="haiku",
            pool="haiku-on-l4",
            chosen=True,
            propensity=0.75,
            utility=0.5,
            quality=0.875,
            cost_usd=0.25,
            latency_ms=800.0,
            energy_j=450.5,
            reason="best utility",
        )
    ],
)


class FakeRouter(router_pb2_grpc.RouterServicer):
    """Answers everything with the constants above, after refusing as often as `refusals` says."""

    def __init__(self) -> None:
        self.asked: list[Any] = []  # the messages, one an attempt
        self.peers: Counter[str] = Counter()  # calls by connection
        self.refusals: deque[tuple[grpc.StatusCode, str]] = deque()
        self.refuses_always: tuple[grpc.StatusCode, str] | None = None
        self.replies_missing = 0
        self.attending = threading.Event()  # a call has come in
        self.ended = threading.Event()  # a stream has ended, by whichever side
        self.answering = threading.Event()  # cleared: calls are kept waiting
        self.answering.set()

    def refuse(self, status: grpc.StatusCode, message: str = "as told", times: int = 1) -> None:
        self.refusals.extend([(status, message)] * times)

    def Route(self, request, context):
        self._attend(request, context)
        return DECISION

    def RouteBatch(self, request, context):
        self._attend(request, context)
        replies = [reply_to(one) for one in request.requests]
        return pb.RouteBatchReply(replies=replies[self.replies_missing :])

    def RouteStream(self, request_iterator, context):
        """Answers the first request at once, the rest backwards at the end."""
        context.add_callback(self.ended.set)
        first = next(request_iterator)
        self._attend(first, context)
        yield reply_to(first)
        rest = list(request_iterator)
        self.asked += rest
        yield from map(reply_to, reversed(rest))

    def SendFeedback(self, request, context):
        self._attend(request, context)
        return pb.FeedbackReply(accepted=len(request.outcomes))

    def TraceFeedback(self, request, context):
        self._attend(request, context)
        return TRACE

    def Explain(self, request, context):
        self._attend(request, context)
        return EXPLANATION

    def _attend(self, request: Any, context: grpc.ServicerContext) -> None:
        self.asked.append(request)
        self.peers[context.peer()] += 1
        self.attending.set()
        assert self.answering.wait(PATIENCE_S)
        if self.refusals:
            context.abort(*self.refusals.popleft())
        if self.refuses_always:
            context.abort(*self.refuses_always)


def reply_to(request: pb.RouteRequest) -> pb.RouteReply:
    if request.text == "bad":
        problem = pb.Problem(code=grpc.StatusCode.NOT_FOUND.value[0], message="no model 'x'")
        return pb.RouteReply(request_id=request.request_id, problem=problem)
    decision = pb.Decision(request_id=request.request_id, model=request.text, propensity=1.0)
    return pb.RouteReply(request_id=request.request_id, decision=decision)


class Threaded:
    """A `Client`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.client = fairlead.Client(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def route_stream(self, requests: Any, **options: Any) -> list[Any]:
        return list(self.client.route_stream(iter(requests), **options))

    def first_of_stream(self, requests: Any) -> Any:
        return next(self.client.route_stream(iter(requests)))

    def finish(self) -> None:
        self.client.close()


class Looped:
    """An `AsyncClient`, made to look like the other."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.client = fairlead.AsyncClient(*args, **options)
        self.runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        async def called(*args: Any, **options: Any) -> Any:
            return await method(*args, **options)

        return lambda *args, **options: self.runner.run(called(*args, **options))

    def route_stream(self, requests: Any, **options: Any) -> list[Any]:
        async def collect() -> list[Any]:
            replies = self.client.route_stream(each_of(requests), **options)
            return [reply async for reply in replies]

        return self.runner.run(collect())

    def first_of_stream(self, requests: Any) -> Any:
        async def first() -> Any:
            replies = self.client.route_stream(each_of(requests))
            try:
                return await anext(replies)
            finally:
                await replies.aclose()

        return self.runner.run(first())

    def finish(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


async def each_of(requests: Any) -> Any:
    for request in requests:
        yield request


@contextmanager
def serving(
    router: FakeRouter,
    port: int = 0,
    tls: grpc.ServerCredentials | None = None,
    health: bytes | None = None,
) -> Iterator[tuple[grpc.Server, int]]:
    """A server for `router` and the port it is at; with `health`, it answers that to checks."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    router_pb2_grpc.add_RouterServicer_to_server(router, server)
    if health is not None:
        check = grpc.unary_unary_rpc_method_handler(lambda _question, _context: health)
        handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})
        server.add_generic_rpc_handlers((handler,))
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    server.start()
    try:
        yield server, port
    finally:
        router.answering.set()
        server.stop(None).wait()


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def port(router: FakeRouter) -> Iterator[int]:
    with serving(router) as (_, port):
        yield port


@pytest.fixture(params=[Threaded, Looped], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes clients of one kind: `connect(port, **options)`. Patient, unless told otherwise."""
    made: list[Any] = []

    def connected(port: int, **options: Any) -> Any:
        made.append(request.param(f"127.0.0.1:{port}", **{"timeout_s": PATIENCE_S, **options}))
        return made[-1]

    yield connected
    for client in made:
        client.finish()


@pytest.fixture
def client(connect: Any, port: int) -> Any:
    return connect(port)


# Requests


def test_every_option_arrives_as_sent(client, router):
    client.route(
        "Who wrote Moby-Dick?",
        request_id="r1",
        prompt_tokens=6,
        tenant="library",
        session="s1",
        preference=fairlead.Preference(quality=1.0, cost=20.0, latency=0.01, energy=0.5),
        allowed_models=["haiku", "opus"],
        denied_models=("gpt",),
        cost_usd_max=0.5,
        latency_ms_max=2000.0,
        quality_min=0.8,
        strong_share_max=0.25,
        deadline_unix_ms=1_700_000_000_123,
        criticality="sheddable_plus",
        task="sum",
        tags=["a", "b"],
        modality="audio",
    )

    assert router.asked == [
        pb.RouteRequest(
            text="Who wrote Moby-Dick?",
            request_id="r1",
            prompt_tokens=6,
            tenant="library",
            session="s1",
            preference=pb.Preference(quality=1.0, cost=20.0, latency=0.01, energy=0.5),
            allowed_models=["haiku", "opus"],
            denied_models=["gpt"],
            cost_usd_max=0.5,
            latency_ms_max=2000.0,
            quality_min=0.8,
            strong_share_max=0.25,
            deadline_unix_ms=1_700_000_000_123,
            criticality=pb.SHEDDABLE_PLUS,
            task="sum",
            tags=["a", "b"],
            modality="audio",
        )
    ]


def test_every_criticality_has_its_name_and_another_is_refused_here(client, router):
    names = Criticality.words()
    for name in names:
        client.route("hi", criticality=name)

    assert [asked.criticality for asked in router.asked] == [1, 2, 3, 4]
    assert [name.upper() for name in names] == pb.Criticality.keys()[1:]
    with pytest.raises(fairlead.InvalidRequest, match=r"is 'CRITICAL'.*'critical_plus'"):
        client.route("hi", criticality="CRITICAL")
    assert len(router.asked) == len(names)


def test_what_is_not_said_is_not_sent_and_zero_is(client, router):
    client.route("hi")
    client.route("", prompt_tokens=0, cost_usd_max=0.0, preference=fairlead.Preference(cost=0.0))
    client.route("hi", preference=fairlead.Preference())

    unsaid, zero, empty = router.asked
    assert unsaid == pb.RouteRequest(text="hi")
    for said in ("text", "prompt_tokens", "cost_usd_max", "preference"):
        assert zero.HasField(said)
    for not_said in ("latency_ms_max", "deadline_unix_ms"):
        assert not zero.HasField(not_said)
    assert zero.preference.HasField("cost")
    assert not zero.preference.HasField("quality")
    assert empty.HasField("preference")


@pytest.mark.parametrize(
    ("keywords", "of", "beside"),
    [
        (messages.OutcomeValues, messages.Outcome, "ticket"),
        (messages.RequestOptions, messages.Request, "text"),
    ],
)
def test_keyword_arguments_are_the_fields_of_what_they_make(keywords, of, beside):
    """
    An editor completes and checks them by this declaration, so it has each field and its type.
    """
    annotated = re.compile(r"Annotated\[([^,]+),.*")  # what is checked of a field is no concern
    fields = {f.name: annotated.sub(r"\1", f.type) for f in dataclasses.fields(of)}
    said = {name: kind.__forward_arg__ for name, kind in keywords.__annotations__.items()}
    assert said == {name: fields[name] for name in fields.keys() - {beside}}


@pytest.mark.parametrize(
    ("said", "kind"),
    [(messages.Request, pb.RouteRequest), (messages.Outcome, pb.Outcome)],
)
def test_what_is_said_has_the_fields_of_the_proto(said, kind):
    fields = {field.name for field in dataclasses.fields(said)}
    # `embedding` travels as `embedding_f32`.
    assert fields == set(kind.DESCRIPTOR.fields_by_name) - {"embedding_f32"}


def test_keyword_argument_that_is_no_field_is_refused(client):
    with pytest.raises(TypeError, match="tenat"):
        client.route("hi", tenat="library")


ROW = [0.1, -2.5, 3.0, 1e-3]
RAW = np.array(ROW, "<f4").tobytes()
FORMS = {
    "list": ROW,
    "tuple": tuple(ROW),
    "bytes": RAW,
    "bytearray": bytearray(RAW),
    "memoryview": memoryview(RAW),
    "float32": np.array(ROW, np.float32),
    "float64": np.array(ROW, np.float64),
    "big-endian float32": np.array(ROW, ">f4"),
    "big-endian float64": np.array(ROW, ">f8"),
    "every other number": np.repeat(np.array(ROW, np.float32), 2)[::2],
    "read backwards": np.array(ROW[::-1], np.float64)[::-1],
    "memoryview of numbers": memoryview(np.array(ROW, np.float64)),
    "numpy scalars": list(np.array(ROW, np.float32)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_an_embedding_is_sent_as_the_same_bytes(client, router, form):
    client.route(embedding=form)
    assert router.asked == [pb.RouteRequest(embedding_f32=RAW)]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "i2", "i4", "i8", ">i2", ">u8"])
def test_numbers_of_any_width_are_numbers(dtype):
    assert to_f32(np.array([0, 1, 100], dtype)) == np.array([0, 1, 100], "<f4").tobytes()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("a prompt", "give a prompt as text="),
        (b"12345", "5 bytes are not a whole number of 32-bit floats"),
        (np.zeros((1, 4), np.float32), r"its shape is \(1, 4\); give one row"),
        (np.float32(1.0), r"its shape is \(\); give one row"),
        (np.zeros(4, bool), "its buffer holds '\\?', not real numbers"),
        (np.zeros(4, complex), "its buffer holds 'Zd', not real numbers"),
        (["a"], "it is not a row of numbers"),
        ([10**400], "it is not a row of numbers"),
        (3.0, "it is not a row of numbers"),
    ],
)
def test_what_is_no_embedding_is_refused_with_its_reason(bad, why):
    with pytest.raises(fairlead.InvalidRequest, match=why):
        fairlead.Request(embedding=bad)


def test_changing_an_array_afterwards_does_not_change_the_request():
    array = np.array(ROW, np.float32)
    request = fairlead.Request(embedding=array)
    array[:] = 0.0
    assert request.embedding == RAW


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "neither given"),
        ({"text": "hi", "embedding": ROW}, "both given"),
        ({"text": "hi", "allowed_models": "haiku"}, "allowed_models is the string 'haiku'"),
        ({"text": "hi", "denied_models": "haiku"}, "denied_models is the string 'haiku'"),
        ({"text": "hi", "allowed_models": None}, "allowed_models is None; give a list of names"),
        ({"text": "hi", "prompt_tokens": -1}, "prompt_tokens is -1"),
        ({"text": "hi", "cost_usd_max": "1"}, "cost_usd_max is '1'"),
        ({"text": "\ud800"}, "text is"),
        ({"text": "hi", "preference": fairlead.Preference(cost="1")}, "cost is '1'"),
    ],
)
def test_a_request_that_cannot_be_written_names_the_field_and_is_not_sent(
    client, router, fields, why
):
    with pytest.raises(fairlead.InvalidRequest, match=why):
        client.route(**fields)
    assert not router.asked


# Replies


def test_a_decision_is_read_whole(client):
    decision = client.route("hi")

    assert decision == fairlead.Decision(
        request_id="r1",
        decision_id="0123456789abcdef01234567",
        model="haiku",
        pool="haiku-on-l4",
        propensity=0.75,
        utility=0.5,
        quality=fairlead.Estimate(mean=0.875, deviation=0.125),
        cost_usd=fairlead.Estimate(mean=0.25, deviation=0.0625),
        latency_ms=fairlead.Estimate(mean=800.0, deviation=90.0),
        energy_j=450.0,
        fallbacks=(
            fairlead.Alternative(
                model="opus",
                pool="opus-on-h100",
                utility=0.25,
                propensity=0.125,
                quality=fairlead.Estimate(mean=0.9375, deviation=0.5),
                cost_usd=fairlead.Estimate(mean=4.0, deviation=2.0),
                latency_ms=fairlead.Estimate(mean=3000.0, deviation=100.0),
                energy_j=1200.5,
            ),
        ),
        snapshot_version=7,
        snapshot_age_ms=1500,
        ticket=b"\x00sealed\xff",
    )
    assert pickle.loads(pickle.dumps(decision)) == decision
    assert {decision: 1}[decision] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.model = "opus"


def test_a_trace_is_read_whole(client, router):
    assert client.trace_feedback(b"ticket") == fairlead.FeedbackTrace(
        decision_id="0123456789abcdef01234567",
        snapshot_version=7,
        learned=("quality",),
        quality=0.5,
        revision=None,
        records=(
            fairlead.TracedRecord(
                partition=2,
                offset=17,
                appended_at_unix_ms=1_700_000_000_123,
                became="refused",
                reason="too_late",
                detail="8 days",
                decisions=3,
                said_json='{"quality":0.5}',
            ),
        ),
        complete=True,
    )
    assert router.asked == [pb.TraceFeedbackRequest(ticket=b"ticket")]


def test_an_explanation_is_read_whole(client, router):
    assert client.explain(b"ticket") == fairlead.Explanation(
        decision_id="0123456789abcdef01234567",
        tenant="library",
        decided_at_unix_ms=1_700_000_000_123,
        snapshot_version=7,
        encoder="wordllama-256",
        context=(0.5, -0.25, 1.0),
        preference=fairlead.Preference(quality=1.0, cost=0.0, latency=None, energy=0.25),
        policy="squarecb",
        models=(
            fairlead.Considered(
                model="haiku",
                pool="haiku-on-l4",
                chosen=True,
                propensity=0.75,
                utility=0.5,
                quality=0.875,
                cost_usd=0.25,
                latency_ms=800.0,
                energy_j=450.5,
                reason="best utility",
            ),
        ),
    )
    assert router.asked == [pb.ExplainRequest(ticket=b"ticket")]


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (pb.Decision, fairlead.Decision),
        (pb.Alternative, fairlead.Alternative),
        (pb.Estimate, fairlead.Estimate),
        (pb.Explanation, fairlead.Explanation),
        (pb.Considered, fairlead.Considered),
        (pb.Preference, fairlead.Preference),
    ],
)
def test_no_field_of_the_proto_is_left_unread(kind, read):
    assert [field.name for field in dataclasses.fields(read)] == [
        field.name for field in kind.DESCRIPTOR.fields
    ]


def test_a_bad_request_of_a_batch_fails_alone(client, router):
    asked = [fairlead.Request(text=text, request_id=text) for text in ("a", "bad", "c")]

    a, bad, c = client.route_batch(asked)

    assert (a.model, c.model) == ("a", "c")
    assert bad == fairlead.Problem(request_id="bad", code=5, message="no model 'x'")
    assert isinstance(bad.error, fairlead.UnknownModel)
    assert "request 'bad': no model 'x'" in str(bad.error)
    assert [one.text for one in router.asked[0].requests] == ["a", "bad", "c"]


def test_a_batch_with_a_reply_missing_is_not_matched_wrongly(client, router):
    router.replies_missing = 1
    with pytest.raises(fairlead.RouterFault, match="1 replies to 2 requests"):
        client.route_batch([fairlead.Request(text="a"), fairlead.Request(text="b")])


def test_stream_replies_come_in_any_order_and_match_by_id(client):
    texts = {f"r{n}": f"model{n}" for n in range(50)} | {"r7": "bad"}
    asked = [fairlead.Request(text=text, request_id=name) for name, text in texts.items()]

    replies = client.route_stream(asked)

    assert [reply.request_id for reply in replies] != list(texts)
    problems = {r.request_id for r in replies if isinstance(r, fairlead.Problem)}
    models = {r.request_id: r.model for r in replies if isinstance(r, fairlead.Decision)}
    assert problems == {"r7"}
    assert models == {name: text for name, text in texts.items() if name != "r7"}
    assert len(replies) == len(texts)


def test_a_stream_the_caller_stops_reading_ends_at_the_router_too(client, router):
    asked = [fairlead.Request(text="a", request_id=f"r{n}") for n in range(5)]
    assert client.first_of_stream(asked).request_id == "r0"
    assert router.ended.wait(PATIENCE_S)


def test_an_exception_of_the_callers_own_iterator_reaches_the_caller(client):
    class CallersOwn(Exception):
        pass

    def requests() -> Iterator[fairlead.Request]:
        yield fairlead.Request(text="a", request_id="r1")
        raise CallersOwn

    with pytest.raises(CallersOwn):
        client.route_stream(requests())


def test_a_stream_request_without_an_id_is_refused(client):
    requests = [fairlead.Request(text="a", request_id="r1"), fairlead.Request(text="b")]
    with pytest.raises(fairlead.InvalidRequest, match="request_id is empty"):
        client.route_stream(requests)


# Feedback


def test_feedback_arrives_with_what_was_said_and_nothing_else(client, router):
    client.send_feedback(b"ticket", quality=0.0, cost_usd=0.5)
    client.send_feedback(b"ticket", latency_ms=800.0, output_tokens=0, error=False)

    first, second = (message.outcomes[0] for message in router.asked)
    assert first == pb.Outcome(ticket=b"ticket", quality=0.0, cost_usd=0.5)
    assert second == pb.Outcome(ticket=b"ticket", latency_ms=800.0, output_tokens=0, error=False)


def test_a_batch_of_feedback_says_how_many_were_written(client, router):
    outcomes = [fairlead.Outcome(ticket=b"a", quality=1.0), fairlead.Outcome(ticket=b"b")]
    assert client.send_feedback_batch(outcomes) == 2
    assert [outcome.ticket for outcome in router.asked[0].outcomes] == [b"a", b"b"]


def test_a_ticket_that_is_no_bytes_is_refused_by_name(client):
    for call in (client.explain, client.send_feedback):
        with pytest.raises(fairlead.InvalidRequest, match="ticket is 'text'"):
            call("text")


# Errors

FAILURES = [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK]


@pytest.mark.parametrize("status", FAILURES, ids=lambda status: status.name)
def test_every_status_is_raised_as_its_class_with_the_routers_words(connect, port, router, status):
    router.refuses_always = (status, "cost_usd_max is -1, below 0")
    client = connect(port, retries=fairlead.RetryOptions(backoff_ms=2))

    with pytest.raises(errors.BY_STATUS[status]) as raised:
        client.route("hi")

    error = raised.value
    assert type(error) is errors.BY_STATUS[status]
    assert str(error).startswith(f"Route at 127.0.0.1:{port}: cost_usd_max is -1, below 0. ")
    assert str(error).endswith(error.advice)
    assert isinstance(error.__cause__, grpc.RpcError)


def test_the_table_has_all_statuses_and_a_class_of_its_own_for_each_the_proto_names():
    assert errors.BY_STATUS.keys() == set(FAILURES)

    proto = Path(pb.__file__).with_name("router.proto").read_text()
    named = re.findall(r"^//   ([A-Z_]{6,}) ", proto, re.MULTILINE)
    assert len(named) == 9
    classes = {name: errors.BY_STATUS[grpc.StatusCode[name]] for name in named}
    assert len(set(classes.values())) == len(named) - 1  # with no token, or with a wrong one
    assert classes["UNAUTHENTICATED"] is classes["PERMISSION_DENIED"] is errors.NotAllowed
    assert [name for name in named if classes[name] is errors.RouterFault] == ["INTERNAL"]


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def test_the_tree_in_the_docstring_is_the_tree_and_all_of_it_is_exported():
    drawn = set(
        re.findall(r"^(?:│   )?(?:[├└]── )?([A-Z]\w+)(?:  |$)", errors.__doc__, re.MULTILINE)
    )
    assert drawn == {kind.__name__ for kind in subclasses(fairlead.FairleadError)}
    assert drawn <= set(fairlead.__all__)


@pytest.mark.parametrize(
    "kind",
    sorted(subclasses(fairlead.FairleadError), key=lambda kind: kind.__name__),
    ids=lambda kind: kind.__name__,
)
def test_errors_survive_pickling(kind):
    error = kind("Route at 127.0.0.1:7480", "the queue is full.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.doing, copy.message, str(copy)) == (error.doing, error.message, str(error))


def test_an_unknown_status_of_a_problem_is_a_fault_of_the_router():
    problem = fairlead.Problem(request_id="", code=99, message="")
    assert isinstance(problem.error, fairlead.RouterFault)
    assert "status 99" in str(problem.error)


# Time-outs


@pytest.mark.parametrize("said", ["client", "call"])
def test_a_call_without_answer_ends_with_its_time_out(connect, port, router, said):
    router.answering.clear()
    client = connect(port, timeout_s=SHORT_S if said == "client" else PATIENCE_S)
    options = {"timeout_s": SHORT_S} if said == "call" else {}

    with pytest.raises(fairlead.DeadlineExceeded):
        client.route("hi", **options)
    with pytest.raises(fairlead.DeadlineExceeded, match="feedback log"):
        client.send_feedback(b"ticket", **options)
    with pytest.raises(fairlead.DeadlineExceeded):
        client.route_stream([fairlead.Request(text="a", request_id="r")], timeout_s=SHORT_S)


def test_what_is_late_is_known_to_have_had_a_connection_or_none(connect, port, router):
    """
    gRPC says the same of both. Whoever is connected needs no word on addresses and TLS.
    """
    client = connect(port, timeout_s=PATIENCE_S, connections=1)
    client.route("hi")
    router.answering.clear()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        stranger = connect(nobody.getsockname()[1], timeout_s=SHORT_S)
        with pytest.raises(fairlead.Unreachable, match="address is right"):
            stranger.route("hi")

    with pytest.raises(fairlead.DeadlineExceeded) as late:
        client.route("hi", timeout_s=SHORT_S)

    assert not isinstance(late.value, fairlead.Unreachable)
    assert "that is connected" in str(late.value)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_out_is_positive_and_finite(client, timeout_s):
    with pytest.raises(fairlead.InvalidOption, match=f"timeout_s {timeout_s}"):
        client.route("hi", timeout_s=timeout_s)
    with pytest.raises(fairlead.InvalidOption, match=f"timeout_s {timeout_s}"):
        fairlead.Client(timeout_s=timeout_s)


@pytest.mark.parametrize(
    "options",
    [
        {"connections": 0},
        {"root_certificates": b"pem", "credentials": grpc.local_channel_credentials()},
    ],
)
@pytest.mark.parametrize("kind", [fairlead.Client, fairlead.AsyncClient])
def test_a_client_that_makes_no_sense_is_refused(kind, options):
    with pytest.raises(fairlead.InvalidOption):
        kind(**options)


@pytest.mark.parametrize(
    "bad", [{"attempts_max": 1}, {"attempts_max": 6}, {"backoff_ms": 1}, {"tokens_max": 1001}]
)
def test_retries_that_grpc_would_not_take_are_refused(bad):
    with pytest.raises(fairlead.InvalidOption, match=next(iter(bad))):
        fairlead.RetryOptions(**bad)


# Retries

ONE = fairlead.Request(text="a", request_id="r")
METHODS = {
    "route": ("hi",),
    "route_batch": ([ONE],),
    "route_stream": ([ONE],),
    "send_feedback": (b"ticket",),
    "trace_feedback": (b"ticket",),
    "explain": (b"ticket",),
}


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
@pytest.mark.parametrize("method", METHODS)
def test_a_router_that_starts_or_stops_is_tried_again(client, router, method, status):
    router.refuse(status, times=2)
    getattr(client, method)(*METHODS[method])
    assert len(router.asked) == 3
    assert router.asked[0] == router.asked[1] == router.asked[2]


def test_three_attempts_are_enough(client, router):
    router.refuses_always = (grpc.StatusCode.UNAVAILABLE, "stopping")
    with pytest.raises(fairlead.Unavailable, match="stopping"):
        client.route("hi")
    assert len(router.asked) == 3


@pytest.mark.parametrize(
    "status", [status for status in FAILURES if status.name not in {"UNAVAILABLE", "CANCELLED"}]
)
def test_nothing_else_is_tried_again(client, router, status):
    router.refuse(status)
    with pytest.raises(fairlead.FairleadError):
        client.route("hi")
    assert len(router.asked) == 1


def test_a_large_batch_is_kept_for_a_retry_too(client, router):
    large = [fairlead.Request(embedding=np.ones(1000, np.float32)) for _ in range(500)]  # 2 MB
    router.refuse(grpc.StatusCode.UNAVAILABLE)
    assert len(client.route_batch(large)) == len(large)
    assert len(router.asked) == 2


def test_a_router_that_stays_unavailable_is_spared_retries_once_the_budget_is_spent(
    connect, port, router
):
    """
    Ten tokens a connection allow five failures; after that each call is one attempt.
    """
    router.refuses_always = (grpc.StatusCode.UNAVAILABLE, "stopping")
    retries = fairlead.RetryOptions(tokens_max=10, backoff_ms=2)
    client = connect(port, connections=2, retries=retries)

    n_calls = 100
    for _ in range(n_calls):
        with pytest.raises(fairlead.Unavailable):
            client.route("hi")

    assert n_calls < len(router.asked) <= n_calls + 2 * 5


# Connections


def test_calls_take_turns_over_all_connections(connect, port, router):
    client = connect(port, connections=3)
    for _ in range(12):
        client.route("hi")
    assert sorted(router.peers.values()) == [4, 4, 4]


def test_a_call_waits_for_a_router_that_comes_up_within_its_time_out(connect):
    """
    The first connection is dropped; the call goes through on a later one.
    """
    with socket.socket() as early:
        # gRPC servers share their port, so a server can follow here at the same address.
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        early.bind(("127.0.0.1", 0))
        early.listen()
        early.settimeout(PATIENCE_S)
        port = early.getsockname()[1]
        client = connect(port, connections=1)

        with futures.ThreadPoolExecutor(1) as thread:
            call = thread.submit(client.route, "hi")
            early.accept()[0].close()
            early.close()
            with serving(FakeRouter(), port):
                assert call.result(PATIENCE_S).model == "haiku"


def test_a_call_in_flight_when_its_replica_dies_is_answered_by_the_other(connect):
    first, second = FakeRouter(), FakeRouter()
    first.answering.clear()
    second.answering.clear()
    with serving(first) as (first_server, port), serving(second, port) as (second_server, _):
        client = connect(port, connections=1)
        with futures.ThreadPoolExecutor(1) as thread:
            call = thread.submit(client.route, "hi")
            asked = [first.attending, second.attending]
            while not any(one.wait(0.001) for one in asked):
                assert not call.done()
            dying, survivor = (first, second) if first.attending.is_set() else (second, first)
            survivor.answering.set()
            (first_server if dying is first else second_server).stop(None)

            assert call.result(PATIENCE_S).model == "haiku"

    assert (len(dying.asked), len(survivor.asked)) == (1, 1)


SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


@pytest.mark.parametrize(("health", "is_healthy"), [(SERVING, True), (NOT_SERVING, False)])
def test_health_is_what_the_health_service_says(connect, health, is_healthy):
    with serving(FakeRouter(), health=health) as (_, port):
        assert connect(port).healthy() is is_healthy


def test_a_router_that_is_not_there_is_not_healthy_and_is_not_waited_for(connect):
    with socket.socket() as nobody:  # holds the port and does not listen
        nobody.bind(("127.0.0.1", 0))
        client = connect(nobody.getsockname()[1])
        start_s = time.monotonic()
        assert client.healthy() is False
        assert time.monotonic() - start_s < PATIENCE_S / 2


def test_a_router_without_a_health_service_is_not_called_ill(client):
    with pytest.raises(fairlead.Unsupported):
        client.healthy()


def test_tls_reaches_a_router_whose_certificate_is_trusted_and_no_other(connect):
    key, certificate = self_signed("127.0.0.1")
    _, another = self_signed("127.0.0.1")
    tls = grpc.ssl_server_credentials([(key, certificate)])
    with serving(FakeRouter(), tls=tls) as (_, port):
        assert connect(port, root_certificates=certificate).route("hi").model == "haiku"
        credentials = grpc.ssl_channel_credentials(certificate)
        assert connect(port, credentials=credentials).route("hi").model == "haiku"
        with pytest.raises(fairlead.DeadlineExceeded):
            connect(port, root_certificates=another, timeout_s=SHORT_S).route("hi")


def self_signed(address: str) -> tuple[bytes, bytes]:
    """A key and its certificate, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key_pem = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, certificate.public_bytes(pem)


# Closing


def test_a_closed_client_says_so(client):
    client.route("hi")
    client.close()
    client.close()
    with pytest.raises(fairlead.ClientClosed):
        client.route("hi")
    with pytest.raises(fairlead.ClientClosed):
        client.route_stream([ONE])


def test_closing_ends_calls_under_way_in_other_threads(port, router):
    router.answering.clear()
    with futures.ThreadPoolExecutor(1) as thread:
        with fairlead.Client(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as client:
            call = thread.submit(client.route, "hi")
            assert router.attending.wait(PATIENCE_S)
        with pytest.raises(fairlead.ClientClosed):
            call.result(PATIENCE_S)


def test_closing_ends_calls_under_way_in_other_tasks_but_cancelling_a_task_cancels_it(port, router):
    router.answering.clear()

    async def calling(client: fairlead.AsyncClient) -> asyncio.Task[fairlead.Decision]:
        router.attending.clear()
        call = asyncio.create_task(client.route("hi"))
        assert await asyncio.to_thread(router.attending.wait, PATIENCE_S)
        return call

    async def close_under_calls() -> None:
        async with fairlead.AsyncClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as client:
            cancelled, closed_under = await calling(client), await calling(client)
            cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(fairlead.ClientClosed):
            await closed_under

    asyncio.run(close_under_calls())


def test_many_threads_may_share_a_client(connect, port, router):
    client = fairlead.Client(f"127.0.0.1:{port}", timeout_s=PATIENCE_S)
    with client, futures.ThreadPoolExecutor(8) as threads:
        decisions = list(threads.map(client.route, ["hi"] * 200))
    assert len(decisions) == len(router.asked) == 200


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def methods(kind: type) -> dict[str, list[tuple[str, Any, Any]]]:
        return {
            name: [
                (p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()
            ]
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(fairlead.Client) == methods(fairlead.AsyncClient)
