"""That the clairvoyant bound is one: feasible where it says so, and never above a fleet that works."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.capacity.fleet import Fleet
from infra.capacity.latency_target import LatencyTarget
from load.bench.fleet import clairvoyant
from load.bench.fleet.clairvoyant import (
    ClairvoyantOptions,
    _interval,
    bound,
    preferred_models,
    replicas_for,
    whole_usd,
    work_per_interval,
)
from load.bench.fleet.scenario import (
    MODELS,
    Scenario,
    ScenarioOptions,
    between,
    homogeneous,
    pool_plan,
    scenario,
    usd_per_s,
    work_s_of,
)
from load.data import traces
from load.fit.pool_limits import LimitOptions, load_max

FEW = LimitOptions(requests=300, halvings=2)
OPTIONS = ClairvoyantOptions(limits=FEW)


@cache
def small() -> Scenario:
    options = ScenarioOptions(azure_users=4.0, azure_s=(0.0, 300.0), azure_tuning_s=(0.0, 60.0))
    return scenario("azure", options)


def solve(of: Scenario, work: list[float], loads: list[float]):
    return _interval(of.fleet, of, np.array(work), np.array(loads), OPTIONS)


def one_model(*gpus: str, available: dict[str, int] | None = None) -> Scenario:
    """Pools of the small model alone, on these types."""
    pools = tuple(pool_plan("llama-3.1-8b", gpu, "eu") for gpu in gpus)
    types = tuple(
        replace(gpu, available=(available or {}).get(gpu.name, gpu.available))
        for gpu in small().fleet.gpus
    )
    return replace(small(), fleet=Fleet(gpus=types, pools=pools))


# --- one interval


def test_a_minute_of_work_takes_as_many_replicas_as_it_has_seconds_over_the_load():
    """
    120 s of work in 60 s at a load of 0.8 are 2.5 replicas.
    """
    replicas, shares, left = solve(one_model("h100_sxm"), [120.0], [0.8])

    assert replicas == pytest.approx([2.5])
    assert shares == pytest.approx([1.0])
    assert left == pytest.approx(0.0)


def test_the_cheapest_pool_takes_all_of_it_while_there_are_gpus():
    """
    By cost per work, not per GPU; the rest goes to the next.
    """
    of = one_model("l40s", "h100_sxm", available={"h100_sxm": 2})

    replicas, shares, _ = solve(of, [720.0, 120.0], [1.0, 0.5])

    assert replicas == pytest.approx([6.0, 2.0])
    assert shares == pytest.approx([0.5, 0.5])


def test_what_the_market_cannot_carry_is_reported():
    """
    Half of the work fits, so half is left over.
    """
    of = one_model("h100_sxm", available={"h100_sxm": 1})

    replicas, _, left = solve(of, [120.0], [1.0])

    assert replicas == pytest.approx([1.0])
    assert left == pytest.approx(0.5)


def test_a_pool_that_cannot_meet_the_target_carries_nothing():
    """
    Its limit is 0.
    """
    of = one_model("l40s", "h100_sxm")

    replicas, _, left = solve(of, [10.0, 60.0], [0.0, 1.0])

    assert replicas == pytest.approx([0.0, 1.0], abs=1e-6)
    assert left == pytest.approx(0.0)


def test_types_are_shared_by_the_models_that_run_on_them():
    """
    GPUs of all pools of a type together are never more than there are.
    """
    of = small()
    work = np.full(len(of.fleet.pools), 900.0)

    replicas, _, _ = solve(of, list(work), [0.9] * len(work))

    for gpu in of.fleet.gpus:
        used = sum(
            x * p.gpus_per_replica
            for x, p in zip(replicas, of.fleet.pools, strict=True)
            if p.gpu.name == gpu.name
        )
        assert used <= gpu.available + 1e-6


@given(
    st.lists(st.floats(1.0, 200.0), min_size=2, max_size=2),
    st.lists(st.floats(0.3, 1.0), min_size=2, max_size=2),
)
@lightly
def test_no_whole_fleet_that_carries_the_work_is_cheaper(work, loads):
    """
    Against every pair of whole numbers of replicas, with the work split at will.
    """
    of = one_model("l40s", "h100_sxm")
    usd = np.array([usd_per_s(p) for p in of.fleet.pools])

    replicas, _, _ = solve(of, work, loads)

    for whole in product(range(9), repeat=2):
        carried = sum(n * 60.0 * u / w for n, u, w in zip(whole, loads, work, strict=True))
        if carried >= 1.0:
            assert usd @ replicas <= usd @ np.array(whole) + 1e-9


def test_whole_replicas_are_kept_for_the_busiest_of_their_minutes():
    """
    2.5 replicas in the second of three minutes are three in each; of the fourth, one.
    """
    of = one_model("h100_sxm")
    work = np.array([[48.0], [120.0], [0.0], [24.0]])

    usd = whole_usd(of, work, np.array([0.8]), OPTIONS)

    assert usd == pytest.approx((3 * 3 + 1) * 60.0 * usd_per_s(of.fleet.pools[0]))


def test_of_two_types_the_cheapest_whole_numbers_are_taken():
    """
    Against every pair of whole numbers of replicas; not the fractions rounded up.
    """
    of = one_model("l40s", "h100_sxm")
    usd, work = np.array([usd_per_s(p) for p in of.fleet.pools]), np.array([400.0, 130.0])

    found = whole_usd(of, work[None, :], np.array([0.9, 0.9]), OPTIONS)

    enough = [n for n in product(range(9), repeat=2) if (np.array(n) * 54.0 / work).sum() >= 1.0]
    assert found == pytest.approx(60.0 * min(usd @ np.array(n) for n in enough), rel=0.01)


# --- the whole trace


def test_all_work_is_in_some_interval():
    """
    Nothing is lost at the edges.
    """
    of = small()
    preferred = preferred_models(of)

    work = work_per_interval(of.fleet, of.traffic, preferred, of, 60.0)

    each = work_s_of(of.fleet, of.traffic, of.target)
    for column, pool in enumerate(of.fleet.pools):
        rows = preferred == of.table.models.index(pool.model)
        assert work[:, column].sum() == pytest.approx(each[rows, column].sum())


def test_the_bound_grows_with_the_demand_and_shrinks_with_the_market(monkeypatch):
    """
    Twice the users cost twice as much where GPUs abound; fewer types never cost less.
    """
    monkeypatch.setattr(clairvoyant, "limits_of", lambda fleet, *_: np.full(len(fleet.pools), 0.8))
    of = small()
    half = replace(of, traffic=_every_second(of.traffic))

    whole, less = bound(of, OPTIONS, 0), bound(half, OPTIONS, 0)
    alone = bound(replace(of, fleet=homogeneous("h200_sxm")), OPTIONS, 0)

    assert less.gpu_cost_usd == pytest.approx(whole.gpu_cost_usd / 2, rel=0.08)
    assert alone.gpu_cost_usd > whole.gpu_cost_usd
    assert whole.unserved == alone.unserved == 0.0
    assert whole.joules_per_request > 0.0 and whole.replica_changes_per_h >= 0.0


def test_its_quality_is_that_of_the_preferred_models():
    """
    Whatever pools there are: the mix of models is the router's, not the programme's.
    """
    of = small()

    preferred = preferred_models(of)

    mix = np.bincount(preferred, minlength=len(MODELS)) / len(preferred)
    assert (mix > 0.0).all() and (mix[1:] > 0.1).all(), "the trade-off matters"
    quality = of.table.quality[of.traffic.rows, preferred].mean()
    assert of.table.quality.mean(axis=0).min() < quality < of.table.quality.mean(axis=0).max()
    np.testing.assert_array_equal(
        preferred, preferred_models(replace(of, fleet=homogeneous("h200_sxm")))
    )


def test_every_run_begins_with_what_the_first_minutes_take():
    """
    Whole replicas for the mean demand, within the market.
    """
    of = small()
    loads = np.full(len(of.fleet.pools), 0.75)

    found = replicas_for(of, between(of.traffic, 0.0, end_s=120.0), loads)

    assert set(found) == {pool.name for pool in of.fleet.pools}
    models = {pool.model for pool in of.fleet.pools if found[pool.name] > 0}
    assert models == set(MODELS)
    for gpu in of.fleet.gpus:
        used = sum(found[p.name] * p.gpus_per_replica for p in of.fleet.pools if p.gpu == gpu)
        assert used <= gpu.available


# --- how full a pool can be


def test_a_looser_target_lets_a_pool_be_fuller_and_an_impossible_one_not_at_all():
    """
    Measured by runs: 99 % of the requests within the target.
    """
    performance = pool_plan("llama-3.1-70b", "h200_sxm", "eu").emulation.performance
    lengths = traces.azure()

    strict = load_max(
        performance, LatencyTarget(ttft_s=0.5, ttft_s_per_1k_prompt_tokens=0.2), lengths, FEW, 0
    )
    loose = load_max(performance, LatencyTarget(ttft_s=20.0), lengths, FEW, 0)
    never = load_max(
        performance, LatencyTarget(ttft_s=0.0, ttft_s_per_1k_prompt_tokens=0.0), lengths, FEW, 0
    )

    assert never == 0.0
    assert 0.0 < strict < loose <= FEW.loads[1]


def _every_second(traffic):
    rows = np.arange(0, len(traffic), 2)
    names = ("at_s", "prompt_tokens", "output_tokens", "rows", "classes")
    return replace(traffic, **{name: getattr(traffic, name)[rows] for name in names})
