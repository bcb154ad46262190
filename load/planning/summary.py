"""What came of a simulation, as JSON: what users saw, what ran, what it cost, and when.

    Run ─▶ totals ─┬─ share within target, percentiles, models, pools, GPUs, cost, energy
                   └─ series: the same in equal steps, for charts

Every request counts in every percentile: one that never got a first token, or was not finished,
counts as slower than all others. A percentile that falls among those is none (`null`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.capacity.latency_target import LatencyTarget
from load.planning.site import Site
from load.simulation.loop.results import Fate, Run

Floats = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)
STEPS = 60  # of the series


def summary(run: Run, site: Site, *, quality_known: bool) -> dict[str, Any]:
    """All figures; see docs/planning.md for the keys."""
    requests, traffic = run.requests, run.traffic
    n, finished = len(traffic), requests.fate == Fate.FINISHED
    hosted_usd = _hosted_usd(run, site)
    usd = run.gpu_cost_usd + float(hosted_usd.sum())
    span_s = max(float(traffic.at_s[-1]), 1e-9) if n else run.end_s
    # GPUs are paid for to the last answer, tokens only while requests come.
    usd_per_s = run.gpu_cost_usd / run.end_s + float(hosted_usd.sum()) / span_s
    return {
        "requests": n,
        "requests_per_s": round(n / span_s, 4),
        "finished": int(finished.sum()),
        "refused": run.count(Fate.REFUSED),
        "lost": run.count(Fate.LOST),
        "unfinished": run.count(Fate.UNFINISHED),
        "target": target_of(run.target),
        "within_target": round(run.within_target, 6),
        "ttft_ms": percentiles(requests.ttft_s * 1e3, n),
        "tpot_ms": percentiles(requests.tpot_s * 1e3, n),
        "latency_ms": percentiles((requests.finished_s - traffic.at_s) * 1e3, n),
        "quality": round(run.quality, 6) if quality_known else None,
        "cost": {
            "usd": round(usd, 6),
            "usd_per_h": round(3600.0 * usd_per_s, 6),
            "gpu_usd": round(run.gpu_cost_usd, 6),
            "hosted_usd": round(float(hosted_usd.sum()), 6),
            "usd_per_1k_requests": round(1e3 * usd / max(n, 1), 6),
        },
        "energy": {
            "kwh": round(run.joules / 3.6e6, 6),
            "joules_per_request": round(run.joules_per_request, 3),
        },
        "models": _models(run, site, quality_known=quality_known),
        "pools": _pools(run, site),
        "gpus": _gpus(run, site),
        "replica_changes": run.replica_changes,
        "series": _series(run, site, hosted_usd, quality_known=quality_known),
        "lines": list(run.lines[-200:]),
        "digest": run.digest(),
        "simulated_requests_per_s": round(run.simulated_requests_per_s, 1),
    }


def target_of(target: LatencyTarget) -> dict[str, float]:
    """In milliseconds."""
    return {
        "ttft_ms": round(target.ttft_s * 1e3, 6),
        "ttft_ms_per_1k_prompt_tokens": round(target.ttft_s_per_1k_prompt_tokens * 1e3, 6),
        "tpot_ms": round(target.tpot_s * 1e3, 6),
    }


def percentiles(values: Floats, n: int) -> dict[str, float | None]:
    """Of n requests, of which those without a value are slower than all that have one."""
    there = np.sort(values[np.isfinite(values)])
    return {f"p{p}": _percentile(there, n, p / 100.0) for p in PERCENTILES}


def _percentile(there: Floats, n: int, share: float) -> float | None:
    """The smallest value that so large a share of all n is not above."""
    rank = max(0, int(np.ceil(share * n)) - 1)
    return round(float(there[rank]), 3) if rank < len(there) else None


def _hosted_usd(run: Run, site: Site) -> Floats:
    """Of each request (n,), what is paid by the token for it; 0 on one's own GPUs."""
    requests, traffic = run.requests, run.traffic
    usd, models = np.zeros(len(traffic)), site.catalogue.models
    names = [plan.name for plan in site.fleet.pools]
    for pool in site.hosted:
        plan = site.fleet.pools[names.index(pool)]
        model = models[site.catalogue.column_of[plan.model]]
        of = (requests.pool == names.index(pool)) & (requests.fate == Fate.FINISHED)
        usd[of] = (
            model.usd_per_call
            + traffic.prompt_tokens[of] * model.usd_per_1m_input_tokens / 1e6
            + traffic.output_tokens[of] * model.usd_per_1m_output_tokens / 1e6
        )
    return usd


def _models(run: Run, site: Site, *, quality_known: bool) -> dict[str, Any]:
    requests, n = run.requests, max(len(run.traffic), 1)
    finished, found = requests.fate == Fate.FINISHED, {}
    for column, name in enumerate(site.catalogue.names):
        of = finished & (requests.model == column)
        quality = float(requests.quality[of].mean()) if of.any() else None
        found[name] = {
            "share": round(float((requests.model == column).sum() / n), 6),
            "quality": round(quality, 6) if quality is not None and quality_known else None,
            "ttft_ms": percentiles(requests.ttft_s[of] * 1e3, int(of.sum())),
        }
    return found


def _pools(run: Run, site: Site) -> dict[str, Any]:
    requests, n, found = run.requests, max(len(run.traffic), 1), {}
    within = requests.within(run.traffic, run.target)
    for column, plan in enumerate(site.fleet.pools):
        of = requests.pool == column
        there = _weighted(run, run.replicas.ready[:, column] + run.replicas.draining[:, column])
        found[plan.name] = {
            "model": plan.model,
            "gpu": plan.machine.name,
            "region": plan.region,
            "gpus_per_replica": plan.gpus_per_replica,
            "share": round(float(of.sum() / n), 6),
            "within_target": round(float(within[of].mean()), 6) if of.any() else None,
            "replicas_mean": round(there, 3),
            "replicas_max": int(run.replicas.ready[:, column].max(initial=0)),
        }
    return found


def _gpus(run: Run, site: Site) -> dict[str, Any]:
    series, found = run.replicas, {}
    running = series.ready + series.starting + series.draining
    for gpu in site.fleet.gpus:
        each = np.array([p.gpus_per_replica * (p.gpu == gpu) for p in site.fleet.pools])
        used = running @ each
        if used.any():
            found[gpu.name] = {
                "mean": round(_weighted(run, used), 3),
                "max": int(used.max()),
                "usd": round(run.gpu_usd[gpu.name], 6),
                "usd_per_h_each": gpu.usd_per_hour,
            }
    return found


def _weighted(run: Run, counts: NDArray[np.int32]) -> float:
    """The mean over time of what was looked at now and then."""
    at_s = np.append(run.replicas.at_s, run.end_s)
    return float((np.diff(at_s) * counts).sum() / max(run.end_s, 1e-9))


def _series(run: Run, site: Site, hosted_usd: Floats, *, quality_known: bool) -> dict[str, Any]:
    """In equal steps from the beginning to the end, by the requests' arrival."""
    requests, traffic = run.requests, run.traffic
    edges = np.linspace(0.0, run.end_s, STEPS + 1)
    step_s = float(edges[1])
    step = np.minimum((traffic.at_s / step_s).astype(np.intp), STEPS - 1)
    rows = [np.flatnonzero(step == i) for i in range(STEPS)]
    finished = requests.fate == Fate.FINISHED
    within = requests.within(traffic, run.target)
    ended = requests.finished_s[np.isfinite(requests.finished_s)]
    gone = np.sort(np.concatenate([ended, traffic.at_s[requests.fate == Fate.REFUSED]]))

    def each(of: Any) -> list[float | None]:
        return [None if not len(one) else of(one) for one in rows]

    def tail(values: Floats, p: int) -> list[float | None]:
        return each(lambda one: percentiles(values[one] * 1e3, len(one))[f"p{p}"])

    def mean(values: NDArray[Any]) -> list[float | None]:
        return each(lambda one: round(float(values[one].mean()), 6) if len(one) else None)

    return {
        "step_s": round(step_s, 6),
        "at_s": np.round(edges[:-1], 3).tolist(),
        "requests_per_s": [round(len(one) / step_s, 4) for one in rows],
        "finished_per_s": np.round(np.histogram(ended, edges)[0] / step_s, 4).tolist(),
        "ttft_ms_p50": tail(requests.ttft_s, 50),
        "ttft_ms_p99": tail(requests.ttft_s, 99),
        "tpot_ms_p50": tail(requests.tpot_s, 50),
        "tpot_ms_p99": tail(requests.tpot_s, 99),
        "within_target": mean(within),
        "quality": each(lambda one: _quality(requests.quality[one], finished[one]))
        if quality_known
        else [None] * STEPS,
        "in_flight": (
            np.searchsorted(traffic.at_s, edges[1:]) - np.searchsorted(gone, edges[1:])
        ).tolist(),
        "models": {
            name: mean(requests.model == column) for column, name in enumerate(site.catalogue.names)
        },
        "replicas": _replicas(run, edges),
        "usd_per_h": _usd_per_h(run, site, edges, step, hosted_usd),
    }


def _quality(quality: Floats, finished: NDArray[np.bool_]) -> float | None:
    return round(float(quality[finished].mean()), 6) if finished.any() else None


def _replicas(run: Run, edges: Floats) -> dict[str, list[int]]:
    """Ready replicas as they were last seen in each step."""
    last = np.maximum(0, np.searchsorted(run.replicas.at_s, edges[1:], side="right") - 1)
    return {
        pool: run.replicas.ready[last, column].tolist()
        for column, pool in enumerate(run.replicas.pools)
    }


def _usd_per_h(
    run: Run, site: Site, edges: Floats, step: NDArray[np.intp], hosted_usd: Floats
) -> list[float]:
    """What the GPUs cost at the prices of the settings, and what is paid by the token."""
    last = np.maximum(0, np.searchsorted(run.replicas.at_s, edges[1:], side="right") - 1)
    series = run.replicas
    running = (series.ready + series.starting + series.draining)[last]
    each = np.array([plan.usd_per_hour for plan in site.fleet.pools])
    by_token = np.bincount(step, hosted_usd, minlength=STEPS) / (edges[1] / 3600.0)
    return np.round(running @ each + by_token, 4).tolist()
