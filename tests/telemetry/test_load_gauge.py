"""What a replica tells as its load: 1 is as much as it carries within the target."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import FLOW_S, LENGTHS_S, REPLICAS, LoadGauge, rates_of
from infra.capacity.queueing import load_max
from infra.emulator.engine import Engine
from infra.emulator.fitted import performance_of
from infra.emulator.performance import Performance
from learners.work import WorkRates

TARGET = LatencyTarget()
FAST = Performance(
    fixed_s=0.01, per_sequence_s=1e-4, per_context_token_s=1e-8, per_prompt_token_s=2e-5,
    request_s=0.0, prefill_tokens_max=8192, kv_tokens_max=500_000, sequences_max=256,
    derived=True, source="made up",
)  # fmt: skip
SLOW = Performance(
    fixed_s=0.03, per_sequence_s=2e-4, per_context_token_s=1e-7, per_prompt_token_s=1e-4,
    request_s=0.0, prefill_tokens_max=2048, kv_tokens_max=100_000, sequences_max=64,
    derived=True, source="made up",
)  # fmt: skip
SECONDS = 300


def work_of(rates: WorkRates, kind: tuple[float, float]) -> float:
    prompt, output = kind
    return rates.work_s(prompt, output_tokens=output)


def full(performance: Performance, prompt: float, output: float, cv2: float = 0.0) -> float:
    """How full a replica may be with such requests."""
    return load_max(
        rates_of(performance, TARGET),
        TARGET,
        prompt,
        output_tokens_mean=output,
        cv2=cv2,
        replicas=REPLICAS,
    )


def reported(
    performance: Performance,
    kinds: list[tuple[int, int]],
    work_per_s: float,
    *,
    seconds: int = SECONDS,
    look_s: float = 1.0,
) -> float:
    """What an engine that does them at once tells while these come in turn, at a steady rate.

    The mean of the second half: requests are not divisible, so that single seconds differ.
    """
    engine = Engine(performance)
    gauge, rates = LoadGauge(engine, TARGET), rates_of(performance, TARGET)
    behind_s = 0.0
    looks = round(seconds / look_s)
    number, loads = 0, []
    for look in range(1, looks + 1):
        behind_s += work_per_s * look_s
        while behind_s >= (work_s := work_of(rates, kinds[number % len(kinds)])):
            gauge.came(*kinds[number % len(kinds)])
            behind_s, number = behind_s - work_s, number + 1
        engine.advance(look * look_s)
        loads.append(gauge.read())
    return statistics.fmean(loads[looks // 2 :])


@pytest.mark.parametrize("performance", [FAST, SLOW], ids=["fast", "slow"])
@pytest.mark.parametrize(("prompt", "output"), [(200, 100), (1500, 250), (3000, 30)])
def test_a_steady_load_is_the_work_that_comes_by_how_full_it_may_be(performance, prompt, output):
    """
    So it is 1 where as much comes as the sizing of pools lets come, on every GPU alike, and half of
    it where half comes.
    """
    limit = full(performance, prompt, output)

    for share in (0.5, 1.0):
        load = reported(performance, [(prompt, output)], share * limit)
        assert load == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize(
    ("prompt", "output", "share"), [(4500, 20, 0.25), (1000, 3, 0.25), (100, 1, 0.8)]
)
def test_short_answers_do_not_make_a_replica_that_is_hardly_busy_full(prompt, output, share):
    """
    Whoever waits for another's long prompt is late with three tokens, but seldom does.
    """
    assert reported(SLOW, [(prompt, output)], share) < 1.0


def test_lengths_that_vary_make_a_replica_full_sooner():
    """
    One in four prompts is long: the same work per second is more load, by the variation of work.
    """
    kinds = [(100, 50)] * 3 + [(6000, 50)]
    rates = rates_of(SLOW, TARGET)
    works = [work_of(rates, kind) for kind in kinds]
    mean = sum(works) / 4
    cv2 = sum(w * w for w in works) / 4 / mean**2 - 1.0

    load = reported(SLOW, kinds, 0.3)

    assert cv2 > 1.0
    assert full(SLOW, 1575, 50, cv2) < 0.95 * full(SLOW, 1575, 50)
    assert load == pytest.approx(0.3 / full(SLOW, 1575, 50, cv2), rel=0.05)


@given(looks=st.lists(st.floats(0.05, 3.0), min_size=1, max_size=30))
@lightly
def test_a_load_does_not_depend_on_how_often_it_is_asked_for(looks):
    """
    What came once, an hour of looks ago, is forgotten at the same pace: exp(−t / 5 s) of the flow.
    """
    engine = Engine(FAST)
    gauge = LoadGauge(engine, TARGET)
    for _ in range(50):
        gauge.came(1000, 100)
    engine.advance(1.0)
    first, at_s = gauge.read(), 1.0

    for look_s in looks:
        at_s += look_s
        engine.advance(at_s)
        load = gauge.read()

    if at_s - 1.0 < LENGTHS_S * math.log(50.0):  # after that, lengths are forgotten
        assert load == pytest.approx(first * math.exp(-(at_s - 1.0) / FLOW_S), rel=1e-6)
    else:
        assert load < 1e-6


def test_asked_twice_at_once_it_says_the_same():
    engine = Engine(FAST)
    gauge = LoadGauge(engine, TARGET)
    gauge.came(1000, 100)
    engine.advance(1.0)

    assert gauge.read() == gauge.read() > 0.0


def test_prompts_that_wait_add_the_time_it_takes_to_read_them():
    """
    A tenth of a million tokens wait that take 0.1 ms each: 10 s, or five times the 2 s allowed.
    """
    engine = Engine(SLOW)
    gauge = LoadGauge(engine, TARGET)
    for i in range(100):
        engine.submit(i, 1000, 10, 0.0)
    engine.advance(1e-6)

    load = gauge.read()

    waiting = engine.waiting_prompt_tokens
    assert waiting > 90_000
    assert load == pytest.approx(waiting * SLOW.per_prompt_token_s / TARGET.ttft_s)


def test_tokens_that_come_late_add_what_is_too_much():
    """
    Everything runs and nothing waits, but an iteration takes longer than a token may.
    """
    crawling = Performance(
        fixed_s=0.25, per_sequence_s=0.0, per_context_token_s=0.0, per_prompt_token_s=0.0,
        request_s=0.0, prefill_tokens_max=8192, kv_tokens_max=500_000, sequences_max=256,
        derived=True, source="made up",
    )  # fmt: skip
    engine = Engine(crawling)
    gauge = LoadGauge(engine, TARGET)
    engine.submit("a", 10, 1000, 0.0)
    engine.advance(10.0)

    assert gauge.read() == pytest.approx(0.25 / 0.1 - 1.0, rel=0.03)


def test_while_it_keeps_up_nothing_is_added():
    """
    The first token at once and ten others in time.
    """
    engine = Engine(FAST)
    gauge = LoadGauge(engine, TARGET)
    engine.submit("a", 100, 11, 0.0)
    engine.advance(1.0)

    assert engine.iterations == 11
    assert gauge.read() == 0.0


def test_of_nothing_that_came_the_load_is_nothing():
    engine = Engine(FAST)
    gauge = LoadGauge(engine, TARGET)

    assert gauge.read() == 0.0
    engine.advance(100.0)
    assert gauge.read() == 0.0


def test_a_pool_that_runs_twenty_times_as_fast_takes_a_twentieth_of_the_work():
    """
    Its clock is faster, not its target: the share of the target that its fixed part takes, and how
    many sequences it holds, are as on a clock of its own.
    """
    rates = rates_of(
        performance_of("Llama-3.1-8B-Instruct", "l40s", precision="fp8", gpus=1),
        LatencyTarget().times(20.0),
    )

    fast = rates.faster(20.0)

    assert fast.tpot_s == pytest.approx(LatencyTarget().tpot_s)
    assert fast.work_s(1000, output_tokens=200) == pytest.approx(
        rates.work_s(1000, output_tokens=200) / 20.0
    )


def test_requests_that_are_told_in_two_lots_count_as_told_one_by_one():
    """
    Three prompts, two of them in the first lot.
    """
    engine = Engine(FAST)
    one, together = LoadGauge(engine, TARGET), LoadGauge(engine, TARGET)
    prompts = (100, 200, 400)
    first, second, third = (work_of(rates_of(FAST, TARGET), (n, 10)) for n in prompts)

    for n in prompts:
        one.came(n, 10)
    together.came_together([2.0, 300.0, 20.0, first + second, first**2 + second**2])
    together.came_together([1.0, 400.0, 10.0, third, third**2])
    engine.advance(1.0)
    told = together.read()

    assert told > 0.0
    assert told == pytest.approx(one.read(), rel=1e-12)
