"""What a scaler sees of a snapshot: every figure by hand."""

from __future__ import annotations

import math

import pytest
from reporting_pools import reported

from infra.autoscaling.contract import Demand, Observed, PoolCondition
from infra.autoscaling.live.observe import DEVIATIONS, RECENT_MS, observe
from infra.capacity.fleet import Fleet, GpuType, PoolPlan
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.fleet_view import demand_by_model, prompt_variation
from streams.telemetry.histogram import TOKENS
from streams.telemetry.received import SILENT_MS
from streams.telemetry.records import ClassWindow, DemandWindow, MixWindow, RouterState, Workload
from streams.training.prices import Price, Prices

NOW_MS = 1_790_000_060_000  # where a slot ends
SECONDS = 60

L4 = GpuType(
    name="l4", memory_bytes=24e9, bandwidth_bytes_per_s=3e11, bf16_flops=1e14, fp8_flops=2e14,
    power_w=72.0, usd_per_hour=0.7, available=8, startup_s=120.0,
)  # fmt: skip
FLEET = Fleet(
    gpus=(L4,),
    pools=tuple(
        PoolPlan(name=name, model=model, backend="emulated", region=region, gpu=L4)
        for name, model, region in (("s-eu", "small", "eu"), ("s-us", "small", "us"),
                                    ("l-eu", "large", "eu"))
    ),
)  # fmt: skip
OUTPUT_TOKENS = {"small": 200.0, "large": 400.0}


def a_minute() -> FleetState:
    """A minute in which every second brought the same."""
    state = FleetState()
    for second in range(SECONDS):
        to_ms = NOW_MS - 1000 * (SECONDS - 1 - second)
        head = {"from_unix_ms": to_ms - 1000, "to_unix_ms": to_ms}
        demand = [
            DemandWindow(model="large", requests=3, prompt_tokens_sum=1200, fixed=2),
            DemandWindow(model="small", requests=1, prompt_tokens_sum=90),
            DemandWindow(model="other", requests=5, prompt_tokens_sum=5),
        ]
        classes = [ClassWindow(name="chat", arrivals=9, shed=2, demand=demand)]
        mix = [
            MixWindow(model="small", pool="s-eu", decisions=4),
            MixWindow(model="large", pool="l-eu", decisions=2),
        ]
        one, other = "a" * 16, "b" * 16
        state.fold(Workload(classes=classes, source=one, sequence=2 * second, **head), to_ms)
        state.fold(
            RouterState(mix=mix, loop_busy_share=0.5, source=one, sequence=2 * second + 1, **head),
            to_ms,
        )
        state.fold(RouterState(loop_busy_share=0.25, source=other, sequence=second, **head), to_ms)
        for replica, gauges in (
            ("r0", {"load": 0.6, "running": 4, "queued": 1}),
            ("r1", {"load": 1.0, "running": 6}),
            ("r2", {"state": "starting"}),
            ("r3", {"state": "draining", "running": 1}),
        ):
            state.fold(reported("s-eu", to_ms, replica, **gauges), to_ms)
    return state


def seen(now_ms: int = NOW_MS, **changes: object) -> Observed:
    prices = Prices(capacity={"s-eu": Price(1.0, 1.2), "forgotten": Price(2.0, 2.0)})
    given = {"prices": prices, "fleet": FLEET, "output_tokens": OUTPUT_TOKENS, "now_ms": now_ms}
    return observe(a_minute(), **given | changes)


def test_demand_is_by_preferred_model():
    """
    Three a second of 400 tokens each want the large model, whatever they got, and two of them allow
    no other. Of a model that is not known here nothing can be planned.
    """
    assert seen().demands == (
        Demand(class_name="chat", model="large", requests_per_s=pytest.approx(3.0),
               prompt_tokens=pytest.approx(400.0), output_tokens=400.0,
               fixed_share=pytest.approx(2 / 3)),
        Demand(class_name="chat", model="small", requests_per_s=pytest.approx(1.0),
               prompt_tokens=pytest.approx(90.0), output_tokens=200.0),
    )  # fmt: skip


def answering(answers: int, tokens: int) -> FleetState:
    """The minute, and answers of `chat` that ended in its last second."""
    state = a_minute()
    ended = ClassWindow(
        name="chat", output_tokens_sum=answers * tokens,
        output_tokens=[(TOKENS.index(tokens), answers)] if answers else [],
    )  # fmt: skip
    state.fold(
        Workload(classes=[ended], source="c" * 16, sequence=0, from_unix_ms=NOW_MS - 1000,
                 to_unix_ms=NOW_MS),
        NOW_MS,
    )  # fmt: skip
    return state


@pytest.mark.parametrize(
    ("answers", "tokens", "times"),
    [
        (0, 1, 1.0),
        (100, 350, 1.0),
        (100, 1050, 2.0),
        (300, 700, 1.75),
        (900, 35, 0.19),
        (900, 1, 1.0),
    ],
)
def test_answers_are_as_long_as_they_were_in_the_last_minute(answers, tokens, times):
    """
    Of the class's mix of models 350 tokens were learned, which counts as a hundred answers.
    """
    given = {"prices": Prices(), "fleet": FLEET, "output_tokens": OUTPUT_TOKENS, "now_ms": NOW_MS}
    large, small = observe(answering(answers, tokens), **given).demands
    assert large.output_tokens == pytest.approx(400.0 * times)
    assert small.output_tokens == pytest.approx(200.0 * times)


def rising(before: int, recently: int) -> FleetState:
    """A minute of so much demand a second, and then, in its last twenty seconds, so many."""
    state = FleetState()
    for second in range(SECONDS):
        to_ms = NOW_MS - 1000 * (SECONDS - 1 - second)
        n = recently if second >= SECONDS - RECENT_MS // 1000 else before
        one = DemandWindow(model="large", requests=n, prompt_tokens_sum=400 * n)
        window = ClassWindow(name="chat", arrivals=n, demand=[one] if n else [])
        state.fold(
            Workload(classes=[window], source="a" * 16, sequence=second, from_unix_ms=to_ms - 1000,
                     to_unix_ms=to_ms),
            to_ms,
        )  # fmt: skip
    return state


def test_demand_is_of_the_span_that_is_asked_for():
    """
    Ten a second for forty seconds, then 25: 15 over the minute, 25 over its last twenty seconds.
    """
    state = rising(10, 25)

    assert demand_by_model(state, NOW_MS)["chat", "large"].requests_per_s == pytest.approx(15.0)
    assert demand_by_model(state, NOW_MS, RECENT_MS)["chat", "large"] == (
        pytest.approx(25.0),
        400.0,
        0.0,
    )


@pytest.mark.parametrize(
    ("before", "recently", "seen_per_s"),
    [
        (10, 25, 25 - 2 * math.sqrt(25 / 20)),  # a rise, less what chance may have made of it
        (10, 11, 31 / 3),  # may be chance: the minute's mean
        (25, 10, 20.0),  # a fall is believed as the minute forgets
        (0, 1, 1 - 2 * math.sqrt(1 / 20)),
    ],
)
def test_a_rise_of_the_last_seconds_is_believed_beyond_chance(before, recently, seen_per_s):
    assert DEVIATIONS == 2.0

    (demand,) = observe(rising(before, recently), Prices(), FLEET, OUTPUT_TOKENS, NOW_MS).demands

    assert demand.requests_per_s == pytest.approx(seen_per_s)


def told_lengths(counts: dict[int, int], *, unknown: int = 0) -> FleetState:
    """Prompts of these lengths, and some whose lengths nobody reported."""
    state, histogram = FleetState(), {}
    for tokens, n in counts.items():
        index = int(TOKENS.index(tokens))
        histogram[index] = histogram.get(index, 0) + n
    window = ClassWindow(
        name="chat",
        arrivals=sum(counts.values()) + unknown,
        prompt_tokens_sum=sum(tokens * n for tokens, n in counts.items()),
        prompt_tokens=sorted(histogram.items()),
        demand=[DemandWindow(model="large", requests=1, prompt_tokens_sum=1)],
    )
    state.fold(
        Workload(classes=[window], source="a" * 16, sequence=0, from_unix_ms=NOW_MS - 1000,
                 to_unix_ms=NOW_MS),
        NOW_MS,
    )  # fmt: skip
    return state


@pytest.mark.parametrize(
    ("counts", "cv2"),
    [({1000: 50}, 0.0), ({500: 50, 1500: 50}, 0.25), ({200: 90, 8200: 10}, 5.76)],
)
def test_prompts_vary_as_their_histogram_says(counts, cv2):
    """
    By hand: variance / mean², as well as buckets tell lengths. Prompts whose lengths nobody reported
    are no prompts of nothing. The scaler receives it with the demand.
    """
    state = told_lengths(counts, unknown=70)

    found = prompt_variation(state, NOW_MS)["chat"]

    assert found == pytest.approx(cv2, rel=0.25, abs=0.15)
    (demand,) = observe(state, Prices(), FLEET, OUTPUT_TOKENS, NOW_MS).demands
    assert demand.prompt_cv2 == found


def test_where_no_length_was_reported_nothing_is_known_of_their_variation():
    state = told_lengths({}, unknown=5)

    assert prompt_variation(state, NOW_MS) == {}
    assert prompt_variation(FleetState(), NOW_MS) == {}
    (demand,) = observe(state, Prices(), FLEET, OUTPUT_TOKENS, NOW_MS).demands
    assert demand.prompt_cv2 is None


def test_pools_are_as_last_reported():
    """
    Load is the mean of the ready replicas; requests in all of them count. Of a pool that nobody
    reports on only decisions are known, or nothing.
    """
    found = seen().pools
    reports = found["s-eu"].reports
    assert [replica.replica for replica in reports.replicas] == ["r0", "r1", "r2", "r3"]
    assert (reports.queued, reports.running, reports.load) == (1, 11, 0.8)
    assert found == {
        "s-eu": PoolCondition(
            ready=2, starting=1, draining=1, reports=reports, load=0.8,
            price=pytest.approx(1.718281828), requests_per_s=pytest.approx(4.0),
        ),
        "s-us": PoolCondition(),
        "l-eu": PoolCondition(requests_per_s=pytest.approx(2.0)),
    }  # fmt: skip


def test_routers_are_those_alive_and_their_business_adds_up():
    assert seen().routers == 2
    assert seen().router_busy_share == pytest.approx(0.75)


def test_a_router_that_fell_silent_is_gone():
    state = a_minute()
    later = NOW_MS + SILENT_MS + 1000
    state.fold(
        RouterState(source="b" * 16, sequence=9999, loop_busy_share=0.25,
                    from_unix_ms=later - 1000, to_unix_ms=later),
        later,
    )  # fmt: skip

    found = observe(state, Prices(), FLEET, OUTPUT_TOKENS, later)

    assert (found.routers, found.router_busy_share) == (1, 0.25)
    assert found.pools["s-eu"].ready == 0  # its replicas are gone, too


def test_gpus_and_time_are_the_fleets_and_the_clocks():
    found = seen(NOW_MS + 2500)

    assert found.at_s == (NOW_MS + 2500) / 1000
    assert found.telemetry_age_s == 2.5
    assert found.usd_per_hour == {"l4": 0.7}
    assert found.gpus_available == {"l4": 8}


def test_pools_of_a_lost_region_are_not_available():
    found = seen(lost_regions=frozenset({"us"}))

    assert {name: pool.available for name, pool in found.pools.items()} == {
        "s-eu": True,
        "s-us": False,
        "l-eu": True,
    }


def test_without_telemetry_nothing_is_observed():
    found = observe(FleetState(), Prices(), FLEET, OUTPUT_TOKENS, NOW_MS)

    assert found.demands == ()
    assert set(found.pools.values()) == {PoolCondition()}
    assert found.routers == 0
    assert found.telemetry_age_s == NOW_MS / 1000


def minute_of(seconds: range, busy: set[int]) -> FleetState:
    """A router's reports of these seconds of the minute; in the busy ones there were 20 requests.

    Idle ones have no workload: a router then reports its own state alone. Pools report always.
    """
    state = FleetState()
    for second in range(SECONDS):
        to_ms = NOW_MS - 1000 * (SECONDS - 1 - second)
        state.fold(reported("s-eu", to_ms, "r0", load=0.5), to_ms)
        if second not in seconds:
            continue
        head = {"source": "a" * 16, "from_unix_ms": to_ms - 1000, "to_unix_ms": to_ms}
        if second in busy:
            one = DemandWindow(model="large", requests=20, prompt_tokens_sum=8000)
            window = ClassWindow(name="chat", arrivals=20, demand=[one])
            state.fold(Workload(classes=[window], sequence=2 * second, **head), to_ms)
        state.fold(RouterState(sequence=2 * second + 1, **head), to_ms)
    return state


@pytest.mark.parametrize("lost_s", [1, 5, 9, 10, 25, 40])
def test_seconds_that_nothing_is_known_of_are_no_seconds_without_demand(lost_s):
    """
    Records that can't be read are not requests that did not come: rates are over what is known.
    """
    known = range(SECONDS - lost_s)

    [found] = demand_by_model(minute_of(known, set(known)), NOW_MS).values()

    assert found.requests_per_s == pytest.approx(20.0, rel=0.02)


@pytest.mark.parametrize("busy", [{5}, {0, 1, 2, 3, 30}, set(range(0, 60, 7)), set(range(10))])
def test_idle_seconds_are_known_to_be_idle(busy):
    """
    Few requests, or a burst and then none, are no sign that reports were lost.
    """
    [found] = demand_by_model(minute_of(range(SECONDS), busy), NOW_MS).values()

    assert found.requests_per_s == pytest.approx(20.0 * len(busy) / SECONDS)
