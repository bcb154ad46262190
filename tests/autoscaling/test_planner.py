"""The planner in a small world: sizing, hysteresis, zero and back, and every shock."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from autoscaled import QUALITY, TARGET, USD, World, condition, demand, fleet, gpu, planner, rates

from infra.autoscaling.contract import Demand, Observed
from infra.autoscaling.planner import Planner, PlannerOptions
from infra.autoscaling.sizing import sizing
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.autoscaling.sizing.stabilisation import StabilisationOptions
from infra.capacity.fleet import Fleet, PoolPlan

DOWN_S, FRESH_S = StabilisationOptions().down_s, StabilisationOptions().fresh_s


def work(name: str, requests_per_s: float) -> float:
    return requests_per_s * rates()[name].work_s(1000.0, output_tokens=200.0)


def capacity(plan: dict[str, int], model: str) -> float:
    """Requests a second that the plan's replicas of a model could do at full load."""
    return sum(n / work(name, 1.0) for name, n in plan.items() if name.startswith(model))


def changes(world: World, begin_s: float = 0.0) -> int:
    """Replicas started and stopped."""
    plans = [plan for at_s, plan in world.plans if at_s >= begin_s]
    return sum(
        abs(after[name] - before[name]) for before, after in pairwise(plans) for name in after
    )


# --- steady demand


def test_what_is_asked_for_is_carried_within_the_target():
    """Both models, with room above what comes and not three times of it."""
    plan = World().run(1800, small=50.0, large=20.0)
    assert 50.0 < capacity(plan, "small") < 150.0
    assert 20.0 < capacity(plan, "large") < 60.0


def test_the_cheapest_gpu_for_the_work_is_taken():
    """An H100 does ten L4s' work at five times the price: for much demand it is cheaper."""
    plan = World().run(1800, small=100.0)
    assert plan["small-h100"] >= 2 and plan["small-l4"] <= 2


def test_a_steady_fleet_does_not_change():
    """After it has found its size: no change in an hour."""
    world = World()
    world.run(2400, small=50.0, large=20.0)
    world.run(3600, small=50.0, large=20.0)
    assert changes(world, 2400.0) == 0


def test_noise_does_not_make_it_swing():
    """Ten percent up and down every minute: a handful of changes an hour, not hundreds."""
    world = World()
    for k in range(90):
        world.run(60, small=50.0 * (1.1 if k % 2 else 0.9))
    assert changes(world, 1800.0) <= 6


def test_the_same_history_makes_the_same_plan():
    """Twice the same world, line for line."""
    one, other = World(), World()
    for world in (one, other):
        world.run(900, small=10.0, large=5.0)
        world.run(900, small=60.0, large=1.0)
    assert one.plans == other.plans and one.lines == other.lines


def test_a_restart_changes_nothing():
    """What it remembers, as JSON and back, plans on as it would have."""
    world, stopped = World(), World()
    for one in (world, stopped):
        one.run(700, small=30.0, large=10.0)
    stopped.planner = planner(remembered=json.loads(json.dumps(stopped.planner.as_dict())))
    for one in (world, stopped):
        one.run(900, small=10.0, large=20.0)
    assert world.plans == stopped.plans
    assert world.planner.as_dict() == stopped.planner.as_dict()


# --- more, less, none


def test_a_lull_of_minutes_stops_nothing():
    """Only what no plan of the last minutes needed is given back."""
    world = World()
    before = world.run(3600, small=300.0)
    while changes(world, world.at_s - 700.0):
        before = world.run(300, small=300.0)
    during = world.run(DOWN_S - 60.0, small=100.0)
    assert all(during[name] >= n for name, n in before.items())
    assert capacity(world.run(1800, small=100.0), "small") < 0.6 * capacity(before, "small")


def test_when_less_comes_nothing_is_started():
    """What is there will do: another mix would be cheaper, but that is thought about first."""
    world = World()
    before = world.run(3600, small=300.0, large=30.0)
    for small in (250.0, 200.0, 150.0, 100.0, 50.0):
        after = world.run(50, small=small, large=small / 10.0)
        assert all(after[name] <= before[name] for name in before)


def test_delays_are_in_seconds_not_in_steps():
    """Stepped three times as often the fleet shrinks at the same time."""
    when = []
    for step_s in (5.0, 10.0, 30.0):
        world = World(step_s=step_s)
        before = world.run(3600, small=300.0)
        world.run(1200, small=100.0)
        later = (one for one in world.plans if one[0] >= 3600.0)
        fewer = (at for at, plan in later if plan["small-h100"] < before["small-h100"])
        when.append(next(fewer) - 3600.0)
    assert DOWN_S - 50.0 <= min(when) <= max(when) <= DOWN_S + 30.0


def test_scaled_to_zero_and_back():
    """Without a request for a quarter of an hour nothing is paid for; the first brings it back."""
    world = World()
    world.run(900, small=20.0, large=5.0)
    assert sum(world.run(3600).values()) == 0
    assert sum(world.step(demand("large", 0.5)).replicas.values()) >= 1
    assert math.isfinite(sum(world.run(3600).values()))


def test_the_least_that_settings_want_is_kept():
    """Also without any demand."""
    world = World(planner=planner(of=fleet(replicas_min=1)))
    assert world.run(2400) == dict.fromkeys(rates(), 1)


def test_two_do_not_become_one_if_one_would_not_carry_both():
    """At a load of 0.9 none can do without another, whatever was thought of the work: they stay."""
    world = World()
    world.run(1200, small=60.0)
    there = {name: n for name, n in world.plans[-1][1].items() if n}
    stayed = dict(there)
    for _ in range(10):  # what is planned meanwhile comes
        for name in there:
            world.changed(name, ready=stayed[name], starting=0, load=0.9)
        stayed = world.run(120, small=15.0)
    assert all(stayed[name] >= n for name, n in there.items())
    for name in there:
        world.changed(name, ready=stayed[name], load=0.1)
    left = world.run(1200, small=15.0)
    assert capacity(left, "small") < 0.8 * capacity(stayed, "small")


def test_replicas_that_are_replaced_stay_until_the_others_are_ready():
    """The L4's price rises tenfold; while what replaces them is starting they carry on."""
    world = World()
    before = world.run(2400, small=4.0)
    assert before["small-l4"] and not before["small-h100"]
    world.usd_per_hour = USD | {"l4": 40.0}
    world.changed("small-l4", ready=before["small-l4"], starting=0, load=0.5)
    world.changed("small-h100", ready=0, starting=1)
    assert world.run(600, small=4.0)["small-l4"] == before["small-l4"]
    world.changed("small-h100", ready=1, starting=0)
    assert world.run(600, small=4.0)["small-l4"] == 0


# --- shocks


def test_five_times_the_load_is_followed_within_limits():
    """More at once, no more than three times as many a minute, and enough after two minutes."""
    world = World()
    before = world.run(1800, small=40.0)
    total = sum(before.values())
    first = world.step(demand("small", 200.0)).replicas
    assert total < sum(first.values()) <= 3 * total + 4 * len(before)
    assert capacity(world.run(120, small=200.0), "small") > 200.0
    world.run(1800, small=200.0)
    assert max(capacity(plan, "small") for _, plan in world.plans) < 3 * 200.0


def test_a_flood_is_not_followed_at_any_speed():
    """Fifteen times as much: in the first minute no pool has more than three times and four."""
    world = World(gpus={"l4": 40, "h100": 0, "b200": 0})
    before = world.run(1200, small=10.0)
    flooded = world.run(50, small=150.0)
    assert all(n <= 3 * before[name] + 4 for name, n in flooded.items())
    assert sum(world.run(120, small=150.0).values()) > sum(flooded.values())


def test_a_gpu_type_that_is_gone_is_replaced():
    """None of it is planned from then on, others take its part, and it is said."""
    world = World()
    before = world.run(1800, small=100.0)
    assert before["small-h100"]
    world.gpus["h100"] = 0
    after = world.run(300, small=100.0)
    assert after["small-h100"] == 0 and after["large-h100"] == 0
    assert after["small-l4"] > 10
    assert any("gone" in line for line in world.lines)


def test_a_lost_region_is_replaced():
    """Its pool has nothing until it is back."""
    world = World()
    world.run(1800, large=40.0)
    used = next(name for name, n in world.plans[-1][1].items() if n and name.startswith("large"))
    world.changed(used, ready=0, available=False)
    after = world.run(600, large=40.0)
    assert after[used] == 0 and capacity(after, "large") > 40.0


@pytest.mark.parametrize(("usd", "times"), [(3.8, 2), (2.0, 5)])
def test_a_dearer_gpu_is_replaced(usd, times):
    """An H100 does ten L4s' work: at more than $4 they are cheaper, also if it only doubled."""
    world = World(usd_per_hour=USD | {"h100": usd})
    before = world.run(1800, small=40.0)
    assert before["small-h100"] and before["small-l4"] <= 4
    world.usd_per_hour = USD | {"h100": times * usd}
    after = world.run(2400, small=40.0)
    assert after["small-h100"] == 0 and after["small-l4"] > work("small-l4", 40.0)
    assert any("takes $" in line for line in world.lines)


@pytest.mark.parametrize("age_s", [31.0, 300.0, math.nan, math.inf])
def test_with_old_telemetry_the_last_plan_holds(age_s):
    """Nothing changes, which is said once; when it is back planning goes on."""
    world = World()
    before = world.run(1200, small=20.0)
    world.telemetry_age_s = age_s
    world.lines = []
    assert world.run(300) == before
    assert len(world.lines) == 1 and "old" in world.lines[0]
    world.telemetry_age_s = 1.0
    world.step(demand("small", 20.0))
    assert "back" in world.lines[1]


def test_by_telemetry_that_is_late_nothing_is_taken_away():
    """
    A smaller fleet counts on prices to move requests, and they stand still meanwhile; what is
    short is had all the same.
    """
    late, fresh = World(), World()
    before = late.run(1200, small=60.0)
    assert fresh.run(1200, small=60.0) == before
    late.telemetry_age_s, fresh.telemetry_age_s = 15.0, 5.0

    kept = late.run(600, small=10.0)
    assert all(kept[pool] >= n for pool, n in before.items())
    assert sum(fresh.run(600, small=10.0).values()) < sum(before.values())
    assert sum(late.run(600, small=120.0).values()) > sum(before.values())


@pytest.mark.parametrize("rate", [math.nan, math.inf, -5.0, 1e12])
def test_rates_that_cannot_be_are_not_believed(rate):
    """The last one holds, it is said, and the fleet stays as it was."""
    world = World()
    before = world.run(1200, small=20.0)
    for _ in range(6):
        plan = world.step(demand("small", rate))
    assert dict(plan.replicas) == before
    assert "small" in world.lines[-1]


def test_everything_may_be_garbage():
    """Prices, lengths, loads, busy shares, counts of GPUs: no error, and bounded plans."""
    world = World()
    world.run(600, small=20.0)
    bad = replace(condition(1, load=math.nan, price=math.inf), requests_per_s=-math.inf)
    for value in (math.nan, math.inf, -1.0):
        wrong = demand("small", 20.0)
        observed = Observed(
            at_s=world.at_s,
            demands=(type(wrong)(class_name="chat", model="small", requests_per_s=20.0,
                                 prompt_tokens=value, output_tokens=value),
                     demand("unknown", value)),
            pools=dict.fromkeys(rates(), bad),
            usd_per_hour=dict.fromkeys(USD, value),
            gpus_available=dict.fromkeys(USD, value),
            router_busy_share=value,
        )  # fmt: skip
        plan = world.planner.step(observed)
        world.at_s += 10.0
        assert all(0 <= n <= 30 for n in plan.replicas.values())
        assert 1 <= plan.routers <= 64
        json.dumps(world.planner.as_dict())


def test_a_launch_from_nothing_is_no_reason_to_take_every_gpu():
    """From no request to 300 a second: what was not expected then is no measure of what is next."""
    world = World()
    world.run(600, small=300.0)
    launched = max(capacity(plan, "small") for _, plan in world.plans)
    assert 300.0 < launched < 3 * 300.0


def test_what_is_there_at_the_first_step_had_a_reason():
    """A planner that knows nothing yet takes nothing away for minutes, and then it does."""
    world = World()
    world.changed("small-h100", ready=5)
    assert world.run(DOWN_S - 10.0, small=1.0)["small-h100"] == 5
    assert world.run(240, small=1.0)["small-h100"] < 5


def test_who_remembers_nothing_holds_what_it_found_for_ten_minutes():
    """Its forecasts have made no errors that a margin could come of; a restart begins nothing anew."""
    world = World(planner=Planner(fleet(), rates(), TARGET, QUALITY))
    world.changed("small-h100", ready=5)
    assert world.run(300, small=1.0)["small-h100"] == 5
    remembered = json.loads(json.dumps(world.planner.as_dict()))
    world.planner = Planner(fleet(), rates(), TARGET, QUALITY, remembered=remembered)
    assert world.run(FRESH_S - 310.0, small=1.0)["small-h100"] == 5
    assert world.run(60, small=1.0)["small-h100"] < 5


def test_a_real_jump_is_believed_after_two_minutes():
    """A thousand times as much that lasts is a launch."""
    world = World()
    world.run(1200, small=1.0)
    assert sum(world.run(60, small=500.0).values()) <= 3
    assert sum(world.run(900, small=500.0).values()) >= 10


# --- overload, substitutes, prices


def test_beyond_the_fleet_a_smaller_model_answers():
    """What large GPUs there are do not carry the large model's demand: the small one is had."""
    world = World(gpus={"l4": 40, "h100": 1, "b200": 0})
    plan = world.run(1800, large=80.0)
    assert plan["small-l4"] * 0.95 > work("small-l4", 50.0)


def test_who_is_left_out_is_said_once_and_when_it_is_over():
    """
    Every GPU is used up for half an hour, then a tenth comes.
    """
    world = World(gpus={"l4": 2, "h100": 1, "b200": 0})
    world.run(1800, small=500.0)
    said = [line for line in world.lines if "left out" in line]
    assert len(said) == 1 and "the GPUs are used up" in said[0]
    world.run(1800, small=5.0)
    assert world.lines.index(said[0]) < max(
        k for k, line in enumerate(world.lines) if "carried again" in line
    )


def test_who_prefers_a_model_has_the_prompts_it_is_better_at():
    """
    A point is worth next to nothing on average, and yet a third of the requests prefers the dear
    model: by their own weights it is worth its cost to them.
    """
    options = PlannerOptions(sizing=SizingOptions(value_usd=1e-9))
    plan = World(planner=planner(options)).run(1800, small=400.0, large=200.0)
    assert capacity(plan, "large") >= 200.0


def test_for_a_margin_that_seldom_comes_a_small_model_stands_by():
    """Twenty come, two minutes ago it was sixty: the large one is had for what is likely of that."""
    world = World(planner=planner(PlannerOptions(sizing=SizingOptions(value_usd=0.002))))
    for k in range(180):
        world.step(demand("small", 30.0), demand("large", 60.0 if k // 12 % 2 else 20.0))
    required = world.planner.as_dict()["sizing"]["needs"]
    assert 0.75 < required["carried"]["large"] / required["demand"]["large"] < 1.0
    assert required["likely"]["large"] < required["carried"]["large"]
    assert required["unmet"] == pytest.approx(0.0, abs=1e-6)


def test_what_a_model_costs_more_is_that_of_those_who_ask(monkeypatch):
    """
    One long prompt in a thousand requests hardly changes what their mean costs.
    """
    lost = []
    solve = sizing.cheapest
    monkeypatch.setattr(
        sizing, "cheapest", lambda asks, *given: lost.append(asks[0]) or solve(asks, *given)
    )
    rare = replace(demand("large", 0.1, "docs"), prompt_tokens=100_000.0)
    options = PlannerOptions(sizing=SizingOptions(value_usd=1e-9))
    for demands in ([demand("large", 100.0)], [demand("large", 100.0), rare]):
        World(planner=planner(options)).step(*demands)

    alone, beside = (np.array(one.loss_usd_per_s) for one in (lost[0], lost[-1]))
    some = alone > 1e-4
    assert some.any()
    np.testing.assert_allclose(beside[some], alone[some], rtol=0.15)


def test_little_is_not_worth_a_machine_of_its_own():
    """A request in ten seconds for the large model is answered by the small one that is there."""
    options = PlannerOptions(sizing=SizingOptions(value_usd=0.001))
    world = World(planner=planner(options))
    plan = world.run(2400, small=50.0, large=0.1)
    assert capacity(plan, "large") == 0.0


def named(requests_per_s: float, fixed_share: float = 1.0) -> Demand:
    """Requests for the large model, of which so many name it."""
    return replace(demand("large", requests_per_s), fixed_share=fixed_share)


MONEY_FIRST = PlannerOptions(
    sizing=SizingOptions(value_usd=0.001)
)  # the small model for nearly all


@pytest.mark.parametrize("share", [1.0, 0.02])
def test_a_model_that_callers_name_has_a_replica_whatever_another_would_save(share):
    """Also if few of those who want it do, and at once, whatever others could answer for it."""
    world = World(planner=planner(MONEY_FIRST))
    world.run(900, small=50.0, large=0.1)
    before = world.at_s
    for _ in range(60):
        plan = world.step(demand("small", 50.0), named(0.1, share))
    assert capacity(plan.replicas, "large") > 0.0
    soon = [plan for at_s, plan in world.plans if before <= at_s < before + 30.0]
    assert capacity(soon[-1], "large") > 0.0


def test_a_model_that_was_named_lately_is_still_there():
    """A request in five minutes that no other model may answer; without, it goes in a while."""
    world = World(planner=planner(MONEY_FIRST))
    world.run(900, small=50.0)
    found = []
    for k in range(240):
        asked = named(1 / 60) if k % 30 == 0 else demand("large", 1 / 60)
        found.append(capacity(world.step(demand("small", 50.0), asked).replicas, "large"))
    assert min(found[3:]) > 0.0
    assert capacity(world.run(1800, small=50.0, large=1 / 60), "large") == 0.0


def test_a_named_model_that_cannot_be_had_is_left_out_and_said():
    """Nobody else answers for it."""
    world = World(planner=planner(MONEY_FIRST))
    world.gpus |= {"h100": 0, "b200": 0}
    for _ in range(60):
        plan = world.step(demand("small", 5.0), named(5.0))
    assert capacity(plan.replicas, "large") == 0.0
    assert any("left out" in line for line in world.lines)


def test_a_price_that_lasts_brings_more():
    """While all pools of a model are scarce its work counts for more, within bounds; then less."""
    calm, scarce = World(), World()
    for world in (calm, scarce):
        world.run(1200, small=200.0)
    there = scarce.plans[-1][1]
    for name, n in there.items():
        scarce.changed(name, ready=n, starting=0, price=2.0)
    grown = scarce.run(1800, small=200.0)
    stayed = calm.run(1800, small=200.0)
    assert 1.05 < capacity(grown, "small") / capacity(stayed, "small") < 1.5
    for name, n in grown.items():
        scarce.changed(name, ready=n, price=0.0)
    later = scarce.run(4 * 3600, small=200.0)
    assert capacity(later, "small") < 0.95 * capacity(grown, "small")


def test_a_price_where_no_more_fits_than_was_thought_brings_nothing():
    """All replicas carry ten times what they were thought to: that they have a price is no news."""
    calm, full = World(), World()
    for world in (calm, full):
        world.run(1200, small=200.0)
    for name, n in full.plans[-1][1].items():
        full.changed(name, ready=n, price=2.0, requests_per_s=2000.0 * n)
    assert full.run(600, small=200.0) == calm.run(600, small=200.0)


def test_one_pool_with_room_means_that_nothing_is_scarce():
    """Requests can go there: the other's price says where, not how many."""
    calm, half = World(), World()
    for world in (calm, half):
        world.run(1200, small=200.0)
    for name, n in half.plans[-1][1].items():
        half.changed(name, ready=max(1, n), price=3.0 if name == "small-h100" else 0.0)
    assert half.run(1200, small=200.0) == calm.run(1200, small=200.0)


def test_prompts_that_vary_more_need_emptier_replicas():
    """How prompts' lengths vary comes with the demand; where it is not, it is taken as 1."""
    planned = {}
    for stated in (0.0, 30.0, None, math.nan):
        world = World(gpus={"l4": 40, "h100": 0, "b200": 0})
        for _ in range(60):
            plan = world.step(replace(demand("small", 50.0), prompt_cv2=stated))
        planned[stated] = plan.replicas["small-l4"]
    assert planned[0.0] <= planned[None] < planned[30.0] and planned[0.0] < planned[30.0]
    assert list(planned.values())[3] == planned[None]


def test_pools_are_planned_to_be_less_than_full():
    """A tenth of what a pool may carry is left for what loads do within a minute."""
    capacities = []
    for filled in (0.9, 0.45):
        options = PlannerOptions(sizing=SizingOptions(filled=filled))
        plan = World(planner=planner(options)).run(1800, small=200.0)
        capacities.append(capacity(plan, "small"))
    assert SizingOptions().filled == 0.9
    assert 1.6 < capacities[1] / capacities[0] < 2.6


def test_lead_time_and_margin_are_of_the_pool():
    """A rise is met before it is there: more than now are had while it lasts."""
    world = World()
    for k in range(40):
        plan = world.run(60, small=20.0 + 4.0 * k)
    assert capacity(plan, "small") * 0.95 > 20.0 + 4.0 * 40


# --- routers, words, cost of a step


def test_routers_follow_their_event_loops():
    """Sixty percent each; more at once, fewer after minutes; at least one."""
    world = World(routers_busy=0.1)
    world.run(60, small=1.0)
    assert world.routers == 1
    world.routers_busy = 2.0
    world.run(20, small=1.0)
    assert world.routers == 4
    world.routers_busy = 0.1
    world.run(DOWN_S - 20.0, small=1.0)
    assert world.routers == 4
    world.run(40, small=1.0)
    assert world.routers == 1


def test_a_line_says_what_and_why():
    """Of a pool that grows: how many, for what, how full, on what, at what price."""
    world = World()
    world.run(10, small=60.0)
    line = next(line for line in world.lines if line.startswith("small-h100"))
    for part in (
        "0 → ",
        "requests/s expected in",
        "now 60",
        "% full",
        "h100",
        "per 1,000 requests",
    ):
        assert part in line


def test_what_is_not_ours_is_left_alone():
    """A pool without rates stays as it is described."""
    known = {name: rate for name, rate in rates().items() if name != "large-b200"}
    one = Planner(fleet(replicas=2), known, TARGET, {})
    plan = World(planner=one).run(600, small=5.0)
    assert plan["large-b200"] == 2


def test_little_news_is_no_reason_to_solve_again(monkeypatch):
    """As long as the mix carries what comes it is kept, for five minutes."""
    solved = []
    solve = sizing.cheapest
    monkeypatch.setattr(sizing, "cheapest", lambda *given: solved.append(1) or solve(*given))
    world = World()
    world.run(1800, small=50.0)
    solved.clear()
    world.run(600, small=50.0)
    assert 2 <= len(solved) <= 4


# --- pools that can't be sized

REAL = PoolPlan(name="real", model="small", backend="openai", urls=("http://localhost/v1",))
STARTED = PoolPlan(
    name="started", model="own", backend="openai", command=("vllm",), gpu=gpu("h100"), replicas=2,
    replicas_max=3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("pools", "line"),
    [((), "there are no pools"), ((REAL,), "not sized: real:"),
     ((REAL, STARTED), "not sized: real, started:")],
)  # fmt: skip
def test_without_a_pool_that_can_be_sized_nothing_is_planned_and_it_is_said_why(pools, line):
    """Replicas stay as settings describe them, routers follow their load; a restart is silent."""
    of = Fleet(gpus=(gpu("h100"),), pools=pools)
    world = World(planner=Planner(of, {}, TARGET, QUALITY), routers_busy=3.0)

    plan = world.run(600, small=50.0, large=20.0)

    assert plan == {pool.name: pool.replicas for pool in pools}
    assert world.routers == 5
    assert [one.startswith(line) for one in world.lines if "routers" not in one] == [True]
    remembered = json.loads(json.dumps(world.planner.as_dict()))
    world.planner = Planner(of, {}, TARGET, QUALITY, remembered=remembered)
    assert not world.step(demand("small", 50.0)).lines


def test_in_a_mixed_fleet_emulated_pools_are_sized_for_what_they_can_answer():
    """As if the real servers were not there: what only these answer starts nothing, and the GPUs
    that they have are not planned again."""
    mixed = replace(fleet(), pools=(*fleet().pools, REAL, STARTED))
    plain, world = World(), World(planner=planner(of=mixed))
    plain.gpus = dict.fromkeys(USD, 40) | {"h100": 38}
    for one in (plain, world):
        for _ in range(60):
            one.step(demand("small", 50.0), demand("own", 50.0 * (one is world)))

    assert world.plans[-1][1] == plain.plans[-1][1] | {"real": 1, "started": 2}
    assert sum("not sized: real, started:" in line for line in world.lines) == 1


def test_gpus_of_pools_that_are_not_sized_are_not_planned_again():
    """Of three H100 they have two."""
    started = replace(fleet(), pools=(*fleet().pools, STARTED))
    world = World(planner=planner(of=started), gpus={"l4": 0, "h100": 3, "b200": 0})
    plan = world.run(1200, small=500.0)
    assert plan["small-h100"] + plan["large-h100"] == 1
