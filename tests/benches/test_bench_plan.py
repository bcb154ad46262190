"""`bench plan`: two planners on one workload, judged by one simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("hdrh", reason="needs hdrhistogram: make install")

from infra.settings.settings import read_settings
from load.bench.plan import bench, by_hand, versus
from load.bench.plan.bench import EXAMPLE, PlanBench, inflated, quick
from load.bench.plan.live import by_chance, unless_stuck
from load.data.traces import Trace
from load.errors import LoopStuck
from load.planning.candidates import with_candidates
from load.planning.questions import questions_of
from load.planning.search import PlanOptions, Search
from load.planning.site import site_of
from load.traces.reading import TraceFile

SMALL = replace(quick().workloads["azure_8b"], requests_per_s=8.0, seconds=20.0)


def quiet(text):
    pass


def test_costs_are_compared_and_both_plans_are_simulated(monkeypatch, tmp_path):
    """
    The peer's plan is so many replicas of one pool; ours costs so much of it.
    """
    monkeypatch.setattr(versus, "python", lambda: tmp_path)
    theirs = {"replicas": 4, "believes_it_keeps_target": True}
    monkeypatch.setattr(
        versus,
        "_asked",
        lambda plan, *_: theirs | {"pool": plan.name, "usd_per_h": 4 * plan.usd_per_hour},
    )
    found = versus.versus(SMALL, 0, quiet)
    peer = found["vllm_sr_sim"]
    assert peer["gpus"] == {"l40s": 4} and peer["usd_per_h"] == pytest.approx(3.4)
    assert found["cost_ratio"] == pytest.approx(found["usd_per_h"] / 3.4, abs=1e-3)
    assert peer["target_met"] and found["target_met"]
    assert found["within_target"] >= 0.99


def test_without_the_peer_its_figures_are_missing_and_said_so(monkeypatch):
    monkeypatch.setattr(versus, "python", lambda: None)
    found = versus.versus(SMALL, 0, quiet)
    assert found["cost_ratio"] is None and "make planners" in found["missing"]
    assert found["target_met"]


@pytest.fixture
def search():
    """Of the example's fleet, under a trickle of half a minute."""
    trickle = Trace("trickle", 3.0 * np.arange(10), np.full(10, 100), np.full(10, 20))
    file = TraceFile(trace=trickle, format="plain", rows=10)
    site = site_of(with_candidates(read_settings(EXAMPLE)))
    wanted = PlanOptions(points=0, unlimited=True, stretch_s=30.0)
    return Search(site, file, questions_of(site.catalogue, None, file), wanted, quiet)


@pytest.mark.parametrize("most", [0.1, 0.3, 1.0, 5.7, 40.0])
def test_a_replicas_rate_is_found_to_a_twentieth(monkeypatch, search, most):
    monkeypatch.setattr(by_hand, "_keeps", lambda search, pool, rate: rate <= most)
    found = by_hand.one_replica_per_s(search, "any")
    assert found == 0.0 if most < by_hand.RATE_MIN else most / 1.05 < found <= most


def test_by_hand_the_best_model_that_can_gets_headroom_on_its_cheapest_gpus(monkeypatch, search):
    """
    A model that keeps the target nowhere is passed over. Ours is no dearer and no worse.
    """
    best, second = by_hand._best_first(search)[:2]
    model = {plan.name: plan.model for plan in search.site.fleet.pools}
    rates = {best: 0.0, second: 0.4}
    monkeypatch.setattr(by_hand, "one_replica_per_s", lambda _, pool: rates.get(model[pool], 9.0))

    hand = by_hand.planned_by_hand(search)

    assert hand.model == second
    assert hand.replicas == 2  # 10 in 27 s are 0.37 a second, times 1.3 0.48
    cost = [plan.usd_per_hour for plan in search.site.fleet.pools if plan.model == second]
    assert hand.usd_per_h == pytest.approx(2 * min(cost))
    found = by_hand.by_hand(search.site, search.file, [1, 2], quiet)
    assert found["by_hand"]["model"] == second and found["cost_ratio"] <= 1.0
    assert found["within_target"] >= 0.99 and found["judged_by_hand"]["within_target"] >= 0.99
    reserved = found["with_reserve"]
    assert reserved["within_target"] >= 0.99 and reserved["usd_per_h"] >= found["usd_per_h"]


def test_stretches_that_could_be_planned_count_together(monkeypatch):
    """
    Student's t over the ratios; a stretch that nothing was found for is told, not counted.
    """
    ratios = {0.0: 0.6, 600.0: 0.8, 1200.0: None}

    def one(name, at, say):
        return {"cost_ratio": ratios[at], "with_reserve": {"cost_ratio": 1.0}}

    monkeypatch.setattr(bench, "_by_hand", one)
    found = bench.versus_hand([("azure", at) for at in ratios], quiet)
    assert found["azure 1200"]["cost_ratio"] is None
    assert found["all"]["cost_ratio"]["mean"] == pytest.approx(0.7)
    assert found["all"]["cost_ratio"]["low"] == pytest.approx(0.7 - 12.7062 * 0.1, abs=1e-3)
    assert found["all"]["cost_ratio_with_reserve"]["mean"] == 1.0


def test_the_hedged_plan_holds_where_the_plan_falls_short():
    """
    At 1.5 times demand and service times, both told by simulation.
    """
    found = inflated(PlanBench(inflated_s=30.0), quiet)
    assert found["plain"]["as_forecast"] >= 0.99
    assert found["hedged"]["within_target"] >= 0.99 > found["plain"]["within_target"]
    assert found["hedged"]["usd_per_h"] > found["plain"]["usd_per_h"]


def test_a_site_that_is_stuck_leaves_out_its_own_figures_alone():
    """
    An hour's other figures were lost with it.
    """
    left_out, said = {}, []
    for key in ("live_vs_simulated", "replay"):
        with unless_stuck(key, left_out, said.append):
            if key == "replay":
                raise LoopStuck("no answer within 300 s")
    assert left_out == {"replay": "no answer within 300 s"}
    assert said == ["replay is left out: no answer within 300 s"]


def test_chance_is_told_from_how_far_seeds_are_apart():
    """
    Of 2,000 times that nine runs alike are made, one is further from the mean of eight in 5 %.
    """
    runs = np.random.default_rng(0).normal(3.0, 2.0, (2000, 9))
    beyond = [abs(run[8] - run[:8].mean()) > by_chance(run[:8].tolist()) for run in runs]
    assert np.mean(beyond) == pytest.approx(0.05, abs=0.015)
