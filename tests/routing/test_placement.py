"""What requests are charged for capacity, which pools they go to, and who is refused for want of it."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reporting_pools import RATES, WORKING, reported, requests, view, working
from router_bench import NOON_MS

from learners.policies.greedy import EpsilonGreedy, Greedy
from learners.policies.inverse_gap import SquareCb
from learners.policies.policy import Policy, default_policy
from learners.prices import ShedOptions
from learners.work import WorkRates
from load.simulation.loop.trainer import blind
from serve.routing import plain
from serve.routing.catalogue import Model, Pool
from serve.routing.choices import Choices
from serve.routing.chooser import Chooser
from serve.routing.eligible import RequestBatch, Verdict
from serve.routing.live import Live
from serve.routing.load_tracker import FILL_S, FULL, LoadTracker, PoolLoad
from serve.routing.placement import (
    HEADROOM,
    LATENCY_WEIGHT_MIN,
    ROOM_FROM,
    Placement,
    PlacementOptions,
    charge,
    least_multiple,
    spread_of,
)
from serve.routing.router import route
from streams.telemetry.records import RouterState
from streams.training.prices import Price, PricingOptions

OPTIONS = PlacementOptions()
GREEDY = Greedy()
LOAD = PricingOptions().load_target  # as much as a pool should carry: no proportional part
lightly = settings(max_examples=40)


BUSY = st.tuples(
    st.integers(1, 40),  # running
    st.integers(0, 20),  # queued
    st.floats(0.3, 1.1),  # load
    st.floats(0.0, 2.0),  # log-price
    st.floats(80.0, 3000.0),  # latency
)


# Whatever can be work is some.
ALL_WORK = WorkRates(
    prompt_token_s=1e-3, output_token_s=2e-3, context_token_s=1e-7, fixed_s=5e-3, tpot_s=0.5,
    sequences_max=8.0, kv_tokens_max=12_000.0, request_s=0.02,
)  # fmt: skip
NARROW = replace(ALL_WORK, tpot_s=0.05)  # what an idle replica leaves of the target is less


def charged(
    asked: RequestBatch,
    live: Live,
    options: PlacementOptions = OPTIONS,
    spread: np.ndarray | None = None,
) -> Placement:
    pool_load = pool_load_of(live, options)
    return charge(asked.preference, asked.prompt_tokens, live, pool_load, spread, options)


def pool_load_of(live: Live, options: PlacementOptions = OPTIONS) -> PoolLoad:
    return LoadTracker(options.pricing).now(live, NOON_MS)


def decide(
    asked: RequestBatch,
    live: Live,
    uniform: float = 0.99,
    options: PlacementOptions = OPTIONS,
    now_ms: int = NOON_MS,
    policy: Policy = GREEDY,
) -> Choices:
    """Decide, greedily unless it says so; `uniform` decides who is shed."""
    pool_load = LoadTracker(options.pricing).now(live, now_ms)
    draws = np.full((len(asked), 2), uniform)
    return route(asked, live, pool_load, policy, draws, None, options)


def at(multiple: float) -> Price:
    """The price of a pool that carries what it should."""
    return Price(math.log1p(multiple), 1.0)


def two_pools(near: float = 0.0, far: float = 0.0, **options: object) -> Live:
    """Both pools of the model at their target, with these multiples."""
    return view(
        reported("near", load=LOAD, running=10),
        reported("far", load=LOAD, running=10),
        **{"pools": WORKING, "prices": {"near": at(near), "far": at(far)}} | options,
    )


def weights(*one: float, n: int = 1) -> np.ndarray:
    return np.tile(one, (n, 1))


# --- what is charged -------------------------------------------------------------------------------


def test_charge_is_the_documented_formula():
    """
    By hand: 2,000 tokens are 2 s of work at 0.001 USD and 500 W. At 3 times its cost that is 6/1000
    USD; the power of 1,000 J at e^0.5 − 1 times 0.2 USD per kWh comes on top; both are worth 30
    points a dollar, and a kilojoule is worth a quarter of a point.
    """
    live = two_pools(near=3.0, power=Price(0.5 - OPTIONS.pricing.ascent.damping, 2.0))
    asked = requests(live, prompt_tokens=[2000.0], preference=weights(1.0, 30.0, 0.0, 0.25))

    found = charged(asked, live)

    power_usd = math.expm1(0.5) * 0.2 * 1000 / 3.6e6
    assert found.work_s[0, 0] == pytest.approx(2.0)
    assert found.energy_j[0, 0] == pytest.approx(1000.0)
    assert found.reference_usd[0, 0] == pytest.approx(0.002)
    assert found.points[0, 0] == pytest.approx(30 * (0.006 + power_usd) + 0.25)
    assert found.points[0, 1] == pytest.approx(30 * power_usd + 0.25)  # far has no price


@given(
    conditions=st.lists(BUSY, min_size=1, max_size=6),
    n=st.integers(1, 20),
    power=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**32),
)
@lightly
def test_compiled_code_charges_what_numpy_does(conditions, n, power, seed):
    """
    To the last bit, at whatever loads, prices and weights, with a pool that has no replicas, and
    whichever models are eligible.
    """
    pytest.importorskip("numba")
    rng, fast = np.random.default_rng(seed), busy(conditions, Price(power, 1.0), (ALL_WORK, NARROW))
    k, n_pools = len(fast.catalogue), len(fast.catalogue.pool_names)
    fast.work_factor = 0.5 + rng.random(n_pools)
    fast.open = rng.random(n_pools) < 0.8
    slow = copy.copy(fast)
    slow.kernel = slow.columns = None
    asked = requests(fast, n, prompt_tokens=rng.integers(1, 9000, n).astype(float),
                     preference=rng.random((n, 4)) * [1.0, 20.0, 0.1, 0.1])  # fmt: skip
    spread, eligible = np.exp(rng.normal(size=(n, n_pools))), rng.random((n, k)) < 0.7

    found, want = (charged(asked, view_, OPTIONS, spread) for view_ in (fast, slow))
    least = [least_multiple(pool_load_of(one), eligible, one) for one in (fast, slow)]

    for name in ("money", "work_s", "energy_j", "points", "fixed", "reference_usd", "best"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name), name)
    np.testing.assert_array_equal(plain._charges(fast, found), plain._charges(slow, want))
    np.testing.assert_array_equal(*least)


@pytest.mark.parametrize(
    ("quality", "cost", "money"), [(1.0, 0.0, 20.0), (2.0, 0.0, 40.0), (1.0, 35.0, 35.0)]
)
def test_who_does_not_weigh_money_is_charged_at_what_quality_is_worth(quality, cost, money):
    """
    5 cents a point, unless the caller's own weight is more.
    """
    live = two_pools(near=3.0)
    asked = requests(live, preference=weights(quality, cost, 0.0, 0.0))

    found = charged(asked, live)

    assert found.money.tolist() == [money]
    assert found.points[0, 0] == pytest.approx(money * 0.003)


def test_utility_is_less_by_the_charge_of_the_best_pool():
    """
    The best one is what it is for its headroom, dearer or not. The other models', whose capacity is
    free, are as before.
    """
    free = two_pools()
    dear = view(
        reported("near", running=10), reported("far", running=10), pools=WORKING,
        prices={"near": at(1.0), "far": Price(math.log1p(2.0) + OPTIONS.pricing.ascent.damping * 0.1, 0.9)},
    )  # fmt: skip
    asked = requests(free)

    before, after = decide(asked, free), decide(asked, dear)

    assert dear.catalogue.pool_names[after.pools[0, 0]] == "far"
    np.testing.assert_allclose(before.utility - after.utility, [[20 * 0.002, 0.0, 0.0]], atol=1e-12)
    assert after.energy_j.tolist() == [[500.0, 0.0, 0.0]]
    assert after.multiple.tolist() == [0.0]  # of the models without a price


def test_budget_price_is_charged_on_what_a_model_costs():
    """
    At a multiple of one, every dollar counts twice; here a part of it is proportional.
    """
    twice = Price(math.log(2.0) - OPTIONS.pricing.ascent.damping, 2.0)
    free, short = two_pools(), two_pools(budget=twice)
    asked = requests(free, preference=weights(1.0, 50.0, 0.0, 0.0))

    before, after = decide(asked, free), decide(asked, short)

    np.testing.assert_allclose(before.utility - after.utility, 50.0 * before.cost_usd)


def test_who_is_blind_to_prices_is_charged_energy_alone():
    live = two_pools(near=9.0, far=9.0, budget=at(4.0), power=at(4.0))
    asked = requests(live, preference=weights(1.0, 20.0, 0.0, 0.1))

    unseen = decide(asked, blind(live), uniform=0.0)
    free = decide(asked, two_pools(), options=OPTIONS)

    np.testing.assert_array_equal(unseen.utility, free.utility)
    assert unseen.multiple.tolist() == [0.0]


# --- which pool ------------------------------------------------------------------------------------


def test_weight_of_energy_moves_a_request_to_the_pool_that_takes_less():
    """
    Far takes half the power and is a little slower: the first to whom energy matters goes there.
    """
    pools = (working("near"), working("far", watts=250.0))
    latency_ms = {"near": 400.0, "far": 500.0}
    live = two_pools(pools=pools, latency_ms=latency_ms)

    hasty = decide(requests(live, models=["small"], preference=weights(1, 0, 0.5, 0)), live)
    green = decide(requests(live, models=["small"], preference=weights(1, 0, 0.5, 0.5)), live)

    assert [live.catalogue.pool_names[c.pool[0]] for c in (hasty, green)] == ["near", "far"]


def test_weight_of_energy_moves_a_request_to_another_model():
    """
    The large model is better by a tenth of a point and takes half a kilojoule more.
    """
    models = [Model(name="small", quality=0.6), Model(name="large", quality=0.7)]
    pools = (working("s", watts=100.0), working("l", "large", watts=600.0))
    live = view(models=models, pools=pools)

    chosen = [
        int(decide(requests(live, preference=weights(1, 0, 0, energy)), live).chosen[0])
        for energy in (0.0, 0.19, 0.21)
    ]

    assert chosen == [1, 1, 0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_who_weighs_energy_alone_explores_as_who_weighs_cost_alone(scale):
    """
    The large model takes six times the power and six times the money of the small one. By hand:
    the gap is five of what 3.5 are at stake.
    """
    models = [Model(name="small", usd_per_call=0.001), Model(name="large", usd_per_call=0.006)]
    pools = (working("s", watts=100.0), working("l", "large", watts=600.0))
    live = view(models=models, pools=pools)

    of_energy, of_cost = (
        decide(requests(live, preference=weights(*one)), live, policy=SquareCb(gamma=10.0))
        for one in ((0, 0, 0, scale), (0, scale, 0, 0))
    )

    other = 1 / (2 + 10.0 * 5 / 3.5)
    np.testing.assert_allclose(of_energy.propensity, [[1 - other, other]], rtol=1e-6)
    np.testing.assert_allclose(of_cost.propensity, of_energy.propensity, rtol=1e-6)


def test_headroom_decides_between_pools_that_are_alike():
    live = view(
        reported("near", running=10, load=0.6), reported("far", running=10, load=0.5), pools=WORKING,
        prices={"near": Price(0.0, 0.7), "far": Price(0.0, 0.6)},
    )  # fmt: skip

    assert (
        live.catalogue.pool_names[decide(requests(live, models=["small"]), live).pool[0]] == "far"
    )


@given(
    states=st.lists(st.sampled_from(["ready", "starting", "draining", "silent"]), min_size=4,
                    max_size=4),
    multiples=st.lists(st.floats(0, 60), min_size=4, max_size=4),
    n=st.sampled_from([1, 2, 9]),
)  # fmt: skip
@lightly
def test_a_pool_without_replicas_is_never_taken_while_another_of_the_model_has_any(
    states, multiples, n
):
    """
    Two models with two pools each, in whatever state, at whatever price, alone or in a batch.
    """
    names = ("a", "b", "c", "d")
    pools = [working(name, ("small", "large")[i // 2]) for i, name in enumerate(names)]
    models = [Model(name="small", quality=0.6), Model(name="large", quality=0.7)]
    words = [reported("elsewhere")]  # telemetry arrives, or nobody would be taken for gone
    words += [
        reported(name, state=state, load=0.5)
        for name, state in zip(names, states, strict=True)
        if state != "silent"
    ]
    prices = {name: at(multiple) for name, multiple in zip(names, multiples, strict=True)}
    live = view(*words, pools=pools, models=models, prices=prices)
    asked = requests(live, n, criticality=np.full(n, 3, np.int8))

    choices = decide(asked, live)

    ready = [state == "ready" for state in states]
    assert choices.fits.all()
    assert not any(ready) or all(ready[p] for p in choices.pool.tolist())
    of_model = live.catalogue.model_of_pool[choices.pool]
    np.testing.assert_array_equal(of_model, choices.chosen)
    for model in range(2):
        best = choices.pools[:, model].tolist()
        assert not any(ready[2 * model : 2 * model + 2]) or all(ready[p] for p in best)


def test_a_model_without_replicas_is_out_and_says_so():
    """
    Large is the best and has none; where nothing else is allowed, it is decided for all the same.
    """
    live = view(reported("near", load=0.1), pools=(*WORKING, working("l", "large")))

    any_model = decide(requests(live), live)
    large_only = decide(requests(live, models=["large"]), live)

    names = live.catalogue.names
    assert names[any_model.chosen[0]] == "medium"
    assert any_model.verdict[0].tolist() == [0, 0, Verdict.NO_REPLICA]
    assert any_model.propensity[0, 2] == 0.0
    assert names[large_only.chosen[0]] == "large"
    assert large_only.fits.all()
    assert large_only.verdict[0, 2] == Verdict.ELIGIBLE


def test_nobody_is_taken_to_be_gone_while_no_telemetry_arrives_at_all():
    live = view(pools=(*WORKING, working("l", "large")))

    assert live.open.all()
    assert live.catalogue.names[decide(requests(live), live).chosen[0]] == "large"


def test_before_any_telemetry_a_pool_that_begins_with_no_replica_has_none():
    """
    Large is to be scaled from zero. Where nothing else is allowed, it is decided for all the same,
    and what telemetry says counts from then on.
    """
    scaled = working("l", "large", replicas=0)
    before = view(pools=(*WORKING, scaled))
    later = view(reported("near", load=0.1), reported("l", load=0.1), pools=(*WORKING, scaled))

    early = decide(requests(before), before)
    large_only = decide(requests(before, models=["large"]), before)

    assert before.catalogue.names[early.chosen[0]] == "medium"
    assert early.verdict[0, 2] == Verdict.NO_REPLICA
    assert before.catalogue.names[large_only.chosen[0]] == "large"
    assert later.model_open[2]


# --- batches ---------------------------------------------------------------------------------------


def busy(
    conditions: list[tuple[int, int, float, float, float]],
    power: Price | None = None,
    rates: Sequence[WorkRates] = (RATES,),
) -> Live:
    """A model with a pool in each of these conditions, each with another power and price."""
    names = [f"p{i}" for i in range(len(conditions))]
    pools = [
        working(name, usd_per_hour=3.6 + 1.1 * i, watts=300.0 + 70 * i, rates=rate)
        for i, (name, rate) in enumerate(zip(names, cycle(rates)))
    ]
    records, prices, latency_ms = [], {}, {}
    for name, (running, queued, load, log_price, latency) in zip(names, conditions, strict=True):
        records.append(reported(name, running=running, queued=queued, load=load))
        prices[name] = Price(log_price, load / LOAD)
        latency_ms[name] = latency
    records += [reported(name, replica="second", load=0.5) for name in names[1:]]
    records += [
        RouterState(source=f"{i:016x}", sequence=1, from_unix_ms=NOON_MS - 1000,
                    to_unix_ms=NOON_MS)
        for i in range(3)
    ]  # fmt: skip
    return view(*records, pools=pools, prices=prices, latency_ms=latency_ms, power=power)


@given(
    conditions=st.lists(BUSY, min_size=2, max_size=4),
    since_ms=st.sampled_from([0, 300]),
    latency_weight=st.sampled_from([0.0, 0.01, 1.0]),
    seed=st.integers(0, 9),
)
@lightly
def test_a_batch_goes_where_its_requests_would_go_one_by_one(
    conditions, since_ms, latency_weight, seed
):
    """
    Every request of a batch counts for the next, as if it had been sent and counted before. Half of
    them may go to this model alone; of all the rest the model is chosen first, see `router`.
    """
    live, n = busy(conditions), 40
    rng = np.random.default_rng(seed)
    asked = requests(
        live,
        n,
        ["small"],
        prompt_tokens=rng.integers(100, 3000, n).astype(float),
        preference=np.stack(
            [np.ones(n), rng.uniform(0, 60, n), np.full(n, latency_weight), rng.uniform(0, 1, n)],
            axis=1,
        ),
        criticality=np.full(n, 3, np.int8),  # who is refused does not count for the next
    )

    def chooser() -> Chooser:
        return Chooser(Greedy(), OPTIONS, np.random.default_rng(0))

    together = chooser().choose(asked, live, NOON_MS + since_ms).pool
    one, alone = chooser(), []
    for i in range(n):
        alone += one.choose(row(asked, i), live, NOON_MS + since_ms).pool.tolist()

    assert together.tolist() == alone


def row(asked: RequestBatch, i: int) -> RequestBatch:
    columns = {name: getattr(asked, name) for name in RequestBatch.__slots__}
    return replace(asked, **{n: c if c is None else c[i : i + 1] for n, c in columns.items()})


@given(conditions=st.lists(BUSY, min_size=2, max_size=4))
@lightly
def test_a_large_batch_of_equals_levels_its_models_pools(conditions):
    """
    In the end no pool that took some would be worse to leave by more than one request's part: the
    pools are as full as makes them equal.
    """
    live, n = busy(conditions), 400
    asked = requests(live, n, ["small"], preference=weights(1, 20, 0.05, 0, n=n))

    went = Counter(decide(asked, live).pool.tolist())

    tracker = LoadTracker(OPTIONS.pricing)
    pools = np.array([p for p, count in went.items() for _ in range(count)])
    tracker.sent(live, pools, np.ones(n), NOON_MS)  # a second of work each
    pool_load = tracker.now(live, NOON_MS)
    reached = _score(pool_load)
    least = min(reached[p] for p in live.catalogue.columns_of[0].tolist())
    for p in went:
        less = LoadTracker(OPTIONS.pricing)
        less.sent(live, np.delete(pools, np.argmax(pools == p)), np.ones(n - 1), NOON_MS)
        assert _score(less.now(live, NOON_MS))[p] <= least + 1e-9


def _score(pool_load: PoolLoad) -> np.ndarray:
    late = np.maximum(0.0, pool_load.load - ROOM_FROM)
    return 0.05 * pool_load.latency_s + HEADROOM * pool_load.load + late


def test_a_batch_fills_pools_by_the_work_it_brings():
    """
    With room for any number, headroom alone spreads them. Far's load is less than near's by what one
    and a half requests of a second's work add to it: the third is the first to go to near.
    """
    added = 1.0 / FULL / FILL_S  # per request
    live = view(
        reported("near", running=1000), reported("far", running=1000), pools=WORKING,
        prices={"near": Price(1.0, 1.0), "far": Price(1.0, 1.0 - 1.5 * added)},
        latency_ms={"near": 1e-3, "far": 1e-3},
    )  # fmt: skip

    placed = decide(requests(live, 6, ["small"]), live).pool

    went = [live.catalogue.pool_names[p] for p in placed]
    assert went == ["far", "far", "near", "far", "near", "far"]


def test_where_there_is_room_a_request_more_makes_nobody_wait():
    """
    Ten milliseconds after both said that a thousand run, ten thousand have room: latency is the
    pools' own, however much weight it has, and headroom decides as if there were none.
    """
    added = 1.0 / FULL / FILL_S
    live = view(
        reported("near", running=1000), reported("far", running=1000), pools=WORKING,
        prices={"near": Price(1.0, 1.0), "far": Price(1.0, 1.0 - 1.5 * added)},
        latency_ms={"near": 1.0, "far": 1.0},
    )  # fmt: skip
    asked = requests(live, 6, ["small"], preference=weights(1.0, 0.0, 1.0, 0.0, n=6))

    placed = decide(asked, live, now_ms=NOON_MS + 10).pool

    assert [live.catalogue.pool_names[p] for p in placed[:4]] == ["far", "far", "near", "far"]


def test_no_price_moves_a_request_between_pools_of_one_model():
    """
    Far is a hair emptier and a hundred times as dear: it is taken first all the same, and then both
    alike.
    """
    live = view(
        reported("near", running=1000), reported("far", running=1000), pools=WORKING,
        prices={"near": Price(0.0, 1.0), "far": Price(4.6, 0.99)},
        latency_ms={"near": 1.0, "far": 1.0},
    )  # fmt: skip

    placed = decide(requests(live, 40, ["small"]), live, now_ms=NOON_MS + 10).pool

    assert live.catalogue.pool_names[placed[0]] == "far"
    assert np.bincount(placed)[:2].tolist() == [20, 20]


def test_a_thousand_requests_at_once_do_not_all_go_to_the_best_pool():
    live = view(*(reported(f"p{i}", running=10) for i in range(4)),
                pools=[Pool(name=f"p{i}", model="small") for i in range(4)])  # fmt: skip

    placed = decide(requests(live, 1000, ["small"]), live).pool

    assert np.bincount(placed)[:4].tolist() == [250] * 4


def test_the_model_is_chosen_before_the_pool_and_stays():
    live = busy([(1, 0, 0.5, 0.5, 400.0), (1, 0, 0.5, 0.5, 500.0)])
    asked = requests(live, 64, preference=weights(1, 20, 0.1, 0, n=64))

    choices = decide(asked, live)

    np.testing.assert_array_equal(live.catalogue.model_of_pool[choices.pool], choices.chosen)
    np.testing.assert_array_equal(
        choices.work_s, charged(asked, live).work_s[np.arange(64), choices.pool]
    )


def test_equal_inputs_give_equal_bits():
    """
    Prices, loads and placement included.
    """

    def run() -> dict[str, bytes]:
        live = busy([(3, 1, 0.9, 1.5, 400.0), (5, 0, 1.0, 1.4, 350.0), (1, 0, 0.2, 0.0, 900.0)])
        rng = np.random.default_rng(4)
        asked = requests(
            live, 64, prompt_tokens=rng.uniform(1, 9000, 64), preference=rng.random((64, 4)),
            criticality=rng.integers(0, 4, 64).astype(np.int8),
        )  # fmt: skip
        chooser = Chooser(SquareCb(), OPTIONS, np.random.default_rng(5))
        choices = [chooser.choose(asked, live, NOON_MS + 100 * i) for i in range(3)]
        return {
            f"{i} {name}": getattr(found, name).tobytes()
            for i, found in enumerate(choices)
            for name in Choices.__slots__
            if getattr(found, name) is not None
        }

    assert run() == run()


# --- headroom within a model ----------------------------------------------------------------------

FILLED = st.tuples(
    st.floats(0.0, 2.0),  # load
    st.floats(0.0, 5.0),  # log-price
    st.integers(1, 6),  # replicas
)


@given(conditions=st.lists(FILLED, min_size=2, max_size=4), seed=st.integers(0, 9))
@lightly
def test_loads_of_a_models_pools_become_equal(conditions, seed):
    """
    A batch large enough for all of them leaves no two further apart than one request's part, at
    whatever loads, prices and sizes they began.
    """
    names = [f"p{i}" for i in range(len(conditions))]
    live = view(
        *(
            reported(name, replica=f"r{i}", running=10_000)
            for name, (_, _, replicas) in zip(names, conditions, strict=True)
            for i in range(replicas)
        ),
        pools=[working(name) for name in names],
        prices={n: Price(z, load) for n, (load, z, _) in zip(names, conditions, strict=True)},
        latency_ms=dict.fromkeys(names, 1.0),
    )
    n, tracker = 1000, LoadTracker(OPTIONS.pricing)
    tokens = np.random.default_rng(seed).uniform(100.0, 2000.0, n)
    asked = requests(live, n, ["small"], prompt_tokens=tokens)

    choices = decide(asked, live, now_ms=NOON_MS + 10)
    tracker.sent(live, choices.pool, choices.work_s, NOON_MS)

    of_model = live.catalogue.columns_of[0]
    pool_load = tracker.now(live, NOON_MS + 10)
    reached = pool_load.load[of_model]
    assert reached.min() > ROOM_FROM
    assert np.ptp(reached) <= 2.0 * pool_load.per_work[of_model].max() + 1e-9


def test_a_fast_pool_is_preferred_while_it_has_room_and_no_longer():
    """
    To who weighs a second at a tenth of a point, 100 ms less are worth a hundredth of load above
    70 %, and all headroom below.
    """

    def taken(load: float) -> str:
        live = view(
            reported("near", running=1000), reported("far", running=1000), pools=WORKING,
            prices={"near": Price(0.0, load), "far": Price(0.0, 0.1)},
            latency_ms={"near": 100.0, "far": 200.0},
        )  # fmt: skip
        asked = requests(live, models=["small"], preference=weights(1, 0, 0.1, 0))
        return live.catalogue.pool_names[decide(asked, live).pool[0]]

    assert [taken(load) for load in (0.6, 0.705, 0.72)] == ["near", "near", "far"]


def test_two_equal_pools_do_not_take_turns():
    """
    A closed loop: loads follow what is sent at a lag of 5 s and are reported 2 s later, prices
    ascend. One begins empty, the other full; a minute later both carry the same, and go on to.
    """
    names, work = ("near", "far"), np.array([0.0, 2.0])
    load, z, loads, seen = np.array([0.0, 1.6]), np.array([0.0, 2.0]), [], []
    chooser = Chooser(Greedy(), OPTIONS, np.random.default_rng(1))
    ascent = OPTIONS.pricing.ascent
    for second in range(240):
        loads.append(load)
        received = loads[max(0, second - 2)]
        z = np.clip(z + ascent.step_per_s * (received - 1.0), 0.0, ascent.z_max)
        now_ms = NOON_MS + 1000 * second
        live = view(
            *(reported(name, now_ms - 2000, running=1000) for name in names), pools=WORKING,
            prices={n: Price(*pair) for n, *pair in zip(names, z.tolist(), received.tolist(), strict=True)},
            latency_ms=dict.fromkeys(names, 1.0),
        )  # fmt: skip
        asked = requests(live, 20, ["small"], prompt_tokens=np.full(20, 80.0),
                         criticality=np.full(20, 3, np.int8))  # fmt: skip
        placed = chooser.choose(asked, live, now_ms)
        work = np.bincount(placed.pool, placed.work_s, minlength=2)[:2]
        load = load + (1.0 - math.exp(-1.0 / 5.0)) * (work / FULL - load)
        seen.append(load)

    apart = np.abs(np.diff(np.array(seen[60:]), axis=1))
    assert apart.max() < 0.2
    np.testing.assert_allclose(np.mean(seen[60:], axis=0), 1.6 / FULL / 2, rtol=0.03)


# --- spread ----------------------------------------------------------------------------------------


def test_prices_vary_between_requests_by_as_much_as_is_said():
    """
    Factors around one whose logarithms deviate by 0.35, for each request and pool on its own.
    """
    live = two_pools(near=3.0)

    found = spread_of(20_000, live, pool_load_of(live), OPTIONS, np.random.default_rng(2))

    logs = np.log(found)
    assert found.shape == (20_000, len(live.catalogue.pool_names))
    np.testing.assert_allclose(logs.mean(axis=0), 0.0, atol=0.01)
    np.testing.assert_allclose(logs.std(axis=0), OPTIONS.spread, rtol=0.03)
    assert abs(np.corrcoef(logs[:, 0], logs[:, 1])[0, 1]) < 0.03


def test_equal_numbers_give_equal_spreads():
    live = two_pools(near=3.0)

    one, other = (
        spread_of(9, live, pool_load_of(live), OPTIONS, np.random.default_rng(2)) for _ in range(2)
    )

    assert one.tobytes() == other.tobytes()


def test_where_nothing_has_a_price_nothing_varies():
    """
    And no number is drawn: sites without prices decide as they did. Nor for who is blind to them.
    """
    rng = np.random.default_rng(2)
    before = rng.bit_generator.state

    assert spread_of(9, two_pools(), pool_load_of(two_pools()), OPTIONS, rng) is None
    dear = two_pools(near=3.0)
    assert spread_of(9, blind(dear), pool_load_of(blind(dear)), OPTIONS, rng) is None
    assert rng.bit_generator.state == before


def test_spread_varies_what_capacity_is_charged_and_nothing_else():
    """
    Energy is not scarce to one and plenty to the other.
    """
    live = two_pools(near=3.0, far=1.0)
    asked = requests(live, preference=weights(1.0, 30.0, 0.0, 0.25))
    spread = np.full((1, len(live.catalogue.pool_names)), 2.0)

    plain, varied = charged(asked, live), charged(asked, live, spread=spread)

    np.testing.assert_allclose(varied.points - varied.fixed, 2.0 * (plain.points - plain.fixed))
    np.testing.assert_array_equal(varied.fixed, plain.fixed)
    np.testing.assert_array_equal(varied.best, plain.best)


def test_demand_has_a_slope_even_where_all_are_equal():
    """
    Equal requests at a price just as high as the larger model is worth: without spread all go
    together, from one side of it to the other. With it, a third leave for one e^0.3 of price.
    """
    models = [Model(name="small", quality=0.5), Model(name="large", quality=0.75)]
    pools = (working("s"), working("l", "large"))
    even = 0.25 * OPTIONS.value_usd / 0.001  # at this multiple a second of work is a quarter point

    def share(multiple: float, spread: float) -> float:
        options = PlacementOptions(spread=spread)
        live = view(
            reported("s"), reported("l"), models=models, pools=pools, prices={"l": at(multiple)}
        )
        asked = requests(live, 4000, criticality=np.full(4000, 3, np.int8))
        chooser = Chooser(Greedy(), options, np.random.default_rng(3))
        return float(chooser.choose(asked, live, NOON_MS).chosen.mean())

    assert [share(even * factor, 0.0) for factor in (0.95, 1.05)] == [1.0, 0.0]
    cheap, fair, dear = (share(even * math.exp(by), OPTIONS.spread) for by in (-0.3, 0.0, 0.3))
    assert fair == pytest.approx(0.5, abs=0.03)
    assert cheap == pytest.approx(0.804, abs=0.03)  # Φ(0.3 / 0.35)
    assert dear == pytest.approx(0.196, abs=0.03)


# --- preferred models -----------------------------------------------------------------------------

# The large model is better by a quarter of a point, and its pool costs ten times as much.
PREFERRED = [Model(name="small", quality=0.5), Model(name="large", quality=0.75)]
PREFERRED_POOLS = (working("s"), working("l", "large", usd_per_hour=36.0))


def test_a_preferred_model_ignores_scarcity():
    """
    The large model's price has moved all to the small one; what they want has not changed.
    """
    live = view(
        reported("s", load=LOAD), reported("l", load=LOAD), models=PREFERRED, pools=PREFERRED_POOLS,
        prices={"l": at(30.0)},
    )  # fmt: skip

    choices = decide(requests(live), live)

    assert (choices.chosen[0], choices.preferred[0]) == (0, 1)


def test_a_preferred_model_ignores_that_replicas_are_missing_or_queue():
    live = view(
        reported("s", load=LOAD, queued=900, running=1), models=PREFERRED, pools=PREFERRED_POOLS,
        prices={"s": at(50.0)},
    )  # fmt: skip

    choices = decide(requests(live), live)

    assert choices.verdict[0, 1] == Verdict.NO_REPLICA
    assert (choices.chosen[0], choices.preferred[0]) == (0, 1)


@pytest.mark.parametrize(("cost", "preferred"), [(0.0, 1), (27.0, 1), (28.0, 0)])
def test_a_preferred_model_is_charged_what_the_gpus_cost(cost, preferred):
    """
    A second of the large model's work costs 1 cent, of the small one's a tenth of that, and neither
    asks anything of its callers: beyond 0.25 / 0.009 points a dollar the large one is not worth it.
    """
    live = view(models=PREFERRED, pools=PREFERRED_POOLS)

    choices = decide(requests(live, preference=weights(1, cost, 0, 0)), live)

    assert choices.preferred[0] == preferred


@pytest.mark.parametrize(("value_usd", "preferred"), [(0.05, 1), (0.037, 1), (0.035, 0)])
def test_who_does_not_weigh_money_prefers_at_what_it_is_worth_to_the_operator(value_usd, preferred):
    """
    A quarter of a point for 0.9 cents: to an operator who pays 3.6 cents for a whole one, or more.
    """
    live = view(models=PREFERRED, pools=PREFERRED_POOLS)
    options = replace(OPTIONS, value_usd=value_usd)

    choices = decide(requests(live, preference=weights(1, 0, 0, 0)), live, options=options)

    assert choices.preferred[0] == preferred


def test_a_preferred_model_counts_the_list_price_once():
    """
    A model that asks more than its GPUs cost is preferred at that, not at both.
    """
    models = [PREFERRED[0], replace(PREFERRED[1], usd_per_call=0.02)]
    live, rich = view(models=models, pools=PREFERRED_POOLS), replace(OPTIONS, value_usd=1.0)

    asks_usd = float(decide(requests(live), live).cost_usd[0, 1])
    worth = 0.25 / (asks_usd - 0.001)  # points a dollar
    chosen = [
        int(
            decide(requests(live, preference=weights(1, cost, 0, 0)), live, options=rich).preferred[
                0
            ]
        )
        for cost in (worth * 0.99, worth * 1.01)
    ]

    assert asks_usd >= 0.02
    assert chosen == [1, 0]


def test_demand_includes_what_a_policy_explores():
    """
    The fleet carries what is explored, too: who sizes it by the best model alone has too few
    replicas of the others. The large model's price has moved all requests; demand has not changed.
    """
    free = view(
        reported("s", load=0.1), reported("l", load=0.1), models=PREFERRED, pools=PREFERRED_POOLS
    )
    dear = view(
        reported("s", load=LOAD), reported("l", load=LOAD), models=PREFERRED, pools=PREFERRED_POOLS,
        prices={"l": at(300.0)},
    )  # fmt: skip
    asked = requests(free, n=400, preference=weights(1, 20, 0, 0, n=400))
    draws = np.random.default_rng(0).random((400, 2))

    def explored(live: Live) -> Choices:
        pool_load = LoadTracker(OPTIONS.pricing).now(live, NOON_MS)
        return route(asked, live, pool_load, EpsilonGreedy(), draws, None, OPTIONS)

    small = explored(free).preferred == 0
    assert 0.01 < small.mean() < 0.15
    assert explored(dear).chosen.mean() < 0.15
    np.testing.assert_array_equal(explored(dear).preferred == 0, small)


def test_where_nothing_is_charged_demand_is_what_was_chosen():
    live = view(models=[replace(model, usd_per_call=0.02) for model in PREFERRED])
    asked = requests(live, n=100, preference=weights(1, 20, 0, 0, n=100))
    draws = np.random.default_rng(0).random((100, 2))
    pool_load = LoadTracker(OPTIONS.pricing).now(live, NOON_MS)

    choices = route(asked, live, pool_load, default_policy(), draws, None, OPTIONS)

    assert len(np.unique(choices.chosen)) == 2
    np.testing.assert_array_equal(choices.preferred, choices.chosen)


def test_a_preferred_model_is_one_of_those_allowed():
    live = view(models=PREFERRED, pools=PREFERRED_POOLS)

    assert decide(requests(live, models=["small"]), live).preferred.tolist() == [0]


# --- shedding --------------------------------------------------------------------------------------

BANDS = ShedOptions().bands


@pytest.mark.parametrize("level", [0, 1, 2])
def test_share_that_is_shed_rises_through_the_band_of_its_criticality(level):
    """
    At its beginning nobody, half-way half, at its end all; the draw decides.
    """
    low, high = BANDS[level]

    def shed(multiple: float, uniform: float) -> bool:
        live = two_pools(near=multiple, far=multiple + 1)
        asked = requests(live, models=["small"], criticality=np.array([level], np.int8))
        return bool(decide(asked, live, uniform).shed[0])

    half = math.sqrt((1 + low) * (1 + high)) - 1  # shares rise with the log-price
    assert not shed(low * 0.999, 0.0)
    assert shed(half, 0.499)
    assert not shed(half, 0.501)
    assert shed(high * 1.001, 0.9999)


def test_who_may_not_be_refused_never_is():
    dearest = OPTIONS.pricing.ascent.multiple_max
    live = two_pools(near=dearest, far=dearest)
    asked = requests(live, models=["small"], criticality=np.array([3], np.int8))

    assert not decide(asked, live, uniform=0.0).shed[0]


def test_nobody_is_shed_who_has_a_cheap_pool_to_go_to():
    """
    Of the same model, or of another one that is allowed; not one without replicas, nor one that the
    request's own limit rules out.
    """
    lowest = {"criticality": np.zeros(1, np.int8)}

    def multiple(live: Live, **asked: object) -> tuple[float, bool]:
        choices = decide(requests(live, **lowest | asked), live, uniform=0.0)
        return round(float(choices.multiple[0]), 6), bool(choices.shed[0])

    assert multiple(two_pools(60.0, 2.0), models=["small"]) == (2.0, False)
    assert multiple(two_pools(60.0, 60.0)) == (0.0, False)
    assert multiple(two_pools(60.0, 60.0), models=["small"]) == (60.0, True)
    gone = view(
        reported("near", load=LOAD), reported("far", state="draining"), pools=WORKING,
        prices={"near": at(60.0), "far": at(0.5)},
    )  # fmt: skip
    assert multiple(gone, models=["small"]) == (60.0, True)
    dear = two_pools(60.0, 60.0)  # only small is cheaper than a thousandth of a dollar
    assert multiple(dear, cost_usd_max=[0.0005]) == (60.0, True)


@pytest.mark.parametrize(
    ("load", "multiple"), [(0.3, 0.0), (ROOM_FROM, 0.0), (0.85, 30.0), (1.0, 60.0), (2.0, 60.0)]
)
def test_nobody_is_refused_while_a_pool_has_room(load, multiple):
    """
    A price outlasts the rush that made it. What counts for refusals is as much of it as the pool is
    filled between 70 and 100 %.
    """
    damped = OPTIONS.pricing.ascent.damping * (load - 1.0)
    price = Price(math.log1p(60.0) - damped, load)
    live = view(reported("near"), pools=(working("near"),), prices={"near": price})
    asked = requests(live, models=["small"], criticality=np.zeros(1, np.int8))

    found = decide(asked, live, uniform=0.0)

    assert found.multiple[0] == pytest.approx(multiple, abs=1e-6)
    assert bool(found.shed[0]) is (multiple > 0.0)


def test_a_request_that_no_model_fits_is_not_shed():
    live = two_pools(60.0, 60.0)
    asked = requests(live, cost_usd_max=[1e-12], criticality=np.zeros(1, np.int8))

    choices = decide(asked, live, uniform=0.0)

    assert (choices.fits[0], choices.shed[0]) == (False, False)


def test_waiting_counts_a_little_even_for_who_does_not_weigh_it():
    """
    Between pools that cost the request the same, the faster one is taken.
    """
    live = view(latency_ms={"near": 500.0, "far": 499.0})

    assert 0.0 < LATENCY_WEIGHT_MIN < 1e-4
    assert (
        live.catalogue.pool_names[decide(requests(live, models=["small"]), live).pool[0]] == "far"
    )
