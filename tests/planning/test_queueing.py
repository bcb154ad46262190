"""How full a pool may be: Erlang's and Kimura's formulas against direct sums, and what follows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.queueing import LOAD_MAX, LOAD_MIN, erlang_c, load_max, replicas_for, wait_s
from learners.work import WorkRates

TARGET = LatencyTarget()
SLOW = WorkRates(prompt_token_s=2e-4, output_token_s=2e-4, fixed_s=0.03, tpot_s=0.1)


def direct(servers: int, load: float) -> float:
    """Erlang C as its definition says, with factorials."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


@given(servers=st.integers(1, 60), share=st.floats(0.01, 0.99))
@lightly
def test_the_recursion_is_erlangs_formula(servers, share):
    """For pools as large as factorials can be computed for."""
    assert erlang_c(servers, servers * share) == pytest.approx(direct(servers, servers * share))


def test_thousands_of_servers_are_no_trouble():
    """Where factorials overflow the probability is still one."""
    assert 0.0 < erlang_c(5000, 4900.0) < 1.0
    assert erlang_c(5000, 0.0) == 0.0


def test_one_server_waits_as_pollaczek_and_khinchine_say():
    """M/M/1: P(wait > t) = ρ exp(−(μ − λ) t), so the 99th percentile is ln(ρ/0.01) / (μ − λ)."""
    assert wait_s(1, 0.8, service_s=2.0, cv2=1.0) == pytest.approx(math.log(80.0) / (0.5 - 0.4))


def test_the_wait_is_that_of_a_simulated_queue():
    """M/M/3 at 80 %: the 99th percentile of 200,000 simulated waits, within a tenth."""
    rng = np.random.default_rng(2)
    arrive = np.cumsum(rng.exponential(1.0 / 2.4, 200_000))
    free, waits = [0.0, 0.0, 0.0], []
    for at_s, service_s in zip(arrive, rng.exponential(1.0, len(arrive)), strict=True):
        k = free.index(min(free))
        begins = max(at_s, free[k])
        waits.append(begins - at_s)
        free[k] = begins + service_s
    assert wait_s(3, 0.8, service_s=1.0, cv2=1.0) == pytest.approx(
        np.quantile(waits, 0.99), rel=0.1
    )


def test_who_hardly_ever_waits_waits_for_nothing():
    """With a hundred servers at half load fewer than one in a hundred waits."""
    assert wait_s(100, 0.5, service_s=10.0, cv2=2.0) == 0.0


@given(
    prompt=st.floats(1, 2e4),
    output=st.floats(1, 2e3),
    cv2=st.floats(0, 5),
    replicas=st.integers(1, 40),
)
@lightly
def test_a_load_is_a_share_and_grows_with_the_pool(prompt, output, cv2, replicas):
    """Larger pools may be fuller, more varied requests make them emptier."""
    load = load_max(SLOW, TARGET, prompt, output_tokens_mean=output, cv2=cv2, replicas=replicas)
    assert LOAD_MIN <= load <= LOAD_MAX
    assert (
        load
        <= load_max(SLOW, TARGET, prompt, output_tokens_mean=output, cv2=cv2, replicas=replicas + 1)
        + 1e-9
    )
    assert (
        load
        >= load_max(
            SLOW, TARGET, prompt, output_tokens_mean=output, cv2=cv2 + 1.0, replicas=replicas
        )
        - 1e-9
    )


def test_prompts_that_hold_up_answers_are_what_limits_a_pool():
    """By the equation: with S = 0.286 s, CV² = 1 and D = 20 s one replica may be half full, ..."""
    spread = 34.0 * (2e-4 * 1000 / 0.7) * math.sqrt(2.0) / 20.0
    for replicas, share in ((1, spread), (16, spread / 4.0)):  # ... and sixteen much fuller
        load = load_max(SLOW, TARGET, 1000, output_tokens_mean=200, cv2=1.0, replicas=replicas)
        assert load + share * math.sqrt(load) == pytest.approx(1.0)


def test_prompts_that_wait_for_prompts_are_what_limits_a_pool_with_long_answers():
    """At that load the 99th percentile of the wait is what the target leaves beside reading."""
    prompt, cv2 = 2000.0, 1.0
    reading_s = 2e-4 * prompt / 0.7
    left_s = TARGET.first_token_s(prompt) - 2e-4 * prompt
    for replicas in (1, 3):
        load = load_max(
            SLOW, TARGET, prompt, output_tokens_mean=50_000.0, cv2=cv2, replicas=replicas
        )
        assert LOAD_MIN < load < LOAD_MAX
        assert wait_s(replicas, load, service_s=0.88 * reading_s, cv2=cv2) == pytest.approx(
            left_s, rel=1e-3
        )


def test_long_prompts_leave_less_room_than_short_ones():
    """Those of Mooncake hold up others' answers; a slow pool has to be emptier for them."""
    assert (
        load_max(SLOW, TARGET, 200, output_tokens_mean=100, cv2=0.6, replicas=2)
        > load_max(SLOW, TARGET, 8000, output_tokens_mean=300, cv2=2.0, replicas=2) + 0.2
    )


def test_a_prompt_that_cannot_be_read_in_time_leaves_the_least():
    """More than the target is needed for reading alone."""
    hopeless = WorkRates(prompt_token_s=5e-3, fixed_s=0.03, tpot_s=0.1)
    assert load_max(hopeless, TARGET, 2000, output_tokens_mean=200, cv2=1.0, replicas=4) == LOAD_MIN


@given(work=st.floats(0.001, 60), prompt=st.floats(50, 5000))
@lightly
def test_replicas_are_the_fewest_that_carry_the_work(work, prompt):
    """One fewer would not do."""
    of, lengths = (SLOW, TARGET, prompt), {"output_tokens_mean": 200.0, "cv2": 1.0}
    n = replicas_for(work, *of, **lengths)
    assert work <= n * load_max(*of, **lengths, replicas=n)
    assert n == 1 or work > (n - 1) * load_max(*of, **lengths, replicas=n - 1)


def test_no_work_needs_nobody():
    """Scaled to zero."""
    assert replicas_for(0.0, SLOW, TARGET, 1000.0, output_tokens_mean=200.0, cv2=1.0) == 0


def test_the_emulator_is_as_full_as_was_predicted():
    """One measured case, Llama-8B on an L4 with short chats: within 0.15 of the prediction."""
    from load.fit.queueing import PAIRS, made_up, measure

    lengths = made_up(200, output_tokens=100, rng=np.random.default_rng(5))
    for case in measure(PAIRS[0], "chat", lengths, (1, 4)):
        assert case.predicted == pytest.approx(case.measured, abs=0.15)
