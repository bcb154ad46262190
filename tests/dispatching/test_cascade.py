"""Cascades: the cheap model first, and a better one if that was not sure."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from dispatch_bench import BODY, SIZES, Got, bench, collected
from made_up_endpoint import FakeEndpoint, Gate, Script, answers, failed
from router_bench import NOON_MS, catalogue

from serve.dispatch.answers import DispatchInput, Routed, Streamed
from serve.dispatch.backend import Piece
from serve.dispatch.budget import HedgeOptions
from serve.dispatch.dispatcher import DispatchOptions
from serve.errors import AnswerBroken, CallRefused, DeadlinePassed, InvalidRequest, NoAnswer
from serve.proto.fairlead.v1 import router_pb2 as pb

SMALL_USD = (100 * 1 + 3 * 2) / 1e6  # 100 tokens in, 3 out
LARGE_USD = (100 * 10 + 2 * 20) / 1e6
OPTIONS = DispatchOptions(hedges=HedgeOptions(share_max=0.0))


def cheap(probability: float | None, **script: object) -> Script:
    return Script(words=("a", "b", "c"), probability=probability, **script)


def best(**script: object) -> Script:
    return Script(words=("A", "B"), **script)


def test_a_sure_answer_of_the_cheapest_model_is_taken():
    """
    Nobody else is called. It is learned as any answer is.
    """
    with bench({"small": cheap(0.9, delays_s={0: 1.0, 3: 1.0}), "large": best()}) as up:
        got = up.get(confidence_min=0.8)

        assert got.text() == "abc"
        assert got.story == [("small", "cascade", "answered")]
        assert got.ended.confidence == pytest.approx(0.9)
        assert got.ended.paid_usd == got.ended.cost_usd == pytest.approx(SMALL_USD)
        # Its first token is ours to give when all of it is there.
        assert got.ended.first_token_ms == got.ended.latency_ms == pytest.approx(2000)
        assert up.reports[0][1]["latency_ms"] == pytest.approx(2000)


def test_an_unsure_answer_is_thrown_away_for_the_best_models():
    """
    Both are paid; of the first that is all, the second is learned; the reply tells of both.
    """
    with bench({"small": cheap(0.5), "medium": answers(1), "large": best()}) as up:
        got = up.get(confidence_min=0.8)

        assert got.text() == "AB"
        assert got.story == [("small", "cascade", "unsure"), ("large", "escalation", "answered")]
        (before,) = got.routed.attempts
        assert (before.pool, before.detail) == ("small", "confidence 0.500")
        assert got.ended.cost_usd == pytest.approx(LARGE_USD)
        assert got.ended.paid_usd == pytest.approx(LARGE_USD + SMALL_USD)
        assert up.reports[0][1] == {"paid_usd": pytest.approx(SMALL_USD)}
        assert got.routed.ticket == got.routed.decision.ticket  # the best model was the decided
        assert [row["policy"] for row in up.rows()[1:]] == ["cascade"]


def test_probabilities_are_asked_of_the_cheap_model_alone():
    with bench({"small": cheap(0.5), "large": best()}) as up:
        up.get(confidence_min=0.8)

        assert [e.calls[0].confidence for e in up.calls()] == [True, False]


def test_confidence_is_the_geometric_mean_and_equal_is_sure_enough():
    pieces = [
        Piece(delta={"content": "x"}, logprobs={"content": [{"logprob": math.log(p)}]})
        for p in (0.25, 1.0)
    ]

    class Odd(FakeEndpoint):
        async def stream(self, call):
            self.calls.append(call)
            for piece in pieces:
                yield piece
            self.answered += 1

    with bench({"small": [Odd("s")], "large": best()}) as up:
        assert up.get(confidence_min=0.5).ended.confidence == pytest.approx(0.5)
        assert up.get(confidence_min=0.499).story == [("small", "cascade", "answered")]
        assert up.get(confidence_min=0.501).routed.pool == "large"


def test_a_pool_that_gives_no_probabilities_is_believed():
    with bench({"small": cheap(None), "large": best()}) as up:
        got = up.get(confidence_min=1.0)

        assert got.story == [("small", "cascade", "answered")]
        assert got.ended.confidence is None


@pytest.mark.parametrize("odd", [math.nan, math.inf, 3.0, "x", None])
def test_probabilities_that_are_none_are_left_out(odd):
    class Odd(FakeEndpoint):
        async def stream(self, call):
            self.calls.append(call)
            for logprob in (odd, math.log(0.5)):
                yield Piece(delta={"content": "x"}, logprobs={"content": [{"logprob": logprob}]})
            self.answered += 1

    with bench({"small": [Odd("s")], "large": best()}) as up:
        assert up.get(confidence_min=0.1).ended.confidence == pytest.approx(0.5)


@pytest.mark.parametrize("slack_ms", [-1, 0, 1, None])
@pytest.mark.parametrize("limit", ["deadline_unix_ms", "latency_ms_max"])
def test_an_unsure_answer_is_taken_where_no_time_is_left_for_a_better_one(limit, slack_ms):
    """
    The cheap one has taken two seconds; the best one is predicted to take one.
    """
    with bench({"small": cheap(0.1, delays_s={0: 2.0}), "large": best()}) as up:
        up.get()
        predicted_ms = up.decided[0].latency_ms.mean
        limits = {}
        if slack_ms is not None:
            now_ms = up.now_ms() if limit == "deadline_unix_ms" else 0
            limits[limit] = now_ms + math.ceil(2000 + predicted_ms) + slack_ms
        got = up.get(confidence_min=0.8, **limits)

        assert predicted_ms >= 1000
        assert got.routed.pool == ("small" if slack_ms == -1 else "large")


@pytest.mark.parametrize("error", [failed(), CallRefused("x", "no")], ids=lambda e: e.kind)
def test_if_the_better_answer_never_begins_the_cheap_one_is_served(error):
    """
    Its latency is its own: neither the escalation nor a slow reader is counted in.
    """
    with bench(
        {"small": cheap(0.1, delays_s={1: 1.0}), "large": Script(fails=error, delays_s={0: 9.0})},
        options=OPTIONS,
    ) as up:
        got = up.get(confidence_min=0.8)

        assert got.text() == "abc"
        # The answer that is taken is the first attempt, and the others' failures come after it.
        assert got.story[0] == ("small", "cascade", "answered")
        assert {(p, o) for p, _, o in got.story[1:]} == {("large", error.kind)}
        assert got.ended.attempts[0].took_ms == pytest.approx(1000)
        learned = [v for _, v in up.reports if v.get("error") is False]
        assert [v["latency_ms"] for v in learned] == [pytest.approx(1000)]


def test_at_the_deadline_the_cheap_answer_is_served():
    """
    It is there; that the better one did not come in time is no reason to give nothing.
    """
    with bench({"small": cheap(0.1), "large": Script(hangs_at=0)}, options=OPTIONS) as up:
        got = up.get(confidence_min=0.8, deadline_unix_ms=NOON_MS + 5000)

        assert (got.error, got.text()) == (None, "abc")
        assert got.story == [("small", "cascade", "answered"), ("large", "escalation", "cancelled")]


def test_a_better_answer_that_breaks_off_is_broken():
    """
    Its first token has been sent: the cheap answer must not be put behind it.
    """
    with bench({"small": cheap(0.1), "large": best(fails=failed(), fails_at=1)}) as up:
        got = up.get(confidence_min=0.8)

        assert isinstance(got.error, AnswerBroken)
        assert got.text() == "A"
        assert [t.settled.outcome for t in up.settled] == ["unsure", "error"]


@pytest.mark.parametrize("fails_at", [0, 2])
def test_if_the_cheap_model_fails_the_best_one_is_asked(fails_at):
    """
    Also half-way: nothing of it has been streamed. What came of it was paid for.
    """
    with bench(
        {
            "small": cheap(0.9, fails=failed(), fails_at=fails_at),
            "medium": answers(1),
            "large": best(),
        }
    ) as up:
        got = up.get(confidence_min=0.8)

        assert got.text() == "AB"
        assert got.story[-1] == ("large", "escalation", "answered")
        assert {(p, o) for p, _, o in got.story[:-1]} == {("small", "error")}
        paid = (100 * 1 + 2 * 2) / 1e6 if fails_at else 0.0
        assert got.ended.attempts[0].cost_usd == pytest.approx(paid)


def test_if_both_fail_whoever_is_left_is_asked():
    with bench({"small": [], "medium": answers(2), "large": []}) as up:
        got = up.get(confidence_min=0.8)

        assert got.story == [("medium", "escalation", "answered")]


def test_if_all_fail_there_is_no_answer():
    with bench({"small": cheap(1.0, fails=failed()), "large": []}) as up:
        assert isinstance(up.get(confidence_min=0.8).error, NoAnswer)


def test_a_cheap_call_that_is_refused_may_be_our_own_fault():
    """
    A pool may refuse to give probabilities, which the caller never asked for.
    """
    refused = CallRefused("x", "logprobs are not supported")
    with bench({"small": Script(fails=refused), "large": best()}) as up:
        assert up.get(confidence_min=0.8).story == [
            ("small", "cascade", "refused"),
            ("large", "escalation", "answered"),
        ]
    with bench({"small": Script(fails=refused), "large": Script(fails=refused)}) as up:
        assert isinstance(up.get(confidence_min=0.8).error, CallRefused)


def test_where_the_cheapest_model_is_the_best_it_is_asked_once():
    with bench({"small": cheap(0.1), "large": best()}) as up:
        got = up.get(confidence_min=0.8, allowed_models=["small"])

        assert got.story == [("small", "cascade", "answered")]
        assert got.ended.confidence == pytest.approx(0.1)
        assert got.routed.ticket == got.routed.decision.ticket
    with bench({"small": cheap(0.1, fails=failed())}) as up:
        assert isinstance(up.get(confidence_min=0.8, allowed_models=["small"]).error, NoAnswer)


def test_a_cheap_answer_that_is_not_whole_at_the_deadline_is_given_up():
    """
    Not late in its first token, so nobody is blamed; and nobody waits for ever.
    """
    with bench({"small": cheap(0.9, hangs_at=2), "large": best()}) as up:
        got = up.get(confidence_min=0.8, deadline_unix_ms=NOON_MS + 5000)

        assert isinstance(got.error, DeadlinePassed)
        assert up.loop.time() == 5.0
        assert [t.settled.outcome for t in up.settled] == ["cancelled"]


def test_the_cheap_endpoint_is_free_while_the_better_one_answers():
    gate = Gate()
    with bench({"small": cheap(0.1), "large": best(gates={0: gate})}) as up:

        async def scene() -> None:
            asking = asyncio.ensure_future(collected(up.answer(confidence_min=0.8)))
            await gate.reached.wait()
            assert up.status("small").in_flight == 0
            assert up.status("small").successes == 1
            gate.open()
            await asking

        up.loop.run(scene())


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("probability", [0.9, 0.1])
def test_a_reader_who_leaves_a_cascade_ends_everything(after, probability):
    with bench({"small": cheap(probability), "large": best()}) as up:
        up.loop.run(collected(up.answer(confidence_min=0.8), stop_after=after))


@pytest.mark.parametrize("at_s", [0.5, 1.5, 2.5, 3.5])
def test_a_reader_who_is_cancelled_in_a_cascade_ends_everything(at_s):
    """
    While the cheap one is read, before the better one begins, and in its middle.
    """
    with bench(
        {"small": cheap(0.1, delays_s={1: 1.0}), "large": best(delays_s={0: 1.0, 1: 1.0, 2: 1.0})}
    ) as up:

        async def scene() -> None:
            asking = asyncio.ensure_future(collected(up.answer(confidence_min=0.8)))
            await asyncio.sleep(at_s)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        up.loop.run(scene())

        outcomes = [t.settled.outcome for t in up.settled]
        assert outcomes[-1] == "cancelled"
        assert ("unsure" in outcomes) == (at_s > 2)


def test_a_slow_reader_of_a_kept_answer_is_not_the_pools_latency():
    async def slowly() -> None:
        async for _ in up.answer(confidence_min=0.8):
            await asyncio.sleep(10.0)

    with bench({"small": cheap(0.9, delays_s={0: 1.0}), "large": best()}) as up:
        up.loop.run(slowly())
        assert up.reports[0][1]["latency_ms"] == pytest.approx(1000)


@pytest.mark.parametrize("confidence", [-0.1, 1.1, math.nan, math.inf])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    with pytest.raises(InvalidRequest, match="confidence_min"):
        DispatchInput(route=pb.RouteRequest(), body=BODY, confidence_min=confidence)


def test_a_cascade_and_fan_out_exclude_each_other():
    with pytest.raises(InvalidRequest, match="fan_out"):
        DispatchInput(route=pb.RouteRequest(), body=BODY, confidence_min=0.5, fan_out=2)


def test_the_events_are_those_of_one_answer():
    with bench({"small": cheap(0.1), "large": best()}, models=catalogue(SIZES)) as up:
        got: Got = up.get(confidence_min=0.8)

        assert [type(e) for e in got.events[:3]] == [Routed, Streamed, Streamed]
        assert {e.answer for e in got.events} == {0}


UNKNOWN = tuple(replace(model, quality=math.nan) for model in SIZES)


def test_a_cold_router_escalates_to_the_dearest_of_models_that_nothing_is_known_of():
    """
    All are predicted to be as good as each other, so the cheapest is among the best, too.
    """
    pools = {"small": cheap(0.1), "medium": answers(1), "large": best()}
    with bench(pools, models=catalogue(UNKNOWN)) as up:
        assert up.get(confidence_min=0.8).story == [
            ("small", "cascade", "unsure"),
            ("large", "escalation", "answered"),
        ]
        qualities = {case.quality.mean for case in [up.decided[0], *up.decided[0].fallbacks]}
        assert len(qualities) == 1


def test_a_stated_quality_counts_for_more_than_a_price():
    stated = (*UNKNOWN[:1], replace(UNKNOWN[1], quality=0.9), replace(UNKNOWN[2], quality=0.6))
    with bench({m.name: cheap(0.1) for m in SIZES}, models=catalogue(stated)) as up:
        assert up.get(confidence_min=0.8).routed.pool == "medium"


@pytest.mark.parametrize(("off", "where"), [(0.01, "small"), (0.5, "large")])
def test_what_was_learned_for_certain_counts_for_more_than_what_is_stated(off, where):
    """
    The cheapest is known to be the best, or may as well not be.
    """
    with bench({m.name: cheap(0.1) for m in SIZES}) as up:
        noise = up.view.current.estimator.noise[:, 0].tolist()
        decide = up.decide

        async def learned(request: pb.RouteRequest) -> pb.Decision:
            decision = await decide(request)
            for case in (decision, *decision.fallbacks):
                case.quality.mean = 0.8 if case.model == "small" else 0.6
                case.quality.deviation = math.hypot(noise[0], off)
            return decision

        up.dispatcher._decide = learned
        assert up.get(confidence_min=0.8).routed.pool == where


# --- by gain


def by_gain(up, **ask) -> Got:
    ask.setdefault("preference", pb.Preference(quality=1.0, cost=1.0, latency=0.0))
    return up.get(confidence_min=0.0, escalate="gain", **ask)


def test_a_better_model_is_asked_where_it_is_worth_its_price():
    """
    0.4 points better for a tenth of a cent: worth it at a point per dollar, not at a thousand.
    """
    pools = {"small": cheap(0.9), "medium": answers(1), "large": best()}
    dear = pb.Preference(quality=1.0, cost=1000.0, latency=0.0)
    with bench(pools) as up:
        assert by_gain(up).routed.model == "large"
        assert by_gain(up, preference=dear).story == [("small", "cascade", "answered")]


def test_who_gains_most_is_asked_not_who_is_best():
    """
    At 60 points per dollar the large model's price outweighs what it is better than the medium.
    """
    weights = pb.Preference(quality=1.0, cost=60.0, latency=0.0)
    with bench({"small": cheap(0.9), "medium": answers(2), "large": best()}) as up:
        assert by_gain(up, preference=weights).routed.model == "medium"


def test_an_unusually_sure_answer_is_kept_and_an_unusually_unsure_one_is_not():
    """
    Predicted at 0.5, and 0.9 to be had for 0.35 points: after twenty answers of 0.6 to 0.8, one of
    0.99 is worth keeping, one of 0.2 is not.
    """
    usual = [cheap(p) for p in (0.6, 0.7, 0.8, 0.7) * 5]
    weights = pb.Preference(quality=1.0, cost=50.0, latency=0.0)
    small = FakeEndpoint("small:1", *usual, cheap(0.99), cheap(0.2))
    with bench({"small": small, "large": best()}, models=catalogue([SIZES[0], SIZES[2]])) as up:
        for _ in usual:
            by_gain(up, preference=weights)
        sure, unsure = by_gain(up, preference=weights), by_gain(up, preference=weights)

        assert (sure.routed.model, unsure.routed.model) == ("small", "large")


@pytest.mark.parametrize(
    "how", [{"confidence_min": 0.8}, {"confidence_min": 0.0, "escalate": "gain"}]
)
def test_an_answer_that_was_not_good_enough_says_so(how):
    """
    Nobody better answered: it is given, and its end says why. One that was good enough says nothing.
    """
    weights = pb.Preference(quality=1.0, cost=1.0, latency=0.0)
    with bench({"small": cheap(0.1), "large": Script(fails=failed())}) as up:
        got = up.get(**how, preference=weights, allowed_models=["small", "large"])
        assert got.text() == "abc"
        assert got.ended.unsure == "it was not good enough, and large did not answer"
    with bench({"small": cheap(0.1), "large": best()}) as up:
        assert up.get(**how, preference=weights).ended.unsure == ""


def test_an_answer_without_time_for_a_better_one_says_so():
    with bench({"small": cheap(0.1, delays_s={0: 2.0}), "large": best()}) as up:
        got = up.get(confidence_min=0.8, latency_ms_max=2500.0)

        assert got.ended.unsure == "it was not good enough, and no time was left for a better model"


def test_how_to_escalate_is_one_of_two():
    with pytest.raises(InvalidRequest, match=r"cascade\.by"):
        DispatchInput(route=pb.RouteRequest(), body=BODY, confidence_min=0.5, escalate="hope")
