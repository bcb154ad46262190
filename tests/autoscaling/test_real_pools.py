"""Pools of real servers: sized by what was learned of them where we run them, else told about."""

from __future__ import annotations

import json

import pytest

from infra.autoscaling.contract import Demand, Observed, PoolCondition
from infra.autoscaling.planner import Planner, servers_wanted
from infra.capacity.fleet import Fleet, GpuType, PoolPlan
from infra.capacity.latency_target import LatencyTarget

STEP_S, STEPS = 5.0, 150
GPU = GpuType(
    name="l4", memory_bytes=24e9, bandwidth_bytes_per_s=3e11, bf16_flops=1e14, fp8_flops=2e14,
    power_w=72.0, usd_per_hour=0.7, available=8, startup_s=30.0,
)  # fmt: skip
STARTED = PoolPlan(
    name="started", model="own", backend="openai", command=("serve",), gpu=GPU, replicas_max=8
)
CALLED = PoolPlan(name="called", model="own", backend="openai", urls=("http://localhost/v1",))


def planner(*pools: PoolPlan, remembered: object = None) -> Planner:
    fleet = Fleet(gpus=(GPU,), pools=pools)
    rates = {plan.name: plan.rates for plan in pools if plan.deployed}
    return Planner(fleet, rates, LatencyTarget(), {"own": 0.8}, remembered=remembered)


def observed(step: int, per_s: float, **pools: PoolCondition) -> Observed:
    demand = Demand(
        class_name="c", model="own", requests_per_s=per_s, prompt_tokens=100.0, output_tokens=50.0
    )
    return Observed(
        at_s=STEP_S * step,
        demands=(demand,),
        pools=pools,
        usd_per_hour={"l4": 0.7},
        gpus_available={"l4": 8},
    )


def planned(one: Planner, per_s: float, **condition: float) -> tuple[int, list[str]]:
    """Replicas after some minutes in which what was planned came, and all lines."""
    n, lines = 1, []
    for step in range(STEPS):
        plan = one.step(observed(step, per_s, started=PoolCondition(ready=n, **condition)))
        n, lines = plan.replicas["started"], [*lines, *plan.lines]
    return n, lines


@pytest.mark.parametrize(("capacity_per_s", "replicas"), [(1.0, 8), (2.0, 4), (4.0, 2), (16.0, 1)])
def test_a_pool_of_real_servers_has_as_many_as_what_they_were_learned_to_do_takes(
    capacity_per_s, replicas
):
    """
    Six a second. What is guessed of such a server is one a second; the factor says what it is.
    """
    n, _ = planned(planner(STARTED), 6.0, work_factor=1.0 / capacity_per_s)

    assert n == replicas


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_none_changes_nothing(factor):
    assert planned(planner(STARTED), 3.0, work_factor=factor) == planned(planner(STARTED), 3.0)


def test_in_a_mixed_fleet_the_pools_that_others_run_keep_their_servers():
    """
    And that they are too few is said once, with how many would do; as is when they do again.
    """
    one, lines = planner(STARTED, CALLED), []
    busy = PoolCondition(ready=1, capacity_per_s=2.0, requests_per_s=6.0)
    idle = PoolCondition(ready=1, capacity_per_s=2.0, requests_per_s=1.0)
    for step, condition in enumerate([busy] * 5 + [idle] * 5):
        started = PoolCondition(ready=1, work_factor=0.5)
        plan = one.step(observed(step, 6.0, called=condition, started=started))
        lines += plan.lines
        one = planner(STARTED, CALLED, remembered=json.loads(json.dumps(one.as_dict())))
        assert plan.replicas["called"] == 1

    assert [line for line in lines if line.startswith("called:")] == [
        "called: 6 requests/s come to 1 servers of 2 requests/s each: 4 would be wanted",
        "called: 1 requests/s come to 1 servers of 2 requests/s each: enough again",
    ]


def test_of_servers_that_nothing_is_known_of_nothing_is_said():
    assert servers_wanted(PoolCondition(ready=1, requests_per_s=50.0), filled=0.9) == 0
