"""One answer by the dispatcher: retries, hedges, reroutes, deadlines, and readers who leave."""

from __future__ import annotations

import asyncio
import re

import pytest
from dispatch_bench import BODY, SIZES, Bench, Got, bench, collected, live
from made_up_endpoint import FakeEndpoint, Gate, Script, answers, failed
from router_bench import NOON_MS, catalogue

from serve.dispatch.answers import Ended, Routed, Streamed
from serve.dispatch.backend import Piece, Usage
from serve.dispatch.budget import HedgeOptions, RetryOptions
from serve.dispatch.dispatcher import PACE_S_MAX, PACE_S_MIN, DispatchOptions, pace_s
from serve.errors import (
    AnswerBroken,
    AnswerGarbled,
    AnswerLate,
    CallRefused,
    DeadlinePassed,
    EndpointFailed,
    EndpointOverloaded,
    EndpointUnreachable,
    InvalidRequest,
    NoAnswer,
    PoolsOverloaded,
    PoolsStarting,
)
from serve.health.health import HealthOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Pool

HEDGING = HedgeOptions(share_max=1.0)
HEDGE_S, LATE_S = 2.0, 30.0  # the defaults for pools nobody knows yet
HANGS = Script(hangs_at=0)
FAILURES = [
    EndpointUnreachable("x", "no route"),
    EndpointOverloaded("x", "429"),
    EndpointFailed("x", "500"),
    AnswerGarbled("x", "no JSON"),
    AnswerLate("x", "silent"),
]


def fails(at: int = 0) -> Script:
    return Script(fails=failed(), fails_at=at)


def options(hedges: HedgeOptions | None = None, **others: object) -> DispatchOptions:
    return DispatchOptions(hedges=hedges or HedgeOptions(share_max=0.0), **others)


# --- an answer -------------------------------------------------------------------------------------


def test_the_decided_pool_answers_and_is_learned_of():
    """
    Routed, the pieces, Ended; and one report of latency, cost, tokens and no error.
    """
    with bench({"large": answers(4, delays_s={0: 0.5, 3: 1.0}), "small": answers(1)}) as up:
        got = up.get()

        assert got.error is None
        assert (got.routed.pool, got.routed.endpoint) == ("large", "large:1")
        assert got.routed.ticket == got.routed.decision.ticket
        assert got.routed.attempts == ()
        assert got.text() == " w0 w1 w2 w3"
        assert got.story == [("large", "first", "answered")]
        ended = got.ended
        assert ended.usage == Usage(prompt_tokens=100, output_tokens=4)
        assert ended.cost_usd == ended.paid_usd == pytest.approx((100 * 10 + 4 * 20) / 1e6)
        assert (ended.first_token_ms, ended.latency_ms) == pytest.approx((500.0, 1500.0))
        ((_, values),) = up.reports
        assert values == {
            "latency_ms": pytest.approx(1500.0),
            "cost_usd": ended.cost_usd,
            "output_tokens": 4,
            "error": False,
        }


@pytest.mark.parametrize(
    ("criticality", "priority"),
    [
        (pb.SHEDDABLE, 3),
        (pb.SHEDDABLE_PLUS, 2),
        (pb.CRITICAL, 1),
        (pb.CRITICALITY_UNSPECIFIED, 1),
        (pb.CRITICAL_PLUS, 0),
    ],
)
@pytest.mark.parametrize("how", [{}, {"confidence_min": 0.5}, {"fan_out": 2}])
def test_every_call_says_who_goes_first(criticality, priority, how):
    """
    By the request's criticality, the highest first; retries and all other ways included.
    """
    pools = {"large": [FakeEndpoint("large:1", fails(), Script())], "small": answers(1)}
    with bench(pools) as up:
        assert up.get(criticality=criticality, **how).error is None

        assert {call.priority for end in up.calls() for call in end.calls} == {priority}


def test_every_call_says_how_often_its_answer_is_looked_at():
    """
    Alone as often as anybody reads; the more answers there are at once, the less often, also of
    those that began before.
    """
    with bench({"large": [FakeEndpoint("large:1", fails())], "small": answers(1)}) as up:
        assert up.get().error is None

        calls = [call for end in up.calls() for call in end.calls]
        assert {call.pace_s() for call in calls} == {PACE_S_MIN}
        under_way = up.dispatcher.retries
        for _ in range(15):
            under_way.request_began()
        assert {call.pace_s() for call in calls} == {pace_s(15)}
        for _ in range(15):
            under_way.request_ended()
    assert PACE_S_MIN < pace_s(15) < pace_s(1000) == PACE_S_MAX


def test_a_criticality_of_a_later_version_is_refused_before_anything_is_decided():
    """
    Nobody would be called in the name of the ticket, nor would it be settled.
    """
    with bench({"large": answers(1)}) as up:
        got = up.get(criticality=99)

        assert isinstance(got.error, InvalidRequest)
        assert (up.decided, up.reports) == ([], [])


def test_an_answer_without_a_word_is_an_answer():
    with bench({"large": Script(words=())}) as up:
        got = up.get()

        assert (got.error, got.text()) == (None, "")
        assert [type(e) for e in got.events] == [Routed, Streamed, Ended]
        assert got.ended.usage.output_tokens == 0


def test_a_server_that_does_not_say_what_it_took_is_counted_by_pieces():
    with bench({"large": answers(3, usage="missing")}) as up:
        got = up.get()

        assert got.ended.usage == Usage(prompt_tokens=100, output_tokens=3, counted=False)


@pytest.mark.parametrize(
    "said",
    [
        Usage(prompt_tokens=-5, output_tokens=3),
        Usage(prompt_tokens=5, output_tokens=-3),
        Usage(prompt_tokens=10**18, output_tokens=3),
        Usage(prompt_tokens=5, output_tokens=10**18),
    ],
)
def test_numbers_that_can_not_be_are_not_believed(said):
    """
    One impossible number makes the rest doubtful, too: pieces are counted instead.
    """
    with bench({"large": answers(3, usage=said)}) as up:
        got = up.get()

        assert got.ended.usage == Usage(prompt_tokens=100, output_tokens=3, counted=False)
        ((_, values),) = up.reports
        assert values["cost_usd"] == pytest.approx((100 * 10 + 3 * 20) / 1e6)
        assert values["output_tokens"] == 3


def test_a_cost_beyond_what_feedback_takes_is_reported_as_the_most_it_takes():
    said = Usage(prompt_tokens=10_000_000, output_tokens=10_000_000)
    with bench({"large": answers(1, usage=said)}) as up:
        assert up.get().ended.cost_usd == 100.0


def test_a_model_that_leaves_while_it_answers_is_paid_by_the_price_it_had():
    """
    Retries to it still have tickets: the view of the decision is kept to the end.
    """
    gate = Gate()
    ends = [
        FakeEndpoint("a", Script(gates={0: gate}, fails=failed())),
        FakeEndpoint("b", answers(2)),
    ]
    with bench({"large": ends}) as up:

        async def scene() -> Got:
            asking = asyncio.ensure_future(collected(up.answer()))
            await gate.reached.wait()
            up.view.current = live(catalogue(SIZES[:2]))
            gate.open()
            return await asking

        got = up.loop.run(scene())

        assert [o for _, _, o in got.story] == ["error", "answered"]
        assert got.ended.cost_usd == pytest.approx((100 * 10 + 2 * 20) / 1e6)


def test_a_reader_who_is_slower_than_the_pool_is_not_the_pools_latency():
    """
    With the reader in the way, nobody knows how long the pool would have taken: no latency at all.
    """

    async def slowly(up: Bench, pause_s: float) -> None:
        async for _ in up.answer():
            await asyncio.sleep(pause_s)

    with bench({"large": answers(10, delays_s=dict.fromkeys(range(10), 0.1))}) as up:
        up.loop.run(slowly(up, 0.0))
        assert up.reports[-1][1]["latency_ms"] == pytest.approx(1000.0)
    with bench({"large": answers(10, delays_s={0: 5.0})}) as up:
        up.loop.run(slowly(up, 0.01))  # 11 pauses: a fiftieth of all
        assert up.reports[-1][1]["latency_ms"] == pytest.approx(5000.0)
    with bench({"large": answers(10)}) as up:
        up.loop.run(slowly(up, 60.0))
        assert up.reports[-1][1]["latency_ms"] is None
        up.held_up = 1


def test_what_a_reader_takes_while_the_pool_works_is_the_pools_time():
    """
    The pool needs 100 ms a token, the reader 50: nothing was held up.
    """

    async def reading(up: Bench) -> None:
        clock_s = 0.0
        async for _ in up.answer():
            clock_s += 0.05
            up.loop.now_s += 0.05  # busy, so the pool's timer runs on

    with bench({"large": answers(10, delays_s=dict.fromkeys(range(10), 0.1))}) as up:
        up.loop.run(reading(up))
        # The fake sleeps after it was asked, so each token takes 150 ms.
        assert up.reports[-1][1]["latency_ms"] == pytest.approx(1500.0, abs=60.0)


# --- failures before the first token ---------------------------------------------------------------


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: e.kind)
def test_a_failure_before_the_first_token_goes_to_the_next_place(error):
    """
    The failed attempt is in the reply, reported as an error, and paid nothing unless given up.
    """
    with bench({"large": Script(fails=error), "medium": answers(2), "small": answers(1)}) as up:
        got = up.get()

        assert got.story == [("large", "first", error.kind), ("medium", "retry", "answered")]
        (before,) = got.routed.attempts
        assert (before.pool, before.outcome, before.detail) == ("large", error.kind, error.problem)
        assert got.routed.model == "medium"
        assert got.routed.ticket != got.routed.decision.ticket
        assert up.status("large").failures == {error.kind: 1}
        (first, values), _ = up.reports
        assert first.ticket == got.routed.decision.ticket
        paid = 100 * 10 / 1e6 if error.kind == "late" else 0.0
        assert values == {"error": True, "paid_usd": pytest.approx(paid)}


def test_an_endpoint_that_ends_without_anything_is_garbled():
    with bench({"large": Script(words=(), usage="missing"), "medium": answers(2)}) as up:
        assert up.get().story[0] == ("large", "first", "garbled")


@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError()], ids=["bug", "cancel"])
def test_an_endpoint_that_raises_what_it_must_not_is_a_failure_like_others(error):
    """
    Our own bug in reading one server is no reason to give no answer at all.
    """

    class Odd(FakeEndpoint):
        async def stream(self, call):
            raise error
            yield

    with bench({"large": [Odd("a")], "medium": answers(2)}) as up:
        got = up.get()

        assert got.routed.pool == "medium"
        assert got.story[0][2] in ("garbled", "error")


def test_another_endpoint_of_the_pool_is_not_tried_before_another_pool():
    """
    Untried places come first; then the same pool again, at another endpoint.
    """
    large = [FakeEndpoint("a", fails()), FakeEndpoint("b", answers(1))]
    with bench({"large": large, "medium": fails()}) as up:
        got = up.get()

        assert [(a.pool, a.endpoint) for a in got.ended.attempts] == [
            ("large", "a"),
            ("medium", "medium:1"),
            ("large", "b"),
        ]


def test_a_place_that_can_not_answer_comes_after_one_tried_before():
    """
    A pool known to be dead is no better than one that failed once.
    """
    with bench({"large": [FakeEndpoint("a", fails(), answers(1))], "medium": fails()}) as up:
        health = up.dispatcher.health
        health.set_endpoints("medium", ["medium:1"], 0.0)
        for _ in range(5):
            health.pick("medium", 0.0, uniform=0.0).failed(0.0, "error")
        got = up.get()

        assert got.story == [("large", "first", "error"), ("large", "retry", "answered")]


def test_attempts_end_at_their_limit():
    """
    Three, hedges included; then the caller learns what each of them failed with.
    """
    pools = {"large": fails(), "medium": fails(), "small": fails()}
    with bench(pools) as up:
        got = up.get()

        assert isinstance(got.error, NoAnswer)
        assert [e.called for e in up.calls()] == [1, 1, 1]
        for pool in pools:
            assert f"at {pool} ({pool}:1): error, as the script says" in str(got.error)
        assert "3 attempts were made, which is the limit" in str(got.error)
    with bench(
        {"large": HANGS, "medium": HANGS},
        options=DispatchOptions(retries=RetryOptions(attempts_max=1), hedges=HEDGING),
    ) as up:
        assert isinstance(up.get().error, NoAnswer)
        assert [e.called for e in up.calls()] == [1, 0]


def test_a_call_that_every_model_refuses_is_the_callers_mistake():
    """
    Each model is asked once; the pools are not blamed, nothing is learned, nothing was paid.
    """
    refused = Script(fails=CallRefused("x", "max_tokens is 0"))
    with bench({"large": refused, "medium": refused}) as up:
        for _ in range(20):
            got = up.get()
            assert isinstance(got.error, CallRefused)
            assert "max_tokens is 0" in str(got.error)

        assert [e.called for e in up.calls()] == [20, 20]
        assert (up.status("large").failures, up.status("large").reason) == ({}, "")
        assert {tuple(values.items()) for _, values in up.reports} == {(("paid_usd", 0.0),)}


def test_what_one_model_refuses_the_next_one_answers_and_that_is_remembered():
    """
    By what was asked for: a later call with tools goes to the other at once, one without does not.
    """
    refused = Script(fails=CallRefused("x", "tools are not supported"))
    tools = {**BODY, "tools": [{"type": "function"}]}
    with bench({"large": refused, "medium": answers(1)}) as up:
        first, second = up.get(body=tools), up.get(body=tools)

        assert first.story == [("large", "first", "refused"), ("medium", "reroute", "answered")]
        assert second.story == [("medium", "reroute", "answered")]
        assert "it has refused such a call" in second.ended.attempts[0].detail
        assert up.get().story[0] == ("large", "first", "refused")
        assert up.dispatcher.refusals.status(0.0) == {"large": {"tools": "tools are not supported"}}


def test_one_success_undoes_a_remembered_refusal():
    large = FakeEndpoint("large:1", Script(fails=CallRefused("x", "no tools")), answers(1))
    tools = {**BODY, "tools": [{"type": "function"}]}
    with bench({"large": [large], "medium": answers(1)}) as up:
        up.get(body=tools)
        assert up.get(body=tools, allowed_models=["large"]).story == [
            ("large", "first", "answered")
        ]

        assert up.dispatcher.refusals.status(0.0) == {}
        assert up.get(body=tools).story == [("large", "first", "answered")]


def test_an_error_that_follows_a_request_from_pool_to_pool_is_the_requests():
    """
    A body that makes every backend answer 500 must not have them ejected, nor be learned from.
    """
    with bench({"large": fails(), "medium": fails(), "small": fails()}) as up:
        for _ in range(20):
            assert isinstance(up.get().error, NoAnswer)

        for pool in ("large", "medium", "small"):
            assert (up.status(pool).failures, up.status(pool).reason) == ({}, "")
        assert not any("error" in values for _, values in up.reports)
    with bench({"large": fails(), "medium": answers(1)}) as up:
        up.get()
        assert up.status("large").failures == {"error": 1}  # the request was answered elsewhere


def test_an_account_that_an_answer_used_up_is_left_alone_without_a_refusal():
    """
    Its last answer is the caller's, and the next request goes elsewhere at once.
    """
    with bench({"large": Script(full_s=37.0), "medium": answers(1)}) as up:
        assert [up.get().story[-1] for _ in range(2)] == [
            ("large", "first", "answered"),
            ("medium", "reroute", "answered"),
        ]
        assert up.status("large").reason == "overloaded"
        assert up.status("large").failures == {}


def test_a_pool_that_says_when_to_come_back_is_left_alone_until_then():
    """
    Another one answers at once; with none left the caller learns when the first of them is open.
    """
    busy = Script(fails=EndpointOverloaded("x", "slow down", 37.0))
    with bench({"large": busy, "medium": answers(1)}) as up:
        assert [up.get().story[-1] for _ in range(3)] == [
            ("medium", "retry", "answered"),
            ("medium", "reroute", "answered"),
            ("medium", "reroute", "answered"),
        ]
        assert up.calls()[0].called == 1
        assert up.status("large").reason == "overloaded"
    sooner = Script(fails=EndpointOverloaded("x", "slow down", 12.0))
    with bench({"large": busy, "medium": sooner}) as up:
        for _ in range(3):
            error = up.get().error
            assert isinstance(error, PoolsOverloaded)
            assert error.retry_after_s == pytest.approx(12.0, abs=1.0)
        assert [e.called for e in up.calls()] == [1, 1]


@pytest.mark.parametrize(
    "others, overloaded",
    [(EndpointOverloaded("x", "429"), True), (EndpointFailed("x", "500"), False)],
)
def test_where_all_are_overloaded_and_none_says_for_how_long_the_caller_is_told_so(
    others, overloaded
):
    """
    A 429 may come without `Retry-After`. Whoever is told "too many" comes back more slowly than
    who is told that something is broken; so it is said where it is all that was heard.
    """
    scripts = {
        "large": Script(fails=EndpointOverloaded("x", "429")),
        "medium": Script(fails=others),
    }
    with bench(scripts) as up:
        error = up.get().error

        assert isinstance(error, PoolsOverloaded) is overloaded
        assert isinstance(error, NoAnswer)


def test_who_names_a_model_without_a_server_learns_when_there_may_be_one():
    """
    It is started because it was asked for; and nobody asks again every second until then.
    """
    with bench({"large": Script(), "medium": answers(1)}) as up:
        up.pools.pools["large"].clear()
        up.pools.starts_s["large"] = 90.0

        assert up.get().routed.model == "medium"
        error = up.get(allowed_models=["large"]).error

        assert isinstance(error, PoolsStarting)
        assert error.retry_after_s == pytest.approx(90.0, abs=1.0)
        assert "replicas_min = 1" in str(error)


def test_where_nobody_starts_a_server_the_refusal_says_what_to_state():
    with bench({"large": Script()}) as up:
        up.pools.pools["large"].clear()
        error = up.get().error

    assert type(error) is NoAnswer
    assert "state `replicas`" in str(error) and "[autoscaling]" in str(error)


def test_a_reader_who_waits_for_the_end_gets_another_answer_for_one_that_broke_off():
    """
    The line is what the reader has seen, not the pool's first token.
    """
    broken = Script(words=("a", "b", "c"), fails=failed(), fails_at=2)
    with bench({"large": broken, "medium": answers(2)}) as up:
        got = up.get(whole=True)

        assert got.error is None and got.routed.model == "medium"
        assert [o for _, _, o in got.story] == ["error", "answered"]


def test_where_nobody_else_can_answer_a_late_one_is_waited_for():
    """
    After 25 quick ones the limit is 2 s; the only pool takes 6 s for once, and is believed.
    """
    slow = Script(words=("a",), delays_s={0: 6.0})
    with bench({"large": FakeEndpoint("large:1", *[answers(1)] * 25, slow)}) as up:
        for _ in range(25):
            up.get()
        for _ in range(4):
            assert up.get().error is None

        assert (up.status("large").failures, up.status("large").reason) == ({}, "")


# --- failures after the first token ----------------------------------------------------------------


@pytest.mark.parametrize("error", [*FAILURES, CallRefused("x", "late")], ids=lambda e: e.kind)
def test_a_failure_after_the_first_token_ends_the_answer(error):
    """
    What was streamed can't be taken back: nobody else is called, and what came was paid for.
    """
    broken = Script(words=("a", "b", "c"), fails=error, fails_at=2)
    with bench({"large": broken, "medium": answers(1), "small": answers(1)}) as up:
        got = up.get()

        assert isinstance(got.error, AnswerBroken)
        assert "after 2 pieces" in str(got.error) and error.problem in str(got.error)
        assert got.text() == "ab"
        assert [e.called for e in up.calls()] == [1, 0, 0]
        ((ticket, values),) = up.reports
        assert ticket.ticket == got.routed.ticket
        assert values == {"error": True, "paid_usd": pytest.approx((1000 + 2 * 20) / 1e6)}


@pytest.mark.parametrize("mode", [{}, {"fan_out": 2}])
@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError()], ids=["bug", "cancel"])
def test_a_bug_after_the_first_token_breaks_the_answer_off(error, mode):
    """
    Also where the endpoint's own task was cancelled: nobody has asked us to stop.
    """

    class Odd(FakeEndpoint):
        async def stream(self, call):
            yield Piece(delta={"content": "a"})
            raise error

    with bench({"large": [Odd("a")], "medium": answers(1)}) as up:
        got = up.get(**mode, allowed_models=["large", "medium"])

        problems = [e.problem for e in got.events if isinstance(e, Ended) and e.answer == 0]
        assert isinstance(got.error or problems[0], AnswerBroken)
        assert up.calls()[1].called == bool(mode)


# --- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hangs", "answers_with"), [(False, "large"), (True, "medium")])
def test_who_was_away_itself_gives_up_nobody_before_it_has_looked_again(hangs, answers_with):
    """
    A process that had no CPU for a minute finds time run out on servers that answered long ago,
    and that their bytes take some turns of its loop to be read.
    """
    gate = Gate()
    script = HANGS if hangs else Script(gates={0: gate})
    with bench({"large": script, "medium": answers(9)}, options=options()) as up:

        def away() -> None:
            up.loop.now_s += 60.0
            read(10)

        def read(turns: int) -> None:
            up.loop.call_soon(read, turns - 1) if turns else gate.open()

        up.loop.call_later(0.5, away)
        assert up.get().routed.model == answers_with
        assert up.status("large").failures == ({"late": 1} if hangs else {})
        assert up.loop.now_s == pytest.approx(61.5 if hangs else 60.5)


def test_a_pool_that_stays_silent_is_given_up_and_the_next_one_called():
    with bench({"large": HANGS, "medium": answers(1)}, options=options()) as up:
        got = up.get()

        assert got.story == [("large", "first", "late"), ("medium", "retry", "answered")]
        assert got.ended.first_token_ms == pytest.approx(LATE_S * 1000)
        assert got.ended.attempts[0].detail == "no first token after 30000 ms"
        assert up.calls()[0].cancelled == 1


def test_the_deadline_ends_the_race():
    """
    What still runs is ended. How little time there was is never the pool's fault.
    """
    asked = {"deadline_unix_ms": NOON_MS + 5000}
    with bench({"large": HANGS, "medium": answers(1)}, options=options()) as up:
        got = up.get(**asked)

        assert isinstance(got.error, DeadlinePassed)
        assert "5000 ms after the request came" in str(got.error)
        assert up.loop.time() == 5.0
        assert [e.called for e in up.calls()] == [1, 0]
        assert up.status("large").failures == {}


def test_a_callers_short_deadline_is_no_fault_of_the_pool():
    """
    Or a single impatient caller would have every endpoint ejected.
    """
    with bench({"large": HANGS}, options=options()) as up:
        for _ in range(20):
            got = up.get(deadline_unix_ms=up.now_ms() + 100)
            assert isinstance(got.error, DeadlinePassed)

        assert (up.status("large").failures, up.status("large").reason) == ({}, "")
        assert up.status("large").cancelled == 20
        assert all("error" not in values for _, values in up.reports)


@pytest.mark.parametrize("deciding_s", [2.0, 5.0])
def test_the_deadline_holds_however_long_deciding_takes(deciding_s):
    """
    Where that has taken all the time there was, nobody is called.
    """
    with bench({"large": HANGS}, options=options()) as up:
        decide = up.dispatcher._decide

        async def slowly(route):
            decision = await decide(route)
            await asyncio.sleep(deciding_s)
            return decision

        up.dispatcher._decide = slowly
        got = up.get(deadline_unix_ms=NOON_MS + 5000)

        assert isinstance(got.error, DeadlinePassed)
        assert up.loop.time() == 5.0
        assert up.calls()[0].called == (deciding_s < 5.0)
        assert len(up.reports) == 1


def test_without_a_deadline_the_dispatchers_own_holds():
    with bench({"large": HANGS}, options=options(answer_s_max=4.0)) as up:
        assert isinstance(up.get().error, DeadlinePassed)
        assert up.loop.time() == 4.0


# --- the retry budget ------------------------------------------------------------------------------


def test_a_retry_without_room_in_the_budget_waits_for_it_and_none_is_lost():
    """
    One retry at a time, ten requests: they take turns, and all are answered.
    """
    budget = RetryOptions(share_max=0.0, concurrent_min=1)
    slow = [FakeEndpoint("m", answers(1, delays_s={0: 1.0}))]
    with bench({"large": fails(), "medium": slow}, options=options(retries=budget)) as up:

        async def scene() -> list[Got]:
            return await asyncio.gather(*(collected(up.answer()) for _ in range(10)))

        found = up.loop.run(scene())

        assert [got.story[-1] for got in found if not got.error] == [
            ("medium", "retry", "answered")
        ] * 10
        assert slow[0].running_max == 1
        assert up.loop.time() == pytest.approx(10.0)


def test_retries_get_room_in_the_order_in_which_they_came_and_only_one_is_woken():
    """
    Some of those who wait leave meanwhile, or run out of time; the rest is not kept waiting.
    """
    budget = RetryOptions(share_max=0.0, concurrent_min=1)
    slow = [FakeEndpoint("m", answers(1, delays_s={0: 1.0}))]
    with bench({"large": fails(), "medium": slow}, options=options(retries=budget)) as up:
        done: list[int] = []

        async def one(i: int) -> None:
            limits = {"deadline_unix_ms": up.now_ms() + 2500} if i % 3 == 1 else {}
            got = await collected(up.answer(**limits))
            if got.error is None:
                done.append(i)

        async def scene() -> None:
            asking = [asyncio.ensure_future(one(i)) for i in range(30)]
            await asyncio.sleep(2.2)
            for i in range(2, 30, 3):
                asking[i].cancel()
            await asyncio.gather(*asking, return_exceptions=True)

        up.loop.run(scene())

        assert done == [0, 1, *range(3, 30, 3)]
        assert up.loop.time() == pytest.approx(len(done) + 0.2, abs=1.0)
        assert up.dispatcher.retries.refusals < 30 + 30  # a waiter asks when it comes, and is woken


def test_a_retry_that_never_gets_room_ends_at_its_deadline():
    budget = RetryOptions(share_max=0.0, concurrent_min=1)
    with bench({"large": fails(), "medium": HANGS}, options=options(retries=budget)) as up:

        async def scene() -> tuple[Got, Got]:
            holds = asyncio.ensure_future(collected(up.answer()))
            await asyncio.sleep(0.1)
            waits = await collected(up.answer(deadline_unix_ms=up.now_ms() + 1000))
            holds.cancel()
            await asyncio.gather(holds, return_exceptions=True)
            return waits

        got = up.loop.run(scene())

        assert isinstance(got.error, DeadlinePassed)
        assert up.loop.time() == pytest.approx(1.1)


def test_a_retry_that_finds_no_place_gives_its_room_to_the_next():
    """
    The only endpoint leaves: the one that held the room says so, the others hear of it at once.
    """
    budget = RetryOptions(share_max=0.0, concurrent_min=1)
    gate = Gate()
    medium = FakeEndpoint("m", Script(gates={0: gate}, fails=failed()))
    large = FakeEndpoint("l", fails())
    with bench({"large": large, "medium": medium}, options=options(retries=budget)) as up:

        async def scene() -> list[Got]:
            asking = [asyncio.ensure_future(collected(up.answer())) for _ in range(5)]
            await gate.reached.wait()
            up.pools.pools = {}
            gate.open()
            return await asyncio.gather(*asking)

        found = up.loop.run(scene())
        up.pools.pools = {"large": [large], "medium": [medium]}

        assert all(isinstance(got.error, NoAnswer) for got in found)
        assert up.loop.time() < 1.0


# --- hedging ---------------------------------------------------------------------------------------


def test_a_late_pool_gets_company_and_the_faster_one_answers():
    """
    The loser's call is ended, what it took is paid, and only the winner is learned.
    """
    with bench(
        {"large": HANGS, "medium": answers(2, delays_s={0: 0.5})}, options=options(HEDGING)
    ) as up:
        got = up.get()

        assert got.story == [("large", "first", "cancelled"), ("medium", "hedge", "answered")]
        assert got.ended.attempts[0].detail == "another was faster"
        assert got.ended.attempts[1].began_ms == pytest.approx(HEDGE_S * 1000)
        assert got.ended.first_token_ms == pytest.approx(HEDGE_S * 1000 + 500)
        assert got.ended.latency_ms == pytest.approx(HEDGE_S * 1000 + 500)
        assert up.reports[-1][1]["latency_ms"] == pytest.approx(500)  # of the attempt
        assert up.calls()[0].cancelled == 1
        assert up.status("large").failures == {}
        assert got.ended.paid_usd == pytest.approx(got.ended.cost_usd + 100 * 10 / 1e6)


def test_the_first_may_still_win_against_its_hedge():
    with bench(
        {"large": answers(1, delays_s={0: 3.0}), "medium": HANGS}, options=options(HEDGING)
    ) as up:
        got = up.get()

        assert got.story == [("large", "first", "answered"), ("medium", "hedge", "cancelled")]
        assert got.routed.ticket == got.routed.decision.ticket
        assert up.calls()[1].cancelled == 1


def test_a_hedge_that_fails_leaves_the_first_running():
    with bench(
        {"large": answers(1, delays_s={0: 9.0}), "medium": fails()}, options=options(HEDGING)
    ) as up:
        got = up.get()

        assert got.story == [("large", "first", "answered"), ("medium", "hedge", "error")]
        assert got.ended.first_token_ms == pytest.approx(9000)


def test_a_first_that_fails_leaves_its_hedge_running():
    slow = {
        "large": Script(fails=failed(), delays_s={0: 3.0}),
        "medium": answers(1, delays_s={0: 9.0}),
    }
    with bench(slow, options=options(HEDGING)) as up:
        got = up.get()

        assert got.story == [("large", "first", "error"), ("medium", "hedge", "answered")]


@pytest.mark.parametrize("first_fails", [True, False])
def test_a_failure_in_the_moment_of_anothers_first_token_is_still_a_failure(first_fails):
    """
    It is not written off as cancelled: health and learners would never hear of it.
    """
    both = {
        "large": Script(fails=failed() if first_fails else None, delays_s={0: 3.0}),
        "medium": Script(fails=None if first_fails else failed(), delays_s={0: 1.0}),
    }
    with bench(both, options=options(HEDGING)) as up:
        got = up.get()

        outcomes = ("error", "answered") if first_fails else ("answered", "error")
        assert got.story == [("large", "first", outcomes[0]), ("medium", "hedge", outcomes[1])]
        assert got.ended.first_token_ms == pytest.approx(3000)


def test_two_first_tokens_in_one_moment_make_one_answer():
    both = {"large": answers(1, delays_s={0: 3.0}), "medium": answers(1, delays_s={0: 1.0})}
    with bench(both, options=options(HEDGING)) as up:
        got = up.get()

        assert sorted(o for _, _, o in got.story) == ["answered", "cancelled"]


def test_a_refusal_beside_an_answer_does_not_cost_the_answer():
    both = {
        "large": Script(fails=CallRefused("x", "no"), delays_s={0: 3.0}),
        "medium": answers(1, delays_s={0: 1.0}),
    }
    with bench(both, options=options(HEDGING)) as up:
        got = up.get()

        assert got.story == [("large", "first", "refused"), ("medium", "hedge", "answered")]


def test_a_hedge_prefers_another_endpoint_of_the_same_pool():
    large = [FakeEndpoint("a", HANGS), FakeEndpoint("b", answers(1))]
    with bench({"large": large, "medium": answers(1)}, options=options(HEDGING)) as up:
        got = up.get()

        assert [(a.pool, a.endpoint, a.kind) for a in got.ended.attempts] == [
            ("large", "a", "first"),
            ("large", "b", "hedge"),
        ]
        assert got.routed.ticket != got.routed.decision.ticket


def test_hedges_are_made_within_their_budget():
    """
    One request in ten earns a hedge; the others wait for their first attempt.
    """
    large = FakeEndpoint("a", answers(1, delays_s={0: 4.0}))
    with bench(
        {"large": [large], "medium": answers(1)}, options=options(HedgeOptions(share_max=0.1))
    ) as up:
        kinds = [up.get().story[-1][1] for _ in range(20)]

        assert kinds.count("hedge") == 2
        assert up.dispatcher.hedges.hedges == 2
        assert up.dispatcher.hedges.refusals == 18


def test_a_request_is_hedged_once_and_by_nobody_who_can_not_answer():
    with bench({"large": HANGS, "medium": [], "small": HANGS}, options=options(HEDGING)) as up:
        got = up.get(deadline_unix_ms=NOON_MS + 10_000)

        assert isinstance(got.error, DeadlinePassed)
        assert [e.called for e in up.calls()] == [1, 1]
        assert [t.kind for t in up.settled] == ["first", "hedge"]


def test_pools_that_lose_their_endpoints_before_the_hedge_do_not_end_the_request():
    """
    Company that can't be had is no reason to lose the first attempt.
    """
    medium = FakeEndpoint("m")
    large = FakeEndpoint("l", answers(1, delays_s={0: 5.0}))
    with bench({"large": large, "medium": medium}, options=options(HEDGING)) as up:

        async def scene() -> Got:
            asking = asyncio.ensure_future(collected(up.answer()))
            await asyncio.sleep(1.0)
            up.pools.pools["medium"] = []
            return await asking

        got = up.loop.run(scene())

        assert got.story == [("large", "first", "answered")]
        assert up.dispatcher.hedges.hedges == 0


# --- reroutes --------------------------------------------------------------------------------------


def unhealthy(up: Bench) -> None:
    up.dispatcher.health.set_endpoints("large", ["large:1"], 0.0)
    for _ in range(5):
        up.dispatcher.health.pick("large", 0.0, uniform=0.0).failed(0.0, "error")


@pytest.mark.parametrize("reason", ["no endpoints", "unhealthy", "full"])
def test_a_pool_that_can_not_be_called_is_passed_over_and_the_reply_says_so(reason):
    """
    No attempt is spent on it. The decision's own ticket is settled with nothing, once.
    """
    health = HealthOptions(in_flight_max=1)
    large = [] if reason == "no endpoints" else [FakeEndpoint("large:1", HANGS)]
    with bench({"large": large, "medium": answers(1)}, options=options(health=health)) as up:

        async def scene() -> Got:
            first = None
            if reason == "full":
                first = asyncio.ensure_future(collected(up.answer()))
                await asyncio.sleep(0.1)
            got = await collected(up.answer())
            if first:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
            return got

        if reason == "unhealthy":
            unhealthy(up)
        got = up.loop.run(scene())

        assert got.story == [("medium", "reroute", "answered")]
        assert got.ended.attempts[0].detail == f"large: {reason}"
        assert (got.routed.pool, got.routed.decision.pool) == ("medium", "large")
        own = [v for t, v in up.reports if t.ticket == got.routed.decision.ticket]
        assert own == [{"paid_usd": 0.0}]


def slow_lately(up: Bench, pool: str) -> None:
    """First tokens that came within 0.1 s for long, and now take 2 s."""
    health = up.dispatcher.health
    health.set_endpoints(pool, [f"{pool}:1"], 0.0)
    for wait_s in [0.1] * 60 + [2.0] * 30:
        lease = health.pick(pool, 0.0, uniform=0.0)
        lease.first_token(wait_s)
        lease.succeeded(wait_s)


@pytest.mark.parametrize("others", ["fast", "slow", "none"])
def test_a_pool_that_has_become_far_slower_is_asked_after_those_that_have_not(others):
    """
    Not when all have become slow, or there is no other: then the ranking is as good as any.
    """
    pools = {"large": FakeEndpoint("large:1"), "medium": FakeEndpoint("medium:1")}
    if others == "none":
        del pools["medium"]
    with bench(pools) as up:
        slow_lately(up, "large")
        if others == "slow":
            slow_lately(up, "medium")

        got = up.get()

        if others == "fast":
            assert got.story == [("medium", "reroute", "answered")]
            assert got.ended.attempts[0].detail == "large: far slower than it was"
        else:
            assert got.story == [("large", "first", "answered")]


def test_with_no_endpoint_anywhere_there_is_no_answer():
    with bench({}) as up:
        got = up.get()

        assert isinstance(got.error, NoAnswer)
        assert "no pool has an endpoint" in str(got.error)
        assert re.search(r"Pools: large \(no endpoints\), medium \(no endpoints\)", str(got.error))
        assert up.reports[0][1] == {"paid_usd": 0.0}


def test_the_pools_of_a_model_come_before_those_of_the_next_model():
    models = catalogue(SIZES, [Pool(name="east", model="large"), Pool(name="west", model="large")])
    pools = {"east": fails(), "west": answers(1), "medium": answers(1)}
    with bench(pools, models=models) as up:
        assert up.get().story == [("east", "first", "error"), ("west", "retry", "answered")]


def test_endpoints_that_come_and_go_are_followed():
    with bench({"large": [FakeEndpoint("a")]}) as up:
        old = up.calls()[0]
        assert up.get().routed.endpoint == "a"
        up.pools.pools["large"] = [FakeEndpoint("b")]
        assert up.get().routed.endpoint == "b"
        assert old.called == 1


def test_an_endpoint_that_leaves_its_pool_may_finish_its_answer():
    gate = Gate()
    old = FakeEndpoint("a", Script(gates={1: gate}))
    with bench({"large": old}) as up:

        async def scene() -> Got:
            asking = asyncio.ensure_future(collected(up.answer()))
            await gate.reached.wait()
            up.pools.pools["large"] = [FakeEndpoint("b")]
            await collected(up.answer())
            gate.open()
            return await asking

        assert up.loop.run(scene()).text() == "one two three"


# --- readers who leave -----------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(6))
def test_a_reader_who_leaves_ends_the_call_wherever_it_is(after):
    """
    After so many events the generator is closed: three pieces make five events.
    """
    with bench({"large": answers(3), "medium": answers(1)}) as up:
        got = up.loop.run(collected(up.answer(), stop_after=after))
        up.loop.settle()

        assert len(got.events) == after
        (large, medium) = up.calls()
        assert medium.called == 0
        if after == 0:  # never asked for anything: nothing was decided
            assert (large.called, up.decided) == (0, [])
        elif after == 5:
            assert (large.answered, large.cancelled) == (1, 0)
        else:
            ((_, values),) = up.reports
            assert (large.answered, large.cancelled) == (0, 1)
            pieces = max(1, after - 1)
            assert values == {"paid_usd": pytest.approx((1000 + pieces * 20) / 1e6)}


@pytest.mark.parametrize("at_s", [0.0, 1.0, 2.5, 3.5, 4.5])
def test_a_reader_who_is_cancelled_ends_everything(at_s):
    """
    Before the first token, with a hedge beside it, and in the middle of the answer.
    """
    pools = {"large": HANGS, "medium": answers(3, delays_s={0: 1.0, 1: 1.0, 2: 1.0})}
    with bench(pools, options=options(HEDGING)) as up:

        async def scene() -> None:
            asking = asyncio.ensure_future(collected(up.answer()))
            await asyncio.sleep(at_s)
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        up.loop.run(scene())

        assert {t.settled.outcome for t in up.settled} <= {"cancelled"}
        assert len(up.settled) == (1 if at_s < 2 else 2)


def test_an_endpoint_that_is_slow_to_let_go_holds_nobody_up():
    """
    Settled at once; `finish` waits for it, but not for ever.
    """

    class Sticky(FakeEndpoint):
        async def stream(self, call):
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(2.0)
            yield

    with bench({"large": [Sticky("a")], "medium": answers(1)}, options=options(HEDGING)) as up:
        got = up.get()
        assert got.ended.latency_ms == pytest.approx(HEDGE_S * 1000)
        assert len(up.reports) == 2
        up.loop.run(up.dispatcher.finish())
        assert up.loop.time() == pytest.approx(HEDGE_S + 2.0)


def test_an_endpoint_that_fails_while_it_lets_go_is_nobodys_trouble():
    class Bad(FakeEndpoint):
        async def stream(self, call):
            try:
                await asyncio.Event().wait()
                yield
            except asyncio.CancelledError:
                raise failed() from None

    class Worse(FakeEndpoint):
        async def stream(self, call):
            try:
                yield Piece(delta={"content": "a"})
            finally:
                raise KeyError("x")

    with bench({"large": [Bad("a")], "medium": answers(1)}, options=options(HEDGING)) as up:
        assert up.get().error is None
    with bench({"large": [Worse("a")]}) as up:
        up.loop.run(collected(up.answer(), stop_after=2))


# --- the log ---------------------------------------------------------------------------------------


def test_further_attempts_are_in_the_decision_log_with_their_reason():
    """
    Policy says why; propensity is 1; context, preference and predictions are the decision's.
    """
    with bench({"large": fails(), "medium": answers(1)}) as up:
        up.get(session="s", tenant="t")
        first, second = up.rows()

        assert (second["model"], second["pool"]) == ("medium", "medium")
        assert (second["policy"], second["propensity"]) == ("retry", 1.0)
        assert second["propensities"] == [0.0, 1.0, 0.0]
        for name in ("tenant", "session", "preference", "context", "models", "prompt_tokens"):
            assert second[name] == first[name], name
        predicted = {c.model: c for c in up.decided[0].fallbacks}["medium"]
        assert second["quality"] == pytest.approx(predicted.quality.mean)
        assert second["cost_usd"] == pytest.approx(predicted.cost_usd.mean)
