"""Sessions: what staying is worth, where a conversation is kept, and for how long."""

from __future__ import annotations

import asyncio
import errno

import pytest
from dispatch_bench import QUALITY, SIZES, bench
from made_up_endpoint import FakeEndpoint, Script, answers, failed
from router_bench import NOON_MS, catalogue

from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Model, Pool
from serve.sessions.held import Held, SessionOptions, Sessions

OPTIONS = SessionOptions(switch_ms_per_1k_tokens=50.0, kept_s=600.0)
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

    assert sessions.held("", "", NOON_MS) is None


def test_what_one_replica_knows_of_a_session_all_of_the_machine_know(tmp_path):
    """Who holds it, where, what is in the cache, and what the conversation has cost."""
    one, other = (Sessions(OPTIONS, tmp_path / "sessions") for _ in range(2))
    sent = Held("large", "east", "", NOON_MS, 800.0, 0.5)
    assert one.sent("t", "s", sent) == 0.5
    other.hold("t", "s", Held("large", "west", "west:1", NOON_MS + 1))
    assert one.held("t", "s", NOON_MS) == Held("large", "west", "west:1", NOON_MS + 1, 800.0, 0.5)
    assert one.sent("t", "s", sent._replace(at_ms=NOON_MS + 2)) == 1.0
    known = Held("large", "west", "west:1", NOON_MS + 2, 800.0, 1.0)
    assert other.held("t", "s", NOON_MS) == known


def test_a_conversations_cost_is_known_when_its_cache_is_gone_or_its_prompt_is_empty():
    sessions = Sessions(OPTIONS)
    sent = Held("large", "east", "", NOON_MS, 800.0, 0.5)
    sessions.sent("t", "s", sent)
    assert sessions.sent("t", "s", sent._replace(at_ms=NOON_MS + 700_000, tokens=0.0)) == 1.0


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (("m" * 100, "p" * 50, "e" * 56), ("m" * 100, "p" * 50, "e" * 56)),
        (("m" * 100, "p" * 50, "e" * 57), ("m" * 100, "p" * 50, "")),
        (("m" * 100, "\N{EURO SIGN}" * 50, "e"), ("m" * 100, "", "")),
        (("m" * 200, "p" * 200, "e"), ("m" * 200, "", "")),
        (("\N{EURO SIGN}" * 200, "p", "e"), ("", "", "")),
    ],
)
def test_names_that_are_too_long_for_a_record_are_left_out(names, known):
    """The last ones first: another server of the same pool costs the least."""
    sessions = Sessions(OPTIONS)
    sessions.hold("", "s", Held(*names, NOON_MS))
    assert sessions.held("", "s", NOON_MS)[:3] == known


def test_a_session_that_there_is_no_memory_for_is_a_new_one(monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    sessions = Sessions(OPTIONS)
    monkeypatch.setattr("serve.sessions.table.os.pwrite", full)
    assert sessions.sent("", "s", held()._replace(spent_usd=0.5)) == 0.5
    assert sessions.held("", "s", NOON_MS) is None


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


def test_a_file_that_others_may_write_is_not_believed_and_stops_no_start(tmp_path, caplog):
    """
    Names in shared memory can be guessed: somebody else's file costs a prefill, not the service.
    """
    path = tmp_path / "fairlead.sessions"
    path.touch()
    path.chmod(0o666)
    sessions = Sessions(SessionOptions(), path)
    sessions.hold("acme", "s", Held("m1", "p1", "", NOON_MS))
    assert sessions.held("acme", "s", NOON_MS).model == "m1"
    assert path.stat().st_size == 0
    assert "this replica alone" in caplog.text and str(path) in caplog.text


# --- by price ---------------------------------------------------------------------------------------

BUSY = pb.Preference(quality=1.0, cost=20.0, latency=0.0)  # a dollar is worth 20 points
PRICED = (
    Model(
        name="large",
        quality=0.70,
        latency_ms=100.0,
        output_tokens=0.0,
        usd_per_1m_input_tokens=2.0,
        usd_per_1m_cached_input_tokens=0.2,
    ),
    Model(
        name="small",
        quality=0.72,
        latency_ms=100.0,
        output_tokens=0.0,
        usd_per_1m_input_tokens=2.0,
        cache_write_factor=1.25,
    ),
)


def costs(decision) -> dict[str, float]:
    return {c.model: c.cost_usd.mean for c in [decision, *decision.fallbacks]}


def test_leaving_a_model_costs_the_cached_prefix_in_dollars():
    """
    P · (p_in · w_write − p_cache_read): 10,000 tokens at 2 USD, 1.25 and 0.2 USD are 2.3 cents,
    worth half a point, so the session stays where a better model is not that much better. After
    the cache has died it goes.
    """
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(PRICED)) as up:
        route = {"session": "s", "prompt_tokens": 10_000, "preference": BUSY}
        up.get(**route, allowed_models=["large"])
        second = up.get(**route).routed.decision
        assert costs(second)["small"] - costs(second)["large"] == pytest.approx(0.023)
        assert second.model == "large"
        up.loop.run(asyncio.sleep(601.0))
        third = up.get(**route).routed.decision
        assert costs(third)["small"] == pytest.approx(costs(third)["large"])
        assert third.model == "small"


def test_only_what_was_there_last_time_is_in_the_cache():
    """
    A conversation that grew from 2,000 tokens to 10,000: 2,000 are read from the cache.
    """
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(PRICED)) as up:
        route = {"session": "s", "preference": BUSY}
        up.get(**route, prompt_tokens=2_000, allowed_models=["large"])
        second = up.get(**route, prompt_tokens=10_000).routed.decision

        assert costs(second)["large"] == pytest.approx((2_000 * 0.2 + 8_000 * 2.0) / 1e6)


def test_what_was_learned_of_costs_does_not_count_the_cache_twice():
    """
    The ticket's expected cost is with the cache, so a bill as expected is a ratio of one.
    """
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(PRICED)) as up:
        route = {"session": "s", "prompt_tokens": 10_000, "preference": BUSY}
        up.get(**route, allowed_models=["large"])
        second = up.get(**route, allowed_models=["large"]).routed.decision

        head = up.sealer.open(second.ticket).head
        assert float(head["expected_cost_usd"]) == pytest.approx(10_000 * 0.2 / 1e6)


def test_a_decision_says_what_its_conversation_costs_by_then():
    """
    The sum of what was predicted, also after the cache has died, and for each tenant its own.
    Without a session nothing is said.
    """
    with bench({"large": answers(1), "small": answers(1)}, models=catalogue(PRICED)) as up:
        route = {"session": "s", "prompt_tokens": 10_000, "preference": BUSY}
        found = [up.get(**route, allowed_models=["large"]).routed.decision for _ in range(2)]
        up.loop.run(asyncio.sleep(601.0))
        found.append(up.get(**route, allowed_models=["large"]).routed.decision)
        other = up.get(**route, tenant="other", allowed_models=["large"]).routed.decision
        alone = up.get(prompt_tokens=10_000, preference=BUSY).routed.decision

        paid = [0.02, 0.002, 0.02]
        sums = [sum(paid[: i + 1]) for i in range(3)]
        assert [one.session_usd for one in found] == pytest.approx(sums)
        assert other.session_usd == pytest.approx(0.02)
        assert not alone.HasField("session_usd")
