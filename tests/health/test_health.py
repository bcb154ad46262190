"""Who is out, who comes back, and that nothing is refused because of a suspicion."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from serve.health.health import Health, HealthOptions
from serve.health.lease import EndpointLease
from serve.health.outliers import Endpoint, Event, OutlierOptions

OUT = OutlierOptions()


class Watched(Health):
    """Its events can be read."""

    def __init__(self, options: HealthOptions | None = None) -> None:
        self.events: list[Event] = []
        super().__init__(options, self.events.append)

    def drained(self) -> list[Event]:
        """What has happened since the last call, oldest first."""
        events = self.events[:]
        self.events.clear()
        return events


def healthy(**pools: int) -> Watched:
    """Pools with so many endpoints each, named a0, a1, …"""
    health = Watched()
    for pool, n in pools.items():
        health.set_endpoints(pool, [f"{pool}{i}" for i in range(n)], now_s=0.0)
    return health


def lease_of(health: Watched, address: str, now_s: float = 0.0) -> EndpointLease:
    """A lease of a certain endpoint, that is not a probe."""
    for i in range(1000):
        lease = health.pick(address[0], now_s, uniform=(i * 0.618) % 1.0, prefer=address)
        if lease.address == address:
            return lease
        lease.cancelled(now_s)
    raise AssertionError(f"{address} can't be had")


def fail(health: Watched, address: str, now_s: float = 0.0, times: int = 5) -> None:
    for _ in range(times):
        lease_of(health, address, now_s).failed(now_s, "reset")


def endpoint(health: Watched, address: str, now_s: float = 0.0):
    (pool,) = (p for p in health.status(now_s) if p.pool == address[0])
    return next(e for e in pool.endpoints if e.address == address)


def pool(health: Watched, name: str, now_s: float = 0.0):
    return next(p for p in health.status(now_s) if p.pool == name)


def kinds(health: Watched) -> list[str]:
    return [event.kind for event in health.drained()]


def test_defaults_are_envoys():
    """
    envoyproxy.io/docs: config.cluster.v3.OutlierDetection, CircuitBreakers and Panic threshold.
    """
    assert HealthOptions().in_flight_max == 1024  # max_requests
    assert OUT.failures_in_a_row == 5  # consecutive_5xx
    assert OUT.ejection_s == 30.0  # base_ejection_time: 30000ms or 30s
    assert OUT.ejection_s_max == 300.0  # max_ejection_time: 300000ms or 300s
    assert OUT.forgive_s == 10.0  # interval: 10000ms or 10s
    assert OUT.ejected_share_max == 0.10  # max_ejection_percent
    assert OUT.panic_below == 0.50  # healthy_panic_threshold


# Out and back


def test_five_failures_in_a_row_eject_and_four_do_not():
    health = healthy(a=4)
    fail(health, "a1", times=4)
    lease_of(health, "a1").succeeded(0.0)
    fail(health, "a1", times=4)
    assert not endpoint(health, "a1").out

    fail(health, "a1", now_s=7.0, times=1)

    assert endpoint(health, "a1").ejected
    assert endpoint(health, "a1").until_s == 37.0
    (event,) = health.drained()
    assert (event.kind, event.pool, event.endpoint) == ("ejected", "a", "a1")
    assert event.why == "5 failures in a row"


def test_an_ejected_endpoint_gets_nothing_until_its_time_is_up():
    health = healthy(a=4)
    fail(health, "a1")
    taken = {health.pick("a", 29.9, uniform=u / 100, prefer="a1").address for u in range(100)}
    assert taken == {"a0", "a2", "a3"}


def test_a_share_of_failures_ejects_though_never_two_are_in_a_row():
    """
    Three in ten, spread out: Envoy's five in a row would never see it.
    """
    health = healthy(a=4)
    for i in range(9):
        lease = lease_of(health, "a1")
        lease.failed(0.0, "reset") if i in (1, 4) else lease.succeeded(0.0)
    assert not endpoint(health, "a1").out, "nine attempts are too few for a share"
    fail(health, "a1", times=1)
    assert endpoint(health, "a1").ejected
    assert health.drained()[0].why == "3 of the last 10 failed"


def test_only_the_latest_attempts_count_for_the_share():
    """
    Five failures, far enough back, are forgotten: the window holds twenty.
    """
    endpoint = Endpoint("a0")
    for failed in [True] * 4 + [False] * 20 + [True, False] * 2 + [True]:
        endpoint.judge(failed=failed, window=OUT.window)
    assert endpoint.complaint(OUT) == ""
    assert (endpoint.failed_latest.bit_count(), endpoint.judged_latest) == (3, 20)


@pytest.mark.parametrize("seed", range(20))
def test_half_of_the_requests_failing_ejects_within_forty(seed):
    rng, endpoint = random.Random(seed), Endpoint("a0")
    for _ in range(100):
        endpoint.judge(failed=False, window=OUT.window)
    for _ in range(40):
        endpoint.judge(failed=rng.random() < 0.5, window=OUT.window)
        if endpoint.complaint(OUT):
            return
    raise AssertionError("not seen")


def test_each_ejection_is_longer_up_to_five_minutes():
    """
    30 s times the number of ejections: a probe that fails is one more.
    """
    health, now_s, lasted_s = healthy(a=4), 0.0, []
    fail(health, "a1")
    for _ in range(13):
        until_s = endpoint(health, "a1").until_s
        lasted_s.append(until_s - now_s)
        now_s = until_s
        probe = health.pick("a", now_s, uniform=0.5)
        assert probe.probe and probe.address == "a1"
        probe.failed(now_s, "reset")
    assert lasted_s == [30.0 * min(i, 10) for i in range(1, 14)]
    assert endpoint(health, "a1").ejections == 14

    # Envoy's multiplier stops at 11, one above what the longest ejection needs.
    now_s = endpoint(health, "a1").until_s
    health.pick("a", now_s, uniform=0.5).succeeded(now_s)
    fail(health, "a1", now_s=now_s + 20.0)
    assert endpoint(health, "a1").until_s == now_s + 20.0 + 300.0


@pytest.mark.parametrize(
    ("rest_s", "next_s"), [(0.0, 120.0), (9.9, 120.0), (10.0, 90.0), (25.0, 60.0), (999.0, 30.0)]
)
def test_good_health_is_credited_by_the_ten_seconds(rest_s, next_s):
    """
    Out three times, then healthy for a while: each 10 s take one off the next multiplier.
    """
    health = healthy(a=4)
    fail(health, "a1")
    health.pick("a", 30.0, uniform=0.5).failed(30.0, "reset")
    health.pick("a", 90.0, uniform=0.5).failed(90.0, "reset")
    health.pick("a", 180.0, uniform=0.5).succeeded(180.0)

    fail(health, "a1", now_s=180.0 + rest_s)

    assert endpoint(health, "a1").until_s == 180.0 + rest_s + next_s


def test_one_probe_at_a_time_until_one_succeeds():
    health = healthy(a=1)
    fail(health, "a0")
    probe = health.pick("a", 30.0, uniform=0.5)
    assert probe.probe
    assert [health.pick("a", 30.0, uniform=0.5).probe for _ in range(3)] == [False] * 3
    assert health.reason("a", 30.0) == "probing"

    probe.failed(31.0, "timeout")
    assert health.reason("a", 31.0) == "unhealthy"
    assert health.reason("a", 91.0) == ""
    health.pick("a", 91.0, uniform=0.5).succeeded(92.0)
    assert health.reason("a", 92.0) == ""
    assert not endpoint(health, "a0").out
    assert kinds(health) == ["ejected", "panic", "ejected", "readmitted", "panic over"]


def test_a_cancelled_probe_makes_way_for_another_at_once():
    health = healthy(a=1)
    fail(health, "a0")
    health.pick("a", 30.0, uniform=0.5).cancelled(30.5)
    assert endpoint(health, "a0").until_s == 30.0, "no judgement"
    assert health.pick("a", 30.5, uniform=0.5).probe


def test_what_began_before_an_ejection_judges_nothing_after_it():
    """
    Eight requests hang while the endpoint goes out and comes back; their end is old news.
    """
    health = healthy(a=4)
    stale = [lease_of(health, "a1") for _ in range(8)]
    fail(health, "a1")
    stale[0].succeeded(1.0)
    stale[1].failed(1.0, "reset")
    assert endpoint(health, "a1", 1.0).until_s == 30.0

    health.pick("a", 30.0, uniform=0.5).succeeded(30.0)
    for lease in stale[2:]:
        lease.failed(31.0, "timeout")

    assert not endpoint(health, "a1", 31.0).out
    assert endpoint(health, "a1", 31.0).in_flight == 0
    assert endpoint(health, "a1", 31.0).failures == {"reset": 6, "timeout": 6}, "counted, though"


def test_what_began_while_it_was_out_judges_nothing_after_it():
    """
    In panic an endpoint that is out serves; what it then fails is no news once a probe succeeded.
    """
    health = healthy(a=1)
    fail(health, "a0")
    stale = [health.pick("a", 1.0, uniform=0.5) for _ in range(8)]
    health.pick("a", 30.0, uniform=0.5).succeeded(30.0)
    for lease in stale:
        lease.failed(31.0, "timeout")
    assert not endpoint(health, "a0", 31.0).out


def test_no_second_probe_goes_out_because_the_pool_changed():
    """
    Neither because another endpoint goes out, nor because one is added.
    """
    health = healthy(a=20)
    fail(health, "a1")
    fail(health, "a2")
    probe = health.pick("a", 30.0, uniform=0.5)
    fail(health, "a3", now_s=30.0)
    assert not health.pick("a", 31.0, uniform=0.5).probe
    health.set_endpoints("a", [f"a{i}" for i in range(21)], now_s=31.0)
    assert not health.pick("a", 31.0, uniform=0.5).probe
    probe.succeeded(31.0)
    second = health.pick("a", 31.0, uniform=0.5)
    assert second.probe and second.address != probe.address


def test_a_cancelled_attempt_neither_breaks_nor_makes_a_row():
    health = healthy(a=4)
    fail(health, "a1", times=4)
    lease_of(health, "a1").cancelled(0.0)
    assert not endpoint(health, "a1").out
    fail(health, "a1", times=1)
    assert endpoint(health, "a1").out


# How many


@pytest.mark.parametrize(("n", "ejected_max"), [(1, 1), (2, 1), (10, 1), (19, 1), (20, 2), (39, 3)])
def test_a_tenth_of_a_pool_is_ejected_at_most_but_one_always_may_be(n, ejected_max):
    health = healthy(a=n)
    failing = [f"a{i}" for i in range(min(n, 5))]
    for address in failing:
        fail(health, address)
    ejected = [e.address for e in pool(health, "a").endpoints if e.ejected]
    assert ejected == failing[:ejected_max]
    assert [e.address for e in pool(health, "a").endpoints if e.out] == failing


def test_who_is_out_beyond_the_tenth_goes_on_serving_until_there_is_room():
    health = healthy(a=10)
    fail(health, "a1")
    fail(health, "a2")
    assert kinds(health) == ["ejected", "not ejected"]
    served = {health.pick("a", 1.0, uniform=u / 100).address for u in range(100)}
    assert "a2" in served and "a1" not in served

    health.pick("a", 30.0, uniform=0.5).succeeded(30.0)  # a1 is back

    assert endpoint(health, "a2").ejected
    assert kinds(health) == ["readmitted", "ejected"]


def test_fewer_endpoints_make_room_for_fewer_ejections():
    """
    Of two out of twenty, one must serve again when only twelve are left.
    """
    health = healthy(a=20)
    fail(health, "a1")
    fail(health, "a2")
    health.set_endpoints("a", [f"a{i}" for i in range(12)], now_s=1.0)
    assert [e.address for e in pool(health, "a").endpoints if e.ejected] == ["a1"]
    assert endpoint(health, "a2").out


@pytest.mark.parametrize(("n_out", "panic"), [(2, False), (3, True)])
def test_with_fewer_than_half_healthy_health_is_ignored_within_the_pool(n_out, panic):
    health = healthy(a=4)
    for i in range(n_out):
        fail(health, f"a{i}")
    served = {health.pick("a", 1.0, uniform=u / 100).address for u in range(100)}
    assert ("a0" in served) is panic
    assert pool(health, "a").panic is panic
    assert ("panic" in kinds(health)) is panic


# Among pools


def test_a_pool_with_none_healthy_comes_last_while_another_can_answer():
    """
    Even though a tenth is all that is ejected of it.
    """
    health = healthy(a=3, b=3)
    for i in range(3):
        fail(health, f"a{i}")
        expected = ["b", "a"] if i == 2 else ["a", "b"]
        assert health.order(["a", "b"], 1.0) == expected
    assert health.reason("a", 1.0) == "unhealthy"
    assert health.pick("a", 1.0, uniform=0.5) is not None, "whoever asks has nothing better"


def test_a_broken_pool_costs_one_request_per_probe():
    """
    Three replicas dead for ten minutes, ten requests a second, another pool answers.
    """
    health, cost = healthy(a=3, b=3), []
    for i in range(6000):
        now_s = i / 10
        for name in health.order(["a", "b"], now_s):
            lease = health.pick(name, now_s, uniform=(i * 0.618) % 1.0)
            if name == "b":
                lease.succeeded(now_s)
                break
            lease.failed(now_s, "reset")
            cost.append(now_s)
    # Until known, then each replica at 30, 90, 180, 300, 450 s.
    assert len(cost) - sum(t < 30.0 for t in cost) <= 3 * 5
    assert sum(t < 30.0 for t in cost) <= 3 * 5 + 5


def test_with_no_pool_able_to_answer_the_ranking_stands():
    health = healthy(a=1, b=1)
    fail(health, "a0")
    fail(health, "b0")
    health.drained()
    for _ in range(3):
        assert health.order(["a", "nowhere", "b"], 1.0) == ["a", "nowhere", "b"]
    assert kinds(health) == ["panic"], "told once, not per request"
    health.order(["a", "b"], 12.0)
    assert kinds(health) == ["panic"]


def test_one_good_pool_of_three_is_enough():
    """
    See `Health.order`: the ranking would send every request to two dead pools first.
    """
    health = healthy(a=1, b=1, c=1)
    fail(health, "a0")
    fail(health, "b0")
    assert health.order(["a", "b", "c"], 1.0) == ["c", "a", "b"]


def test_every_reason_has_its_name():
    health = Watched(HealthOptions(in_flight_max=1))
    for name in "ab":
        health.set_endpoints(name, [f"{name}0"], 0.0)
    health.set_endpoints("e", [], 0.0)
    assert [health.reason(p, 0.0) for p in ("a", "e", "nowhere")] == [
        "",
        "no endpoints",
        "no endpoints",
    ]
    assert health.pick("e", 0.0, uniform=0.5) is health.pick("nowhere", 0.0, uniform=0.5) is None

    lease = health.pick("a", 0.0, uniform=0.5)
    assert health.reason("a", 0.0) == "full"
    assert health.order(["a", "b"], 0.0) == ["b", "a"]
    lease.cancelled(0.0)
    assert health.reason("a", 0.0) == ""


def test_a_full_breaker_refuses_and_says_so_once():
    health = healthy(a=2)
    leases = [health.pick("a", 0.0, uniform=0.5) for _ in range(1024)]
    assert [health.pick("a", 0.0, uniform=0.5) for _ in range(3)] == [None] * 3
    assert pool(health, "a").refusals == 3
    assert kinds(health) == ["breaker open"]
    leases[0].succeeded(0.0)
    assert health.pick("a", 0.0, uniform=0.5) is not None


# Which endpoint


def test_the_less_loaded_of_two_is_taken():
    health = healthy(a=2)
    busy = health.pick("a", 0.0, uniform=0.0)
    other = {health.pick("a", 0.0, uniform=u).address for u in (0.0,)}
    assert other == {"a0", "a1"} - {busy.address}


def test_two_choices_are_fair_and_even():
    """
    With nothing in flight all are alike; with leases held, loads differ by little.
    """
    health, rng = healthy(a=8), random.Random(5)
    counts = Counter()
    for _ in range(8000):
        lease = health.pick("a", 0.0, uniform=rng.random())
        counts[lease.address] += 1
        lease.succeeded(0.0)
    assert all(850 < counts[f"a{i}"] < 1150 for i in range(8))

    for _ in range(800):
        health.pick("a", 0.0, uniform=rng.random())
    loads = [e.in_flight for e in pool(health, "a").endpoints]
    assert max(loads) - min(loads) <= 6


@given(st.integers(2, 40), st.floats(0.0, 1.0, exclude_max=True), st.data())
@lightly
def test_what_is_avoided_is_not_chosen_while_there_is_another(n, uniform, data):
    health = healthy(a=n)
    avoid = f"a{data.draw(st.integers(0, n - 1))}"
    assert health.pick("a", 0.0, uniform=uniform, prefer=avoid, avoid=avoid).address != avoid


def test_a_session_keeps_its_endpoint_until_that_is_clearly_more_loaded():
    health = healthy(a=2)
    held = [health.pick("a", 0.0, uniform=0.0, prefer="a1") for _ in range(9)]
    assert [lease.address for lease in held] == ["a1"] * 9
    assert health.pick("a", 0.0, uniform=0.0, prefer="a1").address == "a0"

    for _ in range(19):
        lease_of(health, "a0")
        lease_of(health, "a1")
    assert health.pick("a", 0.0, uniform=0.0, prefer="a1").address == "a1", (
        "28 to 20 is not 1.5 times"
    )


def test_a_session_leaves_an_endpoint_that_is_out_or_gone():
    health = healthy(a=4)
    fail(health, "a1")
    assert health.pick("a", 1.0, uniform=0.0, prefer="a1").address != "a1"
    assert health.pick("a", 1.0, uniform=0.0, prefer="elsewhere").address in {"a0", "a2", "a3"}


def test_a_probe_goes_out_though_every_session_prefers_another():
    health = healthy(a=4)
    fail(health, "a1")
    assert health.pick("a", 30.0, uniform=0.0, prefer="a0").address == "a1"


# Coming and going


def test_endpoints_that_stay_keep_their_state_and_those_that_return_begin_anew():
    health = healthy(a=3)
    fail(health, "a1")
    lease = lease_of(health, "a0")
    health.set_endpoints("a", ["a1", "a9", "a9"], now_s=1.0)
    assert [e.address for e in pool(health, "a").endpoints] == ["a1", "a9"]
    assert endpoint(health, "a1").out and not endpoint(health, "a9").out
    assert pool(health, "a").in_flight == 1
    lease.failed(2.0, "gone")
    assert pool(health, "a").in_flight == 0
    assert pool(health, "a").failures == {"reset": 5, "gone": 1}

    health.set_endpoints("a", ["a0"], now_s=3.0)
    health.set_endpoints("a", ["a1"], now_s=3.0)
    assert not endpoint(health, "a1").out


def test_a_probe_whose_endpoint_has_gone_leaves_room_for_the_next():
    health = healthy(a=2)
    fail(health, "a0")
    fail(health, "a1")
    probe = health.pick("a", 30.0, uniform=0.5)
    other = ({"a0", "a1"} - {probe.address}).pop()
    health.set_endpoints("a", [other], now_s=30.0)
    second = health.pick("a", 30.0, uniform=0.5)
    assert second.probe and second.address == other
    probe.succeeded(31.0)
    assert health.reason("a", 31.0) == "probing"
    second.succeeded(31.0)
    assert health.reason("a", 31.0) == ""


# Waits


def test_a_lease_is_finished_once_and_has_one_first_token():
    health = healthy(a=1)
    for finish in (
        lambda lease: lease.succeeded(1.0),
        lambda lease: lease.failed(1.0, "x"),
        lambda lease: lease.cancelled(1.0),
    ):
        lease = health.pick("a", 0.0, uniform=0.5)
        lease.first_token(0.5)
        with pytest.raises(AssertionError):
            lease.first_token(0.6)
        finish(lease)
        for again in (
            lambda lease: lease.succeeded(1.0),
            lambda lease: lease.failed(1.0, "x"),
            lambda lease: lease.cancelled(1.0),
        ):
            with pytest.raises(AssertionError):
                again(lease)
        with pytest.raises(AssertionError):
            lease.first_token(1.0)
    assert pool(health, "a").in_flight == 0


def waited(health: Watched, address: str, wait_s: float, times: int, at_s: float = 0.0) -> None:
    for _ in range(times):
        lease = lease_of(health, address, at_s - wait_s)
        lease.first_token(at_s)
        lease.succeeded(at_s)


def test_delays_follow_the_pools_own_waits():
    health = healthy(a=2, b=1)
    waited(health, "a0", 0.2, 50)
    waited(health, "b0", 2.0, 50)
    assert health.hedge_delay_s("a", 0.0) == pytest.approx(0.2, rel=0.1)
    assert health.hedge_delay_s("b", 0.0) == pytest.approx(2.0, rel=0.1)
    assert health.first_token_timeout_s("b", 0.0) == pytest.approx(6.0, rel=0.1)


def test_attempts_cut_short_by_a_hedge_do_not_shrink_the_delay():
    """
    A tenth takes 5 s, but is cut off at 2.1 s. Seen only as they end, waits would all be 0.2 s.
    """
    health = healthy(a=2)
    for i in range(200):
        lease = lease_of(health, "a0", i * 0.1)
        if i % 10 == 0:
            lease.cancelled(i * 0.1 + 2.1)
        else:
            lease.first_token(i * 0.1 + 0.2)
            lease.succeeded(i * 0.1 + 0.2)
    assert health.hedge_delay_s("a", 22.0) == pytest.approx(2.1, rel=0.1)


def test_a_caller_who_leaves_early_says_nothing_of_the_wait():
    health = healthy(a=2)
    waited(health, "a0", 1.0, 50)
    for _ in range(50):
        lease_of(health, "a0", 1.0).cancelled(1.01)
    assert health.hedge_delay_s("a", 3.0) == pytest.approx(1.0, rel=0.1)


def test_an_endpoint_far_slower_than_its_peers_is_slow():
    """
    It always was, so only the peers can tell.
    """
    health = healthy(a=4)
    for i in range(4):
        waited(health, f"a{i}", 3.0 if i == 2 else 0.5, 20)
    assert [e.slow for e in pool(health, "a").endpoints] == [False, False, True, False]
    assert not health.slow("a", 0.0)


@pytest.mark.parametrize(("then_s", "is_slow"), [(0.9, False), (4.0, True)])
def test_a_pool_far_slower_than_it_was_is_slow(then_s, is_slow):
    health = healthy(a=1)
    waited(health, "a0", 0.2, 200)
    assert not health.slow("a", 0.0)
    waited(health, "a0", then_s, 30, at_s=10.0)
    assert health.slow("a", 10.0) is is_slow
    assert endpoint(health, "a0", 10.0).slow is is_slow
    assert not health.slow("a", 41.0), "long ago: not known any more"


def test_one_long_wait_is_not_slowness():
    health = healthy(a=1)
    waited(health, "a0", 0.2, 100)
    waited(health, "a0", 60.0, 1, at_s=1.0)
    assert not health.slow("a", 1.0)


def test_ejection_and_return_leave_a_line_each_in_the_log(caplog):
    """
    Which endpoint, why, and for how long; nothing where nothing happens.
    """
    caplog.set_level("INFO")
    health = Health()
    health.set_endpoints("a", ["a0", "a1", "a2"], 0.0)
    lease_of(health, "a1").succeeded(0.0)
    assert caplog.messages == []

    fail(health, "a1", now_s=1.0)
    lease_of(health, "a1", now_s=31.0).succeeded(31.0)

    assert caplog.messages == [
        "pool a, endpoint a1: ejected, 5 failures in a row; one request tries it in 30 s",
        "pool a, endpoint a1: readmitted, probe succeeded",
    ]


def test_a_wait_that_was_given_up_counts_as_one_of_that_length():
    """
    Learned from answers alone the limit would stay too short for a pool that has become slower.
    """
    health = healthy(a=1)
    for _ in range(30):
        lease = lease_of(health, "a0")
        lease.first_token(0.1)
        lease.succeeded(0.1)
    before_s = health.first_token_timeout_s("a", 10.0)
    for _ in range(3):
        lease_of(health, "a0", now_s=10.0).failed(10.0 + before_s, "late", was_late=True)

    assert health.first_token_timeout_s("a", 20.0) >= 2.9 * before_s


def test_an_endpoint_that_wants_to_be_left_alone_gets_no_call_until_then():
    """
    Not even as the last resort; a pause of a year is no pause of a year.
    """
    health = healthy(a=1, b=2)
    lease_of(health, "a0").overloaded(0.0, "overloaded", pause_s=37.0)
    health.pick("b", 0.0, uniform=0.0).overloaded(0.0, "overloaded", pause_s=3e7)

    assert health.reason("a", 1.0) == "overloaded" and health.paused_for_s("a", 7.0) == 30.0
    assert health.pick("a", 36.9, uniform=0.5) is None
    assert health.pick("a", 37.0, uniform=0.5) is not None
    assert health.reason("b", 1.0) == "" and health.paused_for_s("b", 1.0) is None
    addresses = {health.pick("b", 1.0, uniform=u / 10).address for u in range(10)}
    assert len(addresses) == 1
    assert "b0" in {health.pick("b", 700.0, uniform=u / 10).address for u in range(10)}


def test_a_pool_is_full_when_those_that_may_be_asked_hold_as_much_as_they_may():
    """
    An endpoint that was just ejected has room, and is no help: its pool is full, not able.
    """
    health = healthy(p=2)
    fail(health, "p0")
    leases = [health.pick("p", 0.5, uniform=0.5, most=2.0) for _ in range(2)]

    assert [lease.address for lease in leases] == ["p1", "p1"]
    assert health.reason("p", 0.5, most=2.0) == "full"
    assert health.pick("p", 0.5, uniform=0.5, most=2.0) is None
    assert health.reason("p", 0.5) == "" and health.reason("p", 0.5, most=3.0) == ""
    leases[0].succeeded(2.0)
    assert health.reason("p", 2.0, most=2.0) == ""


def test_who_was_late_from_the_end_of_too_long_a_queue_ejects_nobody():
    """
    It came before the limit was known, and waits for those before it: the server is not stuck.
    """
    health = healthy(p=1)
    queue = [health.pick("p", 0.0, uniform=0.5) for _ in range(20)]
    assert health.pick("p", 1.0, uniform=0.5, most=8.0) is None

    for lease in queue[8:]:
        lease.failed(30.0, "late", was_late=True)
    assert not endpoint(health, "p0", 30.0).ejected
    for lease in queue[:8]:
        lease.failed(30.0, "late", was_late=True)
    assert endpoint(health, "p0", 30.0).ejected


@pytest.mark.parametrize(("answers", "ejected"), [(8, False), (0, True)])
def test_whose_turn_has_not_come_ejects_nobody_also_where_no_limit_is_known(answers, ejected):
    """
    Twenty come at once to a server that takes eight: what they wait for are those before them. One
    that answers nobody is stuck.
    """
    health = healthy(p=1)
    queue = [health.pick("p", 0.0, uniform=0.5) for _ in range(20)]
    for lease in queue[:answers]:
        lease.first_token(2.0)

    for lease in queue[8:]:
        lease.failed(10.0, "late", was_late=True)

    assert endpoint(health, "p0", 10.0).ejected is ejected


def test_who_is_overtaken_by_more_than_were_there_is_no_victim_of_a_queue():
    """
    A server that leaves some requests lying while it answers others is to blame for them.
    """
    health = healthy(p=1)
    left = [health.pick("p", 0.0, uniform=0.5) for _ in range(5)]
    for now_s in range(1, 7):
        lease = health.pick("p", float(now_s), uniform=0.5)
        lease.first_token(now_s + 0.5)
        lease.cancelled(now_s + 0.6)

    for lease in left:
        lease.failed(10.0, "late", was_late=True)

    assert endpoint(health, "p0", 10.0).ejected


def test_a_pool_is_not_full_while_a_server_that_is_out_may_be_back():
    """
    The next request finds out; or all would be refused for as long as the others are full.
    """
    health = healthy(p=2)
    for _ in range(5):
        lease_of(health, "p0").failed(0.0, "late", was_late=True)
    for _ in range(2):
        health.pick("p", 1.0, uniform=0.5, most=2.0)

    assert health.reason("p", 29.0, most=2.0) == "full"
    assert health.reason("p", 31.0, most=2.0) == ""
    assert health.pick("p", 31.0, uniform=0.5, most=2.0).address == "p0"
    assert health.reason("p", 31.0, most=2.0) == "full"  # one probe at a time


# Needed before its time


def half_gone(now_s: float = 0.0, **how: bool) -> Watched:
    """Of a pool of two, a1 is ejected, and a0 holds four requests: for four at the most it is full."""
    health = healthy(a=2)
    for _ in range(5):
        lease_of(health, "a1", now_s).failed(now_s, "reset", **how)
    assert endpoint(health, "a1", now_s).ejected
    for _ in range(4):
        lease_of(health, "a0", now_s)
    return health


def needed(health: Watched, now_s: float) -> EndpointLease | None:
    return health.pick("a", now_s, uniform=0.5, most=4)


def test_who_is_ejected_is_tried_where_the_others_are_full():
    """
    A pool of two would do half of its work for thirty seconds, and refuse callers meanwhile,
    because of one bad moment. One request at a time finds out, a second after the ejection.
    """
    health = half_gone()
    assert needed(health, 0.9) is None and health.reason("a", 0.9, most=4) == "full"
    assert health.reason("a", 1.0, most=4) == ""

    lease = needed(health, 1.0)

    assert lease.probe and lease.address == "a1"
    assert needed(health, 1.5) is None and health.reason("a", 1.5, most=4) == "full"
    lease.succeeded(2.0)
    assert not endpoint(health, "a1").out
    assert needed(health, 2.0).address == needed(health, 2.0).address == "a1"


def test_while_another_has_room_nobody_is_tried_before_their_time():
    health = half_gone()
    assert {health.pick("a", 29.0, uniform=0.5, most=math.inf).address for _ in range(9)} == {"a0"}


def test_a_probe_before_its_time_that_fails_lengthens_nothing_and_is_rarer_each_time():
    """
    Who is gone costs a pool that is full five requests in thirty seconds, and is out for no longer.
    """
    health, tried = half_gone(), []
    for tenth in range(300):
        lease = needed(health, tenth / 10)
        if lease:
            tried.append(tenth / 10)
            lease.failed(tenth / 10, "reset")

    assert tried == [1.0, 3.0, 7.0, 15.0]
    assert endpoint(health, "a1").until_s == 30.0
    assert needed(health, 30.0).probe


def test_who_was_ejected_for_being_silent_is_not_tried_before_its_time():
    """A caller would wait for it, which is worse than to be refused at once."""
    health = half_gone(was_late=True)
    assert all(needed(health, now_s) is None for now_s in (1.0, 10.0, 29.9))
    assert needed(health, 30.0).probe


def test_who_wants_to_be_left_alone_is_not_tried_before_their_time_either():
    """And where all are asked anyhow, because few are healthy, nobody is tried beyond the limit."""
    health = half_gone()
    needed(health, 1.0).overloaded(1.0, "overloaded", pause_s=20.0)
    assert needed(health, 20.9) is None
    assert needed(health, 21.0).probe

    alone = healthy(a=1)
    fail(alone, "a0")
    for _ in range(4):
        lease_of(alone, "a0", 1.0)
    assert needed(alone, 20.0) is None
