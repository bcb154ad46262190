"""That `bench fleet` says what it is to say, that rivals are treated fairly, and runs repeat."""

from __future__ import annotations

import json
import signal
from concurrent.futures import Future
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from small_fleet import SMALL, TINY

from learners.criticality import Criticality
from load import workers
from load.bench.fleet import bench as bench_fleet
from load.bench.fleet import overload, seeds
from load.bench.fleet.bench import measure, run_contender
from load.bench.fleet.done import DIGITS, Done, TraceRuns
from load.bench.fleet.done import POLICIES as ALL
from load.bench.fleet.overload import (
    Base,
    OverloadOptions,
    full_rate,
    search,
    shrunk,
    static_scenario,
    steady,
    summed_up,
    tried_scenario,
)
from load.bench.fleet.picture import draw
from load.bench.fleet.progress import Told
from load.bench.fleet.runs import built, first_replicas, rival_pools, run_on, with_fleet
from load.bench.fleet.scenario import (
    LAST_RESORT,
    MARKET,
    MODELS,
    PARALLEL,
    SHORT_TARGET,
    STAND_INS,
    TABLE,
    fleet_of_market,
    homogeneous,
    outcomes,
    scenario,
    usd_per_s,
    work_s_of,
)
from load.bench.fleet.seeds import over_seeds
from load.bench.fleet.tuning import FAIRLEAD, ROUTER_BLIND, Contender
from load.simulation.loop.results import Fate
from load.simulation.loop.split import capacities
from load.simulation.warm_start import estimated_quality, halves

POLICIES = {
    "fairlead",
    "ray_default",
    "hpa",
    "homogeneous",
    "clairvoyant",
    "router_blind",
    "autoscaler_blind",
    "both_blind",
}


@cache
def measured() -> dict:
    """A run as small as can be, of one trace."""
    return measure(SMALL, lambda text: None)


# --- what it says


def test_the_json_has_every_policy_with_every_figure():
    """
    Other programs read it: names and kinds are a contract.
    """
    found = json.loads(json.dumps(measured()))

    assert set(found["traces"]) == {"azure"}
    assert set(found["traces"]["azure"]) == POLICIES
    for figures in found["traces"]["azure"].values():
        assert set(figures) == {
            "within_target",
            "gpu_cost_usd",
            "quality",
            "joules_per_request",
            "replica_changes_per_h",
        }
        assert all(isinstance(value, float) for value in figures.values())
        assert 0.0 <= figures["within_target"] <= 1.0 and figures["gpu_cost_usd"] > 0.0
    assert {"rate_gain", "within_target", "quality_loss"} <= set(found["overload"])
    assert found["simulated_requests_per_s"] > 0
    assert found["left_out"] == {}


def test_what_rivals_were_tuned_to_is_reported():
    """
    So that anybody can run them again.
    """
    tuned = measured()["tuned"]["azure"]

    assert set(tuned) == {"ray_default", "hpa", "homogeneous"}
    assert tuned["hpa"]["scaling"] == "utilisation"
    assert tuned["homogeneous"]["gpu"] in MARKET


def test_the_same_seed_gives_the_same_bits_in_another_process():
    """
    A run here ends in the digest of the run in the bench's worker.
    """
    found = run_contender("azure", TINY, FAIRLEAD, tuning=False)

    assert found["digest"] == measured()["digests"]["azure"]["fairlead"]


def test_several_seeds_give_means_intervals_and_every_value():
    """
    Noise between seeds is told beside the first seed's figures.
    """
    runs = [{"azure": {"fairlead": {"quality": value}}} for value in (0.5, 0.6, 0.7)]

    found = over_seeds(runs)["azure"]["fairlead"]["quality"]

    assert found["values"] == [0.5, 0.6, 0.7]
    assert found["mean"] == pytest.approx(0.6)
    assert found["low"] < 0.6 < found["high"]


# --- what of it is done


def ended(value: object) -> Future:
    run: Future = Future()
    run.set_result(value)
    return run


def figures(**more: object) -> dict:
    return dict.fromkeys(DIGITS, 0.5) | {"requests": 3, "peak_gpus": 2, "digest": "d"} | more


def test_a_bench_that_is_interrupted_says_what_it_knows_and_what_it_leaves_out(monkeypatch):
    """
    Two contenders have ended, one has failed, the others are under way or have not begun. While
    workers are ended Ctrl-C comes once more.
    """
    failed: Future = Future()
    failed.set_exception(ValueError("it was ended"))

    def interrupted(options, done, *_):
        done.speed = ended(40_000.4)
        done.traces["azure"].runs |= {"fairlead": ended(figures(gpu_cost_usd=2.0))}
        done.traces["azure"].runs |= {
            "hpa": ended(figures(gpu_cost_usd=4.0)),
            "homogeneous": failed,
        }
        done.traces["azure"].runs |= {"router_blind": Future()}
        raise KeyboardInterrupt

    def again() -> list:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        return []

    monkeypatch.setattr(bench_fleet, "_run_all", interrupted)
    monkeypatch.setattr(workers, "active_children", again)
    handler = signal.getsignal(signal.SIGINT)

    found = json.loads(json.dumps(measure(SMALL, lambda text: None)))

    assert set(found["traces"]["azure"]) == {"fairlead", "hpa"}
    assert found["ratios"]["azure"] == {"cost_to_hpa": 0.5, "quality_over_hpa": 0.0}
    assert found["simulated_requests_per_s"] == 40_000
    assert found["requests"] == {"azure": 3} and found["bound_whole_usd"] == {"azure": None}
    others = {f"azure.{policy}" for policy in ALL if policy not in ("fairlead", "hpa")}
    assert found["left_out"] == dict.fromkeys([*others, "overload"], "interrupted")
    assert signal.getsignal(signal.SIGINT) == handler


def test_nothing_is_left_out_of_what_was_not_asked_for():
    """
    Overload is measured with all traces alone.
    """
    of = TraceRuns({policy: ended(figures(unserved=0.0, whole_usd=1.0)) for policy in ALL})
    done = Done({"azure": of}, overloads=False, speed=ended(1.0))

    assert done.result()["left_out"] == {}


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_seed_that_was_interrupted_ends_a_bench_of_several(monkeypatch, whole):
    """
    The first, second or last of three: what the first said stays, with means where there are two to
    take them of, and all that was asked for and is not there is named.
    """
    runs = [{"left_out": {}, "seed": seed, "traces": {}} for seed in range(whole)]
    runs.append({"left_out": {"azure.hpa": "interrupted"}, "seed": whole, "traces": {}})
    left = iter(runs)
    monkeypatch.setattr(seeds, "measure", lambda options, say: next(left))

    found = seeds.measure_seeds(SMALL, 3, lambda text: None)

    named = {0: ["azure.hpa", "seed 1", "seed 2"], 1: ["seed 1", "seed 2"], 2: ["seed 2"]}[whole]
    assert found["left_out"] == dict.fromkeys(named, "interrupted")
    assert found["seed"] == 0
    assert ("over_seeds" in found) == (whole == 2)


def test_a_run_tells_how_far_it_has_come_every_half_minute():
    """
    After 40 s two of 48 hours are simulated: 46 are left, at 20 s each.
    """
    said, clock = [], iter([0.0, 0.0, 20.0, 40.0, 41.0])
    scaler = SimpleNamespace(step=lambda observed: observed.at_s)
    told = Told(scaler, 48 * 3600.0, "diurnal hpa", said.append, lambda: next(clock))

    steps = [told.step(SimpleNamespace(at_s=1e9 + h * 3600.0)) for h in (0.0, 1.0, 2.0, 2.1)]

    assert steps == [1e9 + h * 3600.0 for h in (0.0, 1.0, 2.0, 2.1)]
    assert said == ["diurnal hpa: hour 2.0 of 48.0, 15 min left"]


def test_runs_are_told_apart_by_what_they_are_or_are_set_to():
    assert ROUTER_BLIND.label == "router_blind"
    tried = Contender(scaling="utilisation", target=0.45, gpu="h200_sxm")
    assert tried.label == "utilisation, cheapest_first, 0.45, h200_sxm"


# --- the scenario


def test_the_bundled_outcomes_are_small_and_of_unlike_models():
    """
    Figures and embeddings alone; the stand-ins' qualities are as their source has them.
    """
    table = outcomes()

    assert TABLE.stat().st_size < 1_500_000
    assert table.models == tuple(STAND_INS) == (*MODELS, *LAST_RESORT)
    np.testing.assert_allclose(
        table.quality.mean(axis=0), [0.44, 0.49, 0.64, 0.72, 0.42], atol=0.02
    )


def test_all_models_are_in_pools_of_several_types_and_the_market_is_shared():
    """
    About a dozen pools in two regions.
    """
    fleet = fleet_of_market()

    assert 12 <= len(fleet.pools) <= 14
    assert {pool.region for pool in fleet.pools} == {"eu", "us"}
    for model in MODELS:
        assert len({p.gpu.name for p in fleet.pools if p.model == model}) >= 3
    for pool in fleet.pools:
        assert pool.gpus_per_replica == PARALLEL[pool.model][pool.gpu.name]
        assert pool.replicas_max * pool.gpus_per_replica <= MARKET[pool.gpu.name][1]
        assert 30.0 <= pool.load_s <= 60.0


@pytest.mark.parametrize("name", ["azure", "mooncake", "diurnal"])
def test_list_prices_are_what_the_cheapest_gpu_costs(name):
    """
    Of the mean request, so that nobody earns on the difference.
    """
    of = scenario(name, replace(TINY, azure_s=(0.0, 600.0), mooncake_s=(0.0, 1800.0)))

    mean_s = work_s_of(of.fleet, of.traffic, of.target).mean(axis=0)
    prompt = of.traffic.prompt_tokens
    stated = [
        np.mean(
            [
                of.catalogue.cost_usd(m, int(p), int(o))
                for p, o in zip(prompt, of.traffic.output_tokens, strict=True)
            ]
        )
        for m in MODELS
    ]

    for model, usd in zip(MODELS, stated, strict=True):
        cheapest = min(
            w * usd_per_s(p)
            for w, p in zip(mean_s, of.fleet.pools, strict=True)
            if p.model == model
        )
        assert usd == pytest.approx(cheapest, rel=0.3)


def test_a_scenario_is_made_of_its_seed():
    """
    The same requests for every policy, in every process.
    """
    one, same = scenario("azure", TINY), scenario("azure", TINY)
    other = scenario("azure", replace(TINY, seed=1))

    np.testing.assert_array_equal(one.traffic.rows, same.traffic.rows)
    np.testing.assert_array_equal(one.traffic.at_s, same.traffic.at_s)
    assert not np.array_equal(one.traffic.rows[:50], other.traffic.rows[:50])


def test_classes_come_in_their_shares():
    """
    Six in ten requests have the highest criticality.
    """
    traffic = scenario("azure", replace(TINY, azure_s=(0.0, 1200.0))).traffic

    shares = np.bincount(traffic.classes) / len(traffic)

    np.testing.assert_allclose(shares, [0.60, 0.25, 0.15], atol=0.02)
    assert traffic.criticality == (3, 2, 0)


# --- what everybody begins with


def test_routers_know_models_but_none_of_the_questions_that_are_asked():
    """
    Estimates are near each model's mean, differ by question, and rest on the other half.
    """
    asked, known = halves(outcomes().only(list(MODELS)))
    of = built("azure", TINY)

    estimates = estimated_quality(asked, known, of.catalogue)

    np.testing.assert_allclose(estimates.mean(axis=0), known.quality.mean(axis=0), atol=0.05)
    error = np.abs(estimates - asked.quality)
    assert error.mean() > 0.2, "whoever knows the answers has seen them"
    gains = [np.corrcoef(estimates[:, m], asked.quality[:, m])[0, 1] for m in range(4)]
    assert min(gains) > 0.1
    rows = {row.tobytes() for row in asked.embeddings}
    assert not rows & {row.tobytes() for row in known.embeddings}


def test_side_by_side_every_pool_begins_with_a_replica():
    """
    Cheapest first needs none where it has nothing to do.
    """
    of = built("azure", TINY)

    beside = first_replicas(of, Contender(scaling="utilisation", layout="side_by_side"))
    filled = first_replicas(of, Contender(scaling="utilisation"))

    assert min(beside.values()) == 1
    assert min(filled.values()) == 0
    assert filled == first_replicas(of, FAIRLEAD)


def test_a_blind_router_shares_requests_among_pools_by_what_they_carry():
    """
    Two pools of one model, one replica each.
    """
    of = built("azure", replace(TINY, azure_users=6.0))
    pools = tuple(
        p
        for p in of.fleet.pools
        if p.model == "llama-3.1-8b" and p.gpu.name in ("h100_sxm", "l40s")
    )
    rest = tuple(p for p in of.fleet.pools if p.gpu.name == "h200_sxm" or "b200" in p.name)
    fleet = replace(of.fleet, pools=(*pools, *rest))
    # Money is all that matters, so that the cheapest model is asked: this one.
    wanted = replace(of.preference, quality=0.01, per_usd=1000.0 * of.preference.per_usd)
    of = replace(with_fleet(of, fleet), preference=wanted)
    from load.bench.fleet.runs import Fixed, simulate_with

    first = {pool.name: 1 for pool in fleet.pools}
    done = simulate_with(of, first, Fixed(first), ROUTER_BLIND, 0)

    went = np.bincount(done.requests.pool[done.requests.pool >= 0], minlength=len(fleet.pools))[:2]
    carried = {one.name: one.requests_per_s for one in rival_pools(of)}
    expected = np.array([carried[pool.name] for pool in fleet.pools[:2]])
    np.testing.assert_allclose(went / went.sum(), expected / expected.sum(), atol=0.02)


def test_capacities_without_traffic_are_equal():
    """
    Nothing is known of lengths.
    """
    traffic = built("azure", TINY).traffic.until(-1.0)

    from learners.work import WorkRates

    assert capacities([WorkRates(), WorkRates()], traffic) == [1.0, 1.0]


def test_a_homogeneous_fleet_has_every_model_on_one_type():
    """
    Types that can't run them all have no such fleet.
    """
    fleet = homogeneous("h200_sxm")

    assert {pool.model for pool in fleet.pools} == set(MODELS)
    assert {pool.gpu.name for pool in fleet.pools} == {"h200_sxm"}
    assert homogeneous("l4") is None


# --- overload

BASE = Base(requests_per_s=10.0, quality=0.7, full_per_s=120.0)


def tried(multiple: float, within: float, quality: float) -> dict:
    return {
        "multiple": multiple,
        "within_target": within,
        "highest_class": 1.0,
        "quality": quality,
    }


def test_the_static_fleet_is_the_largest_model_on_all_gpus_that_can_run_it():
    """
    And it is asked for that model alone.
    """
    of = static_scenario(shrunk(built("azure", TINY), 0.5))

    assert {pool.model for pool in of.fleet.pools} == {overload.LARGEST}
    assert len(of.catalogue) == 1
    assert of.table.quality.shape[1] == 1


def test_arrivals_follow_a_ramp():
    """
    From 10 to 30 a second within 100 s, then 50 s more.
    """
    traffic = steady(built("azure", TINY), [(0.0, 10.0), (100.0, 30.0), (150.0, 30.0)], 0)

    counts = np.histogram(traffic.at_s, [0.0, 50.0, 100.0, 150.0])[0] / 50.0

    np.testing.assert_allclose(counts, [15.0, 25.0, 30.0], rtol=0.1)


def test_the_last_resort_carries_most_everywhere():
    """
    It is the only one more: the same GPUs, and every type runs whatever fits it.
    """
    options = OverloadOptions(market_share=0.5)
    of = tried_scenario(TINY, options)

    assert {pool.model for pool in of.fleet.pools} == {*MODELS, *LAST_RESORT}
    assert set(of.table.models) == set(of.known.models) == set(of.catalogue.names)
    alone = replace(of, fleet=replace(of.fleet, pools=tuple(
        pool for pool in of.fleet.pools if pool.model in LAST_RESORT
    )))  # fmt: skip
    assert full_rate(of) == full_rate(alone)
    assert full_rate(of) > 2.0 * full_rate(static_scenario(of))


def test_what_carries_most_on_a_type_counts_wherever_it_stands():
    of = tried_scenario(TINY, OverloadOptions(market_share=0.5))
    turned = replace(of, fleet=replace(of.fleet, pools=of.fleet.pools[::-1]))

    assert full_rate(turned) == pytest.approx(full_rate(of))


def test_the_highest_class_is_judged_all_the_way_and_all_at_the_top(monkeypatch):
    """
    By hand: of four requests, two before the top; one of the two highest is late, and that early.
    """
    done = SimpleNamespace(
        traffic=SimpleNamespace(
            at_s=np.array([1.0, 2.0, 25.0, 26.0]),
            classes=np.array([0, 1, 0, 1]),
            criticality=(Criticality.CRITICAL_PLUS, Criticality.SHEDDABLE),
        ),
        target=SHORT_TARGET,
        requests=SimpleNamespace(
            fate=np.full(4, Fate.FINISHED),
            quality=np.array([0.1, 0.2, 0.5, 0.7]),
            within=lambda traffic, target: np.array([False, False, True, True]),
        ),
    )
    monkeypatch.setattr(overload, "run", lambda *_: done)
    options = OverloadOptions(ramp_s=10.0, settle_s=10.0, top_s=10.0)

    found = overload.at_multiple(built("azure", TINY), 1.0, multiple=2.0, options=options)

    assert found["within_target"] == 1.0 and found["highest_class"] == 0.5
    assert found["quality"] == pytest.approx(0.6)


def test_the_highest_multiple_that_holds_is_searched_between_those_that_were_tried():
    """
    Holding up to 7: of 3, 6, 9 and then 7 and 8 it is 7.
    """
    options = OverloadOptions(multiples=(3.0, 6.0, 9.0))

    def run_all(base, multiples):
        return [tried(m, 1.0 if m <= 7.0 else 0.5, 0.5) for m in multiples]

    found = summed_up(BASE, search(10.0, options, run_all), options)

    assert found["rate_gain"] == 7.0
    assert found["within_target"] == 1.0
    assert found["quality_loss"] == pytest.approx(0.2)
    assert found["most_possible"] == 12.0


def test_no_gain_is_reported_as_none():
    """
    Not even the least multiple holds.
    """
    options = OverloadOptions(multiples=(2.0,))

    assert summed_up(BASE, [tried(2.0, 0.3, 0.6)], options)["rate_gain"] == 0.0


# --- the picture


def test_a_picture_is_drawn(tmp_path):
    """
    Of any run; means per stretch of time, so no request is left out.
    """
    curves = bench_fleet.run_pictured("azure", TINY)
    n = len(built("azure", TINY).traffic)

    draw(curves, tmp_path / "fleet.png")

    assert (tmp_path / "fleet.png").stat().st_size > 10_000
    step_s = np.diff(curves.hours)[0] * 3600.0
    assert (curves.requests_per_s * step_s).sum() == pytest.approx(n)


def test_a_contender_runs_on_its_tuning_stretch_alone():
    """
    Which is another one than what it is measured on.
    """
    done = run_on("azure", TINY, Contender(scaling="utilisation"), tuning=True)

    assert len(done.traffic) == len(scenario("azure", TINY).tuning)
    assert done.target == SHORT_TARGET
