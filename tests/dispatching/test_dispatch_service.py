"""`Dispatch` over real gRPC on 127.0.0.1, through a whole dispatcher replica over made-up pools."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from made_up_endpoint import FakeEndpoint, FakePools, Gate, Script, answers, failed
from router_bench import PATIENCE_S, Router, catalogue, embedding

from learners.policies.greedy import Greedy
from serve.deploy.dispatch_replica import DispatchReplica, DispatchReplicaOptions
from serve.dispatch.backend import Usage
from serve.dispatch.budget import HedgeOptions
from serve.dispatch.dispatcher import DispatchOptions
from serve.encoders import EncoderOptions
from serve.errors import CallRefused, EndpointOverloaded
from serve.grpc_api.dispatch_servicer import OPTIONS_BYTES_MAX
from serve.openai_api.http_listener import HttpListenerOptions
from serve.proto.fairlead.v1 import dispatch_pb2 as dp
from serve.proto.fairlead.v1 import dispatch_pb2_grpc
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.feedback.feedback import FeedbackOptions, Ingest
from streams.feedback.ticket import Sealer, key_of
from streams.log.contract import DECISIONS, FEEDBACK
from streams.training.prices import SPENT, WASTED

QUALITY_ALONE = pb.Preference(quality=1.0, cost=0.0, latency=0.0)
OPTIONS = DispatchOptions(hedges=HedgeOptions(share_max=0.0))
HASHING = EncoderOptions(kind="hashing", dim=64)


class Dispatching(Router):
    """A router that also dispatches."""

    def __init__(
        self,
        folder: Path,
        pools: FakePools,
        options: DispatchOptions = OPTIONS,
        http_host: str = "127.0.0.1",
        **others: Any,
    ) -> None:
        self.pools = pools

        def within(replica: Any) -> DispatchReplica:
            http = HttpListenerOptions(host=http_host, port=0)
            whole = DispatchReplicaOptions(dispatch=options, http_listener=http)
            return DispatchReplica(replica, pools, whole)

        super().__init__(folder, policy=Greedy(), within=within, **others)
        self.dispatcher_stub = dispatch_pb2_grpc.DispatcherStub(self.channel)

    def call(self, timeout_s: float = PATIENCE_S, **request: Any) -> Any:
        """Begin a call; iterate it for replies."""
        request.setdefault("route", pb.RouteRequest(preference=QUALITY_ALONE))
        if not request.keys() & {"messages", "options_json"}:
            request["messages"] = [dp.ChatMessage(role="user", content="How much is it?")]
        if not request["route"].WhichOneof("prompt"):
            request["route"].embedding_f32 = embedding()
        return self.dispatcher_stub.Dispatch(dp.DispatchRequest(**request), timeout=timeout_s)

    def get(self, **request: Any) -> list[dp.DispatchReply]:
        return list(self.call(**request))

    def fails(self, **request: Any) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            self.get(**request)
        return caught.value

    def ends(self, pool: str) -> FakeEndpoint:
        return self.pools.pools[pool][0]

    def wait_until(self, true: Callable[[], bool]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end_s, "it never came true"
            time.sleep(0.002)

    def open(self, gate: Gate) -> None:
        async def opened() -> None:
            gate.open()

        self.run(opened())

    def written(self, n: int) -> list[tuple[str, int]]:
        """Decision ids and bits of the n reports that are in the log in the end."""
        records = []

        def all_there() -> bool:
            reader = self.log.reader(FEEDBACK, dict.fromkeys(self.log.end_offsets(FEEDBACK), 0))
            records[:] = reader.read(1000, 0.0)
            reader.close()
            return len(records) >= n

        self.wait_until(all_there)
        found = Ingest(Sealer(self.keys), key_of(self.encoder), FeedbackOptions()).take(records)
        assert (len(records), found.dead) == (n, [])
        return [
            (r.key.decode(), b) for r, b in zip(found.records, found.bits.tolist(), strict=True)
        ]

    def idle(self) -> bool:
        """Whether no call and no lease is left."""
        dispatcher = self.whole.dispatcher
        return dispatcher.retries.requests_in_flight == 0 and not any(
            pool.in_flight for pool in dispatcher.health.status(time.monotonic())
        )


@contextmanager
def dispatching(folder: Path, pools: dict[str, Any], **options: Any) -> Iterator[Dispatching]:
    ends = {
        name: given if isinstance(given, list) else [FakeEndpoint(f"{name}:1", given)]
        for name, given in pools.items()
    }
    up = Dispatching(folder, FakePools(ends), **options)
    try:
        yield up
    finally:
        up.stop()
    assert up.idle()
    assert all(end.running == 0 for ends in up.pools.pools.values() for end in ends)
    assert up.pools.started == up.pools.stopped == 1


def parts(replies: list[dp.DispatchReply]) -> list[str]:
    return [reply.WhichOneof("part") for reply in replies]


# --- an answer -------------------------------------------------------------------------------------


def test_an_answer_is_streamed_and_what_it_took_is_fed_back(tmp_path):
    """
    Routed, pieces, ended; the ticket takes the quality, and the trainer learns all of it once.
    """
    with dispatching(tmp_path, {"large": answers(3), "small": answers(1)}) as up:
        replies = up.get()

        pieces = replies[1:-1]  # those that came together are sent together
        assert parts(replies) == ["routed", *["piece"] * len(pieces), "ended"]
        routed, ended = replies[0].routed, replies[-1].ended
        assert (routed.model, routed.pool, routed.endpoint) == ("large", "large", "large:1")
        assert routed.ticket == routed.decision.ticket
        assert "".join(r.piece.text for r in pieces) == " w0 w1 w2"
        assert [r.piece.finish_reason for r in pieces] == [*[""] * (len(pieces) - 1), "stop"]
        assert (ended.output_tokens, ended.problem_code) == (3, 0)
        assert not ended.HasField("confidence")
        assert ended.cost_usd == ended.paid_usd == pytest.approx(3 * 40 / 1e6)
        assert 0 < ended.first_token_ms <= ended.latency_ms
        (attempt,) = ended.attempts
        assert (attempt.kind, attempt.outcome, attempt.pool) == ("first", "answered", "large")

        quality = pb.Outcome(ticket=routed.ticket, quality=0.5)
        up.stub.SendFeedback(pb.FeedbackRequest(outcomes=[quality]), timeout=PATIENCE_S)
        assert dict(up.written(2)) and {i for i, _ in up.written(2)} == {
            routed.decision.decision_id
        }
        up.learn()
        counts = up.trainer.state.counts
        assert counts["learned"] == 2
        assert counts[f"{SPENT}{key_of('large'):016x}"] == round(ended.cost_usd * 1e9)


@pytest.mark.parametrize("fan_out", [1, 2])
def test_replies_that_are_there_together_come_as_one_message_to_who_asks_for_that(
    tmp_path, fan_out
):
    """
    A first piece with who answers, the last with the end; the same replies in the same order.
    """
    with dispatching(tmp_path, {"large": answers(3), "medium": answers(3)}) as up:
        messages = up.get(joined=True, fan_out=fan_out)
        each = [[message, *message.followed_by] for message in messages]
        replies = [reply for message in each for reply in message]

        assert any(parts(message[:2]) == ["routed", "piece"] for message in each)
        assert parts(each[-1][-2:])[-1] == "ended" and len(messages) < len(replies)
        assert not any(reply.followed_by for message in each for reply in message[1:])
        for i in range(fan_out):
            kinds = parts([reply for reply in replies if reply.answer == i])
            assert kinds == ["routed", *["piece"] * (len(kinds) - 2), "ended"]
        text = "".join(r.piece.text for r in replies if r.answer == 0)
        assert text == " w0 w1 w2"


def test_messages_and_options_are_passed_on(tmp_path):
    with dispatching(tmp_path, {"large": answers(1)}) as up:
        message = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
        up.get(
            options_json=json.dumps({"temperature": 0.5, "tools": [{"x": 1}]}),
            messages=[
                dp.ChatMessage(role="system", content="Be brief."),
                dp.ChatMessage(role="user", content="é"),
            ],
        )
        up.get(options_json=json.dumps({"messages": [message]}))
        up.get(
            route=pb.RouteRequest(embedding_f32=embedding(), prompt_tokens=77),
            messages=[dp.ChatMessage(role="user")],
        )

        first, second, third = up.ends("large").calls
        assert first.body == {
            "temperature": 0.5,
            "tools": [{"x": 1}],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "é"},
            ],
        }
        assert second.body == {"messages": [message]}
        assert (first.prompt_tokens, second.prompt_tokens, third.prompt_tokens) == (3, 1, 77)


def test_what_is_more_than_text_comes_as_json(tmp_path):
    deltas = ({"role": "assistant", "content": "a"}, {"tool_calls": [{"index": 0}]})
    with dispatching(tmp_path, {"large": Script(deltas=deltas)}) as up:
        first, second = [r.piece for r in up.get() if r.HasField("piece")]

        assert (first.text, first.delta_json) == ("a", "")
        assert (second.text, json.loads(second.delta_json)) == ("", deltas[1])


def test_impossible_usage_does_not_cost_the_answer(tmp_path):
    """
    A negative or huge count fits no field of the reply; the answer must come all the same.
    """
    odd = Usage(prompt_tokens=-1, output_tokens=10**18)
    with dispatching(tmp_path, {"large": answers(2, usage=odd)}) as up:
        assert up.get()[-1].ended.output_tokens == 2


def test_a_retry_is_in_the_reply_the_log_and_the_explanation(tmp_path):
    overloaded = Script(fails=EndpointOverloaded("x", "429 too many"))
    with dispatching(tmp_path, {"large": overloaded, "medium": answers(1)}) as up:
        replies = up.get()

        routed = replies[0].routed
        (before,) = routed.attempts
        assert (before.pool, before.outcome, before.detail) == (
            "large",
            "overloaded",
            "429 too many",
        )
        assert (routed.pool, routed.decision.pool) == ("medium", "large")
        explained = up.stub.Explain(pb.ExplainRequest(ticket=routed.ticket), timeout=PATIENCE_S)
        assert explained.policy == "retry"
        (chosen,) = [m for m in explained.models if m.chosen]
        assert (chosen.model, chosen.pool) == ("medium", "medium")
        assert chosen.reason == "retry: called after the decision, nothing was drawn"
        up.written(2)
        rows = decisions(up, 2)
        assert [(r["pool"], r["policy"], r["propensity"]) for r in rows][1] == (
            "medium",
            "retry",
            1.0,
        )


def decisions(up: Dispatching, n: int) -> list[dict]:
    rows: list[dict] = []

    def all_there() -> bool:
        reader = up.log.reader(DECISIONS, dict.fromkeys(up.log.end_offsets(DECISIONS), 0))
        rows[:] = [
            row
            for record in reader.read(1000, 0.0)
            for row in pa.ipc.open_stream(record.value).read_all().to_pylist()
        ]
        reader.close()
        return len(rows) >= n

    up.wait_until(all_there)
    return rows


def test_a_cascade_and_fan_out_are_asked_for_by_field(tmp_path):
    unsure = Script(words=("a",), probability=0.1)
    pools = {"small": unsure, "medium": answers(1), "large": answers(2)}
    with dispatching(tmp_path, pools) as up:
        replies = up.get(cascade=dp.Cascade(confidence_min=0.5))
        assert [a.kind for a in replies[-1].ended.attempts] == ["cascade", "escalation"]
        replies = up.get(cascade=dp.Cascade(confidence_min=0.05))
        assert replies[-1].ended.confidence == pytest.approx(0.1)
        several = dp.Cascade(by="self_consistency", probes=2)
        kinds = [a.kind for a in up.get(cascade=several)[-1].ended.attempts]
        assert kinds[:2] == ["cascade", "cascade"]
        replies = up.get(fan_out=3)
        assert sorted(r.answer for r in replies if r.HasField("ended")) == [0, 1, 2]


def test_in_fan_out_an_answer_that_fails_has_its_status(tmp_path):
    pools = {"small": Script(fails=failed()), "large": answers(2, fails=failed(), fails_at=1)}
    with dispatching(tmp_path, pools) as up:
        route = pb.RouteRequest(preference=QUALITY_ALONE, allowed_models=["small", "large"])
        ends = {r.answer: r.ended for r in up.get(route=route, fan_out=2) if r.HasField("ended")}

        assert ends[0].problem_code == grpc.StatusCode.ABORTED.value[0]
        assert ends[1].problem_code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert "broke off after 1 pieces" in ends[0].problem


# --- statuses --------------------------------------------------------------------------------------


def test_with_no_answer_the_status_lists_every_attempt(tmp_path):
    pools = {name: Script(fails=failed(f"{name} is down")) for name in ("large", "medium", "small")}
    with dispatching(tmp_path, pools) as up:
        error = up.fails()

        assert error.code() is grpc.StatusCode.UNAVAILABLE
        for name in pools:
            assert f"{name} is down" in error.details()
        assert len(up.written(3)) == 3


def test_an_answer_that_breaks_off_is_aborted(tmp_path):
    pools = {"large": answers(3, fails=failed(), fails_at=2), "medium": answers(1)}
    with dispatching(tmp_path, pools) as up:
        call, got = up.call(), []
        with pytest.raises(grpc.RpcError) as caught:
            got.extend(call)

        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert up.ends("medium").called == 0


def test_a_refused_call_is_the_callers_mistake(tmp_path):
    refused = Script(fails=CallRefused("x", "temperature must be below 2"))
    with dispatching(tmp_path, {"large": refused, "medium": refused}) as up:
        error = up.fails()

        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "temperature must be below 2" in error.details()
        assert up.ends("medium").called == 1


def test_a_bug_says_nothing_of_our_memory(tmp_path, caplog):
    with dispatching(tmp_path, {"large": answers(1)}) as up:
        up.pools.endpoints = lambda pool: 1 / 0
        error = up.fails()

        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "internal error (ZeroDivisionError); see the router's log"
        assert "a dispatch failed with an internal error" in caplog.text
        del up.pools.endpoints


BAD = {
    "nothing to ask": ({"messages": []}, "messages is empty"),
    "no JSON": ({"options_json": "{"}, "options_json is not JSON"),
    "no object": ({"options_json": "[]"}, "options_json is list"),
    "deep": ({"options_json": "[" * 100_000}, "options_json is not JSON"),
    "half a character": ({"options_json": '{"a": "\\ud800"}'}, "options_json is not JSON"),
    "long": ({"options_json": " " * (OPTIONS_BYTES_MAX + 1)}, "options_json is 1048577 bytes"),
    "a model": ({"options_json": '{"model": "x"}'}, "options_json.model is given"),
    "a stream": ({"options_json": '{"stream": true}'}, "options_json.stream is given"),
    "a priority": ({"options_json": '{"priority": 0}'}, "options_json.priority is given"),
    "no list": ({"options_json": '{"messages": 3}'}, "options_json.messages is no list"),
    "fan-out 0": ({"fan_out": 0}, "fan_out is 0"),
    "fan-out 9": ({"fan_out": 9}, "fan_out is 9"),
    "confidence": ({"cascade": dp.Cascade(confidence_min=np.nan)}, "cascade.confidence_min is nan"),
    "both": ({"cascade": dp.Cascade(), "fan_out": 2}, "fan_out is 2"),
    "tokens": (
        {"route": pb.RouteRequest(embedding_f32=embedding(), prompt_tokens=0)},
        "prompt_tokens is 0",
    ),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    pools = {"large": answers(1), "medium": answers(1), "small": answers(1)}
    with dispatching(tmp_path_factory.mktemp("shared"), pools) as up:
        yield up


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_is_refused_with_field_value_and_limit(shared, bad):
    fields, says = BAD[bad]
    if fields.get("messages") == []:
        request = dp.DispatchRequest(route=pb.RouteRequest(embedding_f32=embedding()))
        call = shared.dispatcher_stub.Dispatch(request, timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        error = caught.value
    else:
        fields = {"messages": [dp.ChatMessage(role="user", content="x")], **fields}
        error = shared.fails(**fields)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in error.details()


def test_bytes_that_are_no_message_are_refused(shared):
    call = shared.channel.unary_stream("/fairlead.v1.Dispatcher/Dispatch")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(b"\xff\xff", timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "messages",
    ["[3]", '[{"content": {"a": 1}}]', '[{"content": null}]'],
)
def test_odd_messages_are_the_pools_to_judge(shared, messages):
    """
    Whoever brings an embedding may send what only the pool understands.
    """
    assert parts(shared.get(options_json=f'{{"messages": {messages}}}'))[-1] == "ended"


def test_many_at_once_are_all_answered_and_reported(tmp_path):
    flaky = [Script(fails=failed()) if i % 3 == 0 else answers(2) for i in range(120)]
    pools = {"large": [FakeEndpoint("l", *flaky)], "medium": answers(2)}
    with dispatching(tmp_path, pools) as up:
        calls = [up.call() for _ in range(100)]
        attempts = [list(call)[-1].ended.attempts for call in calls]
        assert all(tried[-1].outcome == "answered" for tried in attempts)
        # The pool is out after a while. Then the decision's ticket is settled beside the reroute's.
        n_rerouted = sum(tried[0].kind == "reroute" for tried in attempts)
        reports = up.written(sum(map(len, attempts)) + n_rerouted)
        assert n_rerouted > 0
        assert len({decision_id for decision_id, _ in reports}) == len(reports)


# --- callers who leave -----------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_caller_who_cancels_ends_the_endpoints_call(tmp_path, at):
    """
    Before the first token, in the middle, before the end: settled once, nothing to learn.
    """
    gate = Gate()
    with dispatching(tmp_path, {"large": answers(3, gates={at: gate}), "medium": answers(1)}) as up:
        call = up.call()
        up.run(asyncio.wait_for(gate.reached.wait(), PATIENCE_S))
        call.cancel()
        up.wait_until(lambda: up.ends("large").cancelled == 1)
        up.wait_until(up.idle)

        ((_, bits),) = up.written(1)
        assert bits == 0b100000
        assert up.ends("medium").called == 0


def test_a_caller_who_stops_reading_and_then_leaves_ends_the_call(tmp_path):
    """
    The answer waits for its reader, inside gRPC, where nothing of ours is running.
    """
    long = Script(words=("x" * 4000,) * 20_000)
    with dispatching(tmp_path, {"large": long}) as up:
        call = up.call()
        next(call)
        up.wait_until(lambda: up.ends("large").called == 1)
        call.cancel()
        up.wait_until(lambda: up.ends("large").cancelled == 1)
        up.wait_until(up.idle)
        up.written(1)


def test_a_callers_deadline_ends_the_call(tmp_path):
    for timeout_s in (0.2, 2.0, 20.0):  # longer only where the call has not come so far by then
        with dispatching(tmp_path / str(timeout_s), {"large": Script(hangs_at=0)}) as up:
            error = up.fails(timeout_s=timeout_s)

            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            up.wait_until(up.idle)  # also where the call has not begun yet
            if up.ends("large").called:
                up.wait_until(lambda up=up: up.ends("large").cancelled == 1)
                up.wait_until(up.idle)
                up.written(1)
                assert up.whole.dispatcher.health.status(0.0)[0].failures == {}
                return
    pytest.fail("no call came to the pool in time")


def test_stopping_cuts_off_what_takes_longer_than_the_grace_and_settles_it(tmp_path):
    with dispatching(tmp_path, {"large": answers(3, gates={1: Gate()})}, grace_s=0.2) as up:
        call = up.call()
        next(call)
        up.run(up.whole.stop())

        assert up.ends("large").cancelled == 1
        ((_, bits),) = up.written(1)
        assert bits == 0b100000
        with pytest.raises(grpc.RpcError):
            list(call)
        up.whole.stop = _nothing


async def _nothing() -> None:
    """It has been stopped."""


def test_stopping_waits_for_an_answer_within_the_grace(tmp_path):
    gate = Gate()
    with dispatching(tmp_path, {"large": answers(3, gates={1: gate})}) as up:
        call = up.call()
        next(call)
        stopping = up.run(up.whole.stop(), wait=False)
        up.wait_until(lambda: up.replica.servicer.draining)
        up.open(gate)
        assert parts(list(call))[-1] == "ended"
        stopping.result(PATIENCE_S)
        ((_, bits),) = up.written(1)
        assert bits == 0b011110
        up.whole.stop = _nothing


def test_a_replica_that_can_not_start_lets_go_of_what_it_has_started(tmp_path):
    """
    The HTTP port is the last; gRPC and pools are let go of again.
    """
    pools = FakePools({})
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EADDRNOTAVAIL):
        Dispatching(tmp_path, pools, http_host="203.0.113.1")  # of no machine: RFC 5737
    assert pools.started == pools.stopped == 1


def test_wasted_money_is_counted_by_pool(tmp_path):
    pools = {"large": answers(3, fails=failed(), fails_at=2)}
    with dispatching(tmp_path, pools, models=catalogue()) as up:
        up.fails()
        up.written(1)
        up.learn()
        counts = up.trainer.state.counts
        assert counts[f"{WASTED}{key_of('large'):016x}"] == round(2 * 40 / 1e6 * 1e9)
        assert f"{SPENT}{key_of('large'):016x}" not in counts


# --- over HTTP -------------------------------------------------------------------------------------


def post(up: Dispatching, **body: Any) -> http.client.HTTPResponse:
    """A chat completion; read the response for what is streamed."""
    connection = http.client.HTTPConnection("127.0.0.1", up.whole.http_port, timeout=PATIENCE_S)
    weights = {"quality": 1.0, "cost": 0.0, "latency": 0.0}
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], **body}
    body["fairlead"] = {"preference": weights}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection.getresponse()


def test_the_same_answer_comes_over_http(tmp_path):
    """
    One dispatcher, two front ends: the ticket in the header is the one that was reported on.
    """
    pools = {"large": Script(fails=failed()), "medium": answers(2)}
    with dispatching(tmp_path, pools, encoder=HASHING) as up:
        response = post(up)
        answer = json.loads(response.read())

        assert response.status == 200
        assert answer["choices"][0]["message"]["content"] == " w0 w1"
        assert response.headers["x-fairlead-pool"] == "medium"
        assert [bits for _, bits in up.written(2)] == [0b110000, 0b011110]


def test_a_client_of_http_that_leaves_ends_the_call(tmp_path):
    gate = Gate()
    with dispatching(tmp_path, {"large": answers(3, gates={1: gate})}, encoder=HASHING) as up:
        response = post(up, stream=True)
        response.readline()
        response.close()
        up.wait_until(lambda: up.ends("large").cancelled == 1)
        up.wait_until(up.idle)
        ((_, bits),) = up.written(1)
        assert bits == 0b100000
