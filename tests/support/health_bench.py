"""What the health of pools costs per attempt: `python tests/support/health_bench.py`, by hand.

order of 4 pools, pick, first token, finish   best of 7 runs of 20,000 each
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve.dispatch.budget import HedgeBudget, RetryBudget
from serve.health.health import Health

N, RUNS = 20_000, 7
POOLS = ["a", "b", "c", "d"]


def made(n_endpoints: int, n_out: int = 0) -> Health:
    health = Health()
    for pool in POOLS:
        health.set_endpoints(pool, [f"{pool}{i}" for i in range(n_endpoints)], now_s=0.0)
    for address in (f"a{i}" for i in range(n_out)):
        for _ in range(5):
            lease = health.pick("a", 0.0, uniform=0.5, prefer=address)
            while lease.address != address:
                lease.cancelled(0.0)
                lease = health.pick("a", 0.0, uniform=random.random(), prefer=address)
            lease.failed(0.0, "reset")
    return health


def us(work: Callable[[float, float], None]) -> float:
    uniforms = [random.Random(1).random() for _ in range(N)]
    best = float("inf")
    for run in range(RUNS):
        began_s = time.perf_counter()
        for i, uniform in enumerate(uniforms):
            work(1.0 + run + i / N, uniform)
        best = min(best, time.perf_counter() - began_s)
    return best / N * 1e6


def main() -> None:
    for n_endpoints, n_out in ((1, 0), (8, 0), (64, 0), (64, 6), (3, 2)):
        health = made(n_endpoints, n_out)

        def pick_finish(now_s: float, uniform: float, health: Health = health) -> None:
            health.pick("a", now_s, uniform=uniform).succeeded(now_s)

        def whole(now_s: float, uniform: float, health: Health = health) -> None:
            pool = health.order(POOLS, now_s)[0]
            lease = health.pick(pool, now_s, uniform=uniform, prefer="a0")
            health.hedge_delay_s(pool, now_s)
            health.first_token_timeout_s(pool, now_s, left_s=60.0)
            lease.first_token(now_s + 0.1 + uniform)
            lease.succeeded(now_s + 2.0)

        def order(now_s: float, uniform: float, health: Health = health) -> None:
            health.order(POOLS, now_s)

        print(
            f"{n_endpoints:3} endpoints, {n_out} out: pick + finish {us(pick_finish):5.2f} µs, "
            f"order of 4 {us(order):5.2f} µs, a whole attempt {us(whole):5.2f} µs"
        )
    retries, hedges = RetryBudget(), HedgeBudget()

    def budgets(now_s: float, uniform: float) -> None:
        retries.request_began()
        hedges.request_began()
        hedges.try_hedge()
        if retries.try_retry(1):
            retries.retry_ended()
        retries.request_ended()

    print(f"both budgets {us(budgets):5.2f} µs")
    waits = made(1)._pools["a"].waits
    for i in range(1000):
        waits.add(0.1 + i / 1000, 0.0)
    print(f"one quantile {us(lambda now_s, uniform: waits.quantile_s(0.95, now_s=now_s)):5.2f} µs")


if __name__ == "__main__":
    main()
