"""What it would cost at least: a fleet that knows the trace, and that machines obey at once.

    every request's preferred model ─▶ work per minute and pool ─▶ LP (HiGHS) of each minute ─▶ USD

For every interval the linear programme chooses how many replicas x_p of each pool run (any real
number of them, there at once, gone at once, GPUs within the market's limits) and which share of
each model's work goes to which of its pools:

    min Σ_p x_p · usd_p   so that   Σ_p share_mp = 1,  share_mp · work_mp ≤ x_p · load_p · seconds

`load_p` is the highest load at which a large pool still has 99 % within the target, measured on the
emulator with the trace's own lengths (`load.fit.pool_limits`).

It is a bound on the GPU cost of answering *this mix of models* within the target: every request at
the model it would choose if all pools were there at their GPUs' prices, as the router's own
estimators have it. A policy that changes the mix (sends requests to
smaller models) can cost less, at a loss of quality that is reported beside it. What the bound
leaves out makes it lower, never higher: whole replicas, start-up, draining, requests that wait from
one interval to the next, arrivals that are burstier within an interval than a Poisson process.

What of the distance to it is due to that is shown by a second figure, `whole_usd`: replicas are
whole, and as many for `kept_s`, about the time that one takes to come, as the busiest interval in
it needs. It knows the trace as well.

If not even the whole market suffices, what is left over is stated, not priced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, vstack

from infra.autoscaling.sizing.mix import silenced
from infra.capacity.fleet import Fleet
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from load.bench.fleet.scenario import Scenario, usd_per_s, work_s_of
from load.data.traces import Trace
from load.data.traffic import Traffic
from load.fit.pool_limits import LimitOptions, load_max
from load.simulation.warm_start import estimated_quality

Floats = NDArray[np.float64]
WHOLE_GAP = 0.002  # relative, that a programme in whole numbers may be above its optimum


@dataclass(frozen=True, slots=True, kw_only=True)
class ClairvoyantOptions:
    """How finely the trace is known, and how pools' limits are measured."""

    interval_s: float = 60.0  # shorter than a replica takes to come, so nothing real is smoothed
    kept_s: float = 180.0  # of `whole_usd`; as long as a machine and its model take
    limits: LimitOptions = LimitOptions()
    unserved_usd: float = 1e3  # per second of work: more than any GPU, so that it is a last resort


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bound:
    """The programme's solution."""

    gpu_cost_usd: float
    whole_usd: float  # if replicas were whole, and kept as long as they take to come
    quality: float  # mean, of the preferred models
    joules_per_request: float
    replica_changes_per_h: float  # if replicas were whole: of those rounded up
    replicas: Floats  # (intervals, P) running
    loads: Floats  # (P,) the limits that were used; 0: the pool can't meet the target
    unserved: float  # share of the work that the whole market can't carry


def bound(scenario: Scenario, options: ClairvoyantOptions, seed: int) -> Bound:
    """The lower bound on a scenario."""
    traffic, fleet = scenario.traffic, scenario.fleet
    loads = limits_of(fleet, traffic, scenario.target, options.limits, seed)
    preferred = preferred_models(scenario)
    work = work_per_interval(fleet, traffic, preferred, scenario, options.interval_s)
    solved = [_interval(fleet, scenario, need, loads, options) for need in work]
    replicas = np.array([x for x, _, _ in solved])
    served = np.array([share for _, share, _ in solved])  # (intervals, P)
    usd = replicas @ np.array([usd_per_s(pool) for pool in fleet.pools]) * options.interval_s
    whole = np.ceil(replicas - 1e-6)
    hours = len(work) * options.interval_s / 3600.0
    return Bound(
        gpu_cost_usd=float(usd.sum()),
        whole_usd=whole_usd(scenario, work, loads, options),
        quality=float(scenario.table.quality[traffic.rows, preferred].mean()),
        joules_per_request=_joules(scenario, replicas, served * work, options) / len(traffic),
        replica_changes_per_h=float(np.abs(np.diff(whole, axis=0)).sum() / hours),
        replicas=replicas,
        loads=loads,
        unserved=float(sum(left for _, _, left in solved) / len(solved)),
    )


def whole_usd(
    scenario: Scenario, work: Floats, loads: Floats, options: ClairvoyantOptions
) -> float:
    """US dollars of whole replicas that change every `kept_s`; `work` (intervals, P)."""
    fleet, total = scenario.fleet, 0.0
    each = max(1, round(options.kept_s / options.interval_s))
    usd = np.array([usd_per_s(pool) for pool in fleet.pools]) * options.interval_s
    for begin in range(0, len(work), each):
        stretch = work[begin : begin + each]
        most = stretch.max(axis=0)
        replicas, _, _ = _interval(fleet, scenario, most, loads, options, whole=True)
        total += float(replicas @ usd) * len(stretch)
    return total


def limits_of(
    fleet: Fleet, lengths: Traffic, target: LatencyTarget, options: LimitOptions, seed: int
) -> Floats:
    """The highest load (P,) of each pool. Pools that are alike are measured once."""
    sample = Trace("lengths", lengths.at_s, lengths.prompt_tokens, lengths.output_tokens)
    return np.array(
        [load_max(p.engine.performance, target, sample, options, seed) for p in fleet.pools]
    )


def preferred_models(scenario: Scenario) -> NDArray[np.intp]:
    """The column (n,) of the model that each request would choose at GPUs' prices.

    Quality as the router estimates it to begin with. Cost by the list prices, which are those of
    the models' cheapest GPUs.
    """
    traffic, preference = scenario.traffic, scenario.preference
    quality = estimated_quality(scenario.table, scenario.known, scenario.catalogue)
    usd = scenario.catalogue.expected_cost_usd(traffic.prompt_tokens.astype(float))
    columns = [scenario.catalogue.column_of[name] for name in scenario.table.models]
    utility = preference.quality * quality[traffic.rows] - preference.per_usd * usd[:, columns]
    return utility.argmax(axis=1)


def work_per_interval(
    fleet: Fleet,
    traffic: Traffic,
    preferred: NDArray[np.intp],
    scenario: Scenario,
    interval_s: float,
) -> Floats:
    """Seconds (intervals, P) of a full replica: all that prefer a pool's model, were they there."""
    n = int(np.ceil((traffic.at_s[-1] + 1e-9) / interval_s))
    interval = np.minimum((traffic.at_s / interval_s).astype(int), n - 1)
    work_s = work_s_of(fleet, traffic, scenario.target)
    found = np.zeros((n, len(fleet.pools)))
    for column, pool in enumerate(fleet.pools):
        rows = preferred == scenario.table.models.index(pool.model)
        found[:, column] = np.bincount(interval[rows], work_s[rows, column], minlength=n)
    return found


def replicas_for(scenario: Scenario, traffic: Traffic, loads: Floats) -> dict[str, int]:
    """Whole replicas for a stretch's mean demand, no fuller than `loads` (P,)."""
    part = replace(scenario, traffic=traffic)
    preferred = preferred_models(part)
    span_s = float(traffic.at_s[-1])
    work = work_per_interval(scenario.fleet, traffic, preferred, part, span_s + 1.0)
    options = ClairvoyantOptions(interval_s=span_s + 1.0)
    x, _, _ = _interval(scenario.fleet, part, work[0], loads, options)
    whole = np.ceil(x - 1e-6).astype(int)
    return _within_market(scenario.fleet, dict(zip(_names(scenario.fleet), whole, strict=True)))


def _interval(
    fleet: Fleet,
    scenario: Scenario,
    work: Floats,
    loads: Floats,
    options: ClairvoyantOptions,
    *,
    whole: bool = False,
) -> tuple[Floats, Floats, float]:
    """Replicas (P,), the share (P,) of its model's work each pool takes, and what is left over.

    Variables: shares (P,), then replicas (P,), then the share (M,) of each model left unserved.
    """
    pools, models = fleet.pools, scenario.table.models
    n, m = len(pools), len(models)
    usd = np.array([usd_per_s(pool) for pool in pools]) * options.interval_s
    need = np.array([work[[p.model == name for p in pools]].max(initial=0.0) for name in models])
    cost = np.concatenate([np.zeros(n), usd, need * options.unserved_usd])
    column = [models.index(pool.model) for pool in pools]
    all_of_it = coo_matrix(
        (np.ones(n + m), (np.r_[column, 0:m], np.r_[0:n, 2 * n : 2 * n + m])),
        shape=(m, 2 * n + m),
    )
    room = np.maximum(loads, 1e-12) * options.interval_s
    capacity = coo_matrix(
        (np.concatenate([work, -room]), (np.r_[0:n, 0:n], np.arange(2 * n))),
        shape=(n, 2 * n + m),
    )
    types = {gpu.name: row for row, gpu in enumerate(fleet.gpus)}
    market = coo_matrix(
        (
            np.array([pool.gpus_per_replica for pool in pools]),
            (np.array([types[pool.machine.name] for pool in pools]), np.arange(n, 2 * n)),
        ),
        shape=(len(types), 2 * n + m),
    )
    with silenced():
        solved: Any = linprog(  # type: ignore[call-overload]  # sparse matrices are taken, too
            cost,
            A_ub=vstack([capacity, market]).tocsr(),
            b_ub=np.concatenate([np.zeros(n), [float(gpu.available) for gpu in fleet.gpus]]),
            A_eq=all_of_it.tocsr(),
            b_eq=np.ones(m),
            bounds=(0, None),
            integrality=np.repeat([0, int(whole), 0], [n, n, m]),
            method="highs",
            options={"mip_rel_gap": WHOLE_GAP} if whole else None,
        )
    assert solved.status == 0, solved.message
    left = solved.x[2 * n :]
    total = need.sum()
    unserved = float(left @ need / total) if total else 0.0
    return solved.x[n : 2 * n], solved.x[:n], unserved


def _joules(
    scenario: Scenario, replicas: Floats, work: Floats, options: ClairvoyantOptions
) -> float:
    """Work times watts, and the watts of doing nothing for the rest of the time.

    The reading of prompts is the share of the work that it is of the mean request.
    """
    total = 0.0
    prompt = float(scenario.traffic.prompt_tokens.mean())
    mean_s = work_s_of(scenario.fleet, scenario.traffic, scenario.target).mean(axis=0)
    for column, pool in enumerate(scenario.fleet.pools):
        rates = rates_of(pool.engine.performance, scenario.target)
        reading = min(1.0, rates.prompt_token_s * prompt / mean_s[column])
        busy_s = float(work[:, column].sum())
        all_s = float(replicas[:, column].sum()) * options.interval_s
        power = pool.engine.power
        total += power.energy_j(max(all_s, busy_s), busy_s=busy_s, prefill_s=busy_s * reading)
    return total


def _within_market(fleet: Fleet, replicas: dict[str, int]) -> dict[str, int]:
    """Rounding up may ask for more than there is: the largest pools of a type give."""
    for gpu in fleet.gpus:
        of = [pool for pool in fleet.pools if pool.gpu == gpu]
        while sum(replicas[p.name] * p.gpus_per_replica for p in of) > gpu.available:
            most = max(of, key=lambda p: replicas[p.name])
            replicas[most.name] -= 1
    return {name: int(count) for name, count in replicas.items()}


def _names(fleet: Fleet) -> list[str]:
    return [pool.name for pool in fleet.pools]
