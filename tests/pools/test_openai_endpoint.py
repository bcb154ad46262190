"""The endpoint's contract, kept over HTTP and in memory, and what is particular to HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import socket
import subprocess
import sys
import traceback
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_endpoint import FakeEndpoint, Gate, Script, answers
from openai_server import DONE, ROLE, Server, Talk, chunk, event, follow
from strategies import lightly
from waiting import soon

from infra.endpoints.connections import Connections, ConnectionsOptions
from infra.endpoints.openai_endpoint import OpenAiEndpoint
from infra.endpoints.options import OpenAiOptions
from infra.pools.ports import free_ports
from serve.dispatch.backend import Answer, Call, Endpoint, Piece, Usage
from serve.errors import (
    AnswerGarbled,
    AnswerLate,
    AttemptFailed,
    CallRefused,
    EndpointFailed,
    EndpointMisconfigured,
    EndpointOverloaded,
    EndpointUnreachable,
)
from streams.errors import OptionRefused

PATIENCE_S = 120.0  # for what must come; a test that waits this long has failed
CALL = Call(body={"messages": [{"role": "user", "content": "Hi"}]}, prompt_tokens=7)
UNSURE = Call(body=CALL.body, prompt_tokens=7, confidence=True)
TOKEN = event(chunk({"content": "Hi"}))
STOP = event(chunk({}, "stop"))


def run(work: Awaitable) -> object:
    async def bounded() -> object:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    return asyncio.run(bounded())


async def everything(endpoint: Endpoint, call: Call = CALL) -> list[Piece | Usage]:
    return [event async for event in endpoint.stream(call)]


async def read_until_error(
    endpoint: Endpoint, call: Call = CALL
) -> tuple[list[Piece | Usage], AttemptFailed | None]:
    got: list[Piece | Usage] = []
    try:
        async for part in endpoint.stream(call):
            got.append(part)
    except AttemptFailed as error:
        return got, error
    return got, None


def text(got: list[Piece | Usage]) -> str:
    return "".join(part.text for part in got if isinstance(part, Piece))


# The contract ---------------------------------------------------------------------------------


class InMemory:
    """A `FakeEndpoint` of one script."""

    @asynccontextmanager
    async def follows(self, script: Script) -> AsyncIterator[Endpoint]:
        self.endpoint = FakeEndpoint("made-up:1", script)
        yield self.endpoint

    @property
    def running(self) -> int:
        return self.endpoint.running

    @property
    def cancelled(self) -> int:
        return self.endpoint.cancelled


class OverHttp:
    """An `OpenAiEndpoint` and a server that follows one script."""

    @asynccontextmanager
    async def follows(self, script: Script) -> AsyncIterator[Endpoint]:
        async with connected(follow(script)) as (self.server, endpoint):
            yield endpoint

    @property
    def running(self) -> int:
        return self.server.running

    @property
    def cancelled(self) -> int:
        return self.server.broken_off


@asynccontextmanager
async def connected(
    handle: Callable[[Talk], Awaitable[None]], **options: object
) -> AsyncIterator[tuple[Server, OpenAiEndpoint]]:
    """A server that answers every request with `handle`, and an endpoint of it."""
    connections = Connections()
    async with Server(handle) as server:
        options = {"url": server.url, "model": "up", "connect_timeout_s": PATIENCE_S} | options
        try:
            yield server, OpenAiEndpoint("small", OpenAiOptions(**options), connections)
        finally:
            await connections.close()


@pytest.fixture(params=[InMemory, OverHttp], ids=["in memory", "over HTTP"])
def bench(request: pytest.FixtureRequest) -> InMemory | OverHttp:
    return request.param()


def ask(bench: InMemory | OverHttp, script: Script, call: Call = CALL) -> list[Piece | Usage]:
    async def work() -> list[Piece | Usage]:
        async with bench.follows(script) as endpoint:
            return await everything(endpoint, call)

    return run(work())


def test_answer_is_its_pieces_in_order_and_then_its_usage(bench):
    """
    Usage comes once and last; the finish reason is on the last piece.
    """
    *pieces, end = ask(bench, Script(words=("one", " two", " three")))

    assert all(isinstance(piece, Piece) for piece in pieces)
    assert [piece.text for piece in pieces] == ["one", " two", " three"]
    assert [piece.finish_reason for piece in pieces] == [None, None, "stop"]
    assert end == Usage(prompt_tokens=7, output_tokens=3)


def test_pieces_are_counted_where_the_server_does_not_say(bench):
    """
    The call's own estimate stands for the prompt, and `counted` admits it.
    """
    *_, end = ask(bench, Script(usage="counted"))

    assert end == Usage(prompt_tokens=7, output_tokens=3, counted=False)


def test_log_probabilities_come_only_where_asked_for(bench):
    """
    They cost the server work and bytes.
    """
    script = Script(words=("a", "b"), probability=0.5)

    *sure, _ = ask(bench, script, UNSURE)
    *unasked, _ = ask(bench, script)

    assert [piece.logprobs["content"][0]["logprob"] for piece in sure] == [
        pytest.approx(-0.6931, abs=1e-4)
    ] * 2
    assert [piece.logprobs for piece in unasked] == [None, None]


def test_parts_of_tool_calls_pass_through_and_fit_together(bench):
    """
    Whatever a delta has in it reaches the caller as it came.
    """
    name = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    part = {"index": 0, "function": {"arguments": '{"x": 1}'}}
    deltas = ({"tool_calls": [name]}, {"tool_calls": [part]}, {"reasoning_content": "so"})

    *pieces, _ = ask(bench, Script(deltas=deltas, finish_reason="tool_calls"))

    whole = Answer()
    for piece in pieces:
        whole.add(piece)
    assert pieces[1].delta == deltas[1]
    assert whole.message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    ]
    assert whole.message["reasoning_content"] == "so"
    assert whole.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "kind", [CallRefused, EndpointOverloaded, EndpointFailed, EndpointUnreachable, AnswerGarbled]
)
def test_failure_before_the_first_piece_says_what_kind_it_is(bench, kind):
    """
    The dispatcher decides by the class whether another endpoint is tried.
    """

    async def work() -> tuple[list, AttemptFailed | None]:
        async with bench.follows(Script(fails=kind("there", "because"))) as endpoint:
            return await read_until_error(endpoint)

    got, error = run(work())
    assert got == []
    assert type(error) is kind


@pytest.mark.parametrize("kind", [EndpointFailed, EndpointUnreachable, AnswerGarbled])
def test_failure_in_the_middle_comes_after_the_pieces_before_it(bench, kind):
    """
    What was answered has been seen by the caller, and no usage follows.
    """

    async def work() -> tuple[list, AttemptFailed | None]:
        script = Script(fails=kind("there", "because"), fails_at=2)
        async with bench.follows(script) as endpoint:
            return await read_until_error(endpoint)

    got, error = run(work())
    assert text(got) == "one two"
    assert not any(isinstance(part, Usage) for part in got)
    assert type(error) is kind


def test_piece_is_given_on_as_soon_as_it_comes(bench):
    """
    Nothing waits for the next piece, and nothing but a token ends the wait for the first.
    """

    async def work() -> None:
        first, second = Gate(), Gate()
        async with bench.follows(Script(gates={0: first, 1: second})) as endpoint:
            stream = endpoint.stream(CALL)
            waiting = asyncio.ensure_future(anext(stream))
            await first.reached.wait()
            assert not waiting.done()
            first.open()
            assert (await waiting).text == "one"
            waiting = asyncio.ensure_future(anext(stream))
            await second.reached.wait()
            assert not waiting.done()
            second.open()
            assert [part async for part in stream_after(await waiting, stream)][-1] == Usage(
                prompt_tokens=7, output_tokens=3
            )

    run(work())


async def stream_after(first: Piece, rest: AsyncIterator) -> AsyncIterator[Piece | Usage]:
    yield first
    async for part in rest:
        yield part


@pytest.mark.parametrize("n_pieces", [0, 1, 2])
def test_cancelled_call_ends_at_once_whatever_it_waits_for(bench, n_pieces):
    """
    A server that works for nobody holds up those that somebody waits for.
    """

    async def work() -> None:
        async with bench.follows(Script(hangs_at=n_pieces)) as endpoint:
            got: list[Piece | Usage] = []

            async def read() -> None:
                async for part in endpoint.stream(CALL):
                    got.append(part)

            reading = asyncio.create_task(read())
            await soon(lambda: len(got) == n_pieces and bench.running == 1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await soon(lambda: bench.running == 0)
            assert bench.cancelled == 1

    run(work())


def test_closed_generator_ends_the_call(bench):
    """
    Closing between two pieces is how a hedge that lost is ended.
    """

    async def work() -> None:
        async with bench.follows(answers(3, hangs_at=3)) as endpoint:
            stream = endpoint.stream(CALL)
            await anext(stream)
            await stream.aclose()
            await soon(lambda: bench.running == 0)
            assert bench.cancelled == 1

    run(work())


def test_generator_that_nobody_iterates_calls_nobody(bench):
    """
    A call begins with the first step, so that one never begun costs nothing.
    """

    async def work() -> None:
        async with bench.follows(Script()) as endpoint:
            await endpoint.stream(CALL).aclose()
            assert bench.running == 0
            assert await everything(endpoint)
            assert bench.cancelled == 0

    run(work())


def test_calls_at_once_do_not_mix(bench):
    """
    Endpoints keep nothing of a call.
    """

    async def work() -> list[list]:
        async with bench.follows(answers(50)) as endpoint:
            return await asyncio.gather(*(everything(endpoint) for _ in range(20)))

    results = run(work())
    assert {text(got) for got in results} == {"".join(f" w{i}" for i in range(50))}
    assert {got[-1].output_tokens for got in results} == {50}


# Over HTTP: what is sent -------------------------------------------------------------------------


def over_http(
    handle: Callable[[Talk], Awaitable[None]], call: Call = CALL, **options: object
) -> tuple[list[Piece | Usage], AttemptFailed | None, Server]:
    """What came of one call, with its error and the server."""

    async def work() -> tuple:
        async with connected(handle, **options) as (server, endpoint):
            return (*await read_until_error(endpoint, call), server)

    return run(work())


def sends(*parts: bytes) -> Callable[[Talk], Awaitable[None]]:
    async def handle(talk: Talk) -> None:
        await talk.stream(*filter(None, parts))  # an empty one would end the transfer

    return handle


def replies(status: int, body: object, **headers: str) -> Callable[[Talk], Awaitable[None]]:
    async def handle(talk: Talk) -> None:
        await talk.answer(status, body, **headers)

    return handle


def test_an_answer_says_of_its_first_piece_that_the_account_is_used_up():
    """
    Until when, by the headers that came with it. The others say nothing.
    """
    body = {"choices": [{"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}]}
    none_left = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "1m0s"}

    got, error, _ = over_http(replies(200, body, **none_left), stream=False)

    pieces = [part for part in got if isinstance(part, Piece)]
    assert error is None
    assert [piece.full_s for piece in pieces] == [60.0] + [0.0] * (len(pieces) - 1)


def test_body_is_the_callers_with_what_the_pool_adds():
    """
    Options this project never heard of go through; model and streaming are not the caller's to say.
    """
    call = Call(body={**CALL.body, "top_k": 3, "seed": 1}, prompt_tokens=7, confidence=True)

    *_, server = over_http(
        follow(Script()), call, api_key="sk-1", extra={"seed": 2, "priority": 5, "model": "x"}
    )

    talk = server.talks[0]
    assert talk.path == "/v1/chat/completions"
    assert talk.headers["authorization"] == "Bearer sk-1"
    assert talk.headers["accept-encoding"] == "identity"
    assert talk.body == {
        **CALL.body,
        "top_k": 3,
        "seed": 2,
        "priority": 5,
        "logprobs": True,
        "model": "up",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {}),
        ({"priority": True}, {"priority": 3}),
        ({"priority": True, "extra": {"priority": 7}}, {"priority": 7}),
    ],
)
def test_server_is_told_who_goes_first_where_it_understands(options, sent):
    """
    A vLLM without that policy refuses the call. What the pool's owner states wins.
    """
    *_, server = over_http(follow(Script()), replace(CALL, priority=3), **options)

    assert {k: v for k, v in server.talks[0].body.items() if k == "priority"} == sent


def test_nothing_is_added_that_was_not_asked_for():
    *_, server = over_http(follow(Script()), include_usage=False)

    assert server.talks[0].body == {**CALL.body, "model": "up", "stream": True}
    assert "authorization" not in server.talks[0].headers


def test_call_that_is_no_json_is_refused_before_it_is_sent():
    got, error, server = over_http(follow(Script()), Call(body={"user": "\ud800"}, prompt_tokens=1))

    assert type(error) is CallRefused and got == [] and server.talks == []


@pytest.mark.parametrize("status", [400, 422])
def test_server_without_stream_options_is_asked_again_without_them_once(status, caplog):
    """
    It is remembered: the next call does not pay for the question.
    """
    caplog.set_level(logging.INFO)
    detail = [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]

    async def handle(talk: Talk) -> None:
        if "stream_options" in talk.body:
            await talk.answer(status, {"detail": detail})
        else:
            await follow(Script())(talk)

    async def work() -> tuple[list, list, Server]:
        async with connected(handle) as (server, endpoint):
            return await everything(endpoint), await everything(endpoint), server

    first, second, server = run(work())
    assert first == second
    assert first[-1] == Usage(prompt_tokens=7, output_tokens=3, counted=False)
    assert ["stream_options" in talk.body for talk in server.talks] == [True, False, False]
    assert "refuses stream_options" in caplog.text


def test_call_refused_with_and_without_stream_options_is_the_calls_fault():
    """
    Some servers repeat the whole call in their message: that alone proves nothing.
    """

    async def work() -> tuple[AttemptFailed, Server]:
        refuse = replies(400, {"error": {"message": "bad: {stream_options: …}"}})
        async with connected(refuse) as (server, endpoint):
            await read_until_error(endpoint)
            return (await read_until_error(endpoint))[1], server

    error, server = run(work())
    assert type(error) is CallRefused
    assert ["stream_options" in talk.body for talk in server.talks] == [True, False] * 2


# Over HTTP: what comes back ----------------------------------------------------------------------


def test_role_sent_before_any_token_does_not_count_as_the_first():
    """
    vLLM sends the role when it admits a call, seconds before its first token under load.
    """

    async def work() -> None:
        opened = asyncio.Event()

        async def handle(talk: Talk) -> None:
            await talk.begin()
            await talk.send(ROLE)
            await opened.wait()
            await talk.send(TOKEN + STOP + DONE)
            await talk.end()

        async with connected(handle) as (server, endpoint):
            waiting = asyncio.ensure_future(anext(endpoint.stream(CALL)))
            await soon(lambda: server.talks and server.talks[0].chunked)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not waiting.done()
            opened.set()
            assert (await waiting).delta == {"role": "assistant", "content": "Hi"}

    run(work())


def test_server_that_does_not_stream_answers_in_one_piece():
    """
    Its tokens are counted from its usage, else estimated from the length of its words.
    """
    whole = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x" * 40},
                "finish_reason": "length",
            }
        ],
    }
    counts = {
        "prompt_tokens": 3,
        "completion_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 2},
    }

    (piece, end), error, _ = over_http(replies(200, {**whole, "usage": counts}))
    assert error is None
    assert (piece.text, piece.finish_reason) == ("x" * 40, "length")
    assert end == Usage(prompt_tokens=3, output_tokens=9, cached_tokens=2)

    (_, end), *_ = over_http(replies(200, whole))
    assert end == Usage(prompt_tokens=7, output_tokens=10, counted=False)


@pytest.mark.parametrize("end", [b"", DONE, b"data:[DONE]", b": bye\n\n"])
def test_done_is_not_needed_after_the_finish_reason(end):
    got, error, _ = over_http(sends(ROLE, TOKEN, STOP, end))

    assert error is None
    assert text(got) == "Hi"
    assert got[-1] == Usage(prompt_tokens=7, output_tokens=1, counted=False)


def test_connection_that_breaks_after_the_finish_reason_leaves_a_whole_answer():
    """
    Only its usage is missing then, and pieces were counted.
    """

    async def handle(talk: Talk) -> None:
        await talk.begin()
        await talk.send(TOKEN + STOP)
        talk.writer.close()

    got, error, _ = over_http(handle)
    assert error is None and got[-1].counted is False


@pytest.mark.parametrize("parts", [(), (ROLE,), (ROLE, TOKEN), (ROLE, DONE), (b": ping\n\n",)])
def test_stream_that_ends_before_its_answer_is_garbled(parts):
    """
    Half an answer taken for a whole one would be a lie that nobody notices.
    """
    got, error, _ = over_http(sends(*parts))

    assert type(error) is AnswerGarbled
    assert "before" in error.problem
    assert text(got) == ("Hi" if TOKEN in parts else "")


def test_error_within_the_stream_is_the_endpoints_failure():
    said = {"error": {"message": "CUDA out of memory", "code": 500}}

    got, error, _ = over_http(sends(ROLE, TOKEN, event(said), DONE))

    assert text(got) == "Hi"
    assert type(error) is EndpointFailed and "CUDA out of memory" in error.problem


@pytest.mark.parametrize(
    "status, body, kind, words",
    [
        (400, {"error": {"message": "too many tokens"}}, CallRefused, "too many tokens"),
        (413, b"<html>\n too  large</html>", CallRefused, "too large"),
        (422, {"detail": "no messages"}, CallRefused, "no messages"),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "is bad"}]}, CallRefused, "body.n: is bad"),
        (401, {"error": {"message": "no such key"}}, EndpointMisconfigured, "set up wrongly"),
        (403, b"", EndpointMisconfigured, "set up wrongly"),
        (404, {"object": "error", "message": "no model up"}, EndpointMisconfigured, "no model up"),
        (409, b"", EndpointFailed, "409"),
        (302, b"", EndpointMisconfigured, "set up wrongly"),
        (429, {"error": "slow down"}, EndpointOverloaded, "slow down"),
        (503, b"", EndpointOverloaded, "503 Service Unavailable"),
        (500, {"error": {"message": "boom"}}, EndpointFailed, "boom"),
        (502, b"\xff\xfe", EndpointFailed, "502 Bad Gateway"),
        (529, b"[" * 10_000, EndpointOverloaded, "529"),
    ],
)  # fmt: skip
def test_status_says_whose_fault_it_is(status, body, kind, words):
    """
    By this the dispatcher tries another endpoint, another pool, or none.
    """
    got, error, _ = over_http(replies(status, body, Location="/elsewhere"))

    assert got == []
    assert type(error) is kind
    assert words in error.problem
    assert len(error.problem) < 620 and error.problem.isprintable()
    assert str(error).startswith("small/127.0.0.1:")


def test_overload_passes_on_when_to_come_back():
    _, error, _ = over_http(replies(429, b"", Retry_After="17"))

    assert "17 s" in error.problem


def test_text_of_an_error_that_never_comes_is_not_waited_for(monkeypatch):
    """
    The status says enough to try elsewhere.
    """
    monkeypatch.setattr("infra.endpoints.openai_endpoint.TAIL_S", 0.05)

    async def handle(talk: Talk) -> None:
        await talk.raw(b"HTTP/1.1 503 No\r\nContent-Length: 10\r\n\r\nbusy")
        await asyncio.Event().wait()

    _, error, _ = over_http(handle)
    assert type(error) is EndpointOverloaded and "busy" in error.problem


def test_silence_after_a_piece_is_late_and_pings_do_not_break_it():
    """
    A server's front end pings on while the engine behind it hangs.
    """

    async def handle(talk: Talk) -> None:
        await talk.begin()
        await talk.send(TOKEN)
        while True:
            await talk.send(b": ping\n\n" + ROLE)
            await asyncio.sleep(0.01)

    got, error, _ = over_http(handle, idle_timeout_s=0.1)
    assert text(got) == "Hi"
    assert type(error) is AnswerLate and "0.1 s" in error.problem


def paced(parts: Sequence[bytes], pace_s: float, *, ends: bool = True) -> list[list[str]]:
    """What a paced call gives of such parts, a millisecond apart: the words of each reading."""

    async def work() -> list[list[str]]:
        async def handle(talk: Talk) -> None:
            await talk.begin()
            for part in parts:
                await talk.send(part)
                await asyncio.sleep(0.001)
            if ends:
                await talk.end()
            else:
                talk.writer.close()

        readings: list[list[str]] = []
        async with connected(handle) as (_, endpoint):
            reading = asyncio.get_running_loop().create_future()
            with contextlib.suppress(AttemptFailed):
                async for part in endpoint.stream(replace(CALL, pace_s=lambda: pace_s)):
                    if reading.done() or not readings:  # somebody else had his turn since
                        readings.append([])
                        reading = asyncio.get_running_loop().create_future()
                        asyncio.get_running_loop().call_soon(reading.set_result, None)
                    readings[-1].append(part.text if isinstance(part, Piece) else "usage")
        return readings

    return run(work())


def test_pieces_within_the_pace_come_together_and_the_first_and_the_end_at_once():
    """
    The pace is longer than the test's patience: only the end can have ended it.
    """
    words = [event(chunk({"content": word})) for word in "abcdefgh"]

    readings = paced([*words, STOP + DONE], pace_s=10 * PATIENCE_S)

    assert readings[0][0] == "a"
    assert len(readings) <= 3
    assert "".join(word for reading in readings for word in reading) == "abcdefghusage"


def test_pieces_before_a_break_are_given_on_though_they_waited():
    words = [event(chunk({"content": word})) for word in "abc"]

    readings = paced(words, pace_s=10 * PATIENCE_S, ends=False)

    assert [word for reading in readings for word in reading] == ["a", "b", "c"]


def test_pieces_wait_no_longer_than_the_pace():
    async def work() -> None:
        async def handle(talk: Talk) -> None:
            await talk.begin()
            await talk.send(TOKEN)
            await talk.send(TOKEN)
            await asyncio.Event().wait()

        async with connected(handle) as (_, endpoint):
            stream = endpoint.stream(replace(CALL, pace_s=lambda: 0.01))
            assert [(await anext(stream)).text, (await anext(stream)).text] == ["Hi", "Hi"]
            await stream.aclose()

    run(work())


def test_server_that_keeps_a_whole_answer_open_is_not_waited_for(monkeypatch):
    """
    With the finish reason nothing more is needed.
    """
    monkeypatch.setattr("infra.endpoints.openai_endpoint.TAIL_S", 0.05)

    async def handle(talk: Talk) -> None:
        await talk.begin()
        await talk.send(TOKEN + STOP)
        await asyncio.Event().wait()

    got, error, _ = over_http(handle)
    assert error is None and text(got) == "Hi" and got[-1].counted is False


def test_slow_reader_is_not_taken_for_a_slow_server(monkeypatch):
    """
    Time counts only while something is waited for.
    """

    async def work() -> list:
        opened = asyncio.Event()

        async def handle(talk: Talk) -> None:
            await talk.begin()
            await talk.send(TOKEN)
            await opened.wait()
            await talk.send(STOP + DONE)
            await talk.end()

        loop, slow_s = asyncio.get_running_loop(), 0.0
        now_s = loop.time
        monkeypatch.setattr(loop, "time", lambda: now_s() + slow_s, raising=False)
        async with connected(handle, idle_timeout_s=PATIENCE_S / 2) as (_, endpoint):
            stream = endpoint.stream(CALL)
            got = [await anext(stream)]
            slow_s = 0.75 * PATIENCE_S  # what the test is about: longer than the limit
            opened.set()
            return got + [part async for part in stream]

    assert isinstance(run(work())[-1], Usage)


def test_nobody_listening_is_unreachable():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        _, error, _ = over_http(follow(Script()), url=url)

    assert type(error) is EndpointUnreachable


def test_connection_that_takes_too_long_is_unreachable(monkeypatch):
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", never)

    _, error, _ = over_http(follow(Script()), connect_timeout_s=0.05)
    assert type(error) is EndpointUnreachable and "0.05 s" in error.problem


@pytest.mark.parametrize(("stops", "answered"), [(2, True), (3, False)])
def test_who_was_away_when_time_ran_out_connects_once_more(monkeypatch, stops, answered):
    """
    A process that was stopped, or had no CPU, for longer than a connection may take finds all its
    time limits run out, whatever servers did meanwhile. Taken for failures, five such calls would
    eject a server that is well. But not for ever: whoever asked waits.
    """
    connect, tries, connect_s = aiohttp.TCPConnector._create_connection, [], PATIENCE_S / 10

    async def work() -> AttemptFailed | None:
        loop, away_s = asyncio.get_running_loop(), 0.0
        now_s = loop.time
        monkeypatch.setattr(loop, "time", lambda: now_s() + away_s, raising=False)

        async def stopped(*request: object) -> object:
            nonlocal away_s
            tries.append(1)
            if len(tries) > stops:
                return await connect(*request)
            away_s += 1.5 * connect_s
            return await asyncio.Event().wait()

        monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", stopped)
        async with connected(follow(Script()), connect_timeout_s=connect_s) as (_, endpoint):
            return (await read_until_error(endpoint))[1]

    error = run(work())
    assert len(tries) == 3
    assert (error is None) if answered else (type(error) is EndpointUnreachable)


def test_tls_that_can_not_be_spoken_is_unreachable():
    async def work() -> AttemptFailed | None:
        plain = await asyncio.start_server(lambda _, out: out.write(b"what?\r\n"), "127.0.0.1", 0)
        url = f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}/v1"
        async with plain, connected(follow(Script()), url=url) as (_, endpoint):
            return (await read_until_error(endpoint))[1]

    assert type(run(work())) is EndpointUnreachable


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
    ],
)
def test_bytes_that_are_no_http_are_garbled(answer):
    """
    Another program listens at the address, or a proxy breaks what passes.
    """

    async def handle(talk: Talk) -> None:
        await talk.raw(answer)
        await talk.gone.wait()

    _, error, _ = over_http(handle)
    assert type(error) is AnswerGarbled


def test_closing_connections_ends_every_call_with_a_typed_error():
    """
    Whether it streams, waits for an answer or for a free connection, or comes too late.
    """

    async def handle(talk: Talk) -> None:
        await follow(Script(hangs_at=1 if "streams" in talk.body else 0))(talk)

    async def work() -> list[AttemptFailed | None]:
        connections = Connections(ConnectionsOptions(connections_max=2))
        async with Server(handle) as server:
            options = OpenAiOptions(url=server.url, model="up", connect_timeout_s=PATIENCE_S)
            endpoint = OpenAiEndpoint("small", options, connections)
            stream = endpoint.stream(Call(body={"streams": 1}, prompt_tokens=1))
            await anext(stream)
            reading = asyncio.ensure_future(anext(stream))
            sent = asyncio.create_task(read_until_error(endpoint))
            await soon(lambda: server.running == 2)
            # Two, because the stream's connection is freed for one of them.
            waiting = [asyncio.create_task(read_until_error(endpoint)) for _ in range(2)]
            queues = connections._session.connector._waiters
            await soon(lambda: sum(map(len, queues.values())) == 2)

            await connections.close()

            late = await read_until_error(endpoint)
            await soon(lambda: server.running == 0)
            errors = [error for _, error in await asyncio.gather(sent, *waiting)]
            return [*(await asyncio.gather(reading, return_exceptions=True)), *errors, late[1]]

    assert [type(error) for error in run(work())] == [EndpointUnreachable] * 5


def test_call_cancelled_while_connections_close_is_cancelled():
    """
    A cancellation is never turned into an error that would be retried.
    """

    async def work() -> None:
        async with connected(follow(Script(hangs_at=0))) as (server, endpoint):
            sent = asyncio.create_task(read_until_error(endpoint))
            await soon(lambda: server.running == 1)
            sent.cancel()
            await endpoint._connections.close()
            with pytest.raises(asyncio.CancelledError):
                await sent

    run(work())


def test_connection_is_used_again_after_a_whole_answer_and_after_a_refusal():
    """
    A new connection costs a round trip, with TLS two more.
    """

    async def handle(talk: Talk) -> None:
        if talk.body.get("n"):
            await talk.answer(400, {"error": {"message": "no"}})
        else:
            await follow(Script())(talk)

    async def work() -> int:
        async with connected(handle) as (server, endpoint):
            for _ in range(3):
                await everything(endpoint)
                await read_until_error(endpoint, Call(body={"n": 9}, prompt_tokens=1))
            return server.connections

    assert run(work()) == 1


def test_connection_is_used_again_where_the_last_mark_comes_a_moment_after_done(monkeypatch):
    """
    A server ends the transfer in a packet of its own, after [DONE].
    """
    monkeypatch.setattr("infra.endpoints.openai_endpoint.LAST_MARK_S", PATIENCE_S)

    async def handle(talk: Talk) -> None:
        await talk.begin()
        await talk.send(TOKEN + STOP + DONE)
        for _ in range(10):  # turns of the loop in which the client reads [DONE]
            await asyncio.sleep(0.001)
        await talk.end()

    async def work() -> int:
        async with connected(handle) as (server, endpoint):
            for _ in range(3):
                await everything(endpoint)
            return server.connections

    assert run(work()) == 1


def test_connection_of_an_answer_broken_off_is_not_used_again():
    """
    Draining it would keep the server at work.
    """

    async def work() -> int:
        async def handle(talk: Talk) -> None:
            await follow(Script(hangs_at=1 if "hangs" in talk.body else None))(talk)

        async with connected(handle) as (server, endpoint):
            stream = endpoint.stream(Call(body={"hangs": 1}, prompt_tokens=1))
            await anext(stream)
            await stream.aclose()
            await everything(endpoint)
            return server.connections

    assert run(work()) == 2


@pytest.mark.parametrize("limit", ["line_bytes_max", "answer_bytes_max"])
def test_endless_bytes_are_cut_off(limit):
    async def handle(talk: Talk) -> None:
        await talk.begin()
        while True:
            await talk.send(b"x" * 1000 if limit == "line_bytes_max" else TOKEN)

    _, error, _ = over_http(handle, **{limit: 10_000})
    assert type(error) is AnswerGarbled


# Keys ---------------------------------------------------------------------------------------------

KEY = "sk-" + "s3cr3t" * 8


@pytest.mark.parametrize(
    "handle",
    [
        replies(401, {"error": {"message": f"no such key: {KEY}"}}),
        replies(401, f"{'x' * 480} {KEY}".encode()),
        replies(500, KEY.encode()),
        sends(event({"error": {"message": f"bad {KEY}"}})),
        sends(event({"error": f"{'x' * 490}{KEY}"})),
        replies(429, b"", Retry_After=KEY),
        replies(200, KEY.encode()),
    ],
)
def test_key_is_in_no_message(handle):
    """
    Some servers repeat what they were sent; callers must not read the pool's key there.
    """
    _, error, _ = over_http(handle, api_key=KEY)

    shown = "".join(traceback.format_exception(error)) + repr(error)
    assert isinstance(error, AttemptFailed)
    assert "s3cr3t" not in shown


def test_key_is_not_in_the_options_text():
    assert KEY not in repr(OpenAiOptions(url="http://h/v1", model="m", api_key=KEY))
    with pytest.raises(OptionRefused) as refused:
        OpenAiOptions(url="http://h/v1", model="m", api_key=f"{KEY}\n")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "ftp://h/v1"}, {"url": "h:80/v1"}, {"url": "http://"}, {"url": "http://u:p@h/v1"},
        {"url": "http://h/v1?key=1"}, {"url": "http://h:port/v1"}, {"model": ""},
        {"api_key": ""}, {"api_key": "a\r\nb"}, {"connect_timeout_s": 0.0},
        {"idle_timeout_s": float("nan")}, {"line_bytes_max": 0}, {"answer_bytes_max": -1},
    ],
)  # fmt: skip
def test_option_that_can_not_work_is_refused(options):
    with pytest.raises(OptionRefused):
        OpenAiOptions(**{"url": "http://h/v1", "model": "m"} | options)


@pytest.mark.parametrize(
    "options", [{"connections_max": 0}, {"keep_alive_s": 0.0}, {"dns_cache_s": -1}]
)
def test_option_of_connections_that_can_not_work_is_refused(options):
    with pytest.raises(OptionRefused):
        ConnectionsOptions(**options)


@pytest.mark.parametrize(
    "url, address",
    [("http://h:8000/v1", "h:8000"), ("https://h/v1/", "h"), ("http://h/a/v1", "h/a"), ("http://h/v2", "h/v2")],
)  # fmt: skip
def test_address_is_the_url_without_what_all_have(url, address):
    assert OpenAiEndpoint("p", OpenAiOptions(url=url, model="m"), Connections()).address == address


# Garbage ------------------------------------------------------------------------------------------

HEADS = [
    b"", b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 30\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ",
    b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n", b"HTTP/1.1 ",
]  # fmt: skip


@lightly
@given(head=st.sampled_from(HEADS), garbage=st.binary(max_size=200))
def test_any_bytes_at_all_end_in_a_typed_error(head, garbage):
    """
    Whatever listens at the address, a call of it ends, and as an attempt that failed.
    """

    async def handle(talk: Talk) -> None:
        await talk.raw(head + garbage)
        talk.writer.close()
        await talk.writer.wait_closed()

    got, error, _ = over_http(handle)
    assert isinstance(error, AttemptFailed)
    assert got == []


# Servers of other projects ------------------------------------------------------------------------


@contextlib.contextmanager
def served(module: str, *command: str) -> Iterator[str]:
    """The address of another project's server, run as a process of its own; or the test is skipped."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install -e '.[dev]' has it")
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-c", *command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        asyncio.run(asyncio.wait_for(_listening(process, port), PATIENCE_S))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def _listening(process: subprocess.Popen, port: int) -> None:
    while True:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def llmock() -> Iterator[str]:
    """LLMock: an OpenAI-compatible server that fails on demand."""
    with served("llmock", "from llmock.cli import app; app()", "serve") as url:
        yield url


@pytest.fixture(scope="module")
def xpyd() -> Iterator[str]:
    """xPyD-sim: a server with the timing and habits of vLLM."""
    with served(
        "xpyd_sim", "from xpyd_sim.cli import main; main()", "serve", "--model", "sim",
        "--prefill-delay-ms", "5", "--decode-delay-per-token-ms", "1", "--eos-min-ratio", "1",
        "--scheduling", "--max-num-seqs", "2",
    ) as url:  # fmt: skip
        yield url


def ask_other(
    url: str, idle_timeout_s: float = PATIENCE_S, **body: object
) -> tuple[list[Piece | Usage], AttemptFailed | None]:
    async def work() -> tuple:
        connections = Connections()
        options = OpenAiOptions(url=f"{url}/v1", model="sim", idle_timeout_s=idle_timeout_s)
        try:
            call = Call(body={**CALL.body, **body}, prompt_tokens=7)
            return await read_until_error(OpenAiEndpoint("other", options, connections), call)
        finally:
            await connections.close()

    return run(work())


def test_simulator_of_vllm_is_understood(xpyd):
    """
    Usage comes from the server's last chunk, and every token is a piece.
    """
    got, error = ask_other(xpyd, max_tokens=8)

    assert error is None
    assert got[-1].counted and got[-1].output_tokens == 8
    assert got[-2].finish_reason == "length" and text(got)
    assert got[0].text


def test_mock_of_another_project_is_understood(llmock):
    got, error = ask_other(llmock)

    assert error is None
    assert got[-1].counted and text(got)


@pytest.mark.parametrize(
    "behaviour, kind",
    [
        ({"type": "fail", "status": 429}, EndpointOverloaded),
        ({"type": "fail", "status": 503}, EndpointOverloaded),
        ({"type": "fail", "status": 500}, EndpointFailed),
        ({"type": "fail", "status": 400}, CallRefused),
        ({"type": "stream_fault", "kind": "disconnect", "after_chunks": 3}, EndpointUnreachable),
        ({"type": "stream_fault", "kind": "truncate", "after_chunks": 3}, AnswerGarbled),
        ({"type": "stream_fault", "kind": "malformed", "after_chunks": 3}, AnswerGarbled),
        ({"type": "stream_fault", "kind": "stall", "after_chunks": 3}, AnswerLate),
    ],
)
def test_faults_of_another_projects_mock_are_told_apart(llmock, behaviour, kind):
    """
    The faults are its own idea of what servers do.
    """
    scenario = json.dumps({"behaviors": [behaviour]}).encode()
    headers = {"Content-Type": "application/json"}
    for path, body in (("reset", b"{}"), ("scenario", scenario)):
        request = urllib.request.Request(f"{llmock}/_llmock/{path}", body, headers)
        urllib.request.urlopen(request, timeout=PATIENCE_S).read()

    stalls = behaviour.get("kind") == "stall"
    _, error = ask_other(llmock, idle_timeout_s=0.5 if stalls else PATIENCE_S)
    assert type(error) is kind
