"""The emulated server over real HTTP: to a caller it is a server of models, and its words count."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import replace

import httpx2
import openai
import pytest
from emulated import PERFORMANCE, POWER, Up, emulated, emulation
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly
from waiting import soon

from infra.emulator.engine import FIRST_TOKEN, Event
from infra.endpoints.connections import Connections
from infra.endpoints.openai_endpoint import OpenAiEndpoint
from infra.endpoints.options import OpenAiOptions
from infra.pools.emulated_answers import ChatRequest
from infra.pools.emulated_prefixes import Prefixes
from infra.pools.emulated_server import EmulatedServer, TooLong
from infra.server_metrics.pages import read_page
from serve.dispatch.backend import Call, Piece, Usage
from serve.errors import AnswerGarbled, CallRefused, EndpointFailed

PATIENCE_S = 120.0
ASKED = [{"role": "user", "content": "Tell me of the sea."}]


def run(work: Awaitable) -> object:
    async def bounded() -> object:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    return asyncio.run(bounded())


def words(n: int) -> str:
    return "".join(f"w{i} " for i in range(n))


# An answer of 99 s, longer than any test waits.
MINUTES = {"output_tokens": 1e6, "context_tokens_max": 99_000, "speed": 1.0}


async def state(up: Up) -> dict:
    async with httpx2.AsyncClient() as http:
        return (await http.get(f"{up.root}/emulator/state")).json()


async def order(up: Up, **fault: object) -> int:
    async with httpx2.AsyncClient() as http:
        return (await http.put(f"{up.root}/emulator/fault", json=fault)).status_code


async def create(up: Up, messages: list = ASKED, **options: object):
    async with up.client() as client:
        return await client.chat.completions.create(model="m", messages=messages, **options)


async def stream(up: Up, messages: list = ASKED, **options: object) -> list:
    async with up.client() as client:
        chunks = await client.chat.completions.create(
            model="m", messages=messages, stream=True, **options
        )
        return [chunk async for chunk in chunks]


# --- answers ---------------------------------------------------------------------------------------


def test_streamed_answer_has_every_word_once_and_in_order():
    """
    With usage where it is asked for, and a finish reason in the last piece alone.
    """

    async def work():
        async with emulated() as up:
            return await stream(up, stream_options={"include_usage": True})

    *pieces, last = run(work())

    n = last.usage.completion_tokens
    assert last.choices == []
    assert "".join(piece.choices[0].delta.content for piece in pieces) == words(n)
    assert [p.choices[0].finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert pieces[0].choices[0].delta.role == "assistant"
    assert last.usage.prompt_tokens == 5  # 19 bytes
    assert last.usage.total_tokens == 5 + n
    assert {piece.id for piece in pieces} == {last.id}


def test_answer_is_as_long_as_it_is_told_to_be():
    """
    `ignore_eos` and `min_tokens` as vLLM has them: a replayed trace needs its own lengths.
    """

    async def work():
        async with emulated() as up:
            return [
                await create(up, **asked)
                for asked in (
                    {"max_tokens": 400, "extra_body": {"ignore_eos": True}},
                    {"max_tokens": 400, "extra_body": {"min_tokens": 350}},
                )
            ]

    whole, longer = run(work())

    assert whole.usage.completion_tokens == 400
    assert whole.choices[0].finish_reason == "length"
    assert 350 <= longer.usage.completion_tokens <= 400


def test_usage_is_streamed_only_where_it_is_asked_for():
    async def work():
        async with emulated() as up:
            return await stream(up)

    assert all(chunk.usage is None and chunk.choices for chunk in run(work()))


def test_whole_answer_is_the_same_as_the_streamed_one():
    async def work():
        async with emulated() as up:
            return await create(up), await stream(up)

    whole, chunks = run(work())

    streamed = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert whole.choices[0].message.content == streamed == words(whole.usage.completion_tokens)
    assert whole.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_limited_answer_ends_for_its_length(limit):
    async def work():
        async with emulated() as up:
            return await create(up, **{limit: 3}), (await stream(up, **{limit: 3}))[-1]

    whole, last = run(work())

    assert whole.choices[0].message.content == words(3)
    assert whole.usage.completion_tokens == 3
    assert whole.choices[0].finish_reason == last.choices[0].finish_reason == "length"


def test_answer_stops_where_the_context_ends():
    """
    Prompt and answer share it; what is longer than all of it is refused with OpenAI's code.
    """

    async def work():
        async with emulated(context_tokens_max=12, output_tokens=1000.0) as up:
            answer = await create(up)
            with pytest.raises(openai.BadRequestError) as refused:
                await create(up, [{"role": "user", "content": "x" * 48}])
            return answer, refused.value

    answer, refused = run(work())

    assert answer.usage.total_tokens == 12
    assert answer.choices[0].finish_reason == "length"
    assert refused.code == "context_length_exceeded"
    assert "12 tokens" in str(refused)


def test_prompt_that_the_cache_could_never_take_is_refused():
    """
    The engine leaves a part of its cache free, so it would wait for ever.
    """
    server = EmulatedServer("m", emulation(context_tokens_max=100_000), lambda: 0.0, lambda: 0)

    with pytest.raises(TooLong):
        server.plan(ChatRequest(messages=[{"role": "user", "content": "x" * 4 * 99_500}]))


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": [1]}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}',
        b'{"messages": [{"role": "user", "content": "x"}], "priority": "high"}',
        b'{"messages": [{"role": "user", "content": "x"}], "priority": 1.5}',
        b"\xff",
    ],
)
def test_request_that_is_wrong_is_refused(body):
    async def work():
        async with emulated() as up, httpx2.AsyncClient() as http:
            return await http.post(f"{up.url}/chat/completions", content=body)

    reply = run(work())

    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_lower_priority_is_answered_earlier():
    """
    Of those that wait while another is answered; who says none has 0.
    """
    bodies = [{"priority": 9}, {"priority": 3}, {}, {"priority": 1}, {"priority": -1}]
    emitted: list[Event] = []

    def noted(events: list[Event]) -> list[Event]:
        emitted.extend(events)
        return events

    async def work():
        async with emulated(performance=replace(PERFORMANCE, sequences_max=1)) as up:
            engine, tasks = up.server.engine, []
            advance = engine.advance
            engine.advance = lambda to_s: noted(advance(to_s))
            await order(up, kind="slow", factor=1e6)  # until all are there
            for n, body in enumerate(bodies):
                tasks.append(asyncio.create_task(create(up, extra_body=body)))
                await soon(lambda n=n: engine.queued + engine.running == n + 1)
            await order(up, kind="none")
            await asyncio.gather(*tasks)

    run(work())

    assert [e.request_id for e in emitted if e.kind == FIRST_TOKEN] == [0, 4, 2, 3, 1]


def test_logprobs_are_given_for_every_word_where_asked_for():
    """
    Around the confidence that is emulated, and the same for the same conversation.
    """

    async def work():
        async with emulated() as up:
            return [await create(up, logprobs=True) for _ in range(2)], await create(up)

    answers, plain = run(work())

    (first, second) = [answer.choices[0].logprobs.content for answer in answers]
    assert "".join(token.token for token in first) == answers[0].choices[0].message.content
    assert {t.logprob for t in first} == {t.logprob for t in second}
    assert all(token.logprob < 0 for token in first)
    assert plain.choices[0].logprobs is None


def test_models_are_listed():
    async def work():
        async with emulated() as up, up.client() as client:
            return [model.id async for model in client.models.list()]

    assert run(work()) == ["m"]


# --- how long answers are --------------------------------------------------------------------------


def planned(text: str, **changed: object):
    server = EmulatedServer("m", emulation(**changed), lambda: 0.0, lambda: 0)
    return server.plan(ChatRequest(messages=[{"role": "user", "content": text}]))


def test_length_depends_on_the_conversation_alone():
    """
    Whichever replica answers, and however often, it is as long.
    """
    texts = [f"question {i}" for i in range(20)]

    first, second = ([planned(text).output_tokens for text in texts] for _ in range(2))

    assert first == second
    assert len(set(first)) > 5


def test_lengths_have_the_mean_that_is_stated():
    lengths = [planned(f"question {i}", output_tokens=200.0).output_tokens for i in range(2000)]

    assert statistics.mean(lengths) == pytest.approx(200, rel=0.05)
    assert max(lengths) > 400


# --- the prefix cache ------------------------------------------------------------------------------


def test_second_turn_of_a_conversation_finds_the_first_one_in_the_cache():
    """
    The answer, too; and the engine has less to do: no time passes for what is cached.
    """
    long = {"role": "user", "content": "x" * 12_000}

    async def work():
        async with emulated(speed=1.0) as up:
            first = await create(up, [long], max_tokens=2)
            said = first.choices[0].message.model_dump()
            again = [long, said, {"role": "user", "content": "And then?"}]
            before_s = up.server.engine.busy_s
            second = await create(up, again, max_tokens=2)
            took_s = up.server.engine.busy_s - before_s
            other = await create(up, [{"role": "user", "content": "y" * 12_000}, *again[1:]])
            return first, second, other, before_s, took_s

    first, second, other, first_s, second_s = run(work())

    assert first.usage.prompt_tokens_details.cached_tokens == 0
    # The conversation and an answer of 6 bytes, "w0 w1 ".
    assert second.usage.prompt_tokens_details.cached_tokens == 3000 + 2
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    assert first_s > 0.03 > second_s


def test_same_prompt_again_computes_its_last_token():
    async def work():
        async with emulated() as up:
            return [await create(up) for _ in range(2)]

    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in run(work())]
    assert cached == [0, 4]


def test_refused_prompt_is_not_cached():
    server = EmulatedServer("m", emulation(context_tokens_max=10), lambda: 0.0, lambda: 0)
    message = {"role": "user", "content": "x" * 36}
    with pytest.raises(TooLong):
        server.plan(ChatRequest(messages=[message, message]))

    assert server.plan(ChatRequest(messages=[message])).cached_tokens == 0


def said(text: str) -> dict:
    return {"role": "user", "content": text}


conversations = st.lists(
    st.lists(st.sampled_from(["a" * 4, "b" * 8, "c" * 12]).map(said), min_size=1, max_size=4),
    max_size=30,
)


@lightly
@given(conversations, st.integers(1, 20))
def test_cache_holds_no_more_than_there_is_room_for(kept, tokens_max):
    """
    And never claims more than a prompt has, nor what was not computed.
    """
    prefixes = Prefixes(tokens_max)
    computed = set()

    for messages in kept:
        found = prefixes.read(messages)
        texts = tuple(m["content"] for m in messages)
        longest = max(i for i in range(len(texts) + 1) if not i or texts[:i] in computed)
        assert found.cached_tokens <= sum(len(t) // 4 for t in texts[:longest])
        assert found.cached_tokens <= tokens_max
        assert found.tokens == sum(len(t) // 4 for t in texts)
        prefixes.keep(messages)
        computed |= {texts[:i] for i in range(1, len(texts) + 1)}

    if kept and sum(len(m["content"]) // 4 for m in kept[-1]) <= tokens_max:
        assert prefixes.read(kept[-1]).cached_tokens == prefixes.read(kept[-1]).tokens


def test_cache_forgets_what_was_used_longest_ago():
    prefixes = Prefixes(3)
    a, b, c, d = ([said(letter * 4)] for letter in "abcd")
    for messages in (a, b, c):
        prefixes.keep(messages)
    prefixes.keep(a)  # used again

    prefixes.keep(d)

    assert [bool(prefixes.read(m).cached_tokens) for m in (a, b, c, d)] == [True, False, True, True]


def test_end_of_a_conversation_is_forgotten_before_its_beginning():
    """
    What is left of it is still of use.
    """
    prefixes = Prefixes(3)
    for messages in ([said("aaaa"), said("bbbb")], [said("cccc")], [said("dddd")]):
        prefixes.keep(messages)

    assert prefixes.read([said("aaaa"), said("bbbb")]).cached_tokens == 1
    assert prefixes.read([said("aaaa")]).cached_tokens == 1


def test_keys_of_a_message_may_come_in_any_order():
    prefixes = Prefixes(100)
    prefixes.keep([{"role": "user", "content": "Hello there"}])

    assert prefixes.read([{"content": "Hello there", "name": None, "role": "user"}]).cached_tokens


# --- as an endpoint of a pool ----------------------------------------------------------------------


def test_endpoint_of_a_pool_reads_every_word_and_the_usage():
    async def work():
        connections = Connections()
        async with emulated() as up:
            endpoint = OpenAiEndpoint("p", OpenAiOptions(url=up.url, model="m"), connections)
            call = Call(body={"messages": ASKED}, prompt_tokens=99, confidence=True)
            events = [event async for event in endpoint.stream(call)]
            await connections.close()
            return events

    *pieces, usage = run(work())

    assert isinstance(usage, Usage)
    assert usage.counted
    assert usage.prompt_tokens == 5
    assert "".join(piece.text for piece in pieces) == words(usage.output_tokens)
    assert sum(len(p.logprobs["content"]) for p in pieces if p.logprobs) == usage.output_tokens


@pytest.mark.parametrize("streamed", [True, False])
def test_caller_who_leaves_frees_the_engine(streamed):
    """
    Nothing goes on being computed for nobody; and the next one finds an idle engine.
    """

    async def work():
        async with emulated(**MINUTES) as up:
            if streamed:
                async with up.client() as client:
                    chunks = await client.chat.completions.create(
                        model="m", messages=ASKED, stream=True
                    )
                    await anext(aiter(chunks))
                    assert (await state(up))["running"] == 1
                    await chunks.close()
            else:
                asking = asyncio.create_task(create(up))
                await soon(lambda: up.server.engine.running == 1)
                asking.cancel()
            await soon(lambda: up.server.engine.running + up.server.engine.queued == 0)
            return await state(up)

    left = run(work())

    assert (left["running"], left["queued"]) == (0, 0)


def test_stopping_the_listener_frees_the_engine():
    async def work():
        async with emulated(**MINUTES) as up:
            asking = asyncio.create_task(create(up))
            await soon(lambda: up.server.engine.running == 1)
        with pytest.raises(openai.APIError):
            await asking
        return up.server.engine

    engine = run(work())

    assert engine.running + engine.queued == 0


# --- its state -------------------------------------------------------------------------------------


def test_state_counts_tokens_and_energy():
    """
    Idle it takes idle power; tokens made are those of all answers.
    """

    async def work():
        async with emulated() as up:
            fresh = await state(up)
            answer = await create(up)
            return fresh, answer.usage.completion_tokens, await state(up), await state(up)

    fresh, made, after, idle = run(work())

    assert fresh == {
        "queued": 0, "running": 0, "kv_use": 0.0, "fault": "none",
        "tokens_made_total": 0, "energy_j": fresh["energy_j"], "watts": POWER.idle_w,
    }  # fmt: skip
    assert after["tokens_made_total"] == made
    assert after["energy_j"] > fresh["energy_j"]
    assert POWER.idle_w < after["watts"] <= POWER.prefill_w
    assert idle["watts"] == pytest.approx(POWER.idle_w)
    assert idle["energy_j"] > after["energy_j"]  # time went on, and it shows


# --- faults ----------------------------------------------------------------------------------------


def test_slow_fault_slows_the_engine_down_and_none_mends_it():
    async def work():
        async with emulated() as up:
            assert await order(up, kind="slow", factor=7.0) == 200
            slow = up.server.clock.slowdown
            answer = await create(up)
            assert await order(up, kind="none") == 200
            return slow, answer, up.server.clock.slowdown

    slow, answer, mended = run(work())

    assert (slow, mended) == (7.0, 1.0)
    assert answer.choices[0].message.content == words(answer.usage.completion_tokens)


def test_errors_fault_fails_the_share_that_is_ordered():
    async def work():
        async with emulated(output_tokens=1.0) as up:
            await order(up, kind="errors", share=0.5)
            async with httpx2.AsyncClient() as http:
                body = {"messages": ASKED}
                replies = [
                    await http.post(f"{up.url}/chat/completions", json=body) for _ in range(40)
                ]
            failed = sum(reply.status_code == 500 for reply in replies)
            await order(up, kind="errors", share=1.0)
            endpoint = OpenAiEndpoint(
                "p", OpenAiOptions(url=up.url, model="m"), connections := Connections()
            )
            with pytest.raises(EndpointFailed):
                _ = [
                    e
                    async for e in endpoint.stream(Call(body={"messages": ASKED}, prompt_tokens=1))
                ]
            await order(up, kind="none")
            await create(up)
            await connections.close()
            return failed

    assert 8 <= run(work()) <= 32


def test_silent_fault_answers_nobody_and_none_mends_it():
    """
    The connection is taken and nothing comes; whoever leaves leaves nothing behind.
    """

    async def work():
        async with emulated() as up:
            await order(up, kind="silent")
            with pytest.raises(openai.APITimeoutError):
                await create(up, timeout=0.2)
            await order(up, kind="none")
            return await create(up)

    assert run(work()).choices[0].finish_reason == "stop"


def test_garbage_fault_answers_what_is_no_answer():
    async def work():
        connections = Connections()
        async with emulated() as up:
            endpoint = OpenAiEndpoint("p", OpenAiOptions(url=up.url, model="m"), connections)
            await order(up, kind="garbage")
            call = Call(body={"messages": ASKED}, prompt_tokens=1)
            with pytest.raises(AnswerGarbled):
                async with aclosing(endpoint.stream(call)) as events:
                    _ = [event async for event in events]
            await order(up, kind="none")
            got = [event async for event in endpoint.stream(call)]
            await connections.close()
            return got

    assert any(isinstance(event, Piece) for event in run(work()))


@pytest.mark.parametrize(
    "fault", [{}, {"kind": "lazy"}, {"kind": "slow", "factor": 0}, {"kind": "errors", "share": 2}]
)
def test_fault_that_is_none_is_refused_and_changes_nothing(fault):
    async def work():
        async with emulated() as up:
            return await order(up, **fault), await state(up)

    status, after = run(work())

    assert status == 400
    assert after["fault"] == "none"


def test_context_that_is_too_long_is_the_callers_fault():
    """
    So no other endpoint is asked, and none is blamed.
    """

    async def work():
        connections = Connections()
        async with emulated(context_tokens_max=4) as up:
            endpoint = OpenAiEndpoint("p", OpenAiOptions(url=up.url, model="m"), connections)
            with pytest.raises(CallRefused):
                _ = [
                    e
                    async for e in endpoint.stream(Call(body={"messages": ASKED}, prompt_tokens=1))
                ]
            await connections.close()

    run(work())


def test_performance_here_is_as_the_tests_say():
    assert PERFORMANCE.iteration_s(1, 0, 3000) == pytest.approx(0.031)


# --- its metrics page ------------------------------------------------------------------------------


def test_its_metrics_page_is_read_like_any_servers():
    """
    What the page says is what the engine does.
    """

    async def work():
        async with emulated() as up, httpx2.AsyncClient() as http:
            await create(up, max_tokens=5)
            await create(up, max_tokens=7)
            page = (await http.get(f"{up.root}/metrics")).text
            return read_page(page), await state(up)

    found, doing = run(work())

    assert (found.kind, found.finished) == ("fairlead", 2)
    assert (found.running, found.waiting) == (doing["running"], doing["queued"]) == (0, 0)
    assert found.output_tokens == doing["tokens_made_total"] == 12
    assert found.prompt_tokens > found.cached_tokens > 0  # the second found the first one's prompt
