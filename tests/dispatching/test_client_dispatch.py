"""The client's `dispatch` against a dispatcher that follows a script.

All tests run twice: over `Client`, and over `AsyncClient` on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import aclosing, closing

import grpc
import pytest

from fairlead import (
    AnswerBroken,
    AsyncClient,
    Attempt,
    Client,
    ClientClosed,
    DeadlineExceeded,
    Decision,
    DispatchRequest,
    Ended,
    FairleadError,
    InvalidOption,
    InvalidRequest,
    NoModelFits,
    Overloaded,
    Piece,
    Preference,
    Request,
    Routed,
    RouterFault,
    Unavailable,
    UnknownModel,
    Unsupported,
)
from serve.proto.fairlead.v1 import dispatch_pb2 as pb
from serve.proto.fairlead.v1 import dispatch_pb2_grpc, router_pb2

PATIENCE_S = 120.0
NO_RETRY = (("grpc-retry-pushback-ms", "-1"),)

FAILED = pb.Attempt(
    model="opus", pool="opus-eu", endpoint="h:1", kind="first", outcome="unreachable",
    detail="refused", began_ms=1.5, took_ms=2.5, cost_usd=0.0,
)  # fmt: skip
ANSWERED = pb.Attempt(
    model="haiku", pool="haiku-us", endpoint="h:2", kind="retry", outcome="answered",
    began_ms=4.5, took_ms=100.0, cost_usd=0.25,
)  # fmt: skip
ROUTED = pb.DispatchReply(
    routed=pb.Routed(
        model="haiku",
        pool="haiku-us",
        endpoint="h:2",
        ticket=b"\x00sealed\xff",
        decision=router_pb2.Decision(decision_id="d1", model="opus", pool="opus-eu"),
        attempts=[FAILED],
    )
)
ENDED = pb.DispatchReply(
    ended=pb.Ended(
        prompt_tokens=7,
        output_tokens=2,
        cost_usd=0.25,
        paid_usd=0.375,
        first_token_ms=50.0,
        latency_ms=104.5,
        confidence=0.5,
        attempts=[FAILED, ANSWERED],
    )
)


def piece(text: str, **more: str) -> pb.DispatchReply:
    return pb.DispatchReply(piece=pb.AnswerPiece(text=text, **more))


class FakeDispatcher(dispatch_pb2_grpc.DispatcherServicer):
    """Streams the script; what is callable in it is called with the call's context."""

    def __init__(self) -> None:
        self.script: list[pb.DispatchReply | Callable] = []
        self.asked: list[pb.DispatchRequest] = []
        self.time_left_s: list[float] = []
        self.ended = threading.Event()

    def Dispatch(self, request, context):
        self.asked.append(request)
        self.time_left_s.append(context.time_remaining())
        context.add_callback(self.ended.set)
        for step in self.script:
            if callable(step):
                step(context)
            else:
                yield step


def fails(status: grpc.StatusCode, message: str = "as told", metadata: tuple = ()) -> Callable:
    def step(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata(metadata)
        context.abort(status, message)

    return step


class Hold:
    """A step that waits until the call is over."""

    def __call__(self, context: grpc.ServicerContext) -> None:
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(PATIENCE_S)


class Sync:
    """`Client`, driven by the test itself."""

    def __init__(self, target: str) -> None:
        self.client = Client(target, connections=1)

    def all(self, request: DispatchRequest, **options: object) -> list:
        return list(self.client.dispatch(request, **options))

    def first_only(self, request: DispatchRequest) -> object:
        with closing(self.client.dispatch(request)) as events:
            return next(events)

    def closed_meanwhile(self, request: DispatchRequest) -> None:
        events = self.client.dispatch(request)
        next(events)
        self.client.close()
        next(events)

    def close(self) -> None:
        self.client.close()


class Async:
    """`AsyncClient`, on a loop of its own."""

    def __init__(self, target: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = AsyncClient(target, connections=1)

    def all(self, request: DispatchRequest, **options: object) -> list:
        async def work() -> list:
            return [event async for event in self.client.dispatch(request, **options)]

        return self.loop.run_until_complete(work())

    def first_only(self, request: DispatchRequest) -> object:
        async def work() -> object:
            async with aclosing(self.client.dispatch(request)) as events:
                return await anext(events)

        return self.loop.run_until_complete(work())

    def closed_meanwhile(self, request: DispatchRequest) -> None:
        async def work() -> None:
            events = self.client.dispatch(request)
            await anext(events)
            await self.client.close()
            await anext(events)

        self.loop.run_until_complete(work())

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


@pytest.fixture
def dispatcher() -> FakeDispatcher:
    return FakeDispatcher()


@pytest.fixture(params=[Sync, Async])
def caller(request, dispatcher) -> Iterator[Sync | Async]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    dispatch_pb2_grpc.add_DispatcherServicer_to_server(dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    made = request.param(f"127.0.0.1:{port}")
    yield made
    with contextlib.suppress(ClientClosed):
        made.close()
    server.stop(None).wait(PATIENCE_S)


ASKED = DispatchRequest(route=Request(text="Who wrote Moby-Dick?"))


# --- what comes ------------------------------------------------------------------------------------


def test_every_event_is_read_in_order_with_all_its_fields(caller, dispatcher):
    dispatcher.script = [ROUTED, piece("Mel"), piece("ville", finish_reason="stop"), ENDED]

    routed, mel, ville, ended = caller.all(ASKED)

    failed = Attempt(
        model="opus", pool="opus-eu", endpoint="h:1", kind="first", outcome="unreachable",
        detail="refused", began_ms=1.5, took_ms=2.5, cost_usd=0.0,
    )  # fmt: skip
    answered = Attempt(
        model="haiku", pool="haiku-us", endpoint="h:2", kind="retry", outcome="answered",
        detail="", began_ms=4.5, took_ms=100.0, cost_usd=0.25,
    )  # fmt: skip
    assert isinstance(routed, Routed)
    assert (routed.answer, routed.model, routed.pool) == (0, "haiku", "haiku-us")
    assert (routed.endpoint, routed.ticket) == ("h:2", b"\x00sealed\xff")
    assert isinstance(routed.decision, Decision)
    assert (routed.decision.decision_id, routed.decision.model) == ("d1", "opus")
    assert routed.attempts == (failed,)
    assert mel == Piece(answer=0, text="Mel", delta={"content": "Mel"}, finish_reason="")
    assert ville == Piece(answer=0, text="ville", delta={"content": "ville"}, finish_reason="stop")
    assert ended == Ended(
        answer=0, prompt_tokens=7, output_tokens=2, cost_usd=0.25, paid_usd=0.375,
        first_token_ms=50.0, latency_ms=104.5, confidence=0.5, attempts=(failed, answered),
        problem=None,
    )  # fmt: skip


def test_events_come_as_they_are_made(caller, dispatcher):
    """
    The first is there while the rest is still awaited; leaving then ends the call.
    """
    dispatcher.script = [ROUTED, Hold(), ENDED]

    first = caller.first_only(ASKED)

    assert isinstance(first, Routed)
    assert dispatcher.ended.wait(PATIENCE_S)


def test_deltas_of_tool_calls_come_as_the_pool_sent_them(caller, dispatcher):
    """
    OpenAI's form, fragments and all; text is what `content` holds.
    """
    delta = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"'}}]}
    dispatcher.script = [ROUTED, piece("", delta_json=json.dumps(delta)), ENDED]

    _, called, _ = caller.all(ASKED)

    assert called.delta == delta
    assert called.text == ""


def test_confidence_that_no_pool_gave_is_none(caller, dispatcher):
    dispatcher.script = [ROUTED, pb.DispatchReply(ended=pb.Ended(output_tokens=1))]

    *_, ended = caller.all(ASKED)

    assert ended.confidence is None


def test_answers_of_a_fan_out_are_told_apart_and_one_may_fail(caller, dispatcher):
    """
    Its `Ended` says why, as the error that it would have been alone; the others go on.
    """
    gone = pb.Ended(problem_code=grpc.StatusCode.UNAVAILABLE.value[0], problem="no pool answered")
    broken = pb.Ended(problem_code=grpc.StatusCode.ABORTED.value[0], problem="it broke off")
    second = pb.DispatchReply(answer=1, piece=pb.AnswerPiece(text="B"))
    dispatcher.script = [
        ROUTED, second, pb.DispatchReply(answer=2, ended=gone),
        piece("A"), pb.DispatchReply(answer=1, ended=broken), ENDED,
    ]  # fmt: skip

    events = caller.all(ASKED)

    assert [event.answer for event in events] == [0, 1, 2, 0, 1, 0]
    problems = [event.problem for event in events if isinstance(event, Ended)]
    assert [type(problem) for problem in problems] == [Unavailable, AnswerBroken, type(None)]
    assert "no pool answered" in str(problems[0])


def test_event_that_this_client_does_not_know_is_passed_over(caller, dispatcher):
    """
    A newer dispatcher may have more to say.
    """
    dispatcher.script = [ROUTED, pb.DispatchReply(answer=0), piece("x"), ENDED]

    assert [type(event) for event in caller.all(ASKED)] == [Routed, Piece, Ended]


def test_events_that_come_in_one_message_are_told_one_by_one(caller, dispatcher):
    """
    The client asks for that, and takes what an older dispatcher sends, too.
    """
    alone = [ROUTED, piece("a"), piece("b", finish_reason="stop"), ENDED]
    together = [
        pb.DispatchReply(routed=ROUTED.routed, followed_by=alone[1:2]),
        pb.DispatchReply(piece=alone[2].piece, followed_by=[pb.DispatchReply(answer=7), ENDED]),
    ]
    dispatcher.script = alone
    events = caller.all(ASKED)
    dispatcher.script = together

    assert caller.all(ASKED) == events
    assert [type(event) for event in events] == [Routed, Piece, Piece, Ended]
    assert all(asked.joined for asked in dispatcher.asked)


# --- what is asked ---------------------------------------------------------------------------------


def test_request_is_sent_with_all_its_fields(caller, dispatcher):
    dispatcher.script = [ENDED]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Héllo"}]
    route = Request(tenant="t", session="s", preference=Preference(cost=2.0), cost_usd_max=0.5)

    caller.all(
        DispatchRequest(
            route=route,
            messages=messages,
            options={"max_tokens": 5, "tools": [{"type": "function"}]},
            confidence_min=0.75,
            fan_out=3,
            merge="fuse",
            agreement_min=0.5,
            escalate_to="large",
        )
    )

    (asked,) = dispatcher.asked
    assert (asked.route.tenant, asked.route.session) == ("t", "s")
    assert (asked.route.preference.cost, asked.route.cost_usd_max) == (2.0, 0.5)
    assert asked.route.WhichOneof("prompt") is None
    assert json.loads(asked.options_json) == {
        "messages": messages, "max_tokens": 5, "tools": [{"type": "function"}]
    }  # fmt: skip
    assert (asked.cascade.confidence_min, asked.fan_out) == (0.75, 3)
    assert (asked.merge, asked.agreement_min, asked.escalate_to) == ("fuse", 0.5, "large")


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"by_gain": True}, pb.Cascade(by="gain")),
        ({"probes": 4}, pb.Cascade(by="self_consistency", probes=4)),
        (
            {"probes": 2, "temperature": 1.5},
            pb.Cascade(by="self_consistency", probes=2, temperature=1.5),
        ),
    ],
)
def test_how_a_cascade_escalates_is_sent(caller, dispatcher, asked, sent):
    dispatcher.script = [ENDED]

    caller.all(DispatchRequest(route=Request(text="x"), **asked))

    assert dispatcher.asked[0].cascade == sent


def test_what_is_not_asked_for_is_not_sent(caller, dispatcher):
    dispatcher.script = [ENDED]

    caller.all(DispatchRequest(route=None, messages=[{"role": "user", "content": "x"}]))
    caller.all(ASKED)

    first, second = dispatcher.asked
    for name in ("route", "cascade", "fan_out"):
        assert not first.HasField(name)
    assert second.options_json == ""
    assert second.route.text == "Who wrote Moby-Dick?"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"options": {"x": object()}}, "options or messages"),
        ({"options": {"x": math.nan}}, "options or messages"),
        ({"messages": [{"role": "user", "content": b"x"}]}, "options or messages"),
        ({"confidence_min": "high"}, "confidence_min is 'high'"),
        ({"fan_out": -1}, "fan_out is -1"),
        ({"fan_out": 1.5}, "fan_out is 1.5"),
        ({"route": Request(text=5)}, "text is 5"),
        ({"route": None}, "route and messages: neither given"),
        ({"route": Request(tenant="t")}, "text or embedding: neither given"),
    ],
)
def test_request_that_cannot_be_written_is_refused_here(caller, dispatcher, options, named):
    """
    With the field's name, and nothing is sent.
    """
    with pytest.raises(InvalidRequest) as refused:
        caller.all(DispatchRequest(**{"route": Request(text="x")} | options))

    assert named in str(refused.value)
    assert dispatcher.asked == []


def test_time_out_is_for_the_whole_answer(caller, dispatcher):
    dispatcher.script = [ROUTED, Hold()]

    for timeout_s in (0.3, 3.0, 30.0):  # longer only where the call has not arrived by then
        with pytest.raises(DeadlineExceeded):
            caller.all(ASKED, timeout_s=timeout_s)
        if dispatcher.time_left_s:
            break
    assert dispatcher.time_left_s[0] < timeout_s + 1.7  # gRPC rounds
    with pytest.raises(InvalidOption, match="timeout_s"):
        caller.all(ASKED, timeout_s=0.0)


def test_long_answers_have_minutes_unless_less_is_asked_for(caller, dispatcher):
    dispatcher.script = [ENDED]

    caller.all(ASKED)

    assert 500 < dispatcher.time_left_s[0] < 620  # gRPC rounds


# --- what fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, UnknownModel),
        (grpc.StatusCode.FAILED_PRECONDITION, NoModelFits),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.ABORTED, AnswerBroken),
        (grpc.StatusCode.UNIMPLEMENTED, Unsupported),
        (grpc.StatusCode.INTERNAL, RouterFault),
    ],
)
def test_status_is_raised_as_its_error(caller, dispatcher, status, error):
    """
    Once, with the dispatcher's words: none of these is tried again.
    """
    dispatcher.script = [fails(status)]

    with pytest.raises(error, match=r"Dispatch at .*as told"):
        caller.all(ASKED)

    assert len(dispatcher.asked) == 1


def test_answer_that_breaks_off_raises_after_what_had_come(caller, dispatcher):
    """
    It is not asked again behind the caller's back, who has seen a part of it.
    """
    dispatcher.script = [ROUTED, piece("Mel"), fails(grpc.StatusCode.ABORTED)]

    with pytest.raises(AnswerBroken, match="ask again from the beginning"):
        caller.all(ASKED)

    assert len(dispatcher.asked) == 1


def test_dispatcher_that_is_gone_after_the_first_event_is_not_asked_again(caller, dispatcher):
    dispatcher.script = [ROUTED, fails(grpc.StatusCode.UNAVAILABLE)]

    with pytest.raises(Unavailable):
        caller.all(ASKED)

    assert len(dispatcher.asked) == 1


def test_dispatcher_that_is_stopping_is_asked_again(caller, dispatcher):
    """
    Before its first event nothing has been shown: another replica may take the call.
    """
    refusals = iter([fails(grpc.StatusCode.UNAVAILABLE), fails(grpc.StatusCode.CANCELLED)])
    dispatcher.script = [lambda context: next(refusals, lambda _: None)(context), ROUTED, ENDED]

    assert [type(event) for event in caller.all(ASKED)] == [Routed, Ended]
    assert len(dispatcher.asked) == 3


def test_dispatcher_whose_pools_have_all_failed_is_not_asked_again(caller, dispatcher):
    """
    It has tried already, and says so: more tries from here would multiply its own.
    """
    dispatcher.script = [fails(grpc.StatusCode.UNAVAILABLE, "tried: a, b", NO_RETRY)]

    with pytest.raises(Unavailable, match="tried: a, b"):
        caller.all(ASKED)

    assert len(dispatcher.asked) == 1


def test_client_closed_meanwhile_says_so(caller, dispatcher):
    dispatcher.script = [ROUTED, Hold()]

    with pytest.raises(ClientClosed):
        caller.closed_meanwhile(ASKED)
    assert dispatcher.ended.wait(PATIENCE_S)
    with pytest.raises(ClientClosed):
        caller.all(ASKED)


def test_task_that_is_cancelled_ends_the_call(dispatcher):
    """
    asyncio alone: CancelledError comes out as it is, and the dispatcher hears of it.
    """
    server = grpc.server(futures.ThreadPoolExecutor(2))
    dispatch_pb2_grpc.add_DispatcherServicer_to_server(dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    dispatcher.script = [ROUTED, Hold()]

    async def work() -> None:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            came = asyncio.Event()

            async def ask() -> None:
                async for _ in client.dispatch(ASKED):
                    came.set()

            asking = asyncio.create_task(ask())
            await came.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(work())

    assert dispatcher.ended.wait(PATIENCE_S)
    server.stop(None).wait(PATIENCE_S)


def test_errors_of_dispatching_say_what_to_do():
    assert AnswerBroken.retriable
    assert "ask again" in AnswerBroken("Dispatch", "x").advice
    assert issubclass(AnswerBroken, FairleadError)
