"""Probes of dispatched requests: bought beside an answer, judged, learned, and never felt."""

from __future__ import annotations

import asyncio

import pytest
from dispatch_bench import bench
from made_up_endpoint import Script, answers, failed

from learners.policies.probes import ProbeOptions
from serve.dispatch.dispatcher import DispatchOptions
from serve.dispatch.probes import DispatchProbeOptions
from serve.dispatch.strategies.agreement import agreement
from streams.feedback.report import PROBE
from streams.feedback.ticket import key_of

RICH = ProbeOptions(budget_usd_per_day=1e6, share_max=1.0, horizon_requests=1e9)
JUDGED = DispatchOptions(probes=DispatchProbeOptions(judge="agreement"))


def probing(pools, *, options=JUDGED, probes=RICH):
    """A dispatcher with money for probes."""
    return bench(pools, options=options, probes=probes)


def filled(up):
    """Let a minute pass from the first look at the budget: then there is money."""
    up.get()
    up.loop.run(asyncio.sleep(60.0))


def settle(up, seconds=30.0):
    """Let what goes on in the background end."""
    up.loop.run(asyncio.sleep(seconds))


def outcomes(up):
    """What became of each call."""
    return [(a.place.model, a.settled.outcome) for a in up.settled]


def by_ticket(up):
    """All that was reported, by decision."""
    found = {}
    for ticket, values in up.reports:
        found.setdefault(ticket.decision_id, {}).update(values)
    return found


def test_a_second_model_answers_and_is_learned_of_by_agreement():
    """
    After the answer has ended, at the lowest priority. Both outcomes are reported, each under its
    own ticket; the request's own is as without it.
    """
    pools = {"large": answers(4), "small": answers(4)}
    with probing(pools) as up:
        filled(up)
        got = up.get()
        at_end = by_ticket(up)
        settle(up)

        decision = up.decided[-1]
        assert got.text() == " w0 w1 w2 w3"
        assert decision.decision_id in at_end and decision.probe.decision_id not in at_end
        own, probed = (by_ticket(up)[d.decision_id] for d in (decision, decision.probe))
        assert "quality" not in own and own["error"] is False
        assert probed["quality"] == 1.0 and probed["error"] is False and probed["cost_usd"] > 0
        assert outcomes(up)[-2:] == [("large", "answered"), ("small", "answered")]
        assert up.pools.endpoints("small")["small:1"].calls[-1].priority == 3
        counts = up.learn().state.counts
        assert counts[f"probed_nano_usd.{key_of('small'):016x}"] > 0
        assert f"spent_nano_usd.{key_of('small'):016x}" not in counts


@pytest.mark.parametrize(
    "script",
    [Script(fails=failed(), fails_at=0), Script(fails=failed(), fails_at=1), Script(hangs_at=0)],
)
def test_a_probe_that_fails_harms_nothing(script):
    """
    At once, half-way, or never ending: the answer is whole, nothing is tried again, and what went
    wrong is reported of the probe alone.
    """
    pools = {"large": answers(4), "small": script}
    with probing(pools) as up:
        filled(up)
        got = up.get()
        settle(up, 200.0)

        decision = up.decided[-1]
        reports = by_ticket(up)
        assert got.error is None and got.story == [("large", "first", "answered")]
        assert reports[decision.decision_id]["error"] is False
        assert "quality" not in reports[decision.probe.decision_id]
        assert [model for model, _ in outcomes(up)] == ["large", "large", "small"]


def test_a_probe_never_delays_an_answer():
    """
    The probe's model takes a minute; the answer takes as long as without it.
    """
    with probing({"large": answers(4), "small": answers(4)}, probes=ProbeOptions()) as up:
        filled(up)
        without = up.get().ended.latency_ms
    slow = Script(words=("w0",), delays_s={0: 60.0})
    with probing({"large": answers(4), "small": slow}) as up:
        filled(up)
        assert up.get().ended.latency_ms == without
        settle(up, 100.0)


@pytest.mark.parametrize(
    ("ask", "options"),
    [
        ({}, DispatchOptions()),
        ({"fan_out": 2}, JUDGED),
        ({"body": {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}}, JUDGED),
    ],
)
def test_what_can_not_be_judged_is_not_bought(ask, options):
    """
    Without a judge, as by default; where several models answer anyway; where tools are asked for.
    """
    with probing({"large": answers(4), "small": answers(4)}, options=options) as up:
        filled(up)
        up.get(**ask)

        assert not up.decided[-1].HasField("probe")


def test_stopping_ends_probes_that_are_under_way():
    """
    What they took is settled.
    """
    with probing({"large": answers(4), "small": Script(hangs_at=0)}) as up:
        filled(up)
        up.get()
        settle(up, 1.0)
        up.loop.run(up.dispatcher.finish())

        assert outcomes(up)[-2:] == [("large", "answered"), ("small", "cancelled")]


def test_a_probes_ticket_says_that_it_is_one():
    """
    In the name of no request.
    """
    with probing({"large": answers(4), "small": answers(4)}) as up:
        filled(up)
        up.get()
        ticket = up.sealer.open(up.decided[-1].probe.ticket)

        assert int(ticket.head["policy"]) == key_of(PROBE)
        assert ticket.head["propensity"] == 1.0


@pytest.mark.parametrize(
    ("answer", "given", "quality"),
    [
        ("The answer: B", "the ANSWER B!", 1.0),
        ("a b", "a c", 0.5),
        ("a", "b", 0.0),
        ("", "b", None),
    ],
)
def test_agreement_is_the_f1_of_words(answer, given, quality):
    """
    Whatever their case and punctuation; nothing where one says nothing.
    """
    assert agreement(answer, given) == quality
