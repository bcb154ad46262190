"""That rivals do what their originals do, and are tuned as they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from autoscaled import condition
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.autoscaling.contract import Observed, PoolCondition
from load.bench.fleet.rivals import (
    Group,
    QueueLength,
    QueueLengthOptions,
    Rival,
    RivalPool,
    Signals,
    Utilisation,
    UtilisationOptions,
    cheapest_first,
    side_by_side,
    signals_of,
)
from load.bench.fleet.tuning import Contender, Grid, best, best_homogeneous, tune


def pool(name: str, model: str = "m", gpu: str = "h100", **changes: float) -> RivalPool:
    figures = {"requests_per_s": 10.0, "usd_per_hour": 2.0, "running": 20.0} | changes
    return RivalPool(name=name, model=model, gpu=gpu, gpus=1, replicas_max=50, **figures)


def signals(current: int, ready: int | None = None, **changes: float) -> Signals:
    figures = {"starting": 0, "ongoing": 0.0, "load": None} | changes
    return Signals(current=current, ready=current if ready is None else ready, **figures)


def observed(pools: dict[str, PoolCondition], at_s: float = 0.0, **gpus: int) -> Observed:
    return Observed(
        at_s=at_s,
        demands=(),
        pools=pools,
        usd_per_hour={},
        gpus_available=gpus or {"h100": 100, "l4": 100},
        routers=2,
    )


# --- Ray Serve's default policy


@given(
    st.lists(
        st.tuples(st.floats(0.0, 60.0), st.integers(0, 6), st.floats(1.0, 60.0)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(
        [
            (30.0, 600.0, 1.0, 1.0),
            (0.0, 0.0, 1.0, 1.0),
            (20.0, 50.0, 0.5, 0.3),
            (0.0, 0.0, 0.5, 0.1),
        ]
    ),
)
@lightly
def test_the_queue_length_policy_is_that_of_ray(steps, options):
    """
    Step by step it wants what Ray's own function wants, whatever is running and was wanted before.
    """
    from unittest.mock import patch

    from ray.serve.autoscaling_policy import (
        _apply_autoscaling_config,
        replica_queue_length_autoscaling_policy,
    )
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    up_s, down_s, up, down = options
    config = AutoscalingConfig(
        min_replicas=0,
        max_replicas=1000,
        target_ongoing_requests=2.0,
        upscale_delay_s=up_s,
        downscale_delay_s=down_s,
        upscaling_factor=up,
        downscaling_factor=down,
    )
    ours = QueueLength(
        QueueLengthOptions(
            target=2.0,
            # Ray's mean over the look-back is handed to its policy; here only the latest counts.
            look_back_s=0.0,
            upscale_delay_s=up_s,
            downscale_delay_s=down_s,
            upscaling_factor=up,
            downscaling_factor=down,
        )
    )
    theirs = _apply_autoscaling_config(replica_queue_length_autoscaling_policy)
    state, target, now_s = {}, 1, 0.0

    for ongoing, missing, gap_s in steps:
        now_s += gap_s
        ready = max(0, target - missing)
        context = AutoscalingContext(
            deployment_id=None,
            deployment_name="d",
            app_name="a",
            current_num_replicas=ready,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=ongoing,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=1000,
            policy_state=state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=config,
        )
        with patch("ray.serve.autoscaling_policy.time.time", lambda now_s=now_s: now_s):
            wanted, state = theirs(context)

        found = ours.desired(now_s, signals(target, ready, ongoing=ongoing))

        assert found == wanted
        target = found


def test_the_queue_length_is_a_mean_over_the_look_back():
    """
    A spike of one step in six counts for a sixth.
    """
    policy = QueueLength(QueueLengthOptions(target=1.0, upscale_delay_s=0.0, look_back_s=25.0))

    wanted = [policy.desired(5.0 * i, signals(1, ongoing=6.0 * (i == 5))) for i in range(6)]

    assert wanted[-1] == 1


# --- the HorizontalPodAutoscaler


def test_utilisation_wants_as_many_as_reach_the_target():
    """
    ⌈4 · 0.9 / 0.6⌉ = 6: the formula of Kubernetes' documentation.
    """
    policy = Utilisation(UtilisationOptions(target=0.6))

    assert policy.desired(0.0, signals(4, load=0.9)) == 6


@given(st.integers(1, 30), st.floats(0.92, 1.08))
@lightly
def test_utilisation_within_the_tolerance_changes_nothing(current, ratio):
    """
    Ten percent of the target, up or down.
    """
    policy = Utilisation(UtilisationOptions(target=0.5))

    assert policy.desired(0.0, signals(current, load=0.5 * ratio)) == current


def test_utilisation_grows_by_a_factor_of_two_or_by_four_whichever_is_more():
    """
    Per look: 1 → 5, 10 → 20.
    """
    grown = [
        Utilisation(UtilisationOptions(target=0.1)).desired(0.0, signals(n, load=9.0))
        for n in (1, 10)
    ]

    assert grown == [5, 20]


def test_utilisation_does_not_order_twice_what_is_coming():
    """
    Replicas that start count as idle ones when more are wanted.
    """
    policy = Utilisation(UtilisationOptions(target=0.5))

    assert policy.desired(0.0, signals(8, 4, starting=4, load=1.0)) == 8


def test_utilisation_shrinks_only_to_the_most_it_wanted_in_five_minutes():
    """
    A dip of a minute changes nothing; five minutes of it do.
    """
    policy = Utilisation(UtilisationOptions(target=0.5))
    current, history = 10, []

    for step in range(30):
        load = 0.5 if step == 0 else 0.2
        current = policy.desired(15.0 * step, signals(current, load=load))
        history.append(current)

    assert history[20] == 10  # 300 s after the first look, which still counts
    assert history[21] == 4


def test_utilisation_looks_every_fifteen_seconds():
    """
    As its controller does, however often it is asked.
    """
    policy = Utilisation(UtilisationOptions(target=0.1))
    policy.desired(0.0, signals(1, load=0.1))

    assert policy.desired(10.0, signals(1, load=9.0)) == 1
    assert policy.desired(15.0, signals(1, load=9.0)) == 5


# --- groups


def test_cheapest_first_orders_by_cost_per_request():
    """
    Not by the price of a GPU: a dear one may carry more.
    """
    pools = [pool("a", requests_per_s=1.0, usd_per_hour=1.0), pool("b", requests_per_s=9.0)]

    (group,) = cheapest_first(pools)

    assert [one.name for one in group.pools] == ["b", "a"]
    assert [one.name for one in side_by_side(pools)] == ["a", "b"]


def test_the_next_pool_is_used_when_gpus_of_the_cheaper_one_are():
    """
    Three units: two on the two H100 there are, the third as two L4 that carry half each.
    """
    pools = [
        pool("fast"),
        pool("slow", gpu="l4", requests_per_s=5.0, usd_per_hour=1.5, running=10.0),
    ]
    policy = lambda: Utilisation(UtilisationOptions(target=0.5))  # noqa: E731
    rival = Rival(groups=cheapest_first(pools), policy=policy, initial={"fast": 2, "slow": 0})
    seen = {"fast": condition(2, load=0.74), "slow": PoolCondition()}

    plan = rival.step(observed(seen, h100=2, l4=9))

    assert plan.replicas == {"fast": 2, "slow": 2}


def test_weaker_replicas_fill_less_of_what_is_wanted():
    """
    Four units: one, then two halves, and the last two on the dearest pool.
    """
    pools = [
        pool("fast"),
        pool("slow", gpu="l4", requests_per_s=5.0, usd_per_hour=1.5),
        pool("dear", gpu="h200", usd_per_hour=9.0),
    ]
    policy = lambda: Utilisation(UtilisationOptions(target=0.5))  # noqa: E731
    rival = Rival(groups=cheapest_first(pools), policy=policy, initial={"fast": 1})
    seen = {"fast": condition(1, load=2.0)}

    plan = rival.step(observed(seen, h100=1, l4=2, h200=9))

    assert plan.replicas == {"fast": 1, "slow": 2, "dear": 2}


def test_what_runs_keeps_its_gpus_from_other_groups():
    """
    A model that comes first in the list does not take what another one has.
    """
    pools = [pool("a", model="x"), pool("b", model="y")]
    rival = Rival(
        groups=cheapest_first(pools),
        policy=lambda: Utilisation(UtilisationOptions(target=0.1)),
        initial={"a": 1, "b": 3},
    )
    seen = {"a": condition(1, load=5.0), "b": condition(3, load=0.1)}

    plan = rival.step(observed(seen, h100=4))

    assert plan.replicas == {"a": 1, "b": 3}


def test_a_group_never_has_less_than_one():
    """
    A blind router sends nothing where nothing is, so nothing would ever start there.
    """
    rival = Rival(
        groups=side_by_side([pool("a")]),
        policy=lambda: Utilisation(UtilisationOptions(down_window_s=0.0)),
        initial={"a": 1},
    )

    plans = [rival.step(observed({"a": condition(1, load=0.0)}, 15.0 * i)) for i in range(4)]

    assert [plan.replicas["a"] for plan in plans] == [1, 1, 1, 1]


class Static:
    """Never anything else than what there was at first."""

    def desired(self, at_s: float, signals: Signals) -> int:
        return signals.current


def test_a_pool_that_is_gone_gets_nothing_and_others_take_over():
    """
    Its region is lost: the next cheapest is filled.
    """
    pools = [pool("near"), pool("far", gpu="l4", usd_per_hour=3.0)]
    rival = Rival(groups=cheapest_first(pools), policy=Static, initial={"near": 3, "far": 0})
    seen = {"near": PoolCondition(available=False), "far": PoolCondition()}

    plan = rival.step(observed(seen))

    assert plan.replicas["near"] == 0
    assert plan.replicas["far"] >= 1


@given(
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=30),
    st.integers(1, 12),
    st.sampled_from([cheapest_first, side_by_side]),
)
@lightly
def test_a_plan_never_takes_more_gpus_than_there_are(loads, available, layout):
    """
    Whatever the loads.
    """
    pools = [pool("a", model="x"), pool("b", model="y"), pool("c", model="x", gpu="l4")]
    rival = Rival(
        groups=layout(pools),
        policy=lambda: Utilisation(UtilisationOptions(down_window_s=0.0)),
        initial={},
        units_min=0,
    )
    replicas = {}

    for step, load in enumerate(loads):
        seen = {name: condition(replicas.get(name, 0), load=load, queued=1) for name in "abc"}
        replicas = rival.step(observed(seen, 15.0 * step, h100=available, l4=2)).replicas

        assert replicas["a"] + replicas["b"] <= available
        assert replicas["c"] <= 2


def test_signals_count_a_weaker_replica_for_less():
    """
    Units are replicas of the cheapest pool; loads are weighted by them.
    """
    group = Group(name="m", pools=(pool("a"), pool("b", requests_per_s=5.0, running=5.0)))
    seen = {
        "a": condition(1, load=0.9, running=10),
        "b": condition(2, load=0.3, running=5, queued=5),
    }

    found = signals_of(group, seen, 2)

    assert (found.ready, found.load) == (2, pytest.approx(0.6))
    assert found.ongoing == pytest.approx(0.5 + 1.0)


# --- tuning


def made_up(contenders) -> list[dict[str, float]]:
    """The dearer the fuller it is kept within target: kept from a target of 0.5 down."""
    return [
        {
            "within_target": 1.0 if c.target <= 0.5 else 0.9,
            "gpu_cost_usd": 10 / c.target - (c.down_s == 60.0) + (c.layout == "side_by_side"),
        }
        for c in contenders
    ]


def test_the_best_setting_is_the_cheapest_that_keeps_the_promise():
    """
    Found among layouts and targets, and then among delays.
    """
    grid = Grid(scaling="utilisation", targets=(0.3, 0.5, 0.7), downs_s=(60.0, 900.0))

    found = tune(grid, made_up)

    assert found.contender == Contender(scaling="utilisation", target=0.5, down_s=60.0)
    assert found.tried == 8


def test_where_none_keeps_the_promise_the_nearest_is_best():
    """
    A rival is not left out because it fails.
    """
    tried = [
        (Contender(scaling="static"), {"within_target": w, "gpu_cost_usd": w}) for w in (0.5, 0.9)
    ]

    assert best(tried)[1]["within_target"] == 0.9


def test_every_type_of_gpu_is_tried_with_every_way_of_scaling():
    """
    And the cheapest that keeps the promise is the homogeneous fleet.
    """
    seen = []

    def run_all(contenders):
        seen.extend(contenders)
        cost = {"h100": 3.0, "l4": 2.0}
        return [{"within_target": 1.0, "gpu_cost_usd": cost[c.gpu]} for c in contenders]

    grids = [
        Grid(scaling="utilisation", targets=(0.5,)),
        Grid(scaling="queue_length", targets=(1.0,)),
    ]
    found = best_homogeneous(grids, ["h100", "l4"], run_all)

    assert found.contender.gpu == "l4"
    assert {(c.gpu, c.scaling) for c in seen} == {
        (g, s) for g in ("h100", "l4") for s in ("utilisation", "queue_length")
    }
    assert math.isclose(found.figures["gpu_cost_usd"], 2.0)


def test_tuned_settings_are_reported_with_what_they_reached():
    """
    A reader can run them again.
    """
    figures = tune(Grid(scaling="queue_length", targets=(0.4,)), made_up).as_dict()

    assert figures["scaling"] == "queue_length" and figures["target"] == 0.4
    assert figures["on_tuning_stretch"]["within_target"] == 1.0
    assert np.isfinite(figures["on_tuning_stretch"]["gpu_cost_usd"])
