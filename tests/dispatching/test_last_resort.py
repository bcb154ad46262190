"""All that were asked fail or contradict each other: one more model is asked, and it is said why."""

from __future__ import annotations

import asyncio

import pytest
from dispatch_bench import BODY, SIZES, bench, collected
from made_up_endpoint import Script, answers, failed
from router_bench import catalogue

from serve.deploy.dispatch_vitals import DispatchVitals
from serve.dispatch.answers import DispatchInput
from serve.dispatch.dispatcher import DispatchOptions
from serve.errors import InvalidRequest, NoAnswer, UnknownModel
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Model
from streams.telemetry.window import Reporter

MODELS = catalogue(
    [*SIZES, Model(name="last", usd_per_1m_input_tokens=50.0, usd_per_1m_output_tokens=99.0, quality=0.2)]
)  # fmt: skip
NAMED = {"escalate_to": "last"}


def said(*words: str, **script) -> Script:
    return Script(words=words, **script)


def up_with(pools, **more):
    every = {model.name: [] for model in SIZES} | {"last": said("Oslo")}
    return bench(every | pools, models=MODELS, **more)


@pytest.mark.parametrize(
    "ask",
    [
        {"fan_out": 2},
        {"fan_out": 3, "merge": "agreement"},
        {"fan_out": 2, "merge": "fuse"},
        {},
    ],
    ids=str,
)
def test_where_nobody_answers_the_last_resort_does_and_says_so(ask):
    """
    In the first event, in the last, in the attempts, in the decision log and in the ticket.
    """
    broken = {model.name: said(fails=failed()) for model in SIZES}
    with up_with(broken) as up:
        got = up.get(**ask, how=NAMED)

        assert got.text() == "Oslo"
        assert got.routed.escalated == got.ended.escalated
        assert got.ended.escalated.startswith("nobody that was asked answered")
        assert got.story[-1] == ("last", "last-resort", "answered")
        assert {o for _, _, o in got.story[:-1]} <= {"error"}
        assert (up.rows()[-1]["policy"], up.rows()[-1]["tags"]) == ("last-resort", ["last-resort"])
        assert up.sealer.open(got.routed.ticket).said.tags == ("last-resort",)


def test_the_settings_name_one_for_all():
    options = DispatchOptions(escalate_to="last")
    with up_with({m.name: said(fails=failed()) for m in SIZES}, options=options) as up:
        assert up.get(fan_out=2).story[-1] == ("last", "last-resort", "answered")


@pytest.mark.parametrize("ask", [{"fan_out": 2}, {"confidence_min": 0.8}], ids=str)
def test_without_one_or_if_it_fails_too_the_failure_is_the_reply(ask):
    broken = {model.name: said(fails=failed()) for model in SIZES}
    with up_with(broken) as up:
        assert isinstance(up.get(**ask, denied_models=["last"]).error, NoAnswer)
    with up_with({**broken, "last": said(fails=failed())}) as up:
        assert isinstance(up.get(**ask, how=NAMED).error, NoAnswer)


def test_what_may_not_be_asked_is_not_asked():
    """
    What a request, a rule or a budget denies, no failure brings back: the failure is the one that
    there is without a last resort.
    """
    with up_with({model.name: said(fails=failed()) for model in SIZES}) as up:
        unnamed = up.get(fan_out=2, denied_models=["last"]).error
        found = up.get(fan_out=2, how=NAMED, denied_models=["last"]).error
        assert isinstance(found, NoAnswer)
        assert (found.kind, str(found)) == (unnamed.kind, str(unnamed))
        assert up.calls()[-1].called == 0


def test_an_answer_that_began_is_not_replaced():
    broken = answers(2, fails=failed(), fails_at=1)
    with up_with({"large": broken}) as up:
        got = up.get(how=NAMED, allowed_models=["large", "last"])

        assert got.error is not None and got.text() != "Oslo"
        assert up.calls()[-1].called == 0


def test_answers_that_contradict_each_other_go_to_it():
    pools = {"small": said("Rome"), "medium": said("Paris"), "large": said("Bern")}
    with up_with(pools) as up:
        got = up.get(fan_out=3, merge="agreement", how={**NAMED, "agreement_min": 0.5})

        assert got.text() == "Oslo"
        assert got.ended.escalated == "the answers agree by 0.00 only, and 0.5 is asked for"
        assert max(got.story) == ("small", "fan-out", "answered")
        assert got.ended.paid_usd == pytest.approx(sum(a.cost_usd for a in got.ended.attempts))
        assert len(got.ended.attempts) == 4


def test_answers_that_agree_enough_do_not():
    pools = {"small": said("Rome"), "medium": said("Paris"), "large": said("Paris")}
    with up_with(pools) as up:
        got = up.get(fan_out=3, merge="agreement", how={**NAMED, "agreement_min": 0.5})

        assert (got.text(), got.ended.escalated, got.ended.unsure) == ("Paris", "", "")


@pytest.mark.parametrize("last", ["denied", "fails"])
def test_a_contradiction_that_nobody_decides_is_told_with_the_answer(last):
    pools = {"small": said("Rome"), "medium": said("Paris"), "large": said("Bern")}
    pools |= {"last": said(fails=failed())} if last == "fails" else {}
    with up_with(pools) as up:
        denied = ["last"] if last == "denied" else []
        how = {**NAMED, "agreement_min": 0.5}
        got = up.get(fan_out=3, merge="agreement", how=how, denied_models=denied)

        assert got.text() == "Bern"
        assert got.ended.unsure == "the answers agree by 0.00 only, and 0.5 is asked for"
        assert got.ended.escalated == ""


def test_an_answer_that_is_alone_has_nobody_to_agree_with():
    pools = {"small": said(fails=failed()), "large": said("Bern")}
    with up_with(pools) as up:
        allowed = ["small", "large", "last"]
        how = {**NAMED, "agreement_min": 0.1}
        got = up.get(fan_out=2, merge="agreement", how=how, allowed_models=allowed)
        assert got.ended.escalated == "one answered of 2 that were asked, so nobody agrees with it"


def test_a_cascade_whose_better_model_fails_asks_it_before_it_gives_what_is_not_good_enough():
    pools = {"small": said("x", probability=0.1), "large": said(fails=failed())}
    with up_with(pools) as up:
        allowed = ["small", "large", "last"]
        got = up.get(confidence_min=0.8, how=NAMED, allowed_models=allowed)

        assert got.text() == "Oslo"
        assert got.ended.escalated == "it was not good enough, and large did not answer"
        assert got.story[0] == ("small", "cascade", "unsure")


@pytest.mark.parametrize("after", range(4))
def test_a_reader_who_leaves_ends_it(after):
    with up_with({model.name: said(fails=failed()) for model in SIZES}) as up:
        up.loop.run(collected(up.answer(fan_out=2, how=NAMED), stop_after=after))


def test_a_reader_who_is_cancelled_ends_it():
    pools = {"small": said("a"), "large": said("b"), "last": said("c", delays_s={0: 2.0})}
    with up_with(pools) as up:

        async def scene() -> None:
            how = {**NAMED, "agreement_min": 0.9}
            asking = asyncio.ensure_future(
                collected(up.answer(fan_out=2, merge="agreement", how=how))
            )
            await asyncio.sleep(1.0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        up.loop.run(scene())


def test_pools_count_it():
    with up_with({model.name: said(fails=failed()) for model in SIZES}) as up:
        vitals = DispatchVitals(
            up.dispatcher.health,
            up.dispatcher.refusals,
            list,
            lambda *_: None,
            "here",
            up.loop.time,
            lambda pool: 0.0,
        )
        up.get(fan_out=2, how=NAMED)
        for attempt in up.settled:
            vitals.note(attempt)
        (window,) = vitals.take(Reporter("a" * 16, 0), (0, 1000))
        assert {one.pool: one.last_resort for one in window.pools}["last"] == 1


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"agreement_min": 1.1, "fan_out": 2, "merge": "agreement"}, "agreement_min is 1.1"),
        ({"agreement_min": float("nan"), "fan_out": 2, "merge": "agreement"}, "agreement_min"),
        ({"agreement_min": 0.5, "fan_out": 2}, "0, unless answers are merged"),
    ],
)
def test_what_can_not_be_is_refused(how, named):
    with pytest.raises(InvalidRequest, match=named):
        DispatchInput(route=pb.RouteRequest(), body=BODY, **how)


def test_a_name_that_nobody_bears_is_refused():
    with up_with({"large": said("x")}) as up:
        assert isinstance(up.get(how={"escalate_to": "nobody"}).error, UnknownModel)
