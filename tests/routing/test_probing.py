"""Probes: which requests get one, within the budget, and that nothing of them is the request's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from router_bench import NOON_MS, router

from learners.policies.probes import ProbeOptions
from serve.budgets.allowance import BURST_S, DAY_S
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.eligible import Verdict
from serve.routing.probing import Prober
from streams.feedback.report import PROBE
from streams.feedback.ticket import key_of

DAY_MS = int(DAY_S * 1000)
USD = 0.01


def batch(n=8, *, cost_usd=USD, fits=True, shed=False, chosen=0):
    """Requests, choices and a view in which the second of two models is worth asking."""
    rng = np.random.default_rng(0)
    of_models = np.ones((n, 2))
    choices = SimpleNamespace(
        utility=np.tile([0.7, 0.69], (n, 1)),
        unsure=np.stack([np.full(n, 0.05), rng.uniform(0.1, 0.3, n)], axis=1),
        verdict=np.full((n, 2), Verdict.ELIGIBLE),
        cost_usd=of_models * cost_usd,
        expected_cost_usd=of_models * cost_usd,
        chosen=np.full(n, chosen),
        fits=np.full(n, fits),
        shed=np.full(n, shed),
    )
    requests = SimpleNamespace(preference=np.tile([1.0, 0.0, 0.0, 0.0], (n, 1)))
    return requests, choices


def view(replicas=1):
    return SimpleNamespace(
        catalogue=["cheap", "dear"],
        n_replicas=lambda: replicas,
        estimator=SimpleNamespace(noise=np.full((2, 3), 0.4)),
    )


def spent(prober, *, days, step_s=60.0, replicas=1, n=8, **columns):
    """US dollars spent by each step's end."""
    live, total, found = view(replicas), 0.0, []
    for step in range(int(days * DAY_S / step_s)):
        probes = prober.pick(*batch(n, **columns), live, NOON_MS + int(step * step_s * 1000))
        total += len(probes.rows) * columns.get("cost_usd", USD)
        found.append(total)
    return np.array(found)


def test_no_day_exceeds_the_budget_and_most_of_it_is_used():
    """
    In whatever 24 hours one looks, also after a quiet night.
    """
    prober = Prober(ProbeOptions(budget_usd_per_day=1.0, share_max=1.0))
    quiet = spent(prober, days=0.25, n=0)
    live, times, usd = view(), [], []
    for step in range(2 * 1440):
        at_ms = NOON_MS + DAY_MS // 4 + step * 60_000
        probes = prober.pick(*batch(), live, at_ms)
        times.append(at_ms)
        usd.append(len(probes.rows) * USD)

    total = np.concatenate([[0.0], np.cumsum(usd)])
    within_a_day = total[1440:] - total[:-1440]
    assert not quiet.any()
    assert 0.9 < within_a_day.max() <= 1.0


@pytest.mark.parametrize("replicas", [2, 5])
def test_replicas_share_the_budget(replicas):
    """
    Each has its part, so all together keep it.
    """
    options = ProbeOptions(budget_usd_per_day=1.0, share_max=1.0)
    total = sum(
        spent(Prober(options), days=1, step_s=600.0, replicas=replicas)[-1] for _ in range(replicas)
    )

    assert 0.7 < total <= 1.0


def test_a_replica_that_starts_anew_begins_with_nothing():
    """
    Else each restart would give the budget again.
    """
    prober = Prober(ProbeOptions(budget_usd_per_day=1e6))

    assert not len(prober.pick(*batch(), view(), NOON_MS).rows)
    assert len(prober.pick(*batch(), view(), NOON_MS + 60_000).rows)


def test_a_clock_that_was_set_back_fills_nothing():
    """
    The same hour is not paid twice.
    """
    prober = Prober(ProbeOptions(budget_usd_per_day=24.0 * (DAY_S + BURST_S) / DAY_S))
    for at_s in (0, 36, 0, 36, 0, 36):
        prober.pick(*batch(0), view(), NOON_MS + at_s * 1000)

    probes = prober.pick(*batch(1000, cost_usd=1e-5), view(), NOON_MS + 36_000)

    assert len(probes.rows) * 1e-5 <= 36.0 / 3600.0 * 1.01


def test_no_more_than_the_stated_share_of_requests_is_probed():
    """
    However much money there is.
    """
    prober, n_probed = Prober(ProbeOptions(budget_usd_per_day=1e9, share_max=0.25)), 0
    for step in range(100):
        n_probed += len(prober.pick(*batch(), view(), NOON_MS + step * 60_000).rows)

    assert n_probed == 200


def test_the_requests_that_teach_most_get_them():
    """
    Where money is short, those of which the second model is known least.
    """
    prober, n = Prober(ProbeOptions(budget_usd_per_day=DAY_S / 60 * USD, share_max=1.0)), 8
    taken = np.zeros(n)
    for step in range(2000):
        taken[prober.pick(*batch(n), view(), NOON_MS + step * 60_000).rows] += 1

    unsure = batch(n)[1].unsure[:, 1]
    assert taken[unsure.argmax()] > 0.9 * taken.sum()


@pytest.mark.parametrize("why", [{"fits": False}, {"shed": True}, {"chosen": 1}])
def test_a_request_without_an_answer_or_a_second_model_gets_none(why):
    """
    The first model is sure: asking it teaches nothing.
    """
    prober = Prober(ProbeOptions(budget_usd_per_day=1e6))
    requests, choices = batch(**why)
    choices.unsure[:, 0] = 0.0
    prober.pick(requests, choices, view(), NOON_MS)

    assert not len(prober.pick(requests, choices, view(), NOON_MS + 60_000).rows)


def test_without_a_budget_nothing_is_bought():
    """
    As it is by default.
    """
    prober = Prober(ProbeOptions())
    prober.pick(*batch(), view(), NOON_MS)

    assert not len(prober.pick(*batch(), view(), NOON_MS + DAY_MS).rows)


RICH = ProbeOptions(budget_usd_per_day=1e6, share_max=1.0, horizon_requests=1e9)


def test_route_suggests_a_probe_to_those_who_take_one(tmp_path):
    """
    A second model with a ticket of its own. Nothing of the decision is changed by it: its models'
    propensities sum to one.
    """
    with router(tmp_path, probes=RICH) as up:
        up.route()
        up.clock.now_ms += 60_000
        without, decision = up.route(), up.route(probe=True)

    assert not without.HasField("probe")
    probe = decision.probe
    assert probe.model in {f.model for f in decision.fallbacks} and probe.pool == probe.model
    assert probe.decision_id != decision.decision_id and probe.cost_usd.mean > 0
    total = decision.propensity + sum(f.propensity for f in decision.fallbacks)
    assert total == pytest.approx(1.0)


def test_a_probes_outcome_is_learned_once_and_not_counted_as_the_requests(tmp_path):
    """
    Both are reported, the probe's twice: two outcomes, and their money apart.
    """
    with router(tmp_path, probes=RICH) as up:
        up.route()
        up.clock.now_ms += 60_000
        decision = up.route(probe=True)
        up.report(decision, quality=0.9, cost_usd=0.03)
        for _ in range(2):
            up.report(decision.probe, quality=0.4, cost_usd=0.02)
        up.learn()
        counts = up.trainer.state.counts
        explained = up.stub.Explain(pb.ExplainRequest(ticket=decision.probe.ticket))

    pool = key_of(decision.probe.pool)
    assert counts["learned"] == 2 and counts["duplicate"] == 1
    assert counts[f"probed_nano_usd.{pool:016x}"] == 20_000_000
    assert counts[f"spent_nano_usd.{key_of(decision.pool):016x}"] == 30_000_000
    assert f"spent_nano_usd.{pool:016x}" not in counts
    assert explained.policy == PROBE
    assert next(m for m in explained.models if m.chosen).propensity == 1.0
