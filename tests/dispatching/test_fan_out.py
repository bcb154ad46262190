"""Fan-out: several models asked at once, their answers told apart by a number."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from dispatch_bench import BODY, bench, collected
from made_up_endpoint import FakeEndpoint, Script, answers, failed

from serve.dispatch.answers import DispatchInput, Ended, Routed
from serve.dispatch.budget import HedgeOptions, RetryOptions
from serve.dispatch.dispatcher import DispatchOptions
from serve.dispatch.strategies.fan_out import WAITING_MAX
from serve.errors import AnswerBroken, InvalidRequest, NoAnswer
from serve.proto.fairlead.v1 import router_pb2 as pb

OPTIONS = DispatchOptions(hedges=HedgeOptions(share_max=0.0), retries=RetryOptions(attempts_max=1))


def test_the_chosen_and_the_next_best_models_answer_at_once():
    """
    Each with its own ticket, end and cost; answer 0 is the decision's.
    """
    pools = {name: answers(2, delays_s={0: 1.0}) for name in ("large", "medium", "small")}
    with bench(pools) as up:
        got = up.get(fan_out=2)

        routed = {e.answer: e for e in got.events if isinstance(e, Routed)}
        assert {i: e.model for i, e in routed.items()} == {0: "large", 1: "medium"}
        assert routed[0].ticket == routed[0].decision.ticket
        assert len({e.ticket for e in routed.values()}) == 2
        assert up.loop.time() == pytest.approx(1.0)
        assert [row["policy"] for row in up.rows()[1:]] == ["fan-out"]
        ends = {e.answer: e for e in got.events if isinstance(e, Ended)}
        assert [len(ends[i].attempts) for i in (0, 1)] == [1, 1]
        assert ends[0].paid_usd == ends[0].cost_usd != ends[1].cost_usd


def test_answers_come_as_they_come_and_keep_their_own_order():
    pools = {
        "large": answers(3, delays_s={0: 2.0, 1: 2.0}),
        "medium": answers(3, delays_s={0: 1.0, 1: 2.0, 2: 2.0}),
    }
    with bench(pools) as up:
        got = up.get(fan_out=2, allowed_models=["large", "medium"])

        assert [e.answer for e in got.events if isinstance(e, Routed)] == [1, 0]
        assert [got.text(i) for i in (0, 1)] == [" w0 w1 w2"] * 2
        got.check()


def test_more_answers_than_models_are_as_many_as_there_are():
    with bench({name: answers(1) for name in ("large", "medium", "small")}) as up:
        got = up.get(fan_out=8)
        assert {e.answer for e in got.events} == {0, 1, 2}


def test_one_that_fails_ends_with_its_problem_and_the_others_go_on():
    """
    The one that never began has no Routed; the one that broke off has.
    """
    pools = {
        "large": Script(fails=failed()),
        "medium": answers(3, fails=failed(), fails_at=1),
        "small": answers(2),
    }
    with bench(pools, options=OPTIONS) as up:
        got = up.get(fan_out=3)

        assert got.error is None
        ends = {e.answer: e for e in got.events if isinstance(e, Ended)}
        assert isinstance(ends[0].problem, NoAnswer)
        assert isinstance(ends[1].problem, AnswerBroken)
        assert ends[2].problem is None
        assert got.text(2) == " w0 w1"
        assert [a.outcome for a in ends[0].attempts] == ["error"]
        assert ends[1].paid_usd == pytest.approx((100 * 3 + 1 * 6) / 1e6)


def test_if_none_begins_the_request_fails():
    pools = {name: Script(fails=failed()) for name in ("large", "medium", "small")}
    with bench(pools, options=OPTIONS) as up:
        got = up.get(fan_out=3)

        assert isinstance(got.error, NoAnswer)
        assert [e.called for e in up.calls()] == [1, 1, 1]


def test_if_all_break_off_the_request_ends_with_their_problems():
    broken = answers(3, fails=failed(), fails_at=1)
    with bench(dict.fromkeys(("large", "medium"), broken), options=OPTIONS) as up:
        got = up.get(fan_out=2, allowed_models=["large", "medium"])

        assert got.error is None
        assert [type(e.problem) for e in got.events if isinstance(e, Ended)] == [AnswerBroken] * 2


def test_an_answer_stays_with_its_model():
    """
    A retry of one answer is no second answer of another model.
    """
    large = FakeEndpoint("a", Script(fails=failed()), answers(1))
    with bench({"large": large, "medium": answers(1), "small": answers(1)}) as up:
        got = up.get(fan_out=2)

        routed = {e.answer: e for e in got.events if isinstance(e, Routed)}
        assert {i: e.model for i, e in routed.items()} == {0: "large", 1: "medium"}
        assert [a.outcome for a in routed[0].attempts] == ["error"]


def test_a_slow_reader_holds_the_answers_up_and_memory_is_bounded():
    """
    Of a long answer only so much is read ahead.
    """

    class Counting(FakeEndpoint):
        read = 0

        async def stream(self, call):
            async with aclosing(super().stream(call)) as parts:
                async for part in parts:
                    self.read += 1
                    yield part

    ends = [Counting(name, answers(1000)) for name in ("large", "medium")]
    with bench({end.address: end for end in ends}) as up:

        async def scene() -> int:
            async with aclosing(up.answer(fan_out=2, allowed_models=["large", "medium"])) as events:
                await anext(events)
                await asyncio.sleep(60.0)
                return sum(end.read for end in ends)

        assert WAITING_MAX // 2 < up.loop.run(scene()) <= WAITING_MAX + 4


@pytest.mark.parametrize("after", range(12))
def test_a_reader_who_leaves_ends_all_answers(after):
    pools = {
        "large": answers(2, delays_s={0: 1.0}),
        "medium": answers(2, delays_s={1: 2.0}),
        "small": Script(hangs_at=1),
    }
    with bench(pools) as up:
        up.loop.run(collected(up.answer(fan_out=3), stop_after=min(after, 10)))


@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.5, 2.5])
def test_a_reader_who_is_cancelled_ends_all_answers(at_s):
    pools = {"large": answers(2, delays_s={0: 1.0, 1: 2.0}), "medium": Script(hangs_at=1)}
    with bench(pools) as up:

        async def scene() -> None:
            asking = asyncio.ensure_future(
                collected(up.answer(fan_out=2, allowed_models=["large", "medium"]))
            )
            await asyncio.sleep(at_s)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        up.loop.run(scene())
        assert all(e.running == 0 for e in up.calls())


def test_a_reader_who_is_cancelled_again_while_the_answers_end_has_each_reported_once():
    """
    A call whose write has failed is cancelled by gRPC, too: what was called is known all the same.
    """
    pools = {"large": answers(2), "medium": Script(hangs_at=1)}
    with bench(pools) as up:

        async def scene() -> None:
            asking = asyncio.ensure_future(
                collected(up.answer(fan_out=2, allowed_models=["large", "medium"]))
            )
            await asyncio.sleep(1.0)
            asking.cancel()
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        up.loop.run(scene())


def test_a_conversation_stays_with_the_decided_model_whoever_was_asked_beside_it():
    with bench({"large": answers(1), "medium": answers(1, delays_s={0: 1.0})}) as up:
        up.get(fan_out=2, session="s", allowed_models=["large", "medium"])
        assert up.sessions.held("", "s", up.now_ms()).model == "large"


@pytest.mark.parametrize("n", [0, 9, -1])
def test_a_number_of_answers_out_of_bounds_is_refused(n):
    with pytest.raises(InvalidRequest, match="fan_out"):
        DispatchInput(route=pb.RouteRequest(), body=BODY, fan_out=n)
