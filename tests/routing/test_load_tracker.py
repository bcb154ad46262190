"""Between two words of telemetry, a replica's own decisions say how full pools are."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from reporting_pools import WORKING, reported, requests, view, working
from router_bench import NOON_MS

from learners.policies.greedy import Greedy
from load.simulation.loop.trainer import blind
from serve.routing.chooser import Chooser
from serve.routing.live import Live
from serve.routing.load_tracker import FILL_S, FULL, SLOTS_MAX, LoadTracker, PoolLoad
from serve.routing.placement import PlacementOptions
from streams.telemetry.pool_reports import pool_reports
from streams.telemetry.records import RouterState
from streams.training.prices import Price, PricingOptions

PRICING = PricingOptions()
FAST, SLOW = 100.0, 150.0
LATENCY_MS = {"near": FAST, "far": SLOW}


def went(live: Live, n: int, now_ms: int = NOON_MS, chooser: Chooser | None = None) -> Counter[str]:
    """Where n requests for the model go, one after the other."""
    chooser = chooser or Chooser(Greedy(), PlacementOptions(), np.random.default_rng(0))
    found: Counter[str] = Counter()
    for _ in range(n):
        (pool,) = chooser.choose(requests(live, models=["small"]), live, now_ms).pool
        found[live.catalogue.pool_names[pool]] += 1
    return found


def of(pool_load: PoolLoad, live: Live, pool: str = "near") -> tuple[float, float, float]:
    """Latency, load and price of one pool."""
    at = live.catalogue.pool_names.index(pool)
    columns = (pool_load.latency_s * 1000.0, pool_load.load, pool_load.multiple)
    return tuple(float(column[at]) for column in columns)


def send(
    tracker: LoadTracker,
    live: Live,
    pool: str,
    n: int = 1,
    work_s: float = 0.0,
    now_ms: int = NOON_MS,
) -> None:
    at = live.catalogue.pool_names.index(pool)
    tracker.sent(live, np.full(n, at), np.full(n, work_s / n), now_ms)


def in_pools(live: Live) -> dict[str, tuple[int, int, int]]:
    """Requests queued and running, and ready replicas, by pool."""
    found = {pool: of.reports for pool, of in live.loads.items()}
    return {pool: (of.queued, of.running, of.in_state("ready")) for pool, of in found.items()}


# --- waiting ---------------------------------------------------------------------------------------


def test_without_telemetry_the_pool_that_was_fastest_recently_is_taken():
    live = view(latency_ms=LATENCY_MS)

    assert live.loads == {}
    assert went(live, 100) == {"near": 100}


def test_a_queue_sends_requests_elsewhere():
    """
    Ten run at once and ten wait: the next one takes twice as long, which is more than 150 ms.
    """
    live = view(
        reported("near", queued=10, running=10), reported("far", running=10), latency_ms=LATENCY_MS
    )

    assert in_pools(live) == {"near": (10, 10, 1), "far": (0, 10, 1)}
    assert of(LoadTracker(PRICING).now(live, NOON_MS), live)[0] == 200.0
    assert went(live, 1) == {"far": 1}


def test_a_burst_between_two_words_of_telemetry_is_spread():
    """
    By the latencies: after the first five, pools are kept equally slow, 100 (1 + n/10) and
    150 (1 + m/10).
    """
    live = view(reported("near", running=10), reported("far", running=10), latency_ms=LATENCY_MS)

    found = went(live, 100)

    assert found["near"] == pytest.approx(62, abs=2)
    assert found["far"] == pytest.approx(38, abs=2)


def test_what_a_pool_has_finished_meanwhile_does_not_wait():
    """
    In a second, ten that take 100 ms each make room for a hundred.
    """
    live = view(reported("near", running=10), reported("far", running=10), latency_ms=LATENCY_MS)

    assert went(live, 100, NOON_MS + 1000) == {"near": 100}
    assert LoadTracker(PRICING).now(live, NOON_MS + 1000).waiting[:2].tolist() == [
        -100.0,
        pytest.approx(-10 * 1000 / 150),
    ]


def test_newer_telemetry_replaces_what_was_counted():
    chooser = Chooser(Greedy(), PlacementOptions(), np.random.default_rng(0))
    before = view(reported("near", running=1), reported("far", running=1), latency_ms=LATENCY_MS)
    went(before, 50, chooser=chooser)
    later = NOON_MS + 1000
    live = view(
        reported("near", later, running=1), reported("far", later, running=1), latency_ms=LATENCY_MS
    )

    pool_load = chooser._tracker.now(live, later)

    assert not pool_load.waiting.any()
    assert of(pool_load, live, "near")[0] == FAST


def test_a_pool_that_nobody_speaks_of_is_taken_by_its_latency_alone():
    """
    How many it runs at once is not known, so nor is when one more has to wait.
    """
    live = view(reported("near", running=10), latency_ms=LATENCY_MS)
    tracker = LoadTracker(PRICING)
    send(tracker, live, "far", 500)

    assert of(tracker.now(live, NOON_MS), live, "far")[0] == SLOW


def test_a_changed_catalogue_begins_the_count_anew():
    """
    Counts are by column, and the columns are others now.
    """
    tracker = LoadTracker(PRICING)
    live = view(reported("near", running=1))
    send(tracker, live, "near", 5)
    other = view(
        reported("near", running=1),
        reported("new", running=1),
        pools=(working("new", "large"), *WORKING),
    )

    pool_load = tracker.now(other, NOON_MS)

    assert pool_load.waiting.tolist() == [0.0] * len(other.catalogue.pool_names)


def test_a_pool_that_has_just_become_ready_is_empty_and_fills():
    """
    Before it has reported a load or got a price: what is sent there counts, or all would go to it.
    """
    tracker = LoadTracker(PRICING)
    live = view(reported("near", running=1), reported("far", state="starting"), pools=WORKING)
    send(tracker, live, "near", work_s=2.0)
    send(tracker, live, "far", work_s=2.0)

    pool_load = tracker.now(live, NOON_MS)

    assert live.loaded[:2].tolist() == [True, False]
    assert of(pool_load, live)[1] == pytest.approx(2.0 / FULL / FILL_S)
    assert of(pool_load, live, "far")[1] == 0.0


def test_a_pool_that_fell_silent_has_no_load():
    """
    Its replicas are gone, or telemetry is: what they last said is no reason to avoid or to prefer.
    """
    later = NOON_MS + 60_000
    live = view(
        reported("near", queued=90, running=1),
        reported("far", later, running=1),
        latency_ms=LATENCY_MS,
    )

    assert in_pools(live) == {"far": (0, 1, 1)}
    assert pool_reports(live.fleet) == {pool: of.reports for pool, of in live.loads.items()}
    assert went(live, 1, later) == {"near": 1}


def test_where_every_model_has_one_pool_that_does_not_report_nothing_is_counted():
    live = view(pools=())

    pool_load = LoadTracker(PRICING).now(live, NOON_MS)

    assert (pool_load.latency_s == live.pool_latency_ms / 1000.0).all()
    assert not pool_load.load.any()
    assert not pool_load.multiple.any()


# --- load and price --------------------------------------------------------------------------------


def priced(load: float = 0.85, log_price: float = 1.0, **options: object) -> Live:
    """Two pools with work: near has a price, far none."""
    return view(
        reported("near", running=10, load=load),
        reported("far", running=10, load=0.1),
        pools=WORKING,
        prices={"near": Price(log_price, load / PRICING.load_target), "far": Price()},
        **options,
    )


def test_price_is_the_snapshots_with_the_proportional_part():
    """
    At a load of 1.5 times what it should carry, exp(1 + 0.25 · 0.5) − 1.
    """
    live = priced(load=1.5 * PRICING.load_target)

    _, load, multiple = of(LoadTracker(PRICING).now(live, NOON_MS), live)

    assert load == pytest.approx(1.5)
    assert multiple == pytest.approx(math.exp(1 + PRICING.ascent.damping * 0.5) - 1)


def test_work_sent_since_raises_load_and_price_and_time_lowers_them():
    """
    By hand: 4 s of work to one replica, of which half a second was worked off at a load of 0.85.
    At a load of 1 it takes in 0.9 of it a second, until more is known.
    """
    live, tracker = priced(), LoadTracker(PRICING)
    send(tracker, live, "near", 8, work_s=4.0)

    _, load, multiple = of(tracker.now(live, NOON_MS + 500), live)

    by_hand = 0.85 + (4.0 / FULL - 0.85 * 0.5) / FILL_S
    assert load == pytest.approx(by_hand)
    assert multiple == pytest.approx(math.exp(1 + PRICING.ascent.damping * (by_hand - 1)) - 1)
    assert of(tracker.now(live, NOON_MS + 500), live, "far")[2] == 0.0


def test_work_is_shared_by_replicas_and_sent_by_all_routers():
    """
    A router knows its own requests only; it takes the others to send as many.
    """
    records = [reported("near", replica=f"r{i}", load=0.85) for i in range(4)]
    routers = [
        RouterState(source=f"{i:016x}", sequence=1, from_unix_ms=NOON_MS - 1000,
                    to_unix_ms=NOON_MS)
        for i in range(3)
    ]  # fmt: skip
    live = view(*records, *routers, pools=WORKING, prices={"near": Price(1.0, 1.0)})
    tracker = LoadTracker(PRICING)
    send(tracker, live, "near", 1, work_s=2.0)

    _, load, _ = of(tracker.now(live, NOON_MS), live)

    assert load == pytest.approx(1.0 + 2.0 * 3 / 4 / FULL / FILL_S)


# --- how much work a load of one is ----------------------------------------------------------------


def steady(
    tracker: LoadTracker, seconds: int, work_per_s: float, load: float, *, routers: int = 1
) -> Live:
    """So many seconds of work sent a second to one replica that tells this load; the last view."""
    live = None
    for second in range(seconds):
        at_ms = NOON_MS + 1000 * second
        others = [
            RouterState(source=f"{i:016x}", sequence=second, from_unix_ms=at_ms - 1000,
                        to_unix_ms=at_ms)
            for i in range(routers)
        ]  # fmt: skip
        live = view(
            reported("near", at_ms, running=1000), *others, pools=WORKING,
            prices={"near": Price(0.0, load)},
        )  # fmt: skip
        tracker.now(live, at_ms)
        for tenth in range(10):
            send(tracker, live, "near", work_s=work_per_s / 10, now_ms=at_ms + 100 * tenth)
    return live


@pytest.mark.parametrize(
    ("work_per_s", "load", "routers"),
    [(0.15, 1.0, 1), (0.4, 0.5, 1), (0.76, 0.8, 1), (0.2, 0.8, 4), (0.475, 0.5, 2)],
)
def test_at_a_steady_load_a_reckoning_ahead_stays_where_it_is(work_per_s, load, routers):
    """
    However full a load of 1 is, 0.15 to 0.95, and whatever part of the requests a router gets: what
    it sends makes up for what is worked off. The guess of 0.9 alone would be wrong by a quarter of
    a load, or more.
    """
    tracker, seconds = LoadTracker(PRICING), 120

    live = steady(tracker, seconds, work_per_s, load, routers=routers)

    after = tracker.now(live, NOON_MS + 1000 * seconds)
    assert of(after, live)[1] == pytest.approx(load, rel=0.05)


def test_a_pool_beyond_its_limit_is_taken_to_be_at_it():
    """
    Its load tells of what waits, not of how much work a load is.
    """
    per_work = []
    for load in (1.0, 3.0):
        tracker = LoadTracker(PRICING)
        live = steady(tracker, 60, 0.6, load)
        now = tracker.now(live, NOON_MS + 59_000)
        per_work.append(now.per_work[live.catalogue.pool_names.index("near")])
    assert per_work[0] == per_work[1] > 1.2 / FULL / FILL_S


def test_nothing_is_learned_from_a_silence():
    """
    A replica that was not asked for a while knows nothing of what others sent in it.
    """
    tracker = LoadTracker(PRICING)
    before = view(reported("near", running=1), pools=WORKING, prices={"near": Price(0.0, 0.5)})
    tracker.now(before, NOON_MS)
    later = NOON_MS + 11_000
    after = view(
        reported("near", later, running=1), pools=WORKING, prices={"near": Price(0.0, 0.5)}
    )

    per_work = tracker.now(after, later).per_work[after.catalogue.pool_names.index("near")]

    assert per_work == pytest.approx(1.0 / FULL / FILL_S)


# --- what counts, and how long ---------------------------------------------------------------------


def test_what_was_sent_after_telemetrys_time_counts_when_it_arrives():
    """
    Three at 0.0 s, five at 1.5 s. At 2 s word comes of how it was at 1 s: the three are in it.
    """
    tracker = LoadTracker(PRICING)
    before = view(reported("near", running=10))
    send(tracker, before, "near", 3, now_ms=NOON_MS)
    send(tracker, before, "near", 5, now_ms=NOON_MS + 1500)
    after = view(reported("near", NOON_MS + 1000, running=10, queued=7), latency_ms={"near": 1e12})

    pool_load = tracker.now(after, NOON_MS + 2000)

    assert pool_load.waiting[after.catalogue.pool_names.index("near")] == pytest.approx(12.0)


def test_in_a_long_silence_nothing_sent_is_lost_and_memory_is_bounded():
    tracker, n = LoadTracker(PRICING), 4 * SLOTS_MAX
    live = view(reported("near", running=10), latency_ms={"near": 1e12})

    for i in range(n):
        send(tracker, live, "near", now_ms=NOON_MS + 100 * i)

    assert tracker.now(live, NOON_MS).waiting[live.catalogue.pool_names.index("near")] == n
    assert len(tracker._slots) == SLOTS_MAX
    newer = view(reported("near", NOON_MS + 100 * (n - 5), running=10), latency_ms={"near": 1e12})
    assert tracker.now(newer, NOON_MS).waiting[newer.catalogue.pool_names.index("near")] == 5


def test_load_does_not_fall_below_nothing_while_telemetry_is_silent():
    live = priced()

    _, load, multiple = of(LoadTracker(PRICING).now(live, NOON_MS + 3_600_000), live)

    assert load == 0.0
    assert multiple == pytest.approx(math.exp(1 - PRICING.ascent.damping) - 1)


def test_capacity_is_free_to_a_router_that_is_blind_to_pools():
    """
    As the simulator compares with: a view without telemetry and prices.
    """
    pool_load = LoadTracker(PRICING).now(blind(priced()), NOON_MS)

    assert not pool_load.multiple.any() and not pool_load.load.any()


def test_a_pool_in_which_requests_are_no_work_has_no_price():
    """
    There is nothing to charge, so a price would move nobody and only refuse; its load stays.
    """
    live = view(
        reported("near", running=1, load=3.0), reported("far"), prices={"near": Price(4.0, 3.0)}
    )

    _, load, multiple = of(LoadTracker(PRICING).now(live, NOON_MS + 2000), live)

    assert (load, multiple) == (3.0, 0.0)


def test_those_who_were_refused_are_not_counted_as_sent():
    """
    Neither those that no model fits nor those that were shed take up capacity.
    """
    full = Price(math.log1p(40.0), 1.0)
    live = view(
        reported("near", running=1, load=0.85),
        pools=(working("near"),),
        prices={"near": full},
    )
    chooser = Chooser(Greedy(), PlacementOptions(), np.random.default_rng(0))
    asked = requests(live, 3, ["small"], criticality=np.array([0, 3, 3], np.int8),
                     cost_usd_max=[np.inf, np.inf, 1e-12])  # fmt: skip

    choices = chooser.choose(asked, live, NOON_MS)

    assert choices.shed.tolist() == [True, False, False]
    assert choices.fits.tolist() == [True, True, False]
    assert chooser._tracker.now(live, NOON_MS).waiting[0] == 1.0
    assert chooser._tracker._since[0].sum() == 1.0
