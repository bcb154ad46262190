"""Cascades by self-consistency: the cheap model is asked several times, and its agreement counts."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from dispatch_bench import BODY, ENCODER, SIZES, bench, collected
from made_up_endpoint import FakeEndpoint, Script, failed
from router_bench import NOON_MS, catalogue

from learners.estimates.trait_effects import Effects
from learners.traits import N_TRAITS, traits_of
from serve.dispatch.answers import DispatchInput
from serve.dispatch.retickets import Reticket
from serve.dispatch.strategies.self_consistency import (
    GUESSED,
    alike,
    quality,
    spread_of,
    tag_of,
)
from serve.errors import CallRefused, InvalidRequest, NoAnswer
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live, LiveOptions
from streams.feedback.ticket import check_shape

HOW = {"confidence_min": 0.0, "escalate": "self_consistency"}
SMALL_USD, LARGE_USD = (100 * 1 + 2) / 1e6, (100 * 10 + 20) / 1e6
# The large model is worth 0.9 less 0.21 points for its price; so an answer is kept from 0.69 on.
WEIGHTS = pb.Preference(quality=1.0, cost=30.0, latency=0.0)
TWO = catalogue([SIZES[0], SIZES[2]])


def says(*answers: str, **more) -> FakeEndpoint:
    """A small model that gives these answers in turn, a word each."""
    return FakeEndpoint("small:1", *[Script(words=(one,), **more) for one in answers])


def large(**script) -> Script:
    return Script(words=("Oslo",), **script)


def ask(up, *, n: int = 3, weights=WEIGHTS, **more):
    how = {"n_probes": n, **more.pop("how", {})}
    return up.get(**HOW, how=how, preference=weights, **more)


def up_with(small, big=None, **more):
    return bench({"small": small, "large": big or large()}, models=TWO, uniform=0.5, **more)


def test_an_answer_that_all_say_is_kept_and_learned_from_once():
    with up_with(says("Paris", "paris.", "Paris")) as up:
        got = ask(up)

        assert got.text() == "Paris"
        assert sorted(got.story) == [
            ("small", "cascade", "answered"),
            ("small", "cascade", "compared"),
            ("small", "cascade", "compared"),
        ]
        assert got.ended.paid_usd == pytest.approx(3 * SMALL_USD)
        assert got.ended.unsure == ""
        learned = [values for _, values in up.reports if "latency_ms" in values]
        assert len(learned) == 1 and learned[0]["cost_usd"] == pytest.approx(SMALL_USD)


def test_its_ticket_and_its_line_in_the_log_say_how_the_answers_agree():
    """
    So the outcome that is reported with it is learned for such requests.
    """
    with up_with(says("Paris", "Rome", "Paris")) as up:
        got = ask(up, weights=pb.Preference(quality=1.0, cost=400.0, latency=0.0), tags=["mine"])

        said = up.sealer.open(got.routed.ticket).said
        assert said.tags == (tag_of("most"), "mine")
        assert up.rows()[-1]["tags"] == [tag_of("most"), "mine"]
        assert up.rows()[-1]["policy"] == "cascade"


def test_the_answer_that_most_say_is_the_one_that_is_given():
    with up_with(says("Rome", "Paris", "Paris")) as up:
        free = pb.Preference(quality=1.0, cost=1000.0, latency=0.0)
        assert ask(up, weights=free).text() == "Paris"


def test_where_answers_differ_the_better_model_is_asked():
    with up_with(says("Rome", "Paris", "Bern")) as up:
        got = ask(up)

        assert got.text() == "Oslo"
        assert got.story[-1] == ("large", "escalation", "answered")
        assert [o for _, _, o in got.story].count("unsure") == 1
        (why,) = [a.detail for a in got.ended.attempts if a.outcome == "unsure"]
        assert why == "3 answers, of which none agree"
        assert got.ended.paid_usd == pytest.approx(3 * SMALL_USD + LARGE_USD)
        assert up.sealer.open(got.routed.ticket).said.tags == (tag_of("none"),)


def test_all_are_asked_at_once_warm_and_without_a_seed():
    body = {**BODY, "seed": 7, "temperature": 0}
    with up_with(says(*["x"] * 4, delays_s={0: 1.0})) as up:
        got = ask(up, n=4, body=body)

        (small, _) = up.calls()
        assert got.ended.latency_ms == pytest.approx(1000)
        assert [call.body["temperature"] for call in small.calls] == [0.7] * 4
        assert not any("seed" in call.body for call in small.calls)


@pytest.mark.parametrize(
    ("own", "stated", "sent"), [(0.3, None, 0.3), (0.3, 1.2, 1.2), (None, None, 0.7), (0, 0.1, 0.1)]
)
def test_the_temperature_is_the_one_that_was_asked_for(own, stated, sent):
    body = BODY if own is None else {**BODY, "temperature": own}
    with up_with(says("x", "x")) as up:
        ask(up, n=2, body=body, how={"probe_temperature": stated})

        assert {call.body["temperature"] for call in up.calls()[0].calls} == {sent}


def test_the_better_model_is_asked_as_the_caller_asked():
    body = {**BODY, "seed": 7, "temperature": 0}
    with up_with(says("a", "b", "c")) as up:
        ask(up, body=body)

        assert up.calls()[1].calls[0].body == body


def test_a_probe_that_fails_does_not_count():
    """
    The retry budget holds for it as for any call.
    """
    small = FakeEndpoint(
        "small:1", Script(words=("x",)), Script(fails=CallRefused("x", "no")), Script(words=("x",))
    )
    with up_with(small) as up:
        assert ask(up).text() == "x"


def test_if_all_probes_fail_the_others_are_asked():
    with up_with(Script(fails=failed())) as up:
        got = ask(up)
        assert (got.text(), got.story[-1]) == ("Oslo", ("large", "escalation", "answered"))
    with up_with(Script(fails=failed()), Script(fails=failed())) as up:
        assert isinstance(ask(up).error, NoAnswer)


def test_an_answer_of_which_most_differ_says_so_where_nobody_better_answers():
    with up_with(says("Rome", "Paris", "Bern"), Script(fails=failed())) as up:
        got = ask(up)

        assert got.text() == "Rome"
        assert got.ended.unsure == "it was not good enough, and large did not answer"


@pytest.mark.parametrize("at_s", [0.5, 1.5, 2.5])
def test_a_reader_who_is_cancelled_ends_every_call(at_s):
    """
    While some probes have answered and others not, and while the better one answers.
    """
    small = FakeEndpoint(
        "small:1",
        *[Script(words=(word,), delays_s={0: s}) for word, s in (("a", 0.2), ("b", 1.0), ("c", 2))],
    )
    with up_with(small, large(delays_s={0: 1.0})) as up:

        async def scene() -> None:
            asking = asyncio.ensure_future(
                collected(up.answer(**HOW, how={"n_probes": 3}, preference=WEIGHTS))
            )
            await asyncio.sleep(at_s)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        up.loop.run(scene())
        assert "cancelled" in {attempt.settled.outcome for attempt in up.settled}


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("words", [("x", "x", "x"), ("a", "b", "c")])
def test_a_reader_who_leaves_ends_every_call(after, words):
    with up_with(says(*words)) as up:
        asked = up.answer(**HOW, how={"n_probes": 3}, preference=WEIGHTS)
        up.loop.run(collected(asked, stop_after=after))


def test_whoever_has_answered_at_the_deadline_counts():
    small = FakeEndpoint(
        "small:1", Script(words=("x",)), Script(words=("x",)), Script(words=("y", "z"), hangs_at=1)
    )
    with up_with(small) as up:
        got = ask(up, deadline_unix_ms=NOON_MS + 5000)

        assert (got.error, got.text()) == (None, "x")


# --- what it is worth is learned


def effects(**shifts: float) -> Effects:
    """What outcomes say for certain: by model, where answers differ."""
    at = traits_of("", (tag_of("none"),), "")[0]
    of = np.zeros((N_TRAITS, 2), np.float32)
    of[at] = [shifts["small"], shifts["large"]]
    return Effects(of, np.zeros_like(of), np.zeros(3), np.full(of.shape, 1e9))


@pytest.mark.parametrize(
    ("shifts", "model"),
    [
        ({"small": 0.4, "large": 0.0}, "small"),  # differing words, yet right
        ({"small": -0.3, "large": 0.0}, "large"),
        ({"small": -0.3, "large": -0.7}, "small"),  # too hard for the other one as well
    ],
)
def test_outcomes_take_the_place_of_the_guess(shifts, model):
    with up_with(says("Rome", "Paris", "Bern")) as up:
        up.view.current.estimator.effects = effects(**shifts)

        assert ask(up).routed.model == model


def test_what_is_not_known_for_sure_is_drawn():
    """
    So an answer of which most differ is given now and then, and it is learned whether it may be.
    """
    with up_with(says("x")) as up:
        view = up.view.current
        found = [
            quality(view, "small", "none", predicted=0.5, uniform=u) for u in (0.01, 0.5, 0.99)
        ]
        assert found == sorted(found) and found[0] < found[1] < found[2]
        assert found[1] == pytest.approx(1 / (1 + np.exp(-GUESSED["none"])))
        view.estimator.effects = effects(small=0.1, large=0.0)
        sure = [quality(view, "small", "none", predicted=0.5, uniform=u) for u in (0.01, 0.99)]
        assert sure == pytest.approx([0.6, 0.6], abs=1e-3)


def test_an_outcome_moves_what_the_next_such_answer_is_taken_for():
    """
    From the answer's ticket to the trainer and back to the cascade, nothing made up between.
    """
    small = says(*["Rome", "Paris", "Bern"] * 40)
    with up_with(small, large()) as up:
        free = pb.Preference(quality=1.0, cost=1000.0, latency=0.0)
        for _ in range(40):
            got = ask(up, weights=free)
            assert got.routed.model == "small"
            ticket = got.routed.ticket
            body = up.sealer.open(ticket)
            assert body.said.tags == (tag_of("none"),)
            up._report(Reticket(check_shape(ticket).hex(), ticket), quality=1.0, source="people")
        before = quality(up.view.current, "small", "none", predicted=0.5, uniform=0.5)
        up.view.current = relearned(up)
        after = quality(up.view.current, "small", "none", predicted=0.5, uniform=0.5)
        assert after > before + 0.1


def relearned(up):
    return Live(TWO, up.learn().state.learned, ENCODER, LiveOptions())


# --- what is alike


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["4", "4", "4"], (0, "all")),
        (["5", "4", "4"], (1, "most")),
        (["4", "5", "6"], (0, "none")),
        (["4", "5"], (0, "none")),
        (["", "4", "4"], (1, "all")),
        (["4", "", ""], (0, None)),
        (["", ""], (0, None)),
        (["a b", "a b", "c d", "c d"], (0, "none")),  # half is not most
    ],
)
def test_the_spread_of_answers(answers, found):
    assert spread_of(answers) == found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("We add and get 1,200.", "Therefore the result is **1200**", True),
        ("The answer is (B).", "B", True),
        ("the number of days is 4", "the number of days is 5", False),
        ("Herman Melville", "It was Herman Melville", False),
        ("A red car.", "A blue van.", False),
        ("-3", "3", False),
    ],
)
def test_what_says_the_same(one, other, same):
    assert alike(one, other) is alike(other, one) is same


def test_the_three_tags_are_three_traits():
    numbers = {traits_of("", (tag_of(spread),), "")[0] for spread in GUESSED}
    assert len(numbers) == 3


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"n_probes": 1}, r"cascade\.probes is 1; it must be 2 to 8"),
        ({"n_probes": 9}, r"cascade\.probes"),
        ({"probe_temperature": 0.0}, r"cascade\.temperature is 0.0; it must be above 0 to 2"),
        ({"probe_temperature": 2.1}, r"cascade\.temperature"),
        ({"probe_temperature": float("nan")}, r"cascade\.temperature"),
    ],
)
def test_what_can_not_be_is_refused(how, named):
    with pytest.raises(InvalidRequest, match=named):
        DispatchInput(route=pb.RouteRequest(), body=BODY, **HOW, **how)
