"""Sessions: what staying is worth, where a conversation is kept, and for how long."""

from __future__ import annotations

import pytest
from dispatch_bench import QUALITY, SIZES, bench
from hypothesis import given
from hypothesis import strategies as st
from made_up_endpoint import FakeEndpoint, Script, answers, failed
from router_bench import NOON_MS, catalogue
from strategies import lightly

from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Model, Pool
from serve.routing.sessions import Held, SessionOptions, Sessions

OPTIONS = SessionOptions(switch_ms_per_1k_tokens=50.0, kept_s=600.0, sessions_max=3)
IMPATIENT = pb.Preference(quality=1.0, cost=0.0, latency=1.0)  # a second is worth a whole answer


def held(model: str = "large", at_ms: int = NOON_MS, endpoint: str = "e") -> Held:
    return Held(model, model, endpoint, at_ms)


# --- the memory ------------------------------------------------------------------------------------


def test_a_session_is_kept_for_as_long_as_a_cache_is_believed_in():
    sessions = Sessions(OPTIONS)
    sessions.hold("", "s", held())

    assert sessions.held("", "s", NOON_MS + 600_000) == held()
    assert sessions.held("", "s", NOON_MS + 600_001) is None
    assert sessions.held("", "other", NOON_MS) is None


def test_no_session_is_none():
    """
    Requests without a session share nothing.
    """
    sessions = Sessions(OPTIONS)
    sessions.hold("", "", held())

    assert len(sessions) == 0
    assert sessions.held("", "", NOON_MS) is None


def test_the_longest_unused_is_forgotten_first():
    sessions = Sessions(OPTIONS)
    for name in ("a", "b", "c", "a", "d"):
        sessions.hold("", name, held())

    assert len(sessions) == 3
    assert [bool(sessions.held("", name, NOON_MS)) for name in "abcd"] == [True, False, True, True]


@lightly
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=40))
def test_memory_never_exceeds_its_bound_and_has_the_latest(steps):
    sessions, latest = Sessions(OPTIONS), {}
    for name, model in steps:
        sessions.hold("", f"s{name}", held(f"m{model}"))
        latest.pop(f"s{name}", None)
        latest[f"s{name}"] = f"m{model}"
        newest = list(latest)[-3:]
        assert len(sessions) == len(newest)
        for known, expected in latest.items():
            found = sessions.held("", known, NOON_MS)
            assert (found.model if found else None) == (expected if known in newest else None)


def test_reading_a_prompt_again_takes_longer_the_longer_it_is():
    assert Sessions(OPTIONS).switch_ms(20_000) == pytest.approx(1000.0)
    assert Sessions(OPTIONS).switch_ms(0) == 0.0


# --- deciding --------------------------------------------------------------------------------------

NEAR = (
    Model(name="large", quality=0.70, latency_ms=100.0),
    Model(name="small", latency_ms=100.0, quality=0.72),
)


@pytest.mark.parametrize(("tokens", "stays"), [(100, False), (10_000, True)])
def test_a_session_stays_while_that_is_worth_more_than_a_better_model(tokens, stays):
    """
    The other model is better by 0.02 points. Reading 100 tokens again takes 5 ms, 10,000 take half
    a second, and a second is worth a point to this caller.
    """
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(NEAR)) as up:
        route = {"session": "s", "prompt_tokens": tokens, "preference": IMPATIENT}
        assert up.get(**route, allowed_models=["large"]).routed.model == "large"
        second = up.get(**route).routed.decision

        assert second.model == ("large" if stays else "small")
        predicted = {c.model: c.latency_ms.mean for c in [second, *second.fallbacks]}
        assert predicted["small"] - predicted["large"] == pytest.approx(tokens * 0.05)


def test_the_callers_weights_decide_what_staying_is_worth():
    """
    To whom latency is nothing, a cache is nothing either.
    """
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(NEAR)) as up:
        route = {"session": "s", "prompt_tokens": 10_000, "preference": pb.Preference(**QUALITY)}
        up.get(**route, allowed_models=["large"])

        assert up.get(**route).routed.model == "small"


def test_a_session_that_moved_is_held_where_it_moved_to():
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(NEAR)) as up:
        route = {"session": "s", "prompt_tokens": 10_000, "preference": IMPATIENT}
        up.get(**route, allowed_models=["large"])
        up.get(**route, allowed_models=["small"])

        assert up.get(**route).routed.model == "small"


def test_a_session_is_held_by_who_answered_not_by_who_was_decided():
    with bench(
        {"large": Script(fails=failed()), "small": answers(1)}, models=catalogue(NEAR)
    ) as up:
        up.get(session="s", allowed_models=["large", "small"], prompt_tokens=10_000)

        assert up.sessions.held("", "s", up.now_ms())[:3] == ("small", "small", "small:1")


def test_a_silent_session_and_other_sessions_cost_nothing_to_move():
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(NEAR)) as up:
        route = {"prompt_tokens": 10_000, "preference": IMPATIENT}
        up.get(**route, session="s", allowed_models=["large"])

        assert up.get(**route, session="t").routed.model == "small"
        assert up.get(**route).routed.model == "small"
        up.loop.now_s += 601.0
        assert up.get(**route, session="s").routed.model == "small"


def test_a_session_of_a_model_that_has_left_is_a_new_one():
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(NEAR)) as up:
        up.sessions.hold("", "s", held("gone", up.now_ms()))

        decision = up.get(session="s", prompt_tokens=10_000).routed.decision
        assert {c.latency_ms.mean for c in [decision, *decision.fallbacks]} == {
            decision.latency_ms.mean
        }


# --- calling ---------------------------------------------------------------------------------------


def test_a_session_goes_back_to_its_endpoint():
    """
    Without one, the first two draws would go to the first endpoint.
    """
    ends = [FakeEndpoint(name, answers(1)) for name in "abc"]
    with bench({"large": ends}) as up:
        up.sessions.hold("", "s", Held("large", "large", "c", up.now_ms()))
        found = [up.get(session="s").routed.endpoint for _ in range(3)]

        assert found == ["c", "c", "c"]
        assert up.get().routed.endpoint == "a"


def test_a_session_goes_back_to_its_pool_which_is_a_reroute():
    """
    Another pool of the same model is ranked first by now; the reply says why it was not called.
    """
    models = catalogue(SIZES, [Pool(name="east", model="large"), Pool(name="west", model="large")])
    with bench({"east": answers(1), "west": answers(1)}, models=models) as up:
        up.sessions.hold("", "s", Held("large", "west", "west:1", up.now_ms()))
        got = up.get(session="s")

        assert got.story == [("west", "reroute", "answered")]
        assert got.ended.attempts[0].detail == "east: the session is in another pool"


def test_an_endpoint_that_failed_is_not_preferred_again():
    ends = [FakeEndpoint("a", answers(1)), FakeEndpoint("b", Script(fails=failed()))]
    with bench({"large": ends}) as up:
        up.sessions.hold("", "s", Held("large", "large", "b", up.now_ms()))
        got = up.get(session="s")

        assert [a.endpoint for a in got.ended.attempts] == ["b", "a"]
        assert up.sessions.held("", "s", up.now_ms()).endpoint == "a"


def test_an_endpoint_that_is_gone_is_not_missed():
    with bench({"large": [FakeEndpoint("a", answers(1))]}) as up:
        up.sessions.hold("", "s", Held("large", "large", "gone", up.now_ms()))
        assert up.get(session="s").routed.endpoint == "a"


def test_a_session_is_its_tenants():
    """
    Two tenants that name theirs alike don't meet, and neither learns where the other's is.
    """
    sessions = Sessions(OPTIONS)
    sessions.hold("a", "s", held("m1"))
    sessions.hold("b", "s", held("m2"))

    assert sessions.held("a", "s", NOON_MS).model == "m1"
    assert sessions.held("b", "s", NOON_MS).model == "m2"
    assert sessions.held("c", "s", NOON_MS) is None
