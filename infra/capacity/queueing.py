"""How full a pool may be so that 99 % of its requests are within the latency target.

    load: work arriving per second / replicas, in `learners.work`'s units; 1 is what the *mean*
    iteration can take. It has to stay below that for two reasons:

    first token     a prompt waits for the reading of those before it: M/G/c, Kimura's tail
    token by token  an answer is held up by the prompts that happen to come while it is made

Kimura (1986; as in inference-fleet-sim), with c replicas that take S seconds for one prompt at a
load ρ, C = Erlang's C(c, cρ):

    wait, 99th percentile = ln(C / 0.01) · S · (1 + CV²) / (2 c (1 − ρ))   ≤ what the target leaves

For the second, a prompt's reading in the root mean square, S·√(1 + CV²), is held against the time D
of a typical answer; the deviation of a replica's load over an answer is proportional to it, and
falls with the root of the replicas, among which the least busy is chosen:

    ρ + SPREAD · S · √(1 + CV²) / (D · √c) · √ρ = 1

Answers of one token have no time per token, so nothing to be held up.

The two constants were found by simulation of the emulator (`python -m
load.fit.queueing` prints how well they predict), and nothing else here was.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import cache

from infra.capacity.latency_target import LatencyTarget
from learners.work import WorkRates

LOAD_MAX = 0.95  # whatever the formula says: lengths and rates are known to a few percent
# Below, fewer arrivals hardly make a difference: with answers of a few tokens, of which the second
# equation says 0.02, four replicas were found to keep the target at loads of 0.28 and more. And if
# they could not, to refuse requests for it would leave replicas idle and help nobody.
LOAD_MIN = 0.3
MISSED = 0.01  # share of requests that may be late
# Of 84 cases (7 replicas × 3 kinds of traffic × 4 sizes of pool) the mean error is 0.040.
READING = 0.88  # of a prompt's work is what others wait for
SPREAD = 34.0
GRID = 1024  # loads at which the wait is known; between them it is taken to be straight


def erlang_c(servers: int, load_erlang: float) -> float:
    """Probability of having to wait, with `load_erlang` < servers; by the stable recursion of
    Erlang's B (Jagerman 1974): no factorials, no powers.
    """
    assert servers > 0 and 0.0 <= load_erlang < servers, "more arrives than can be served"
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load_erlang * blocked / (k + load_erlang * blocked)
    return blocked / (1.0 - load_erlang / servers * (1.0 - blocked))


def wait_s(servers: int, load: float, *, service_s: float, cv2: float) -> float:
    """99th percentile of the wait at a load per server below 1: Kimura's approximation."""
    waits = erlang_c(servers, servers * load)
    if waits <= MISSED:
        return 0.0
    return math.log(waits / MISSED) * service_s * (1.0 + cv2) / (2.0 * servers * (1.0 - load))


def load_max(
    rates: WorkRates,
    target: LatencyTarget,
    prompt_tokens_mean: float,
    *,
    output_tokens_mean: float,
    cv2: float,
    replicas: int,
) -> float:
    """The highest load of a pool, in [0.3, 0.95]; `cv2`: squared variation of requests' work."""
    reading_s = rates.prompt_token_s * prompt_tokens_mean / (1.0 - rates.fixed_s / rates.tpot_s)
    answer_s = max(1.0, output_tokens_mean) * target.tpot_s
    left_s = target.first_token_s(prompt_tokens_mean) - rates.prompt_token_s * prompt_tokens_mean
    n = max(1, replicas)
    first = _load_for_wait(n, READING * reading_s, cv2, left_s)
    if output_tokens_mean <= 1.0:
        return max(first, LOAD_MIN)
    spread = SPREAD * reading_s * math.sqrt((1.0 + cv2) / n) / answer_s
    root = (math.sqrt(spread * spread + 4.0) - spread) / 2.0
    return min(max(min(first, root * root), LOAD_MIN), LOAD_MAX)


def replicas_for(
    work_per_s: float,
    rates: WorkRates,
    target: LatencyTarget,
    prompt_tokens_mean: float,
    *,
    output_tokens_mean: float,
    cv2: float,
) -> int:
    """The fewest replicas that carry so much work within the target; 0 for none."""
    if work_per_s <= 0.0:
        return 0

    def carries(n: int) -> bool:
        load = load_max(
            rates,
            target,
            prompt_tokens_mean,
            output_tokens_mean=output_tokens_mean,
            cv2=cv2,
            replicas=n,
        )
        return work_per_s <= n * load

    most = max(1, math.ceil(work_per_s))
    while not carries(most):
        most *= 2
    least = most // 2  # does not carry it, or is none
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if carries(middle) else (middle, most)
    return most


def _load_for_wait(servers: int, service_s: float, cv2: float, wait_s_max: float) -> float:
    """The highest load at which the wait is short enough: it grows with the load."""
    if wait_s_max < 0.0:
        return 0.0
    grid, unit_s = waits(servers), service_s * (1.0 + cv2)
    if unit_s * grid[-1] <= wait_s_max:
        return LOAD_MAX
    wanted = wait_s_max / unit_s
    above = bisect_right(grid, wanted)
    share = (wanted - grid[above - 1]) / (grid[above] - grid[above - 1])
    return LOAD_MAX * (above - 1 + share) / GRID


@cache
def waits(servers: int) -> list[float]:
    """Kimura's wait at loads from 0 to the highest, where service takes a second each time."""
    return [wait_s(servers, LOAD_MAX * i / GRID, service_s=1.0, cv2=0.0) for i in range(GRID + 1)]
