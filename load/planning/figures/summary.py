"""What came of a simulation, as JSON: what users saw, what ran, what it cost, and when.

    Happened, Totals ─▶ ─┬─ share within target, percentiles, models, pools, GPUs, cost, energy
                         └─ series: the same in equal steps, for charts

Requests come as `Totals` alone, so it is the same of a few and of ten million.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.capacity.fleet import PoolPlan
from infra.capacity.latency_target import LatencyTarget
from load.planning.figures.totals import PERCENTILES, STEPS, Totals
from load.planning.site import Site
from load.simulation.loop.results import Fate, Happened, Run
from streams.training.budgets import UNITS

Floats = NDArray[np.float64]


def totals_of(run: Run, site: Site) -> Totals:
    """Of a run whose requests were all kept."""
    totals = Totals(site, run.target, run.end_s)
    totals.add(run.traffic, run.requests)
    return totals


def summary(run: Run, site: Site, *, quality_known: bool) -> dict[str, Any]:
    """All figures; see docs/planning.md for the keys."""
    return summed_up(run, totals_of(run, site), site, quality_known=quality_known)


def summed_up(run: Happened, of: Totals, site: Site, *, quality_known: bool) -> dict[str, Any]:
    """The same, of requests that were added up as they ended."""
    n, wanted, hosted_usd = of.n, of.wanted, float(of.hosted_usd.sum())
    usd = run.gpu_cost_usd + hosted_usd
    span_s = max(of.last_s, 1.0) if n else run.end_s
    # GPUs are paid for to the last answer, tokens only while requests come.
    gpu_usd_per_s, hosted_usd_per_s = run.gpu_cost_usd / run.end_s, hosted_usd / span_s
    usd_per_s = gpu_usd_per_s + hosted_usd_per_s
    return {
        "requests": n,
        "requests_per_s": round(n / span_s, 4),
        "finished": of.finished,
        "refused": int(of.fates[Fate.REFUSED]),
        "ruled_out": int(of.fates[Fate.RULED_OUT]),
        "lost": int(of.fates[Fate.LOST]),
        "unfinished": int(of.fates[Fate.UNFINISHED]),
        "target": target_of(run.target),
        "within_target": round(of.within_target, 6),
        "ttft_ms": of.ttft.percentiles_ms(0, wanted),
        "tpot_ms": of.tpot.percentiles_ms(0, wanted),
        "latency_ms": of.latency.percentiles_ms(0, wanted),
        "quality": round(of.mean_quality, 6) if quality_known else None,
        "cost": {
            "usd": round(usd, 6),
            "usd_per_h": round(3600.0 * usd_per_s, 6),
            "gpu_usd_per_h": round(3600.0 * gpu_usd_per_s, 6),
            "hosted_usd_per_h": round(3600.0 * hosted_usd_per_s, 6),
            "gpu_usd": round(run.gpu_cost_usd, 6),
            "hosted_usd": round(hosted_usd, 6),
            "usd_per_1k_requests": round(1e3 * usd_per_s * span_s / max(n, 1), 6),
        },
        "energy": {
            "kwh": round(run.joules / 3.6e6, 6),
            "joules_per_request": round(run.joules / max(1, of.finished), 3),
        },
        "rules": {
            rule.name: {
                "met": run.ruled.met.get(rule.name, 0),
                "refused": run.ruled.refused.get(rule.name, 0),
            }
            for rule in site.rules
        },
        "guarded": run.ruled.guarded,
        "budgets": _budgets(run, site),
        "by": {} if of.by_kind is None else of.by_kind.tables(quality_known=quality_known),
        "models": _models(of, site, quality_known=quality_known),
        "pools": _pools(run, of, site),
        "gpus": _gpus(run, site),
        "replica_changes": run.replica_changes,
        "series": _series(run, of, site, quality_known=quality_known),
        "lines": list(run.lines[-200:]),
        "digest": of.digest.of(run),
    }


def _budgets(run: Happened, site: Site) -> dict[str, Any]:
    """What was spent of each, by period, and what it refused."""
    found = {}
    for budget in site.pricing.budgets:
        unit = UNITS[budget.unit]
        periods = [
            {
                "from": datetime.fromtimestamp(one.start_ms / 1e3, UTC).isoformat(),
                "spent": round(one.spent / unit, 6),
                "spent_share": round(one.spent / max(one.amount, 1), 6),
            }
            for one in sorted(run.ruled.accounts.values(), key=lambda one: one.start_ms)
            if one.budget == budget.name and (one.spent or one.start_ms < run.ended_ms)
        ]
        found[budget.name] = {
            "scope": budget.scope,
            "value": budget.value,
            "unit": budget.unit,
            "per": budget.per,
            "amount": budget.amount,
            "hard": budget.hard,
            "then": budget.then,
            "refused": run.ruled.over_budget.get(budget.name, 0),
            "periods": periods,
        }
    return found


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


def _models(of: Totals, site: Site, *, quality_known: bool) -> dict[str, Any]:
    found = {}
    for column, name in enumerate(site.catalogue.names):
        finished = int(of.finished_by[column])
        quality = round(float(of.quality_by[column]) / finished, 6) if finished else None
        found[name] = {
            "share": round(float(of.of_model[column]) / max(of.n, 1), 6),
            "quality": quality if quality_known else None,
            "ttft_ms": of.ttft_by.percentiles_ms(column, finished),
        }
    return found


def _pools(run: Happened, of: Totals, site: Site) -> dict[str, Any]:
    found = {}
    for column, plan in enumerate(site.fleet.pools):
        n, within = int(of.of_pool[column]), int(of.within_by[column])
        there = _weighted(run, run.replicas.ready[:, column] + run.replicas.draining[:, column])
        found[plan.name] = {
            "model": plan.model,
            "gpu": plan.machine.name,
            "region": plan.region,
            "gpus_per_replica": plan.gpus_per_replica,
            "share": round(n / max(of.n, 1), 6),
            "within_target": round(within / n, 6) if n else None,
            "replicas_mean": round(there, 3),
            "replicas_max": int(run.replicas.ready[:, column].max(initial=0)),
        }
    return found


def _gpus(run: Happened, site: Site) -> dict[str, Any]:
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


def _weighted(run: Happened, counts: NDArray[np.int32]) -> float:
    """The mean over time of what was looked at now and then."""
    at_s = np.append(run.replicas.at_s, run.end_s)
    return float((np.diff(at_s) * counts).sum() / max(run.end_s, 1e-9))


def _series(run: Happened, of: Totals, site: Site, *, quality_known: bool) -> dict[str, Any]:
    """In equal steps from the beginning to the end, by the requests' arrival."""
    edges, n = of.edges, of.wanted_in
    step_s, steps = float(edges[1]), range(STEPS)

    def tail(times: Any, p: int) -> list[float | None]:
        return [times.percentiles_ms(i, int(n[i]))[f"p{p}"] if n[i] else None for i in steps]

    def share(counts: Any, among: Any) -> list[float | None]:
        return [round(float(counts[i] / among[i]), 6) if among[i] else None for i in steps]

    quality = share(of.quality_in, of.finished_in) if quality_known else [None] * STEPS
    return {
        "step_s": round(step_s, 6),
        "at_s": np.round(edges[:-1], 3).tolist(),
        "requests_per_s": np.round(of.asked / step_s, 4).tolist(),
        "finished_per_s": np.round(of.ended / step_s, 4).tolist(),
        "ttft_ms_p50": tail(of.ttft_in, 50),
        "ttft_ms_p99": tail(of.ttft_in, 99),
        "tpot_ms_p50": tail(of.tpot_in, 50),
        "tpot_ms_p99": tail(of.tpot_in, 99),
        "within_target": share(of.within_in, n),
        "quality": quality,
        "in_flight": (np.cumsum(of.asked) - np.cumsum(of.gone)).tolist(),
        "models": {
            name: share(of.model_in[i], of.asked) for i, name in enumerate(site.catalogue.names)
        },
        "replicas": _replicas(run, edges),
        "usd_per_h": _usd_per_h(run, site, of),
    }


def _replicas(run: Happened, edges: Floats) -> dict[str, list[int]]:
    """Ready replicas as they were last seen in each step."""
    last = np.maximum(0, np.searchsorted(run.replicas.at_s, edges[1:], side="right") - 1)
    return {
        pool: run.replicas.ready[last, column].tolist()
        for column, pool in enumerate(run.replicas.pools)
    }


def _usd_per_h(run: Happened, site: Site, of: Totals) -> list[float]:
    """What the GPUs cost at the prices of that time, and what is paid by the token."""
    edges = of.edges
    last = np.maximum(0, np.searchsorted(run.replicas.at_s, edges[1:], side="right") - 1)
    series = run.replicas
    running = (series.ready + series.starting + series.draining)[last]
    each = np.stack([_usd_of(run, plan, edges[1:]) for plan in site.fleet.pools], axis=1)
    by_token = of.hosted_usd / (edges[1] / 3600.0)
    return np.round((running * each).sum(axis=1) + by_token, 4).tolist()


def _usd_of(run: Happened, plan: PoolPlan, at_s: Floats) -> Floats:
    """An hour of one replica, at several times."""
    times_s, usd = run.gpu_prices[plan.machine.name]
    since = np.searchsorted(times_s, at_s, side="right") - 1
    return plan.gpus_per_replica * np.array(usd)[since]
