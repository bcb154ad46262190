"""OpenAI's API as its official client sees it: answers, streams, errors, and what ends an answer."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import urllib.parse
from collections.abc import AsyncGenerator, Iterator, MutableMapping
from typing import Any

import httpx2
import openai
import pytest
from scripted_api import (
    DECISION_ID,
    FIRST,
    HELLO,
    NOW_S,
    PATIENCE_S,
    SECOND,
    TICKET,
    Api,
    Pause,
    api,
    delta,
    ended,
    piece,
    routed,
)
from waiting import until  # fmt: skip

from serve.dispatch.answers import Event
from serve.dispatch.backend import Usage
from serve.errors import (
    AnswerBroken,
    CallRefused,
    DeadlinePassed,
    FleetFull,
    InvalidRequest,
    NoAnswer,
    NoModelFits,
    NotServing,
    QueueFull,
    RuledOut,
    UnknownModel,
)  # fmt: skip
from serve.openai_api.app import HttpOptions
from serve.openai_api.body import BodyOptions
from serve.openai_api.chat import Reply, _stream
from serve.openai_api.reply import StreamWriter
from streams.errors import LogUnavailable

ASKED = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def shared() -> Iterator[Api]:
    with api() as up:
        yield up


@pytest.fixture
def up(shared: Api) -> Api:
    """The API with nothing left from the test before."""
    shared.dispatcher.play(*HELLO)
    return shared


@pytest.fixture(scope="module")
def client(shared: Api) -> Iterator[openai.OpenAI]:
    with shared.client() as made:
        yield made


def ask(client: openai.OpenAI, **fields):
    return client.chat.completions.create(**{"model": "auto", "messages": ASKED, **fields})


def text_of(chunks) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# --- whole answers ---------------------------------------------------------------------------------


def test_answer_is_a_chat_completion(up, client):
    """
    Everything the official client's type has, and no surprise in it.
    """
    got = ask(client)

    assert (got.id, got.object, got.created) == (
        f"chatcmpl-{DECISION_ID}",
        "chat.completion",
        int(NOW_S),
    )
    assert got.model == "small"
    (choice,) = got.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello")
    assert got.usage.to_dict() == {
        "prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 8},
    }  # fmt: skip


def test_answer_says_who_gave_it_after_which_attempts_at_what_cost(up, client):
    got = ask(client)

    ours = got.model_extra["fairlead"]
    attempts = ours.pop("attempts")
    assert ours == {
        "model": "small", "pool": "small-a", "endpoint": "10.0.0.1:8000",
        "ticket": base64.urlsafe_b64encode(TICKET).decode().rstrip("="), "decision_id": DECISION_ID,
        "cost_usd": 0.001, "paid_usd": 0.003, "confidence": 0.75, "first_token_ms": 40.0,
        "latency_ms": 100.0, "tokens_counted": True,
    }  # fmt: skip
    assert attempts == [
        {name: getattr(one, name) for name in one.__slots__} for one in (FIRST, SECOND)
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_headers_say_who_answers(up, client, stream):
    """
    A proxy's log is enough to see a reroute.
    """
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=ASKED, stream=stream
    )

    headers = {k: v for k, v in raw.headers.items() if k.startswith("x-fairlead")}
    assert json.loads(headers.pop("x-fairlead-attempts")) == [
        {
            "model": "org/large",
            "pool": "large-a",
            "kind": "first",
            "outcome": "unreachable",
            "took_ms": 2.2,
        }
    ]
    assert headers == {
        "x-fairlead-model": "small", "x-fairlead-pool": "small-a", "x-fairlead-decision": DECISION_ID,
        "x-fairlead-snapshot-version": "41",
        "x-fairlead-ticket": base64.urlsafe_b64encode(TICKET).decode().rstrip("="),
    }  # fmt: skip
    list(raw.parse()) if stream else raw.parse()


def test_headers_stay_short_and_plain_whatever_they_tell(up, client):
    """
    A model may be called anything, a ticket be of 255 models: a header that breaks a client's or a
    proxy's limit would cost the answer. The body has all of it.
    """
    many = (FIRST,) * 100
    up.dispatcher.play(
        routed(model="模\r\nx: 1", ticket=b"t" * 9000, attempts=many),
        *HELLO[1:-1],
        ended(attempts=many),
    )

    raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASKED)

    assert urllib.parse.unquote(raw.headers["x-fairlead-model"]) == "模\r\nx: 1"
    assert "x-fairlead-ticket" not in raw.headers
    assert len(raw.headers["x-fairlead-attempts"]) <= 4096
    *shown, rest = json.loads(raw.headers["x-fairlead-attempts"])
    assert len(shown) > 20
    assert rest == {"left_out": 100 - len(shown)}
    ours = raw.parse().model_extra["fairlead"]
    assert len(ours["attempts"]) == 100
    assert len(ours["ticket"]) == 12_000


def test_tool_calls_and_logprobs_come_whole(up, client):
    """
    Fragments are put together by the rules of OpenAI's streams.
    """
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
    up.dispatcher.play(
        routed(), *TOOL_FRAGMENTS, piece("a", logprobs=logprobs), piece("b", logprobs=logprobs),
        delta(finish_reason="tool_calls"), ended(),
    )  # fmt: skip

    (choice,) = ask(client, tools=TOOLS, logprobs=True).choices

    assert choice.finish_reason == "tool_calls"
    assert [(c.id, c.type, c.function.name, c.function.arguments) for c in choice.message.tool_calls] == [
        ("call_1", "function", "weather", '{"city": "Oslo"}'),
        ("call_2", "function", "time", "{}"),
    ]  # fmt: skip
    assert [t.logprob for t in choice.logprobs.content] == [-0.5, -0.5]


def test_answer_without_words_has_null_as_content(up, client):
    up.dispatcher.play(routed(), *TOOL_FRAGMENTS, delta(finish_reason="tool_calls"), ended())
    assert ask(client).choices[0].message.to_dict()["content"] is None  # there, and null


def test_usage_that_was_guessed_says_so(up, client):
    up.dispatcher.play(
        *HELLO[:-1], ended(usage=Usage(prompt_tokens=1, output_tokens=2, counted=False))
    )
    assert ask(client).model_extra["fairlead"]["tokens_counted"] is False


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
TOOL_FRAGMENTS = [
    delta(tool_calls=[fragment])
    for fragment in (
        {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": ""},
        },
        {"index": 0, "function": {"arguments": '{"city": '}},
        {
            "index": 1,
            "id": "call_2",
            "type": "function",
            "function": {"name": "time", "arguments": "{}"},
        },
        {"index": 0, "function": {"arguments": '"Oslo"}'}},
    )
]


# --- streams ---------------------------------------------------------------------------------------


def test_stream_brings_the_pieces_as_they_came(up, client):
    """
    One chunk per piece, in order, under one id; the client needs no special case.
    """
    chunks = list(ask(client, stream=True))

    assert text_of(chunks) == "Hello"
    assert {(c.id, c.object, c.created, c.model) for c in chunks} == {
        (f"chatcmpl-{DECISION_ID}", "chat.completion.chunk", int(NOW_S), "small")
    }
    assert [c.choices[0].delta.role for c in chunks] == ["assistant", None, None, None]
    assert [c.choices[0].finish_reason for c in chunks] == [None, None, None, "stop"]
    assert up.dispatcher.closed.wait(PATIENCE_S)


def test_stream_without_usage_has_a_choice_in_every_chunk(up, client):
    """
    Programs read `choices[0]` blindly: `fairlead` travels in the chunk that ends the answer.
    """
    chunks = list(ask(client, stream=True))

    assert all(len(c.choices) == 1 for c in chunks)
    assert all("usage" not in c.to_dict() for c in chunks)
    assert ["fairlead" in c.model_extra for c in chunks] == [False, False, False, True]
    assert chunks[-1].model_extra["fairlead"]["paid_usd"] == 0.003
    assert chunks[-1].model_extra["fairlead"]["attempts"][1]["outcome"] == "answered"


def test_stream_with_usage_ends_with_a_chunk_of_counts(up, client):
    """
    As OpenAI does it: null in all chunks but the last, which has no choice.
    """
    *chunks, last = list(ask(client, stream=True, stream_options={"include_usage": True}))

    assert [c.to_dict()["usage"] for c in chunks] == [None] * 4  # there, and null
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert (last.usage.total_tokens, last.usage.prompt_tokens_details.cached_tokens) == (13, 8)
    assert last.model_extra["fairlead"]["model"] == "small"
    assert not any("fairlead" in c.model_extra for c in chunks)


def test_stream_of_raw_events_ends_with_done(up):
    with httpx2.stream(
        "POST", f"{up.root}/v1/chat/completions", json={"messages": ASKED, "stream": True}
    ) as got:
        lines = list(got.iter_lines())

    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert got.headers["x-accel-buffering"] == "no"
    assert all(line.startswith("data: {") for line in lines[:-2:2])
    assert lines[1::2] == [""] * (len(lines) // 2)
    assert lines[-2] == "data: [DONE]"


def test_stream_passes_pieces_on_at_once(up, client):
    """
    The first token is with the client while the second is not made yet.
    """
    pause = Pause()
    up.dispatcher.play(
        routed(), piece("Hel"), pause, piece("lo"), delta(finish_reason="stop"), ended()
    )

    with ask(client, stream=True) as stream:
        first = next(stream)
        assert first.choices[0].delta.content == "Hel"
        assert pause.reached.wait(PATIENCE_S)
        pause.end()
        assert text_of(stream) == "lo"


def test_stream_of_tool_calls_is_put_together_by_the_client(up, client):
    """
    The client's own accumulator finds what it needs in every fragment.
    """
    up.dispatcher.play(routed(), *TOOL_FRAGMENTS, delta(finish_reason="tool_calls"), ended())

    with client.chat.completions.stream(model="auto", messages=ASKED) as stream:
        got = stream.get_final_completion()

    assert [(c.id, c.function.name, c.function.arguments) for c in got.choices[0].message.tool_calls] == [
        ("call_1", "weather", '{"city": "Oslo"}'),
        ("call_2", "time", "{}"),
    ]  # fmt: skip
    assert got.choices[0].finish_reason == "tool_calls"


def test_stream_keeps_unknown_fields_of_a_delta_and_logprobs(up, client):
    """
    What this project never heard of is not its business to remove.
    """
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    up.dispatcher.play(
        routed(),
        delta(reasoning_content="hm"),
        piece("a", logprobs=logprobs, finish_reason="length"),
        ended(),
    )

    first, last = list(ask(client, stream=True))

    assert first.choices[0].delta.model_extra == {"reasoning_content": "hm"}
    assert last.choices[0].logprobs.content[0].logprob == -0.5
    assert (last.choices[0].delta.content, last.choices[0].finish_reason) == ("a", "length")


@pytest.mark.parametrize("include_usage", [False, True])
def test_pieces_after_a_finish_reason_and_answers_without_one_lose_nothing(
    up, client, include_usage
):
    """
    Servers are not all alike: what is held for the end is sent in its order.
    """
    options = {"stream": True, "stream_options": {"include_usage": include_usage}}
    up.dispatcher.play(routed(), piece("a", finish_reason="stop"), piece("b"), ended())

    chunks = list(ask(client, **options))

    assert text_of(chunks) == "ab"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][:2] == ["stop", None]
    assert chunks[-1].model_extra["fairlead"]["model"] == "small"


def test_async_client_sees_the_same(up):
    """
    Both ways, over one connection pool.
    """

    async def both():
        async with up.async_client() as client:
            whole = await client.chat.completions.create(model="auto", messages=ASKED)
            stream = await client.chat.completions.create(model="auto", messages=ASKED, stream=True)
            return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(both())

    assert whole.choices[0].message.content == text_of(chunks) == "Hello"


# --- fan-out ---------------------------------------------------------------------------------------

TWO = (
    routed(1, model="org/large", pool="large-a", ticket=b"one", attempts=()), piece("B", 1),
    routed(0, attempts=()), piece("A", 0), piece("b", 1), delta(1, "stop"),
    ended(1, cost_usd=0.5), piece("a", 0), delta(0, "length"), ended(0),
)  # fmt: skip


def test_a_cascade_by_self_consistency_is_asked_for_in_one_field(up, client):
    cascade = {"by": "self_consistency", "probes": 2}
    client.chat.completions.create(
        model="auto", messages=ASKED, extra_body={"fairlead": {"cascade": cascade}}
    )
    asked = up.dispatcher.asks[0]
    assert (asked.escalate, asked.n_probes) == ("self_consistency", 2)

    with pytest.raises(openai.BadRequestError, match=r"cascade\.probes is 9; it must be 2 to 8"):
        client.chat.completions.create(
            model="auto",
            messages=ASKED,
            extra_body={"fairlead": {"cascade": {**cascade, "probes": 9}}},
        )


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_the_last_resort_says_why(up, client, stream):
    why = "nobody that was asked answered (unreachable)"
    up.dispatcher.play(
        routed(0, escalated=why), piece("Oslo", 0), delta(0, "stop"), ended(0, escalated=why)
    )
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=ASKED, stream=stream,
        extra_body={"fairlead": {"fan_out": 2, "escalate_to": "org/large"}},
    )  # fmt: skip

    got = list(raw.parse())[-1] if stream else raw.parse()
    assert urllib.parse.unquote(raw.headers["x-fairlead-escalated"]) == why
    assert got.model_extra["fairlead"]["escalated"] == why
    assert up.dispatcher.asks[0].escalate_to == "org/large"


def test_fan_out_brings_a_choice_per_answer(up, client):
    """
    Headers and id are of the answer that came first, usage is of all, `fairlead` has one of each.
    """
    up.dispatcher.play(*TWO)

    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=ASKED, extra_body={"fairlead": {"fan_out": 2}}
    )

    got = raw.parse()
    assert up.dispatcher.asks[0].fan_out == 2
    assert raw.headers["x-fairlead-model"] == got.model == "org/large"
    assert [(c.index, c.message.content, c.finish_reason) for c in got.choices] == [
        (0, "Aa", "length"),
        (1, "Bb", "stop"),
    ]
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (22, 4)
    ours = got.model_extra["fairlead"]
    assert ours["model"] == "org/large"
    assert [(a["index"], a["model"], a["cost_usd"]) for a in ours["answers"]] == [
        (0, "small", 0.001),
        (1, "org/large", 0.5),
    ]


@pytest.mark.parametrize("include_usage", [False, True])
def test_fan_out_streams_interleaved(up, client, include_usage):
    up.dispatcher.play(*TWO)

    chunks = list(
        ask(client, stream=True, stream_options={"include_usage": include_usage},
            extra_body={"fairlead": {"fan_out": 2}})
    )  # fmt: skip

    for index, model, text, why in ((0, "small", "Aa", "length"), (1, "org/large", "Bb", "stop")):
        mine = [c for c in chunks if c.choices and c.choices[0].index == index]
        assert {c.model for c in mine} == {model}
        assert (text_of(mine), mine[-1].choices[0].finish_reason) == (text, why)
    assert len(chunks[-1].model_extra["fairlead"]["answers"]) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_fan_out_goes_on_without_an_answer_that_fails(up, client, stream):
    """
    One breaks after its first token, one never begins: each says so, the third is whole.
    """
    broken, never = AnswerBroken("small-a", "went away"), NoAnswer("all", "nobody there")
    up.dispatcher.play(
        ended(2, problem=never), routed(0), piece("A", 0), routed(1), piece("B", 1),
        ended(0, problem=broken), delta(1, "stop"), ended(1),
    )  # fmt: skip

    got = ask(client, stream=stream, extra_body={"fairlead": {"fan_out": 3}})

    if stream:
        chunks = list(got)
        ends = {
            c.choices[0].index: c.choices[0].finish_reason
            for c in chunks
            if c.choices[0].finish_reason
        }
        answers = chunks[-1].model_extra["fairlead"]["answers"]
    else:
        ends = {c.index: c.finish_reason for c in got.choices}
        answers = got.model_extra["fairlead"]["answers"]
    assert ends == {0: "error", 1: "stop"}
    assert [a.get("problem", {}).get("code") for a in answers] == [
        "answer_broken",
        None,
        "no_answer",
    ]
    assert "went away" in answers[0]["problem"]["message"]


def test_fan_out_to_fewer_models_than_asked_for_has_the_same_form(up, client):
    """
    Who asked for several reads a list, also where only one was to be had.
    """
    got = ask(client, extra_body={"fairlead": {"fan_out": 2}}).model_extra["fairlead"]
    assert [a["model"] for a in got["answers"]] == ["small"]


@pytest.mark.parametrize("stream", [False, True])
def test_fan_out_of_which_nothing_comes_has_a_status(up, client, stream):
    problem = NoAnswer("all", "nobody there")
    up.dispatcher.play(ended(0, problem=problem), ended(1, problem=problem))
    with pytest.raises(openai.InternalServerError, match="nobody there") as caught:
        ask(client, stream=stream, extra_body={"fairlead": {"fan_out": 2}})
    assert caught.value.status_code == 503


# --- errors ----------------------------------------------------------------------------------------

RAISED = [
    (InvalidRequest("tenant", "70 bytes", "at most 64 bytes"), 400, openai.BadRequestError, "bad_field"),
    (CallRefused("small-a", "tools are not supported"), 400, openai.BadRequestError, "call_refused"),
    (UnknownModel("denied_models", "x", ("small",)), 404, openai.NotFoundError, "model_not_found"),
    (NoModelFits("all are too dear"), 422, openai.UnprocessableEntityError, "no_model_fits"),
    (RuledOut(("a rule",), "not here"), 422, openai.UnprocessableEntityError, "ruled_out"),
    (QueueFull("9 wait"), 429, openai.RateLimitError, "queue_full"),
    (FleetFull("SHEDDABLE", 20.5), 429, openai.RateLimitError, "fleet_full"),
    (AnswerBroken("small-a", "went away"), 502, openai.InternalServerError, "answer_broken"),
    (NoAnswer("all", "three attempts"), 503, openai.InternalServerError, "no_answer"),
    (NotServing("stopping"), 503, openai.InternalServerError, "not_serving"),
    (DeadlinePassed("2 ms ago"), 504, openai.InternalServerError, "deadline_passed"),
    (KeyError("a secret"), 500, openai.InternalServerError, "internal_error"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error,status,kind,code", RAISED, ids=[r[3] for r in RAISED])
def test_error_before_the_first_token_has_a_status(up, client, stream, error, status, kind, code):
    """
    The official client raises the class a program would look for, with our words.
    """
    up.dispatcher.play(error)

    with pytest.raises(kind) as caught:
        ask(client, stream=stream)

    assert type(caught.value) is kind
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.param == getattr(error, "field", None)
    expected = (
        "internal error (KeyError); see the dispatcher's log" if status == 500 else str(error)
    )
    assert caught.value.body["message"] == expected
    assert up.dispatcher.closed.wait(PATIENCE_S)


def test_bug_is_logged_with_its_trace_and_a_refusal_is_not(up, client, caplog):
    with caplog.at_level(logging.ERROR):
        up.dispatcher.play(NoModelFits("none"))
        with pytest.raises(openai.UnprocessableEntityError):
            ask(client)
        assert caplog.records == []
        up.dispatcher.play(KeyError("a secret"))
        with pytest.raises(openai.InternalServerError):
            ask(client)

    (record,) = caplog.records
    assert record.exc_info[0] is KeyError


@pytest.mark.parametrize(
    "error,calls",
    [
        (NoModelFits("none"), 1),
        (DeadlinePassed("late"), 1),
        (QueueFull("9 wait"), 2),
        (NoAnswer("", ""), 2),
    ],
)
def test_official_client_tries_again_only_what_may_go_better(up, error, calls):
    """
    It does so by itself: what can't succeed must tell it not to.
    """
    up.dispatcher.play(error)
    with up.client(max_retries=1) as client, pytest.raises(openai.APIStatusError) as caught:
        ask(client)
    assert len(up.dispatcher.asks) == calls
    if calls > 1:
        assert caught.value.response.headers["retry-after"] == "1"


def test_replica_that_does_not_serve_sends_its_client_elsewhere(up, client):
    """
    A connection stays with one replica: the next attempt needs another one.
    """
    up.dispatcher.play(NotServing("starting"))
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client)
    assert caught.value.response.headers["connection"] == "close"


@pytest.mark.parametrize("held", [False, True])
def test_error_after_the_first_token_ends_the_stream_as_an_error(up, client, held):
    """
    What came stays; the client raises, so that nobody takes the rest for whole.
    """
    last = piece("lo", finish_reason="stop") if held else piece("lo")
    up.dispatcher.play(routed(), piece("Hel"), last, AnswerBroken("small-a", "went away"))
    chunks = []

    with pytest.raises(openai.APIError, match="small-a: went away") as caught:
        chunks.extend(ask(client, stream=True))

    assert type(caught.value) is openai.APIError
    assert (caught.value.type, caught.value.code) == ("server_error", "answer_broken")
    assert text_of(chunks) == "Hello"


def test_pieces_that_came_together_are_one_message_of_the_server():
    sent: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))

    async def events() -> AsyncGenerator[Event, None]:
        for event in (routed(), piece("a"), piece("b", followed=True), piece("c"), ended()):
            yield event

    async def work() -> None:
        writer = StreamWriter(0, include_usage=False, fan_out=False)
        await _stream(events(), writer, Reply(send), heartbeat_s=0.0)

    asyncio.run(work())

    assert [body.count(b"data: {") for body in sent if body] == [1, 2, 1]


def test_a_piece_that_waits_for_another_is_sent_before_an_error(up, client):
    """
    What another was said to come with is sent with that one; where an error comes instead, before.
    """
    together = [piece(c, followed=True) for c in "lo"]
    up.dispatcher.play(routed(), piece("Hel"), *together, AnswerBroken("small-a", "went away"))
    chunks = []

    with pytest.raises(openai.APIError, match="went away"):
        chunks.extend(ask(client, stream=True))

    assert text_of(chunks) == "Hello"


def test_broken_stream_has_no_done(up):
    up.dispatcher.play(routed(), piece("Hel"), AnswerBroken("small-a", "went away"))
    got = httpx2.post(f"{up.root}/v1/chat/completions", json={"messages": ASKED, "stream": True})
    assert got.status_code == 200
    assert json.loads(got.text.split("data: ")[-1]) == {
        "error": {
            "message": "small-a: went away",
            "type": "server_error",
            "param": None,
            "code": "answer_broken",
        }
    }


def test_error_after_the_first_token_has_a_status_where_nothing_was_sent(up, client):
    up.dispatcher.play(routed(), piece("Hel"), AnswerBroken("small-a", "went away"))
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client)
    assert caught.value.status_code == 502


@pytest.mark.parametrize(
    "fields,kind,param",
    [
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"model": "nope"}, openai.NotFoundError, "model"),
        ({"extra_body": {"fairlead": {"tenat": "x"}}}, openai.BadRequestError, "fairlead.tenat"),
    ],
)
def test_bad_request_is_refused_by_its_field_before_anyone_is_asked(
    up, client, fields, kind, param
):
    with pytest.raises(kind) as caught:
        ask(client, **fields)
    assert caught.value.param == param
    assert up.dispatcher.asks == []


@pytest.mark.parametrize(
    "method,path,status",
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
    ],
)
def test_what_is_not_there_is_refused_in_the_same_form(up, method, path, status):
    got = httpx2.request(method, f"{up.root}{path}")
    assert got.status_code == status
    assert got.json()["error"]["code"] == "bad_call"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/chat/completions", "/v1/secret-in-a-path"])
def test_a_path_that_is_not_there_is_answered_with_those_that_are(up, path):
    """
    A base URL without /v1 is the usual mistake. What was sent is in no message: it may be logged.
    """
    got = httpx2.post(f"{up.root}{path}", json={})
    message = got.json()["error"]["message"]
    assert got.status_code == 404
    assert "ends with /v1" in message and "/v1/chat/completions" in message
    assert "secret" not in message


@pytest.mark.parametrize("path", ["chat/completions", "feedback"])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_that_is_too_long_is_refused_unread(path, chunked):
    """
    Whether or not its length was announced. The connection is still good.
    """
    with api(HttpOptions(body=BodyOptions(bytes_max=1000))) as up, httpx2.Client() as http:
        content = b"x" * 5000
        got = http.post(f"{up.root}/v1/{path}", content=iter([content] * 3) if chunked else content)
        assert got.status_code == 413
        assert got.json()["error"]["code"] == "body_too_large"
        assert "1000 bytes" in got.json()["error"]["message"]
        assert http.get(f"{up.root}/health").status_code == 200


# --- leaving ---------------------------------------------------------------------------------------


def test_closing_a_stream_closes_the_answer(up, client):
    """
    Tokens that nobody reads are paid for all the same.
    """
    pause = Pause()
    up.dispatcher.play(routed(), piece("Hel"), pause)

    stream = ask(client, stream=True)
    next(stream)
    assert pause.reached.wait(PATIENCE_S)
    assert not up.dispatcher.closed.is_set()
    stream.close()

    assert up.dispatcher.closed.wait(PATIENCE_S)


@pytest.mark.parametrize("stream", [False, True])
def test_time_out_of_the_client_before_the_first_token_closes_the_answer(up, stream):
    """
    Also where nothing is being written that could fail.
    """
    for timeout_s in (0.2, 2.0, 20.0):  # longer only where the request has not arrived by then
        pause = Pause()
        up.dispatcher.play(pause)
        with up.client(timeout=timeout_s) as client, pytest.raises(openai.APITimeoutError):
            ask(client, stream=stream)
        if pause.reached.is_set():
            break

    assert up.dispatcher.closed.wait(PATIENCE_S)


def test_aborted_socket_closes_the_answer(up, caplog):
    """
    A reset, in the middle of a stream the client reads nothing of; and nobody calls that our fault.
    """
    pause = Pause()
    up.dispatcher.play(routed(), piece("Hel"), pause)
    body = json.dumps({"messages": ASKED, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"

    with socket.create_connection(("127.0.0.1", up.listener.port)) as raw:
        raw.sendall(head.encode() + body)
        assert pause.reached.wait(PATIENCE_S)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    assert up.dispatcher.closed.wait(PATIENCE_S)
    assert caplog.records == []


def test_client_that_stops_reading_and_leaves_closes_the_answer(up):
    """
    The stream is held up by a full socket then, not by the pool.
    """
    endless = [piece("x" * 65_536)] * 2000
    up.dispatcher.play(routed(), *endless, ended())
    body = json.dumps({"messages": ASKED, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"

    with socket.create_connection(("127.0.0.1", up.listener.port)) as raw:
        raw.sendall(head.encode() + body)
        assert raw.recv(100)
        assert not up.dispatcher.closed.is_set()

    assert up.dispatcher.closed.wait(PATIENCE_S)


def test_client_that_leaves_within_its_request_is_nobodys_fault(up, caplog):
    with socket.create_connection(("127.0.0.1", up.listener.port)) as raw:
        raw.sendall(b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
    with socket.create_connection(("127.0.0.1", up.listener.port)) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")

    assert httpx2.get(f"{up.root}/health").status_code == 200
    assert up.dispatcher.asks == []
    assert caplog.records == []


def test_cancelled_async_call_closes_the_answer(up):
    pause = Pause()
    up.dispatcher.play(pause)

    async def leave():
        async with up.async_client() as client:
            call = asyncio.create_task(client.chat.completions.create(model="auto", messages=ASKED))
            assert await asyncio.to_thread(pause.reached.wait, PATIENCE_S)
            call.cancel()
            await asyncio.wait([call])

    asyncio.run(leave())
    assert up.dispatcher.closed.wait(PATIENCE_S)


# --- keys ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Api]:
    with api(HttpOptions(api_keys=("sesame", "öffne"))) as up:
        up.dispatcher.play(*HELLO)
        yield up


def test_key_is_asked_for_where_keys_are_set(guarded):
    with guarded.client(api_key="sesame") as client:
        assert ask(client).choices[0].message.content == "Hello"
    for wrong in ("sesam", "sesame2", "x"):
        with (
            guarded.client(api_key=wrong) as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            ask(client)
        assert caught.value.code == "invalid_api_key"
        assert caught.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["models", "models/small", "feedback", "chat/completions", "nothing"]
)
def test_key_guards_every_path_but_health(guarded, path):
    assert httpx2.get(f"{guarded.root}/v1/{path}").status_code == 401
    assert httpx2.get(f"{guarded.root}/health").json() == {"status": "ok"}


# --- models ----------------------------------------------------------------------------------------


def test_models_are_auto_and_the_catalogue(up, client):
    """
    What a user interface lists, with what it costs and where it runs.
    """
    auto, small, large = list(client.models.list())

    assert [m.id for m in (auto, small, large)] == ["auto", "small", "org/large"]
    assert {m.object for m in (auto, small, large)} == {"model"}
    assert auto.model_extra["fairlead"] == {"models": ["small", "org/large"]}
    ours = small.model_extra["fairlead"]
    assert ours["pools"] == [{"name": "small-a", "region": "eu"}, {"name": "small-b", "region": ""}]
    assert (ours["usd_per_1m_input_tokens"], ours["usd_per_1m_output_tokens"]) == (0.1, 0.4)
    assert (ours["quality"], ours["context_tokens_max"]) == (0.6, None)
    assert large.model_extra["fairlead"]["quality"] is None


def test_one_model_is_found_by_its_name_also_with_a_slash(up, client):
    assert (
        client.models.retrieve("org/large").model_extra["fairlead"]["context_tokens_max"]
        == 128_000.0
    )
    assert client.models.retrieve("auto").id == "auto"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"


# --- feedback --------------------------------------------------------------------------------------


def feedback(up: Api, body: object) -> httpx2.Response:
    return httpx2.post(f"{up.root}/v1/feedback", json=body)


def test_feedback_takes_the_ticket_as_it_came(up, client):
    """
    From an answer to its outcome, in what JSON gives.
    """
    ticket = ask(client).model_extra["fairlead"]["ticket"]

    got = feedback(up, {"ticket": ticket, "quality": 0.9, "error": False})

    assert (got.status_code, got.json()) == (200, {"accepted": 1})
    (outcome,) = up.dispatcher.feedback[0].outcomes
    assert (outcome.ticket, outcome.quality, outcome.error) == (TICKET, 0.9, False)
    assert not outcome.HasField("cost_usd")


def test_feedback_takes_several(up):
    padded = base64.urlsafe_b64encode(TICKET).decode()
    outcomes = [
        {"ticket": padded, "cost_usd": 1, "output_tokens": 7},
        {"ticket": padded.rstrip("="), "latency_ms": 2.5},
    ]

    assert feedback(up, {"outcomes": outcomes}).json() == {"accepted": 2}

    first, second = up.dispatcher.feedback[0].outcomes
    assert (first.ticket, first.cost_usd, first.output_tokens) == (TICKET, 1.0, 7)
    assert (second.ticket, second.latency_ms) == (TICKET, 2.5)


def test_feedback_of_every_shape_arrives_as_over_grpc(up):
    """
    How a quality was come by, and the tickets of other decisions that it is about.
    """
    ticket = base64.urlsafe_b64encode(TICKET).decode()
    said = {"confidence": 0.9, "weight": 0.5, "source": "judge", "revision": 2}
    tickets = {"better_than": ticket, "steps": [ticket, ticket]}

    assert feedback(up, {"ticket": ticket, **said, **tickets}).json() == {"accepted": 1}

    (outcome,) = up.dispatcher.feedback[0].outcomes
    assert {name: getattr(outcome, name) for name in said} == said
    assert (outcome.better_than, list(outcome.steps)) == (TICKET, [TICKET, TICKET])


@pytest.mark.parametrize(
    "body,param",
    [
        ({}, "ticket"),
        ([], "body"),
        ({"ticket": "?", "quality": 1}, "outcomes[0].ticket"),
        ({"ticket": "é", "quality": 1}, "outcomes[0].ticket"),
        ({"ticket": "AAAA", "qualty": 1}, "qualty"),
        ({"ticket": "AAAA", "output_tokens": 10_000_001}, "output_tokens"),
        ({"outcomes": [{"ticket": "AAAA"}], "quality": 1}, "quality"),
        ({"outcomes": [{"ticket": "AAAA"}, {"ticket": "A"}]}, "outcomes[1].ticket"),
        ({"outcomes": [{"ticket": "AAAA", "error": 1}]}, "outcomes[0].error"),
        ({"ticket": "AAAA", "revision": 8}, "revision"),
        ({"ticket": "AAAA", "better_than": "?"}, "outcomes[0].better_than"),
        ({"ticket": "AAAA", "steps": ["AAAA", "?"]}, "outcomes[0].steps[1]"),
    ],
)
def test_feedback_that_can_not_be_read_is_refused_by_its_field(up, body, param):
    got = feedback(up, body)
    assert got.status_code == 400
    assert got.json()["error"]["param"] == param
    assert up.dispatcher.feedback == []


@pytest.mark.parametrize(
    "problem,status,code",
    [
        (InvalidRequest("outcomes[0].quality", 2, "0 to 1"), 400, "bad_field"),
        (LogUnavailable("the broker is away"), 503, "log_unavailable"),
    ],
)
def test_feedback_that_is_not_taken_says_so(up, problem, status, code):
    up.dispatcher.problem = problem
    got = feedback(up, {"ticket": "AAAA", "quality": 0.5})
    assert (got.status_code, got.json()["error"]["code"]) == (status, code)
    assert got.json()["error"]["message"] == str(problem)


def test_bug_of_feedback_keeps_its_details(up, caplog):
    up.dispatcher.problem = KeyError("a secret")
    got = feedback(up, {"ticket": "AAAA", "quality": 0.5})
    assert got.status_code == 500
    assert "secret" not in got.text
    assert got.json()["error"]["code"] == "internal_error"
    # Written by uvicorn, once the answer is out.
    until(lambda: any(r.exc_info and r.exc_info[0] is KeyError for r in caplog.records))
