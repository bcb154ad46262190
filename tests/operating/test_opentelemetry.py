"""Traces: a caller's trace goes on through decision, dispatch and pool, and quotes nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import aiohttp
import grpc
import pytest
from openai_server import Server, Talk, chunk, event, usage
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_current_span
from router_bench import embedding, router

from infra.settings.settings import read_settings
from load.bench.upstreams.dispatchers import dispatchers
from serve.deploy import replica as replicas
from serve.proto.fairlead.v1 import dispatch_pb2, dispatch_pb2_grpc
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.tracing.drawn import Drawn
from serve.tracing.tracing import W3C, Tracing, TracingOptions, opened
from streams.alarms import Board
from streams.errors import OptionRefused
from streams.feedback.report import encode_report
from streams.log.contract import FEEDBACK
from streams.log.sqlite_log import SqliteLog
from streams.training.share import SoleShard
from streams.training.watch import Watch

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SECRET = "canary0123456789"
ASKED = {"model": "auto", "messages": [{"role": "user", "content": SECRET}]}
SITE = """
state_dir = "{folder}/state"
[encoder]
kind = "hashing"
[telemetry]
period_s = 0.0
[dispatch]
replicas = 1
[tracing]
endpoint = "http://127.0.0.1:9/v1/traces"
[[models]]
name = "model"
[[pools]]
name = "pool"
model = "model"
backend = "openai"
urls = ["{url}"]
"""


@pytest.fixture
def spans(monkeypatch) -> InMemorySpanExporter:
    """What replicas made by this test send, in the place of a collector."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(replicas, "opened", lambda options: Tracing(provider))
    return exporter


async def answers(talk: Talk) -> None:
    await talk.stream(event(chunk({"content": SECRET})), event(usage(3, 1)), b"data: [DONE]\n\n")


async def refuses(talk: Talk) -> None:
    await talk.answer(400, {"error": {"message": f"{SECRET} is too long", "code": "bad"}})


async def asked(folder: Path, handle, ask) -> list[Talk]:
    """A real dispatcher over one real server; `ask` gets its ports. What the server was sent."""
    async with Server(handle) as server:
        path = folder / "fairlead.toml"
        path.write_text(SITE.format(folder=folder, url=server.url))
        async with dispatchers(path, 1) as (one,):
            await ask(one.replica.port, one.http_port)
        return server.talks


async def over_grpc(grpc_port: int, http_port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        request = dispatch_pb2.DispatchRequest(route=pb.RouteRequest(text=SECRET))
        stub = dispatch_pb2_grpc.DispatcherStub(channel)
        with contextlib.suppress(grpc.aio.AioRpcError):  # where the pool refuses
            async for _ in stub.Dispatch(request, metadata=(("traceparent", PARENT),), timeout=30):
                pass


async def over_http(grpc_port: int, http_port: int) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{http_port}/v1/chat/completions"
        async with session.post(url, json=ASKED, headers={"traceparent": PARENT}) as reply:
            assert reply.status == 200, await reply.text()


@pytest.mark.parametrize(
    ("ask", "first"),
    [(over_grpc, "fairlead.v1.Dispatcher/Dispatch"), (over_http, "POST /v1/chat/completions")],
)
def test_a_callers_trace_goes_on_to_the_pool(tmp_path, spans, ask, first):
    """
    caller ─▶ the call ─▶ route, and attempt ─▶ the pool's server
    """
    talks = asyncio.run(asked(tmp_path, answers, ask))
    found = {span.name: span for span in spans.get_finished_spans()}
    assert {first, "route", "attempt"} <= set(found)
    call, attempt = found[first], found["attempt"]
    assert {format(one.context.trace_id, "032x") for one in found.values()} == {TRACE}
    assert format(call.parent.span_id, "016x") == SPAN
    assert found["route"].parent.span_id == attempt.parent.span_id == call.context.span_id
    assert found["route"].attributes["fairlead.model"] == "model"
    assert attempt.attributes["fairlead.pool"] == "pool"
    assert attempt.attributes["gen_ai.usage.output_tokens"] == 1
    sent = [talk.headers["traceparent"] for talk in talks if "completions" in talk.path]
    assert sent == [f"00-{TRACE}-{attempt.context.span_id:016x}-01"]


@pytest.mark.parametrize("handle", [answers, refuses])
def test_spans_quote_neither_prompts_nor_answers_nor_errors(tmp_path, spans, handle):
    asyncio.run(asked(tmp_path, handle, over_grpc))
    said = " ".join(span.to_json() for span in spans.get_finished_spans())
    assert "attempt" in said and SECRET not in said


def test_decisions_feedback_and_refusals_have_spans(tmp_path, spans):
    """
    With the code that the caller got; a refusal is the caller's fault and no error of ours.
    """
    with router(tmp_path) as bench:
        stub, parent = bench.stub, (("traceparent", PARENT),)
        ticket = stub.Route(pb.RouteRequest(embedding_f32=embedding()), metadata=parent).ticket
        outcome = pb.Outcome(ticket=ticket, quality=0.5)
        stub.SendFeedback(pb.FeedbackRequest(outcomes=[outcome]), metadata=parent)
        with pytest.raises(grpc.RpcError):
            stub.Route(pb.RouteRequest(cost_usd_max=-1.0), metadata=(("traceparent", "nonsense"),))
    found = [(one.name.split("/")[1], one) for one in spans.get_finished_spans()]
    assert [name for name, _ in found] == ["Route", "SendFeedback", "Route"]
    codes = [one.attributes["rpc.grpc.status_code"] for _, one in found]
    assert codes == [0, 0, grpc.StatusCode.INVALID_ARGUMENT.value[0]]
    assert all(one.status.is_ok or one.status.is_unset for _, one in found)
    assert found[0][1].parent is not None and found[2][1].parent is None


def read(log, topic: str = FEEDBACK) -> list[dict]:
    """What the records of a topic say."""
    reader = log.reader(topic, log.first_offsets(topic))
    found = [json.loads(record.value) for record in reader.read(100, 5.0)]
    reader.close()
    return found


def test_an_outcome_carries_its_trace_through_the_log_to_the_trainer(tmp_path, spans):
    """
    caller ─▶ SendFeedback ─▶ the feedback log ─▶ learn. What can't be read as a trace is learned, too.
    """
    with router(tmp_path) as bench:
        stub, parent = bench.stub, (("traceparent", PARENT),)
        tickets = [bench.route(embedding_f32=embedding(i)).ticket for i in range(3)]
        one, other, third = [pb.Outcome(ticket=ticket, quality=0.5) for ticket in tickets]
        stub.SendFeedback(pb.FeedbackRequest(outcomes=[one]), metadata=parent)
        unsampled = (("traceparent", f"00-{TRACE}-{SPAN}-00"),)
        stub.SendFeedback(pb.FeedbackRequest(outcomes=[other]), metadata=unsampled)
        odd = encode_report(third.ticket, quality=0.5, traceparent="odd")
        bench.log.append(FEEDBACK, [(b"", odd)])
        written = [record.get("traceparent") for record in read(bench.log)]
        (sent,) = [s for s in spans.get_finished_spans() if s.name.endswith("/SendFeedback")]
        assert written == [f"00-{TRACE}-{sent.context.span_id:016x}-01", None, "odd"]

        spans.clear()
        board = Board(bench.store.folder, "trainer", "one", bench.clock)
        traced = bench.replica.tracing.learned
        bench.trainer._watch = Watch(board, bench.log, SoleShard(), bench.clock, traced)
        while bench.trainer.step():
            pass
        assert bench.trainer.state.counts["learned"] == 3
        learned = [span for span in spans.get_finished_spans() if span.name == "learn"]
        of_the_call = [one for one in learned if one.context.trace_id == int(TRACE, 16)]
        assert [one.parent.span_id for one in of_the_call] == [sent.context.span_id]


def test_what_dispatchers_measure_carries_its_trace(tmp_path, spans):
    asyncio.run(asked(tmp_path, answers, over_grpc))
    log = SqliteLog(tmp_path / "state" / "log.sqlite", lambda: 0)
    traces = {record["traceparent"].split("-")[1] for record in read(log)}
    log.close()
    assert traces == {TRACE}


def test_off_nothing_is_on_a_requests_way(tmp_path):
    with router(tmp_path) as bench:
        assert bench.replica.tracing is None
        assert [one._around for one in bench.replica._listeners] == [None]
    assert opened(TracingOptions()) is None


def test_a_call_that_is_not_drawn_has_no_span_and_its_pool_makes_none(tmp_path, monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(replicas, "opened", lambda options: Tracing(provider, lambda: False))

    async def alone(grpc_port: int, http_port: int) -> None:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{http_port}/v1/chat/completions"
            async with session.post(url, json=ASKED) as reply:
                assert reply.status == 200, await reply.text()

    talks = asyncio.run(asked(tmp_path, answers, alone))

    assert exporter.get_finished_spans() == ()
    (sent,) = [talk.headers["traceparent"] for talk in talks if "completions" in talk.path]
    assert get_current_span(W3C.extract({"traceparent": sent})).get_span_context().is_valid
    assert sent.endswith("-00")


def test_of_many_calls_so_many_a_second_are_drawn():
    """
    Of few all, of a burst what a second may have, and of a share no more than it.
    """
    now_s, lots = [0.0], iter([0.05, 0.5, 0.05])
    drawn = Drawn(per_s_max=5.0, now_s=lambda: now_s[0])
    assert [drawn() for _ in range(8)] == [True] * 5 + [False] * 3
    now_s[0] = 0.5
    assert [drawn() for _ in range(4)] == [True] * 2 + [False] * 2
    now_s[0] = 99.0
    assert sum(drawn() for _ in range(100)) == 5

    share = Drawn(share=0.1, now_s=lambda: 0.0, draw=lambda: next(lots))
    assert [share() for _ in range(3)] == [True, False, True]
    assert not Drawn(per_s_max=0.0)()


def test_without_the_sdk_it_is_said_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(OptionRefused, match=r"fairlead\[tracing\]"):
        opened(TracingOptions(endpoint="http://127.0.0.1:4318/v1/traces"))


def test_settings_have_where_to_and_how_many(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_text(SITE.format(folder=tmp_path, url="http://127.0.0.1:9/v1") + "")
    found = read_settings(path).deployment().replica.tracing
    assert found == TracingOptions(endpoint="http://127.0.0.1:9/v1/traces", share=1.0)


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Takes OTLP over HTTP, as a collector does."""
    taken = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            taken.append(ExportTraceServiceRequest.FromString(content))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_them_before_the_process_ends():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs fairlead[tracing]")
    with collector() as (endpoint, taken):
        tracing = opened(TracingOptions(endpoint=endpoint))
        with tracing.tracer.start_as_current_span("route"):
            pass
        tracing.close()
    names = [
        span.name
        for one in taken
        for resource in one.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert names == ["route"]
