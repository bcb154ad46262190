"""A trace against a live server: open loop, verified, and counted to the last request."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import ssl
import threading
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
import typer
from aiohttp import web
from certificates import self_signed
from typer.testing import CliRunner
from waiting import PATIENCE_S

from fairlead.channels import connect
from fairlead.command_line import app
from fairlead.commands.planning.replay import lines_of
from fairlead.commands.terminal import print_lines, progress
from fairlead.errors import InvalidOption
from learners.criticality import Criticality
from load.data.kinds import Kind
from load.data.traces import FOLDER, Trace, write
from load.errors import TraceRefused

pytest.importorskip("hdrh", reason="needs hdrhistogram: make install")

from load.replay.measured import STAGES, Measured, Phase, percentile_ms
from load.replay.player import (
    FeedbackOptions,
    Part,
    Player,
    TargetOptions,
    target_of,
)
from load.replay.replay import ReplayOptions, _figures, _part, processes_for, replay
from load.replay.targets import (
    Answered,
    Asked,
    DispatchTarget,
    OpenAiTarget,
    RouteTarget,
    trusting,
)
from load.report.page import write as write_page
from serve.proto.fairlead.v1 import router_pb2 as pb

SHEDDABLE = Criticality.SHEDDABLE


def trace_of(n: int, per_s: float) -> Trace:
    return Trace("made", np.arange(n) / per_s, np.full(n, 20), np.full(n, 3))


@contextlib.contextmanager
def server(answer_s=0.0, fails_every=0, never_every=0):
    """An OpenAI server that streams three tokens; some requests fail, some are never answered."""
    seen, ready = [], threading.Event()

    async def complete(request):
        seen.append((time.perf_counter(), await request.json()))
        n = len(seen)
        if fails_every and n % fails_every == 0:
            return web.json_response({"error": {"code": "busy"}}, status=503)
        if never_every and n % never_every == 0:
            await asyncio.sleep(60.0)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        await asyncio.sleep(answer_s)
        for word in ("a", "b", "c"):
            piece = {"model": "tiny", "choices": [{"delta": {"content": word}}]}
            await reply.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        await reply.write(b"data: [DONE]\n\n")
        return reply

    async def serve():
        site = web.Application(client_max_size=1 << 24)
        site.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(site, shutdown_timeout=0.1)
        await runner.setup()
        place = web.TCPSite(runner, "127.0.0.1", 0)
        await place.start()
        up.extend((asyncio.get_running_loop(), runner.addresses[0][1]))
        ready.set()
        await stopping.wait()
        await runner.cleanup()

    up = []
    stopping = asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_S)
    loop, port = up
    try:
        yield f"http://127.0.0.1:{port}/v1", seen
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(PATIENCE_S)


def play(url, trace, **options):
    target = {k: options.pop(k) for k in ("timeout_s",) if k in options}
    wanted = ReplayOptions(target=TargetOptions(url=url, **target), **options)
    return replay(trace, None, None, wanted, connect, lambda text: None)


def test_all_processes_together_send_the_trace_at_its_times():
    """
    Two processes, one schedule; what came is counted by model, warm-up apart.
    """
    with server() as (url, seen):
        found = play(url, trace_of(60, 60.0), processes=2, warm_up_s=0.5, drain_s=PATIENCE_S)

    assert len(seen) == 60
    assert (found["requests"], found["warm_up"]["requests"]) == (30, 30)
    assert found["finished"] == 30 and found["unfinished"] == 0
    assert found["output_tokens"] == 90
    assert found["models"] == {"tiny": {"share": 1.0, "quality": None}}
    assert found["ttft_ms"]["p99"] is not None
    assert sum(found["series"]["requests_per_s"]) * found["series"]["step_s"] == pytest.approx(
        60, rel=1e-3
    )
    assert seen[0][1]["max_tokens"] == 3 and seen[0][1]["stream"]
    texts = {body["messages"][0]["content"] for _, body in seen}
    assert len(texts) == 60  # no prompt is found in a cache


def test_nobody_waits_for_an_answer_before_the_next_request():
    """
    Open loop: with answers of half a second, all of a fifth of a second's requests are sent.
    """
    with server(answer_s=0.5) as (url, seen):
        found = play(url, trace_of(20, 100.0), processes=1, drain_s=PATIENCE_S)
    assert found["finished"] == 20
    assert seen[-1][0] - seen[0][0] < found["latency_ms"]["p50"] / 1e3 * 10
    assert found["ttft_ms"]["p50"] >= 500.0


def test_what_failed_or_never_came_counts_in_every_percentile():
    """
    A fifth fails, another fifth is never answered: the median is known, the 90th percentile is not.
    """
    with server(fails_every=5, never_every=4) as (url, _):
        found = play(url, trace_of(40, 40.0), processes=1, drain_s=3.0)
    assert found["failed"] == {"HTTP 503": 8}
    assert "failed: 8 HTTP 503; 8 still without an answer at the end" in lines_of(found)[1]
    assert found["unfinished"] == 16  # of which eight were given up
    assert found["ttft_ms"]["p50"] is not None
    assert found["ttft_ms"]["p90"] is None and found["ttft_ms"]["p99"] is None


PIECE = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
ODD = [
    ("a list", b"data: [1]\n\n", "GARBAGE"),
    ("nothing where a choice is due", b'data: {"choices":[null]}\n\n', "GARBAGE"),
    ("no JSON", PIECE + b"data: {so\n\n", "GARBAGE"),
    ("bytes", b"data: \xff\xfe\n\n", "GARBAGE"),
    ("an error in words", PIECE + b'data: {"error": "so"}\n\n', "error"),
    ("an error with a code", PIECE + b'data: {"error": {"code": 7}}\n\n', "7"),
    ("lists in lists", b"data: " + 60_000 * b"[" + b"\n\n", "GARBAGE"),
    ("tokens in words", b'data: {"usage":{"completion_tokens":"two"}}\n\n', "GARBAGE"),
    ("half an answer", PIECE, "BROKEN_OFF"),
    ("nothing", b"", "NO_ANSWER"),
    ("a page", b"<html>\n<p>Sign in</p></html>", "NO_STREAM"),
    ("an answer in one piece", b'{"choices":[{"message":{"content":"a"}}]}', "NO_STREAM"),
    ("a thought", PIECE.replace(b"content", b"reasoning_content") + b"data: [DONE]\n\n", ""),
    ("comments and names of events", b": hm\n\nevent: a\nid: 1\n" + PIECE + b"data: [DONE]\n", ""),
    ("an end without a mark", PIECE + b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', ""),
]


@pytest.mark.parametrize(("sent", "failed"), [o[1:] for o in ODD], ids=[o[0] for o in ODD])
def test_whatever_a_server_sends_is_an_answer_that_failed_or_not(sent, failed):
    """
    A stream that just ends is no answer, and none of them ends the replay.
    """

    async def serve(request):
        return web.Response(body=sent, content_type="text/event-stream")

    (found,) = asyncio.run(asked_of(serve))

    assert (found.failed, found.model) == (failed, "m")


ONE = Asked(number=0, prompt_tokens=5, output_tokens=3, row=-1)


async def asked_of(serve, token="", tls=(None, None)):
    """What comes back of one request to a server of one's own; `tls` are its key and certificate."""
    key, certificate = tls
    app = web.Application()
    app.router.add_post("/v1/chat/completions", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    place = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=key)
    await place.start()
    scheme, port = "https" if key else "http", runner.addresses[0][1]
    target = OpenAiTarget(f"{scheme}://localhost:{port}/v1", "m", 60.0, {}, token, certificate)
    try:
        return await target.ask([ONE])
    finally:
        await target.close()
        await runner.cleanup()


def test_what_a_server_says_can_be_counted_printed_and_written(capsys, tmp_path):
    """
    A model that is a number could not be sorted with others, half a character not be written, and
    a name of the console's markup ended the replay.
    """
    error = {"code": "[/b]\x1b\n", "message": "\ud800"}
    pieces = PIECE.replace(b"{", b'{"model":5,', 1), {"model": "\udfff", "error": error}

    async def serve(request):
        body = pieces[0] + b"data: " + json.dumps(pieces[1]).encode() + b"\n\n"
        return web.Response(body=body, content_type="text/event-stream")

    (found,) = asyncio.run(asked_of(serve))
    total = Measured()
    total.main.fail(found.failed, found.said)
    total.answers_of(found.model).add(1, 0, 0.0)
    figures = _figures(trace_of(3, 1.0), total, ReplayOptions(target=TargetOptions(url="x")), 1, 0)
    progress(found.failed)
    print_lines(lines_of(figures))
    trace = {"name": "t", "source": None, "requests": 1, "span_s": 1.0, "left_out": {}}
    found_all = {"command": "replay", "trace": trace, "seed": 0, **figures}
    write_page(found_all, tmp_path / "r.html")

    assert (found.model, found.said) == ("5", "?")
    assert "\\x1b" in capsys.readouterr().out


def test_a_page_where_a_stream_is_due_is_quoted_from_its_beginning():
    """
    Of an answer in several lines the first one is a brace.
    """

    async def serve(request):
        return web.Response(body=b'{\n  "detail": "streams cost more"\n}\n')

    (found,) = asyncio.run(asked_of(serve))

    assert (found.failed, found.said) == ("NO_STREAM", '{ "detail": "streams cost more" }')


def test_tokens_are_as_many_as_the_server_says():
    """
    A piece may hold several: counted by pieces, an answer of forty tokens was one of one.
    """

    async def serve(request):
        said = b'data: {"choices":[],"usage":{"completion_tokens":40}}\n\ndata: [DONE]\n\n'
        return web.Response(body=PIECE + said, content_type="text/event-stream")

    (found,) = asyncio.run(asked_of(serve))

    assert (found.failed, found.tokens) == ("", 40)


@pytest.mark.parametrize(("token", "failed"), [("s3", ""), ("", "HTTP 401")])
def test_a_server_that_wants_a_key_over_tls_gets_it(token, failed, tmp_path):
    """
    And where it is not given, the replay says what the server says of it.
    """
    key, certificate = self_signed()
    (tmp_path / "both.pem").write_bytes(key + certificate)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "both.pem")

    async def serve(request):
        if request.headers.get("Authorization") != "Bearer s3":
            return web.json_response({"error": {"message": "who\nare you?"}}, status=401)
        return web.Response(body=PIECE + b"data: [DONE]\n\n", content_type="text/event-stream")

    (found,) = asyncio.run(asked_of(serve, token, (own, certificate)))
    phase = Phase(intended=2)
    for _ in range(2):
        phase.fail(found.failed, found.said)
    total = Measured()
    total.main.add(phase.packed())
    figures = _figures(trace_of(3, 1.0), total, ReplayOptions(target=TargetOptions(url="x")), 1, 0)

    assert found.failed == failed
    assert figures["failed_said"] == ({failed: "who are you?"} if failed else {})
    assert ("HTTP 401       who are you?" in lines_of(figures)) == bool(failed)


@pytest.mark.parametrize("kind", [RouteTarget, DispatchTarget])
def test_a_router_that_wants_a_token_over_tls_gets_it(kind):
    """
    A site with tokens could not be replayed to.
    """
    key, certificate = self_signed()
    seen = []

    async def refuse(request, context):
        seen.append(dict(context.invocation_metadata())["authorization"])
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the token lacks\nthe scope route")

    async def stream(request, context):
        await refuse(request, context)
        yield b""

    async def asked():
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([
            grpc.method_handlers_generic_handler(
                "fairlead.v1.Router", {"Route": grpc.unary_unary_rpc_method_handler(refuse)}
            ),
            grpc.method_handlers_generic_handler(
                "fairlead.v1.Dispatcher", {"Dispatch": grpc.unary_stream_rpc_method_handler(stream)}
            ),
        ])  # fmt: skip
        shown = grpc.ssl_server_credentials([(key, certificate)])
        port = server.add_secure_port("localhost:0", shown)
        await server.start()
        options = TargetOptions(
            url=f"localhost:{port}",
            call="route" if kind is RouteTarget else "dispatch",
            token="s3",
            root_certificates=certificate,
        )
        target = target_of(options, connect)
        try:
            return await target.ask([ONE])
        finally:
            await target.close()
            await server.stop(None)

    (found,) = asyncio.run(asked())

    assert seen == ["Bearer s3"]
    assert (found.failed, found.said) == ("PERMISSION_DENIED", "the token lacks the scope route")


def asked_of_kinds():
    """Two requests of a trace that says who asks, as a replay asks them."""
    kind = Kind(tenant="acme", task="sum", tags=("a", "b"), modality="image", criticality=SHEDDABLE)
    trace = replace(
        trace_of(2, 10.0),
        classes=np.array([0, 1]),
        kinds=(Kind(), kind),
        sessions=np.array([0, 255], np.uint64),
    )
    return _part(trace, None, None, ReplayOptions(target=TargetOptions(url="x")), 0, 1).asked


SAID = {
    "tenant": "acme",
    "task": "sum",
    "tags": ["a", "b"],
    "modality": "image",
    "session": "00000000000000ff",
    "criticality": pb.SHEDDABLE,
}


@pytest.mark.parametrize("call", ["route", "dispatch"])
def test_routers_are_told_what_a_trace_says_of_its_requests(call, monkeypatch):
    """
    Rules and budgets of tenants held in a simulation of a trace, and not in its replay.
    """
    seen = []

    class Stub:
        def __init__(self, channel):
            pass

        async def RouteBatch(self, batch, **how):
            seen.extend(batch.requests)
            return pb.RouteBatchReply(replies=[pb.RouteReply() for _ in batch.requests])

        async def Dispatch(self, request, **how):
            seen.append(request.route)
            return
            yield

    monkeypatch.setattr("load.replay.targets.dispatch_pb2_grpc.DispatcherStub", Stub)
    monkeypatch.setattr("load.replay.targets.router_pb2_grpc.RouterStub", Stub)
    kind = DispatchTarget([None], 1.0, "", {}) if call == "dispatch" else RouteTarget([None], 1, "")
    asyncio.run(kind.ask(asked_of_kinds()))

    for request in seen:
        request.ClearField("text")
    assert seen == [pb.RouteRequest(prompt_tokens=20), pb.RouteRequest(prompt_tokens=20, **SAID)]


def test_a_server_of_openais_api_is_told_the_tenant_as_its_user():
    with server() as (url, seen):

        async def ask():
            target = OpenAiTarget(url, "tiny", PATIENCE_S, {})
            await target.ask(asked_of_kinds())
            await target.close()

        asyncio.run(ask())

    assert [body.get("user") for _, body in seen] == [None, "acme"]


@pytest.mark.parametrize(
    ("target", "file", "key"),
    [
        ("https://h/v1", True, "of the file"),
        ("https://h/v1", False, "of the environment"),
        ("h:7480", True, "of the file"),
        ("h:7480", False, ""),  # a key of OpenAI's is nothing for a router
        ("httpd:7480", False, ""),  # nor for one of such a name
    ],
)
def test_keys_and_certificates_of_the_command_reach_the_target(
    target, file, key, monkeypatch, tmp_path
):
    """
    A file's before the environment's; a token that controls a site is not for any server.
    """
    (tmp_path / "key").write_text("of the file\n")
    (tmp_path / "ca.pem").write_bytes(self_signed()[1])
    asked = []

    def played(trace, table, rows, options, *rest):
        asked.append(options.target)
        raise TraceRefused("that will do")

    monkeypatch.setenv("OPENAI_API_KEY", "of the environment")
    monkeypatch.setenv("FAIRLEAD_TOKEN_FILE", str(tmp_path / "key"))
    monkeypatch.setattr("load.replay.replay.replay", played)
    command = [
        "replay",
        "azure",
        "--to-s",
        "9",
        "--target",
        target,
        "--ca",
        str(tmp_path / "ca.pem"),
    ]
    CliRunner().invoke(app, command + ["--token-file", str(tmp_path / "key")] * file)

    assert [one.token for one in asked] == [key]
    assert asked[0].root_certificates == (tmp_path / "ca.pem").read_bytes()
    assert key == "" or key not in repr(asked)


def test_load_that_was_not_delivered_or_answered_is_said_and_exits_1(tmp_path):
    """
    A trace of 400,000 requests a second can't be sent by one process, and nobody is there.
    """
    write(trace_of(4000, 400_000.0), tmp_path / "flood.parquet")
    command = ["replay", str(tmp_path / "flood.parquet"), "--target", "127.0.0.1:9", "--json"]
    done = CliRunner().invoke(
        app, [*command, "--processes", "1", "--timeout-s", "0.2", "--drain-s", "1"]
    )
    found = json.loads(done.stdout)
    assert found["unfinished"] == 4000
    assert found["delivered"] == (found["delivered_share"] >= 0.99)
    assert done.exit_code == 1
    assert "Nothing was answered: is 127.0.0.1:9 up" in "\n".join(lines_of(found))


@pytest.mark.parametrize(
    "held", [b"", b"\n", b"s3\ncret", b"\xff\xfes3cret", "s3crét".encode()], ids=repr
)
def test_a_file_that_holds_no_token_is_refused_and_not_shown(held, monkeypatch, tmp_path):
    """
    gRPC sends no header of two lines: the replay ended with an error of its own.
    """
    monkeypatch.setattr("load.replay.replay.replay", lambda *_: {})  # it is not to come so far
    (tmp_path / "key").write_bytes(held)
    command = ["replay", "azure", "--target", "h:1", "--token-file", str(tmp_path / "key")]

    done = CliRunner().invoke(app, [*command, "--json"])

    assert isinstance(done.exception, InvalidOption)
    assert "--token-file" in done.stdout and "s3" not in done.output


def test_certificates_are_found_among_comments_and_none_are_no_trust():
    """
    Bundles name their certificates, some with accents; with an empty file everybody was trusted.
    """
    assert trusting("# Főtanúsítvány\n".encode() + self_signed()[1]).cert_store_stats()["x509"] == 1
    with pytest.raises(ValueError, match="no certificates"):
        trusting(b"\n")


@pytest.mark.parametrize("command", ["make", "plan", "page"])
def test_a_result_that_breaks_off_while_it_is_written_leaves_the_file_as_it_was(
    command, monkeypatch, tmp_path
):
    """
    A full disk cost last week's plan, too.
    """
    path, half = tmp_path / "r.html", "\ud800"  # which can't be written
    path.write_text("last week's")

    def broken(trace, out):
        out.write_text(half)

    if command == "make":
        monkeypatch.setattr("load.data.traces.write", broken)
        CliRunner().invoke(app, ["traces", "make", "poisson", "--out", str(path)])
    elif command == "plan":
        found = {"feasible": True}, object()
        monkeypatch.setattr("fairlead.commands.planning.plan._planned", lambda *_: found)
        monkeypatch.setattr("fairlead.commands.planning.plan._fragment", lambda *_: half)
        CliRunner().invoke(app, ["plan", "azure", "--json", "--out", str(path)])
    else:
        monkeypatch.setattr("load.report.page.page", lambda found: half)
        with pytest.raises(UnicodeEncodeError):
            write_page({}, path)

    assert path.read_text() == "last week's"
    assert list(tmp_path.iterdir()) == [path]


TAKEN = "{} would be overwritten"
WRONG = [
    (["replay", "azure", "--target", "router"], "'router' is neither HOST:PORT"),
    (["replay", "azure", "--target", "http:///v1"], "'http:///v1' is neither HOST:PORT"),
    (["replay", "azure", "--target", "h:1", "--ca", __file__], "holds no certificates as PEM"),
    (["replay", "azure", "--target", "h:1", "--report", "/no/where.html"], "is there a folder /no"),
    (
        ["simulate", "azure", "--from-s", "60", "--to-s", "30"],
        "30 is not after --from-s, which is 60",
    ),
    (["simulate", "azure", "--report", "."], ". is a folder: name a file"),
    (["simulate", "azure", "--report", "a.json"], "name the page, as a.html"),
    (["plan", "azure", "--out", "/no/where.toml"], "is there a folder /no"),
    (["traces", "make", "poisson", "--out", "/no/where.parquet"], "is there a folder /no"),
    (["traces", "make", "poisson", "--lengths", "t.csv", "--out", "t.csv"], TAKEN.format("t.csv")),
    (["plan", "t.csv", "--out", "./t.csv"], TAKEN.format("t.csv")),
    (["plan", "azure", "--report", "fairlead.toml"], TAKEN.format("fairlead.toml")),
    (["plan", "azure", "--out", "p.json", "--report", "p.html"], TAKEN.format("p.json")),
    (["simulate", "t.jsonl", "--events", "e.toml", "--report", "e.toml"], TAKEN.format("e.toml")),
    (["replay", "p.json", "--target", "h:1", "--report", "p.html"], TAKEN.format("p.json")),
]


@pytest.mark.parametrize(("command", "said"), WRONG, ids=[" ".join(c) for c, _ in WRONG])
def test_what_would_fail_after_the_work_is_said_before_it(command, said):
    """
    A result that can't be written or is what is read, an address that is none: told at once.
    """
    done = CliRunner().invoke(app, command, standalone_mode=False)

    assert isinstance(done.exception, typer.BadParameter)
    assert said in str(done.exception)


@pytest.mark.parametrize(
    "command",
    [
        ["simulate", "azure", "--from-s", "1500", "--to-s", "1501"],
        [
            "replay",
            "azure",
            "--from-s",
            "1500",
            "--to-s",
            "1501",
            "--target",
            "http://127.0.0.1:9/v1",
        ],
    ],
    ids=lambda command: command[0],
)
def test_a_report_that_finds_the_disk_full_costs_no_result(command, monkeypatch):
    """
    What took an hour to find was not said either.
    """

    def full(found, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("load.report.page.write", full)
    done = CliRunner().invoke(app, [*command, "--json", "--report", "r.html"])

    assert isinstance(done.exception, OSError) and done.exception.errno == errno.ENOSPC
    assert json.loads(done.stdout)["command"] == command[0]


def test_a_row_that_the_outcome_table_has_not_is_refused_before_anything_is_sent(tmp_path):
    """
    It broke the replay off at the first answer.
    """
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,outcome_row\n0,1,1,1\n1,1,1,999999\n")
    table = FOLDER / "llmrouter_dc.parquet"
    command = ["replay", str(trace), "--target", "127.0.0.1:9", "--outcomes", str(table)]

    done = CliRunner().invoke(app, command)

    assert isinstance(done.exception, TraceRefused)
    assert "names outcome_row 999999" in str(done.exception)


def test_a_late_sender_is_no_measurement():
    """
    What is sent later than a quarter of a second after it was due was not delivered.
    """
    phase = Phase(intended=100, sent=100, on_time=98, finished=100)
    measured = Measured(main=phase)
    options = ReplayOptions(target=TargetOptions(url="x"))
    found = _figures(trace_of(101, 10.0), measured, options, 1, 0.0)
    assert not found["delivered"] and found["delivered_share"] == 0.98
    phase.on_time = 99
    assert _figures(trace_of(101, 10.0), measured, options, 1, 0.0)["delivered"]


def test_histograms_of_processes_add_up_exactly():
    """
    Merged they are what one process would have measured; percentiles are right to 0.1 %.
    """
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(-2.0, 1.0, 3000)
    one, parts = Phase(intended=3000), [Phase(intended=1000) for _ in range(3)]
    for i, value in enumerate(seconds.tolist()):
        one.note("ttft", value)
        parts[i % 3].note("ttft", value)
    merged = Phase()
    for part in parts:
        merged.add(part.packed())
    assert merged.percentiles_ms("ttft") == one.percentiles_ms("ttft")
    for p in (50, 90, 99):
        exact = np.sort(seconds)[math.ceil(p / 100 * 3000) - 1] * 1e3
        assert percentile_ms(merged.of["ttft"], 3000, p / 100) == pytest.approx(exact, rel=2e-3)


def test_processes_follow_the_busiest_second():
    flood = trace_of(9000, 3000.0)
    assert processes_for(flood, TargetOptions(url="x")) >= 2
    assert processes_for(flood, TargetOptions(url="x", batch_ms=5.0)) == 1


def test_a_dispatchers_answer_says_what_the_first_tokens_time_went_for():
    """
    Sent late by, there and back, decided, in the pool: stages of one request add up to its time.
    """

    class Staged:
        async def ask(self, asked):
            now_s = time.perf_counter()
            return [
                Answered(first_s=now_s + 0.5, ended_s=now_s + 1.0, decided_s=0.01, inside_s=0.4)
                for _ in asked
            ]

    asked = [Asked(number=0, prompt_tokens=5, output_tokens=5, row=-1)]
    part = Part(
        at_s=np.zeros(1), asked=asked, span_s=0.0, warm_up_s=0.0, drain_s=5.0, quality={},
        feedback=FeedbackOptions(), seed=0,
    )  # fmt: skip
    player = Player(part, TargetOptions(url="x"), Staged())
    asyncio.run(player.play(time.time()))

    main = player.measured.main
    stage = {name: main.percentiles_ms(name)["p50"] for name in STAGES}
    assert stage["decision"] == pytest.approx(10.0, rel=1e-3)
    assert stage["pool"] == pytest.approx(390.0, rel=2e-3)
    ttft_ms, exact = (
        main.percentiles_ms("ttft")["p50"],
        {"abs": 2.0, "rel": 5e-3},
    )  # if late, by much
    assert sum(stage.values()) == pytest.approx(ttft_ms, **exact)
    beside = sum(stage.values()) - stage["pool"]
    assert main.quantiles_ms("beside") == pytest.approx([beside] * 200, **exact)
    assert Phase().quantiles_ms("beside") == []


def test_what_is_put_into_every_body_reaches_a_dispatcher(monkeypatch):
    """
    An emulated or vLLM server answers as long as the trace says where `ignore_eos` is passed on.
    """
    sent = []

    class Stub:
        def __init__(self, channel):
            pass

        def Dispatch(self, request, **how):
            sent.append(json.loads(request.options_json))

            async def nothing():
                return
                yield

            return nothing()

    monkeypatch.setattr("load.replay.targets.dispatch_pb2_grpc.DispatcherStub", Stub)
    monkeypatch.setattr("load.replay.targets.router_pb2_grpc.RouterStub", Stub)
    target = DispatchTarget([None], 1.0, "", {"ignore_eos": True})
    (answer,) = asyncio.run(target.ask([Asked(number=0, prompt_tokens=5, output_tokens=7, row=-1)]))
    assert sent == [{"max_tokens": 7, "ignore_eos": True}]
    assert answer.failed == "NO_ANSWER"


def test_answers_are_as_good_as_the_outcome_table_says():
    """
    Where it knows the prompt and the model; what it does not know counts for no quality.
    """

    class Knows:
        async def ask(self, asked):
            return [Answered(model="a" if one.number else "unknown") for one in asked]

    asked = [Asked(number=i, prompt_tokens=5, output_tokens=5, row=i - 1) for i in range(4)]
    part = Part(
        at_s=np.zeros(4), asked=asked, span_s=0.0, warm_up_s=0.0, drain_s=5.0,
        quality={"a": np.array([1.0, 0.5, 0.25])}, feedback=FeedbackOptions(), seed=0,
    )  # fmt: skip
    player = Player(part, TargetOptions(url="x"), Knows())
    asyncio.run(player.play(time.time()))
    total = Measured()
    for _ in range(2):  # of two processes
        total.add(player.measured.packed())
    found = _figures(trace_of(8, 1.0), total, ReplayOptions(target=TargetOptions(url="x")), 2, 0.0)
    assert found["quality"] == pytest.approx((1.0 + 0.5 + 0.25) / 3, abs=1e-6)
    assert found["models"]["a"] == {"share": 0.75, "quality": found["quality"]}
    assert found["models"]["unknown"] == {"share": 0.25, "quality": None}


def test_a_fault_of_our_own_is_raised_and_not_called_unfinished():
    """
    What a server does is an answer; an error in the replay itself ends it.
    """

    class Broken:
        async def ask(self, asked):
            raise ZeroDivisionError

    asked = [Asked(number=0, prompt_tokens=5, output_tokens=5, row=-1)]
    part = Part(
        at_s=np.zeros(1), asked=asked, span_s=0.0, warm_up_s=0.0, drain_s=5.0, quality={},
        feedback=FeedbackOptions(), seed=0,
    )  # fmt: skip
    player = Player(part, TargetOptions(url="x"), Broken())
    with pytest.raises(ZeroDivisionError):
        asyncio.run(player.play(time.time()))
