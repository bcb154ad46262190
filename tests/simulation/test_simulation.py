"""Virtual time: the same bits for the same seed, and every request, dollar and joule accounted for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from emulated import POWER
from hypothesis import given, settings
from hypothesis import strategies as st
from reporting_pools import requests
from simulated_world import (
    EMULATION,
    GPU,
    Scripted,
    catalogue,
    fleet,
    offered,
    pool,
    run,
    table,
    traffic,
)
from strategies import lightly

from infra.capacity.latency_target import LatencyTarget
from infra.emulator.engine import FINISHED, FIRST_TOKEN, Engine
from learners.criticality import Criticality
from learners.estimates import ema
from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.greedy import Greedy
from learners.targets import Target
from load.data.kinds import Kind
from load.simulation.loop import asking
from load.simulation.loop.remembered import Remembered
from load.simulation.loop.results import Fate, Run
from load.simulation.loop.trainer import VirtualTrainer
from load.simulation.machines import fleet as fleet_module
from load.simulation.machines.fleet import UNIX_MS, VirtualFleet
from load.simulation.machines.offered import Rows
from load.simulation.machines.plain_engines import PlainEngines
from load.simulation.machines.tariff import Tariff
from load.simulation.shocks import (
    Available,
    Garbled,
    PoolLost,
    RegionBack,
    RegionLost,
    Repriced,
    Shock,
    Silent,
)
from load.simulation.simulation import SimulationOptions, contexts_of, encoder_of
from load.simulation.virtual_time import TICKET_KEY
from load.simulation.warm_start import learned_state
from serve.routing.chooser import Chooser
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from streams.feedback.said import NOTHING
from streams.feedback.ticket import Sealer, key_of
from streams.log.contract import FEEDBACK, TELEMETRY
from streams.log.memory_log import MemoryLog, Storage
from streams.telemetry.records import decode, encode
from streams.telemetry.tally import parted
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import State
from streams.training.telemetry_fold import BAD, FOLDED
from streams.training.trainer import LEARNED, Trainer, TrainerOptions

USD_PER_S = GPU.usd_per_hour / 3600.0


def changed(**options: object):
    """A change of the options."""
    return lambda plain: replace(plain, **options)


def state_of(asked_table) -> State:
    """A state to begin with, which a test keeps hold of."""
    return State(encoder_of(asked_table), Learned(MemoryOptions()))


def decided(asked, there, shocks) -> tuple[Run, dict[str, int]]:
    """What became of it, and how often pools were chosen."""
    state = state_of(table())
    found = run(asked, there, shocks=shocks, start=lambda: state)
    mix = state.fleet.totals.mix.items()
    return found, {parted(key)[1]: of.decisions for key, of in mix if of.decisions}


def idle_fleet() -> VirtualFleet:
    """Two pools of a replica each, at time 0."""
    return VirtualFleet(fleet(), LatencyTarget(), np.random.default_rng(0))


def accounted(found: Run) -> None:
    """What holds of every run: each request has one fate, and the columns that belong to it."""
    requests = found.requests
    finished = requests.fate == Fate.FINISHED
    assert np.isfinite(requests.finished_s[finished]).all()
    assert np.isnan(requests.finished_s[~finished]).all()
    assert (requests.pool[finished] >= 0).all() and (requests.quality[~finished] == 0.0).all()
    assert (requests.ttft_s[finished] > 0.0).all()
    assert (requests.tried[finished] >= 1).all() and requests.tried.max(initial=0) <= 2
    assert (requests.shed <= (requests.fate == Fate.REFUSED)).all()
    assert not found.requests.within(found.traffic, found.target)[~finished].any()
    assert sum(found.count(fate) for fate in Fate) == len(found.traffic)


# --- the same bits


def test_same_seed_makes_the_same_bits_and_another_seed_others():
    asked = traffic()
    digests = [run(asked, change=changed(seed=seed)).digest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_digest_is_over_everything_but_the_time_it_took():
    found = run(traffic(20))

    assert replace(found, cpu_s=1e9).digest() == found.digest()
    assert replace(found, joules=found.joules + 1.0).digest() != found.digest()
    assert replace(found, lines=("something else",)).digest() != found.digest()
    late = replace(found.requests, ttft_s=found.requests.ttft_s + 1e-12)
    assert replace(found, requests=late).digest() != found.digest()


@cache
def by_default() -> Run:
    """One model, one replica, so busy that requests wait."""
    return run(traffic(200, per_s=15.0), fleet(pool()))


@given(
    tick_s=st.sampled_from([0.05, 0.3, 1.0]),
    tick_requests=st.sampled_from([1, 7, 500]),
)
@settings(lightly, max_examples=12)
def test_where_routing_is_fixed_ticks_do_not_matter(tick_s, tick_requests):
    """
    One model, one replica: first tokens, ends, bill and energy are those of any other ticks.
    """
    change = changed(tick_s=tick_s, tick_requests=tick_requests)
    found, expected = run(by_default().traffic, fleet(pool()), change=change), by_default()

    for column in ("fate", "ttft_s", "tpot_s", "finished_s"):
        mine, others = getattr(found.requests, column), getattr(expected.requests, column)
        np.testing.assert_array_equal(mine, others)
    assert found.joules == expected.joules
    assert found.gpu_cost_usd == expected.gpu_cost_usd


def test_one_replica_answers_as_its_engine_alone_would():
    """
    Times are the engine's to the bit, and energy is the engine's, to the end of the run.
    """
    asked = traffic(100)
    found = run(asked, fleet(pool()))

    engine = Engine(EMULATION.performance, POWER)
    for i in range(len(asked)):
        engine.submit(i, int(asked.prompt_tokens[i]), 100, float(asked.at_s[i]))
    times = {(e.request_id, e.kind): e.at_s for e in engine.advance(found.end_s)}
    first = np.array([times[i, FIRST_TOKEN] for i in range(100)])
    last = np.array([times[i, FINISHED] for i in range(100)])
    np.testing.assert_array_equal(found.requests.ttft_s, first - asked.at_s)
    np.testing.assert_array_equal(found.requests.finished_s, last)
    np.testing.assert_allclose(found.requests.tpot_s, (last - first) / 99)
    assert found.joules == pytest.approx(engine.energy_j, rel=1e-12)


# --- every request has one fate


@given(
    per_s=st.sampled_from([5.0, 200.0, 3000.0]),
    replicas=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    gone_s=st.floats(0.5, 15.0),
    tail_s=st.sampled_from([0.5, 20.0]),
    seed=st.integers(0, 5),
)
@settings(lightly, max_examples=12)
def test_every_request_ends_in_exactly_one_of_four_ways(per_s, replicas, gone_s, tail_s, seed):
    """
    Whatever the load, wherever machines die, whatever the scaler says.
    """
    first, second, third = replicas
    scaler = Scripted(
        {
            5.0: {"small-h100": first},
            10.0: {"small-h100": second, "large-l4": third},
        }
    )
    other = replace(GPU, name="l4", startup_s=3.0)
    there = fleet(pool(), pool("large-l4", gpu=other))
    shock = Shock(at_s=gone_s, what=Available(gpu="h100", gpus=0))

    found = run(
        traffic(300, per_s=per_s, seed=seed),
        there,
        scaler,
        [shock],
        changed(seed=seed, tail_s=tail_s),
    )

    accounted(found)


def test_requests_that_nobody_can_take_are_refused_and_not_within_target():
    found = run(traffic(50), fleet(pool(replicas=0)))

    assert found.count(Fate.REFUSED) == 50
    assert found.within_target == 0.0 and found.gpu_cost_usd == 0.0


def test_prompt_that_leaves_no_room_for_an_answer_is_refused():
    asked = traffic(20)
    too_long = asked.prompt_tokens.copy()
    too_long[7] = EMULATION.context_tokens_max
    found = run(replace(asked, prompt_tokens=too_long))

    assert np.flatnonzero(found.requests.fate == Fate.REFUSED).tolist() == [7]


def test_answer_ends_where_the_context_does():
    """
    Room for 96 tokens: after the first, 95 more at a thousandth of a second each.
    """
    asked = traffic(1, prompt_tokens=np.array([4000]), output_tokens=500)
    found = run(asked, fleet(pool()))

    first_s = asked.at_s + found.requests.ttft_s
    assert found.requests.finished_s - first_s == pytest.approx(0.095)


def test_what_the_chosen_pool_cannot_take_goes_to_another():
    """
    The router does not know yet that the large model's pool is lost, and chooses it.
    """
    there = fleet(pool("large-h100"), pool("small-h100"))
    lost = [Shock(at_s=0.0, what=PoolLost(pool="large-h100"))]
    found, chosen = decided(traffic(100), there, lost)

    assert found.count(Fate.FINISHED) == 100
    assert set(found.requests.pool.tolist()) == {1}
    assert chosen["large-h100"] > 0


def test_a_router_knows_with_how_many_replicas_pools_begin():
    """
    Before there is any telemetry: none is asked that has none.
    """
    found, chosen = decided(
        traffic(100), fleet(pool("large-h100", replicas=0), pool("small-h100")), []
    )

    assert set(found.requests.pool.tolist()) == {1}
    assert chosen == {"small-h100": 100}


def test_a_late_end_leaves_requests_unfinished():
    asked = traffic(10, output_tokens=3000)
    found = run(asked, change=changed(tail_s=0.5))

    assert found.count(Fate.UNFINISHED) > 0
    accounted(found)


def test_within_target_is_judged_of_every_request_by_the_target_itself():
    asked = traffic(600, per_s=300.0)
    target = LatencyTarget(ttft_s=0.3, ttft_s_per_1k_prompt_tokens=0.1, tpot_s=0.0029)
    found = run(asked, fleet(pool()), change=changed(target=target))

    expected = [
        fate == Fate.FINISHED and target.met(int(prompt), ttft_s=ttft_s, tpot_s=tpot_s)
        for fate, prompt, ttft_s, tpot_s in zip(
            found.requests.fate,
            asked.prompt_tokens,
            found.requests.ttft_s,
            found.requests.tpot_s,
            strict=True,
        )
    ]
    assert found.within_target == pytest.approx(np.mean(expected))
    assert 0.05 < found.within_target < 0.95


# --- machines


def test_replica_costs_from_launch_until_it_is_gone():
    """
    By hand: one replica of two GPUs all the time, 100 s; another one wanted from 5 s on, ready at
    25 s, and not any more from 60 s on, when nothing is asked: gone at once. The price doubles at
    50 s.
    """
    asked = traffic(10, at_s=np.linspace(0.0, 10.0, 10))
    there = fleet(pool(gpus_per_replica=2))
    scaler = Scripted({5.0: {"small-h100": 2}, 60.0: {"small-h100": 1}})
    double = Shock(at_s=50.0, what=Repriced(gpu="h100", usd_per_hour=2 * GPU.usd_per_hour))

    found = run(asked, there, scaler, [double], changed(tail_s=90.0))

    first = 50.0 * USD_PER_S + 50.0 * 2 * USD_PER_S
    second = 45.0 * USD_PER_S + 10.0 * 2 * USD_PER_S
    assert found.gpu_cost_usd == pytest.approx(2 * (first + second), rel=1e-9)
    assert found.replica_changes == 2
    assert found.replica_changes_per_h == pytest.approx(2 * 36.0)


def test_tariff_bills_each_stretch_at_its_price():
    tariff = Tariff({"a": 3600.0})
    tariff.change("a", 7200.0, at_s=10.0)
    tariff.change("a", 0.0, at_s=20.0)

    assert tariff.usd("a", 0.0, to_s=30.0) == pytest.approx(10 + 20)
    assert tariff.usd("a", 5.0, to_s=15.0) == pytest.approx(5 + 10)
    assert tariff.usd("a", 12.0, to_s=13.0) == pytest.approx(2)
    assert tariff.usd("a", 20.0, to_s=99.0) == 0.0


def test_replica_starts_loads_and_is_seen_starting_and_then_answers():
    """
    Wanted at 5 s, the machine comes 20 s later, the model is loaded 10.3 s later: ready at 35.3 s.
    """
    asked = traffic(2000, per_s=20.0)
    there = fleet(pool(replicas=0, load_s=10.3))
    found = run(asked, there, Scripted({5.0: {"small-h100": 1}}))

    finished = found.requests.fate == Fate.FINISHED
    refused = found.requests.fate == Fate.REFUSED
    # Requests of a tick that begins before are asked before.
    assert (refused == (asked.at_s < 35.3)).all() and (finished == (asked.at_s >= 35.3)).all()
    at = dict(zip(found.replicas.at_s.tolist(), range(99), strict=False))
    assert found.replicas.starting[at[5.0], 0] == 1 and found.replicas.ready[at[30.0], 0] == 0
    assert found.replicas.ready[at[40.0], 0] == 1
    assert found.gpu_cost_usd == pytest.approx((found.end_s - 5.0) * USD_PER_S)


def test_more_replicas_than_a_record_takes_report_in_several(monkeypatch):
    """
    Each in one, with the sequence going on; one that is starting has no load yet.
    """
    monkeypatch.setattr(fleet_module, "TOGETHER_MAX", 2)
    machines = VirtualFleet(
        fleet(pool(replicas=4, replicas_max=9, load_s=9.0)),
        LatencyTarget(),
        np.random.default_rng(0),
    )
    machines.resize({"small-h100": 5}, 1.0)

    said = [decode(value) for _, value in encode(machines.reports(25.0))]

    assert [len(one.replica) for one in said] == [2, 2, 1]
    assert [one.sequence for one in said] == [0, 1, 2]
    assert len({name for one in said for name in one.replica}) == 5
    assert [*zip(said[2].state, said[2].load, strict=True)] == [("starting", None)]
    assert None not in said[0].load + said[1].load


def test_draining_replica_finishes_what_it_has_and_gets_no_more():
    """
    Answers of 2,000 tokens take 2 s and more: both replicas are busy at 5 s, one drains, and is
    paid for until its last answer.
    """
    asked = traffic(40, at_s=np.linspace(3.0, 7.0, 40), output_tokens=2000)
    scaler = Scripted({5.0: {"small-h100": 1}})
    found = run(asked, fleet(pool(replicas=2)), scaler)

    assert found.count(Fate.FINISHED) == 40
    at = dict(zip(found.replicas.at_s.tolist(), range(99), strict=False))
    assert found.replicas.draining[at[5.0], 0] == 1 and found.replicas.ready[at[5.0], 0] == 1
    assert found.replicas.draining[at[10.0], 0] == 0
    drained_s = found.gpu_cost_usd / USD_PER_S - found.end_s
    assert 5.0 < drained_s < 10.0
    had = asked.at_s < 5.0
    assert np.isclose(found.requests.finished_s[had], drained_s).any()


def test_never_more_gpus_than_there_are():
    """
    Ten are wanted, four GPUs are there for replicas of two: one more than at first.
    """
    there = fleet(pool(gpu=replace(GPU, available=4), gpus_per_replica=2))
    found = run(traffic(100), there, Scripted({5.0: {"small-h100": 10}}), change=changed(tail_s=60))

    total = found.replicas.ready + found.replicas.starting + found.replicas.draining
    assert total.max() == 2


def test_replica_that_goes_says_so_and_takes_no_energy_after():
    """
    Its last answer ends at some time before it is looked at; what it would have idled is not
    counted, and the router hears that it is not ready any more.
    """
    machines = idle_fleet()
    assert machines.take(offered(1, output_tokens=50), 0, 1.0, np.full(1, -1)) == 1
    machines.resize({"small-h100": 0, "large-h100": 0}, 1.01)
    (ended_s,) = machines.advance(9.0).ended_s

    engine = Engine(EMULATION.performance, POWER)
    engine.submit(0, 100, 50, 1.0)
    engine.advance(ended_s)
    assert machines.joules == pytest.approx(engine.energy_j + 1.01 * POWER.idle_w, rel=1e-9)
    said = {(report.pool, *report.state) for report in machines.reports(10.0)}
    assert said == {("small-h100", "draining"), ("large-h100", "draining")}
    assert machines.reports(11.0) == []


@pytest.mark.parametrize(
    ("changed", "ready_s"),
    [
        ({}, 1.0 + 5.0),
        ({"region": "us"}, 1.0 + 20.0 + 5.0),
        ({"gpus_per_replica": 2}, 1.0 + 20.0 + 5.0),
        ({"gpu": replace(GPU, name="l4")}, 1.0 + 20.0 + 5.0),
    ],
)
def test_machine_that_changes_hands_has_only_to_load(changed, ready_s):
    """
    Of the same type and region, and as many GPUs as are needed; else one is sent for.
    """
    next_one = pool("large-h100", replicas=0, load_s=5.0, **{"region": "eu", **changed})
    there = fleet(pool(region="eu"), next_one)
    machines = VirtualFleet(there, LatencyTarget(), np.random.default_rng(0))

    machines.resize({"small-h100": 0, "large-h100": 1}, 1.0)

    assert machines.next_start_s() == pytest.approx(ready_s)


def test_machine_that_nobody_wants_is_given_back():
    """
    Whoever wants one a second later sends for it, as for one that died, or had not come yet.
    """
    there = fleet(pool(replicas=2), pool("large-h100", replicas=0, load_s=5.0))
    machines = VirtualFleet(there, LatencyTarget(), np.random.default_rng(0))

    machines.resize({"small-h100": 1}, 1.0)
    machines.resize({"large-h100": 1}, 2.0)
    assert machines.next_start_s() == pytest.approx(2.0 + 20.0 + 5.0)
    machines.resize({"small-h100": 2, "large-h100": 0}, 3.0)
    assert machines.next_start_s() == pytest.approx(3.0 + 20.0)

    machines.resize({"small-h100": 1, "large-h100": 0}, 4.0)
    machines.set_available("h100", 0, 5.0)
    machines.set_available("h100", 8, 6.0)
    assert machines.next_start_s() == pytest.approx(6.0 + 20.0)
    machines.start(26.0)
    machines.lose_region("", 30.0)
    machines.return_region("", 31.0)
    assert machines.next_start_s() == pytest.approx(31.0 + 20.0)


def test_replica_with_the_fewest_requests_goes_first_and_before_it_one_that_starts():
    three = fleet(pool(replicas=3))
    engines = PlainEngines(LatencyTarget())
    machines = VirtualFleet(three, LatencyTarget(), np.random.default_rng(0), engines)
    replicas = list(machines.pools[0].replicas)
    for replica, n in zip(replicas, (2, 1, 3), strict=True):
        engines.take(
            offered(n, output_tokens=1000), 0, Rows.of([[replica.row]]), 1.0, np.full(n, -1)
        )

    machines.resize({"small-h100": 4}, 1.0)
    machines.resize({"small-h100": 3}, 1.1)
    assert machines.pools[0].replicas == replicas  # the one that was starting is gone
    machines.resize({"small-h100": 2}, 1.2)
    assert [r.state for r in replicas] == ["ready", "draining", "ready"]
    machines.resize({"small-h100": 1}, 1.3)
    assert [r.state for r in replicas] == ["draining", "draining", "ready"]


def test_what_was_wanted_is_launched_when_a_gpu_is_free():
    """
    One GPU, held by the pool that gives it up; the other pool waits until its last answer.
    """
    scarce = replace(GPU, available=1)
    there = fleet(pool("small-a", gpu=scarce), pool("small-b", gpu=scarce, replicas=0))
    asked = traffic(10, at_s=np.linspace(4.0, 4.9, 10), output_tokens=3000)
    found = run(asked, there, Scripted({5.0: {"small-a": 0, "small-b": 1}}))

    assert found.count(Fate.FINISHED) == 10
    at = dict(zip(found.replicas.at_s.tolist(), range(99), strict=False))
    assert found.replicas.draining[at[5.0]].tolist() == [1, 0]
    assert found.replicas.starting[at[5.0]].tolist() == [0, 0]
    assert found.replicas.ready[at[10.0]].tolist() == [0, 1]  # the machine is there
    assert found.gpu_cost_usd > (found.end_s - 1.0) * USD_PER_S  # free for less than a second


def test_requests_of_a_pool_are_shared_between_its_replicas():
    """
    Four replicas answer in about the time that one needs for a quarter of the requests.
    """
    busy = traffic(400, per_s=100.0, output_tokens=400)
    four = run(busy, fleet(pool(replicas=4)))
    one = run(replace(busy, at_s=busy.at_s * 4), fleet(pool()))

    assert np.median(four.requests.tpot_s) == pytest.approx(np.median(one.requests.tpot_s), rel=0.2)


# --- shocks


def test_gpus_that_go_take_their_replicas_and_requests_are_tried_once_elsewhere():
    other = replace(GPU, name="l4")
    there = fleet(pool("small-h100", replicas=2), pool("small-l4", gpu=other))
    asked = traffic(300, per_s=60.0, output_tokens=500)
    gone = Shock(at_s=3.0, what=Available(gpu="h100", gpus=0))

    found = run(asked, there, shocks=[gone])

    accounted(found)
    late = asked.at_s >= 3.0
    assert set(found.requests.pool[late].tolist()) == {1}
    assert found.count(Fate.LOST) > 0 and found.count(Fate.REFUSED) == 0
    # Whoever had begun to be answered is lost; whoever had not is answered elsewhere.
    lost = found.requests.fate == Fate.LOST
    assert (asked.at_s[lost] + found.requests.ttft_s[lost] <= 3.0).all()
    again = found.requests.tried == 2
    assert (found.requests.fate[again] == Fate.FINISHED).all()
    assert found.gpu_usd["h100"] == pytest.approx(2 * 3.0 * USD_PER_S)


def test_requests_not_begun_when_their_replica_dies_are_answered_elsewhere():
    """
    A prompt takes seconds to read here, so nothing has begun at 1 s.
    """
    slow = replace(EMULATION, performance=replace(EMULATION.performance, per_prompt_token_s=0.01))
    other = replace(GPU, name="l4")
    there = fleet(
        pool("small-h100", emulation=slow), pool("small-l4", gpu=other, replicas=1, region="eu")
    )
    asked = traffic(30, at_s=np.linspace(0.1, 0.9, 30))
    gone = Shock(at_s=1.0, what=Available(gpu="h100", gpus=0))

    found = run(asked, there, shocks=[gone])

    again = found.requests.tried == 2
    assert again.any() and found.count(Fate.FINISHED) == 30
    assert (found.requests.pool[again] == 1).all()
    assert (asked.at_s[again] + found.requests.ttft_s[again] > 1.0).all()


def test_request_that_loses_two_replicas_is_lost():
    """
    Prompts take seconds to read, so nothing has begun when one pool dies, and then the next.
    """
    slow = replace(EMULATION, performance=replace(EMULATION.performance, per_prompt_token_s=0.01))
    types = [replace(GPU, name=name) for name in ("a", "b", "c")]
    pools = [pool(f"small-{gpu.name}", gpu=gpu, emulation=slow) for gpu in types]
    asked = traffic(30, at_s=np.linspace(0.1, 0.9, 30))
    gone = [
        Shock(at_s=at_s, what=Available(gpu=gpu.name, gpus=0))
        for at_s, gpu in zip((1.0, 1.5, 2.0), types, strict=True)
    ]

    found = run(asked, fleet(*pools), shocks=gone)

    accounted(found)
    assert found.count(Fate.LOST) > 0 and found.count(Fate.FINISHED) == 0
    assert (found.requests.tried[found.requests.fate == Fate.LOST] == 2).all()


def test_youngest_replicas_die_first_when_some_gpus_go():
    scaler = Scripted({5.0: {"small-h100": 3}})
    some = Shock(at_s=14.0, what=Available(gpu="h100", gpus=2))
    found = run(traffic(10, per_s=1.0), fleet(pool()), scaler, [some], changed(tail_s=60.0))

    alive_s = found.gpu_cost_usd / USD_PER_S
    assert alive_s == pytest.approx(found.end_s + (found.end_s - 5.0) + (14.0 - 5.0))
    at = dict(zip(found.replicas.at_s.tolist(), range(99), strict=False))
    assert found.replicas.ready[at[15.0], 0] == 1 and found.replicas.starting[at[15.0], 0] == 1


def test_lost_region_dies_and_comes_back_when_it_is_wanted():
    there = fleet(pool("small-eu", region="eu"), pool("small-us", region="us"))
    scaler = Scripted({5.0: {"small-eu": 1, "small-us": 1}})
    shocks = [
        Shock(at_s=12.0, what=RegionLost(region="eu")),
        Shock(at_s=30.0, what=RegionBack(region="eu")),
    ]
    found = run(traffic(600, per_s=10.0), there, scaler, shocks)

    accounted(found)
    at = dict(zip(found.replicas.at_s.tolist(), range(99), strict=False))
    assert [int(found.replicas.ready[at[t], 0]) for t in (10.0, 15.0, 45.0, 50.0)] == [1, 0, 0, 1]
    available = [observed.pools["small-eu"].available for observed in scaler.seen]
    assert available[:7] == [True, True, False, False, False, True, True]
    assert all(observed.pools["small-us"].available for observed in scaler.seen)


def test_a_new_price_is_seen_by_scaler_and_router():
    """
    The large model's GPU becomes 10,000 times as dear: nobody prefers the model any more.
    """
    other = replace(GPU, name="l4")
    there = fleet(pool("small-l4", gpu=other), pool("large-h100"))
    scaler, asked = Scripted(), traffic(2400)
    shock = Shock(at_s=32.0, what=Repriced(gpu="h100", usd_per_hour=36_000.0))

    both_known = learned_state(table(), table(), catalogue(there))

    dear = changed(preference=(1.0, 20.0, 0.0, 0.0))
    run(asked, there, scaler, [shock], dear, start=lambda: both_known)

    prices = [observed.usd_per_hour["h100"] for observed in scaler.seen]
    assert prices[:8] == [3.6] * 6 + [36_000.0] * 2
    demanded = [{d.model for d in observed.demands} for observed in scaler.seen]
    assert "large" in demanded[5] and demanded[20] == {"small"}


@pytest.mark.parametrize("flood", [Criticality.SHEDDABLE, Criticality.CRITICAL_PLUS])
def test_highest_class_waits_behind_nobody_of_a_lower_one(flood):
    """
    2,000 requests in half a second, before prices could rise, are seven seconds' work for the only
    replica. Where the few that matter are of no higher class than the flood, they wait with it.
    """
    at_s = np.concatenate([np.linspace(1.0, 1.5, 2000), np.linspace(1.0, 4.0, 30)])
    order = np.argsort(at_s, kind="stable")
    asked = traffic(
        2030,
        at_s=at_s[order],
        classes=np.repeat([0, 1], [2000, 30])[order],
        kinds=(
            Kind(tenant="flood", criticality=flood),
            Kind(tenant="urgent", criticality=Criticality.CRITICAL_PLUS),
        ),
    )

    found = run(asked, fleet(pool("small-h100")))

    urgent, refused = asked.classes == 1, found.requests.fate == Fate.REFUSED
    assert not refused.any()
    within = found.requests.within(asked, found.target)[urgent]
    if flood < Criticality.CRITICAL_PLUS:
        assert within.all()
    else:
        assert within.mean() < 0.5


def test_silent_telemetry_leaves_the_last_word_and_grows_old():
    scaler = Scripted()
    shock = Shock(at_s=10.5, what=Silent(for_s=10.0))
    run(traffic(600), scaler=scaler, shocks=[shock])

    ages = [round(observed.telemetry_age_s) for observed in scaler.seen]
    assert ages[:5] == [0, 0, 5, 10, 0]


def test_garbled_telemetry_is_counted_and_nothing_breaks():
    """
    Some records are broken, some say what can't be; afterwards all is as it was.
    """
    scaler, state, asked = Scripted(), state_of(table()), traffic(600)
    shock = Shock(at_s=5.5, what=Garbled(for_s=10.0))
    found = run(asked, scaler=scaler, shocks=[shock], start=lambda: state)

    accounted(found)
    bad = sum(n for name, n in state.counts.items() if name.startswith(BAD))
    assert bad >= 5 and state.counts[FOLDED] > 50
    loads = [observed.pools["small-h100"].reports.load for observed in scaler.seen]
    assert None in loads[1:3] and loads[-1] < 2.0  # what makes no sense is not reported
    assert found.count(Fate.FINISHED) == len(asked)


# --- learning and telemetry


def test_trainer_learns_what_one_outside_learns_from_the_same_log(tmp_path):
    """
    Reports are real: sealed tickets that open, outcomes that another trainer takes alike.
    """
    storage, state = Storage(), state_of(table())
    found = run(traffic(600), change=changed(feedback_share=0.5), storage=storage,
                start=lambda: state)  # fmt: skip

    now_ms = UNIX_MS + round(found.end_s * 1000)
    log = MemoryLog(storage, lambda: now_ms)
    outside = Trainer(
        log,
        Store(Folder(str(tmp_path))),
        Sealer([TICKET_KEY]),
        encoder_of(table()),
        TrainerOptions(wait_s=0.0),
        log.now_ms,
    )
    while outside.step():
        pass
    outside.close()
    assert outside.state.learned.digest() == state.learned.digest()
    assert outside.state.fleet == state.fleet
    assert state.fleet.totals.classes["default"].arrivals == len(found.traffic)
    assert len(log.records(FEEDBACK)) == pytest.approx(300, abs=60)
    assert state.counts[LEARNED] == len(log.records(FEEDBACK))


def test_where_nobody_judges_answers_nothing_is_learned_of_their_quality():
    """
    What they took is reported all the same, as a dispatcher does.
    """
    state = state_of(table())
    run(traffic(600), change=changed(feedback_share=0.5, judged=False), start=lambda: state)

    models = ema.read(state.learned.models, [key_of(name) for name in table().models], UNIX_MS)
    assert (models.weights[:, Target.QUALITY] == 0.0).all()
    assert (models.weights[:, Target.LATENCY] > 0.0).all()


def test_router_learns_which_prompts_need_the_large_model():
    """
    Half of the prompts are hard: after a while they get the large model more often than others.

    A while is long: these contexts are random, so that landmarks, made for texts that are alike in
    something, tell little of them. With `neighbours_share` 0.3 a quarter of the time is enough.
    """
    asked = traffic(8000, per_s=20.0)
    found = run(asked, change=changed(feedback_share=0.5, preference=(1.0, 1200.0, 0.0, 0.0)))

    hard, late = asked.rows < 25, asked.at_s > 300.0
    large = found.requests.model == 1
    assert large[hard & late].mean() > large[~hard & late].mean() + 0.3
    assert found.quality == found.requests.quality[found.requests.fate == Fate.FINISHED].mean()


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_read_is_dropped_unless_the_log_is_kept(kept):
    machines, log = idle_fleet(), MemoryLog(Storage(), lambda: UNIX_MS + 1000)
    log.ensure_topics()
    options = TrainerOptions(), 60.0, log.now_ms, lambda: None
    with VirtualTrainer(
        log,
        catalogue(fleet()),
        Sealer([TICKET_KEY]),
        "any",
        contexts_of(table()),
        *options,
        keep_log=kept,
    ) as trainer:
        log.append(TELEMETRY, encode(machines.reports(1.0)))
        trainer.step()

        assert set(trainer.live.loads) == {"small-h100", "large-h100"}
        assert len(log.records(TELEMETRY)) == (2 if kept else 0)


def test_remembered_estimates_are_the_estimators_own():
    """
    Whatever is asked before and beside a context, to the last bits of a product of matrices.
    """
    live = Live(catalogue(fleet()), Learned(MemoryOptions()), "any", LiveOptions())
    contexts = contexts_of(table())
    remembered = Remembered(live.estimator, contexts)
    rng = np.random.default_rng(0)
    for n in (1, 7, 50, 3):
        rows = rng.integers(0, len(contexts), n)
        found = remembered.estimate(remembered.contexts(rows))
        fresh = live.estimator.estimate(contexts[rows])
        np.testing.assert_allclose(found.mean, fresh.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.deviation, fresh.deviation, rtol=1e-5)
        np.testing.assert_array_equal(found.noise, fresh.noise)


def test_what_was_asked_before_a_snapshot_is_estimated_with_it():
    """
    All at once by the new estimator, which is then not asked again.
    """
    contexts, options = contexts_of(table()), LiveOptions()
    before = Remembered(
        Live(catalogue(fleet()), Learned(MemoryOptions()), "any", options).estimator, contexts
    )
    rows = np.arange(len(contexts))
    earlier = before.estimate(before.contexts(rows))
    known = learned_state(table(), table(), catalogue(fleet())).learned
    estimator = Live(catalogue(fleet()), known, "any", options).estimator
    asked = []

    class Watched:
        model_means, models = estimator.model_means, estimator.models
        noise, mean_deviation = estimator.noise, estimator.mean_deviation
        calibration, effects = estimator.calibration, estimator.effects

        def estimate(self, rows):
            asked.append(len(rows))
            return estimator.estimate(rows)

    after = Remembered(Watched(), contexts, before)
    n_asked = sum(asked)
    found = after.estimate(after.contexts(rows))

    assert n_asked == sum(asked) == len(contexts)
    np.testing.assert_allclose(found.mean, estimator.estimate(contexts).mean, rtol=1e-4, atol=1e-5)
    assert np.abs(found.mean - earlier.mean).max() > 0.01


def test_a_view_for_plain_requests_estimates_them_as_any_other():
    """
    What it leaves out is of requests that say something of themselves, or have limits.
    """
    known = learned_state(table(), table(), catalogue(fleet())).learned
    whole, bare = (
        Live(catalogue(fleet()), known, "any", LiveOptions(), plain_requests=plain)
        for plain in (False, True)
    )
    found, want = (live.estimator.estimate(contexts_of(table())) for live in (bare, whole))

    np.testing.assert_array_equal(found.mean, want.mean)
    np.testing.assert_array_equal(found.deviation, want.deviation)
    assert bare.estimator.effects is None
    assert not len(bare.reference)


@pytest.mark.parametrize("column", ["strong_share_max", "said"])
def test_what_a_view_for_plain_requests_leaves_out_is_not_decided_without_it(column):
    """
    A limit or a trait that was passed over would be a wrong decision that nobody sees.
    """
    known = learned_state(table(), table(), catalogue(fleet())).learned
    live = Live(catalogue(fleet()), known, "any", LiveOptions(), plain_requests=True)
    chooser = Chooser(Greedy(), PlacementOptions(), np.random.default_rng(0))
    value = {"strong_share_max": np.array([0.5]), "said": np.array([NOTHING], object)}[column]
    assert len(chooser.choose(requests(live), live, UNIX_MS).chosen) == 1

    with pytest.raises(AssertionError, match="leaves out"):
        chooser.choose(requests(live, **{column: value}), live, UNIX_MS)


def test_a_router_that_starts_warm_expects_to_pay_list_prices():
    """
    What was learned before is of answers that cost what is stated.
    """
    known = learned_state(table(), table(), catalogue(fleet())).learned
    live = Live(catalogue(fleet()), known, "any", LiveOptions())
    ratio = live.estimator.estimate(contexts_of(table())).mean[:, :, Target.COST]
    np.testing.assert_allclose(ratio, 1.0, atol=0.01)


def test_scaler_sees_demand_replicas_and_prices():
    """
    A pool far beyond its capacity has a load above one, and in time a price; demand is as asked.
    """
    weak = replace(EMULATION, performance=replace(EMULATION.performance, per_sequence_s=0.02))
    scaler = Scripted()
    run(traffic(1200, per_s=20.0), fleet(pool(emulation=weak)), scaler)

    condition = scaler.seen[9].pools["small-h100"]
    observed = scaler.seen[11]
    assert condition.ready == 1 and condition.reports.running > 0
    assert condition.reports.load > 1.0 and condition.price > 0.0
    assert sum(d.requests_per_s for d in observed.demands) == pytest.approx(20.0, rel=0.2)
    assert observed.routers == 1 and 0.0 < observed.router_busy_share < 0.1
    assert observed.at_s * 1000 == UNIX_MS + 60_000


def test_plan_may_ask_for_more_routers_and_their_lines_are_kept():
    class More(Scripted):
        def step(self, observed):
            return replace(super().step(observed), routers=3, lines=("three routers",))

    scaler = More()
    found = run(traffic(800), scaler=scaler)

    assert [observed.routers for observed in scaler.seen][:3] == [1, 3, 3]
    assert found.lines[0] == "5 s: three routers"
    accounted(found)


def test_router_that_is_blind_to_pools_spreads_by_turns():
    there = fleet(pool("small-a"), pool("small-b"))
    found = run(traffic(400), there, change=changed(router_priced=False))

    counts = np.bincount(found.requests.pool, minlength=2)
    assert counts.tolist() == [200, 200]


def test_options_state_what_they_are():
    assert SimulationOptions().tick_s <= SimulationOptions().telemetry_s
    assert contexts_of(table()).shape == (50, 64)


def test_what_all_requests_have_in_common_can_be_changed_by_nobody():
    """
    It is handed out again, to every router: what one wrote there others would be asked.
    """
    columns = asking._same((1.0, 2.0, 3.0, 4.0), 3, 8)

    assert asking._same((1.0, 2.0, 3.0, 4.0), 3, 8) is columns
    for name, column in columns.items():
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0
        assert len(column) == 8, name


def test_whatever_befalls_a_fleet_it_knows_who_is_where():
    """
    Rows and starts are looked up when replicas change: none may be missed, of any change.
    """
    rng, seen = np.random.default_rng(1), set()
    machines = VirtualFleet(
        fleet(pool(replicas=2), pool("large-h100")),
        LatencyTarget(),
        rng,
        PlainEngines(LatencyTarget()),
    )
    befalls = (  # the first more often than the last
        lambda now_s: machines.take(offered(3, 4000, now_s), 0, now_s, np.full(3, -1)),
        machines.advance,
        machines.start,
        lambda now_s: machines.resize({"small-h100": int(rng.integers(5))}, now_s),
        lambda now_s: machines.resize({"large-h100": int(rng.integers(3))}, now_s),
        lambda now_s: machines.set_available("h100", int(rng.integers(3, 9)), now_s),
        lambda now_s: machines.return_region("", now_s),
        lambda now_s: machines.return_pool("small-h100", now_s),
        lambda now_s: machines.lose_pool("small-h100", now_s),
        lambda now_s: machines.lose_region("", now_s),
    )
    for now_s in np.arange(1.0, 600.0, 2.0).tolist():
        befalls[min(rng.geometric(0.25) - 1, len(befalls) - 1)](now_s)
        for one in machines.pools:
            by = {
                state: [r for r in one.replicas if r.state == state]
                for state in ("starting", "ready", "draining", "gone")
            }
            assert by["ready"] == one.ready
            assert by["draining"] == one.draining
            assert not by["gone"]
            assert one.next_start_s == min((r.ready_s for r in by["starting"]), default=np.inf)
            seen |= {state for state, there in by.items() if there}
        there, ready = machines._rows
        assert there.by_pool() == [[r.row for r in one.replicas] for one in machines.pools]
        assert ready.by_pool() == [[r.row for r in one.ready] for one in machines.pools]
    assert seen == {"starting", "ready", "draining"}
