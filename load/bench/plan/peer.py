"""vllm-sr-sim's plan for a workload: run by the Python of its own environment, never imported.

    {"replica", "cdf", "rate", "ttft_ms", "context_max"} ─stdin─▶ FleetOptimizer ─stdout─▶ replicas

It is told how fast our replica is: the time of an iteration, W + H · sequences (its own model),
with our coefficients. It splits a fleet into a pool of short and one of long requests: several
splits are tried, each verified by its own simulation, and the cheapest that keeps its target is its
answer. Its compression of prompts is left off (γ = 1): it would change the workload.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SPLITS = (0.5, 0.8, 0.9, 0.95)  # shares of requests in the pool of the short ones
REQUESTS = 8000  # of its own simulation


def plan(asked: dict[str, Any]) -> dict[str, Any]:
    """Its cheapest fleet of such replicas."""
    from fleet_sim.gpu_profiles.manual import ManualProfile  # type: ignore[import-not-found]
    from fleet_sim.optimizer import FleetOptimizer  # type: ignore[import-not-found]

    replica = ManualProfile(name="replica", **asked["replica"])
    cdf = [tuple(point) for point in asked["cdf"]]
    found = []
    for share in SPLITS:
        split = next(int(tokens) for tokens, up_to in cdf if up_to >= share)
        optimizer = FleetOptimizer(
            gpu_short=replica,
            gpu_long=replica,
            B_short=split,
            t_slo_ms=asked["ttft_ms"],
            long_max_ctx=asked["context_max"],
        )
        report = optimizer.optimize(
            cdf, asked["rate"], gammas=[1.0], n_sim_requests=REQUESTS, verbose=False
        )
        best = report.best_simulated or report.best_analytical
        if best is not None:
            found.append(
                {
                    "replicas": best.n_s + best.n_l,
                    "split_tokens": split,
                    "usd_per_h": best.cost_per_hr,
                    "believes_it_keeps_target": bool(best.slo_met),
                }
            )
    kept = [one for one in found if one["believes_it_keeps_target"]] or found
    return min(kept, key=lambda one: one["usd_per_h"])


if __name__ == "__main__":
    print(json.dumps(plan(json.load(sys.stdin))))  # noqa: T201 - its answer
