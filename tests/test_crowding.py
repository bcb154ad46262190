"""Between two words of telemetry, a replica's own decisions say how full pools are."""

from __future__ import annotations

from collections import Counter

import pytest
from router_bench import NOON_MS, catalogue
from test_live import LiveOptions  # the same options as the view's own tests

from learners.learned import Learned, MemoryOptions
from serve.catalogue import Pool
from serve.crowding import Crowding
from serve.live import Live
from streams.fleet_state import FleetState
from streams.fleet_view import Load, loads
from streams.telemetry import PoolState

POOLS = [Pool(name="near", model="small"), Pool(name="far", model="small")]


def told(pool: str, queued: int, running: int, at_ms: int, source: str = "a") -> PoolState:
    return PoolState(
        pool=pool,
        model="small",
        replica=pool,
        queued=queued,
        running=running,
        source=source * 16,
        sequence=at_ms,
        from_unix_ms=at_ms - 1000,
        to_unix_ms=at_ms,
    )


def view(*records: PoolState, latency_ms: tuple[float, float] = (100.0, 150.0)) -> Live:
    """A view of two pools of one model, and what they last said."""
    fleet = FleetState()
    for record in records:
        fleet.fold(record, record.to_unix_ms)
    live = Live(
        catalogue(pools=POOLS), Learned(MemoryOptions()), "test", LiveOptions(), fleet=fleet
    )
    live.pool_latency_ms = dict(zip(("near", "far"), latency_ms, strict=True))
    live.pools_of["small"] = ("near", "far")
    return live.with_pools(("near", *live.pools[1:]))


def sent(crowding: Crowding, live: Live, n: int, now_ms: int = NOON_MS) -> Counter[str]:
    """Where n requests for the model go, one after the other."""
    went: Counter[str] = Counter()
    for _ in range(n):
        pool = crowding.corrected(live, now_ms).pools[0]
        crowding.sent([pool])
        went[pool] += 1
    return went


def test_without_telemetry_the_pool_that_was_fastest_lately_is_taken():
    live = view()

    assert live.loads == {}
    assert sent(Crowding(), live, 100) == {"near": 100}


def test_a_queue_sends_requests_elsewhere():
    """
    Ten run at once and ten wait: the next one takes twice as long, which is more than 150 ms.
    """
    live = view(told("near", 10, 10, NOON_MS), told("far", 0, 10, NOON_MS, "b"))

    assert sent(Crowding(), live, 1) == {"far": 1}
    assert live.loads == {"near": Load(10, 10), "far": Load(0, 10)}


def test_a_burst_between_two_words_of_telemetry_is_spread():
    """
    By the latencies: after the first five, pools are kept equally slow, 100 (1 + n/10) and
    150 (1 + m/10).
    """
    live = view(told("near", 0, 10, NOON_MS), told("far", 0, 10, NOON_MS, "b"))

    went = sent(Crowding(), live, 100)

    assert went["near"] == pytest.approx(62, abs=2)
    assert went["far"] == pytest.approx(38, abs=2)


def test_what_a_pool_has_finished_meanwhile_does_not_wait():
    """
    In a second, ten that take 100 ms each make room for a hundred.
    """
    live = view(told("near", 0, 10, NOON_MS), told("far", 0, 10, NOON_MS, "b"))

    assert sent(Crowding(), live, 100, NOON_MS + 1000) == {"near": 100}


def test_newer_telemetry_replaces_what_was_counted():
    crowding = Crowding()
    sent(crowding, view(told("near", 0, 1, NOON_MS), told("far", 0, 1, NOON_MS, "b")), 50)
    later = NOON_MS + 1000
    live = view(told("near", 0, 1, later), told("far", 0, 1, later, "b"))

    assert crowding.corrected(live, later).pools[0] == "near"
    assert sent(crowding, live, 1, later) == {"near": 1}


def test_a_pool_that_fell_silent_has_no_load():
    """
    Its replicas are gone, or telemetry is: what they last said is no reason to avoid or to prefer.
    """
    live = view(told("near", 90, 1, NOON_MS), told("far", 0, 1, NOON_MS + 60_000, "b"))

    assert live.loads == {"far": Load(0, 1)}
    assert loads(live.fleet) == live.loads
    assert sent(Crowding(), live, 1, NOON_MS + 60_000) == {"near": 1}


def test_models_with_one_pool_are_not_touched():
    live = Live(catalogue(), Learned(MemoryOptions()), "test", LiveOptions())

    assert Crowding().corrected(live, NOON_MS) is live
