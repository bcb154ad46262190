"""The cheapest replicas for a stretch of a trace, by the programme that sizes a live fleet.

    stretch, models' estimated worth ─▶ who is preferred ─▶ asks  ─┐
    pools, prices of GPUs, how full they may be ────────────▶ offers ─┴─▶ cheapest ─▶ Sized

It differs from live sizing in what is known: the requests themselves, not a forecast. `filled` is
by how much the queueing model is trusted: the search finds it by simulation.

The one rule: money decides. Quality counts for what callers say it is worth to them. What rules
forbid a request is bought for none: limits, weights and budgets are left to the simulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.autoscaling.sizing.mix import Ask, MixOptions, Offer, Unmet, cheapest
from infra.capacity.fleet import PoolPlan
from infra.capacity.queueing import load_max
from learners.work import WorkTable
from load.data.traffic import Traffic
from load.planning.questions import Questions
from load.planning.ruled import left_by_rules
from load.planning.site import HOSTED, Site
from load.simulation.warm_start import estimated_quality
from streams.errors import OptionRefused

Floats = NDArray[np.float64]
OPTIONS = MixOptions(horizon_s=3600.0, change_usd=0.0, gap=1e-4, nodes_max=2000, dearer=0.0)
UNMET_USD = 1e6  # per hour, of all requests: refusing is no way to save
ROUNDS = 3  # how full a pool may be depends on its replicas: solved anew so often
NEVER_FULL = 1e6
REPLICAS_MAX = 100_000
WEIGHS = ("preference", "quality_min", "guard")  # keys of rules that leave all models


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demand:
    """A stretch of requests, as sizing sees them."""

    rate: float  # requests per second, of its busiest minute
    prompt_tokens: Floats  # (n,)
    output_tokens: Floats  # (n,)
    worth: Floats  # (n, k) of each model's answer, as routers estimate it
    usd: Floats  # (n, k) what each model's answer costs by its list price
    may: NDArray[np.bool_]  # (n, k) which models rules leave each; one at least

    @property
    def barred(self) -> Floats:
        """0 (n, k) where a model may answer, minus infinity where rules forbid it."""
        return np.where(self.may, 0.0, -np.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """Replicas by pool, hosted ones left out."""

    replicas: dict[str, int]
    unmet: float  # share of requests that nothing is had for
    usd_per_h: float  # of the GPUs


def demand_of(traffic: Traffic, site: Site, questions: Questions, clock_s: float) -> Demand:
    """Of a stretch that begins at a Unix time; what routers know of the models is learned from what
    is `known`. Requests that rules refuse are none. Raises OptionRefused where that are all.
    """
    catalogue, asked, known = site.catalogue, questions.asked, questions.known
    quality = asked.quality if known is None else estimated_quality(asked, known, catalogue)
    may = left_by_rules(site, clock_s, traffic, questions, quality.mean(axis=0))
    rows = np.flatnonzero(may.any(axis=1))
    if not len(rows):
        refused = "refusing every request of the busiest stretch"
        raise OptionRefused("rules", refused, "leaving somebody a model")
    prompt = traffic.prompt_tokens[rows].astype(np.float64)
    output = traffic.output_tokens[rows].astype(np.float64)
    per_input = np.array([m.usd_per_1m_input_tokens for m in catalogue.models]) / 1e6
    per_output = np.array([m.usd_per_1m_output_tokens for m in catalogue.models]) / 1e6
    per_call = np.array([m.usd_per_call for m in catalogue.models])
    return Demand(
        rate=busiest_per_s(traffic.at_s[rows]),
        prompt_tokens=prompt,
        output_tokens=output,
        worth=quality[traffic.rows[rows]],
        usd=per_call + prompt[:, None] * per_input + output[:, None] * per_output,
        may=may[rows],
    )


def left_to_simulation(site: Site) -> Iterator[str]:
    """What the sizes of fleets are found without; every fleet is simulated with it."""
    weighs = [rule.name for rule in site.rules if any(getattr(rule, key) for key in WEIGHS)]
    weighs += [rule.name for rule in site.rules if rule.cost_usd_max < np.inf]
    weighs += [rule.name for rule in site.rules if rule.latency_ms_max < np.inf]
    parts = {
        "[[budgets]]": bool(site.pricing.budgets),
        "[guard]": bool(site.guard.model),
        f"what rules weigh and limit ({', '.join(dict.fromkeys(weighs))})": bool(weighs),
        "limits of [preference]": bool(site.limits),
    }
    for part in (name for name, there in parts.items() if there):
        yield f"{part}: fleets are sized without, and simulated with it"


def busiest_per_s(at_s: Floats, width_s: float = 60.0) -> float:
    """Requests per second of the busiest minute, or of all of a shorter stretch."""
    span_s = float(at_s[-1] - at_s[0]) if len(at_s) else 0.0
    if span_s <= width_s:
        return len(at_s) / max(span_s, 1.0)
    ends = np.searchsorted(at_s, at_s + width_s)
    return float((ends - np.arange(len(at_s))).max() / width_s)


def sized(
    demand: Demand, site: Site, *, filled: float, unlimited: bool, alone: str | None = None
) -> Sized:
    """The cheapest replicas, of one model `alone` if that is said; hosted ones are there anyway.
    `filled`: of how full the queueing model lets pools be.
    """
    pools = site.fleet.pools
    most = [
        site.servers.get(p.name, REPLICAS_MAX) if alone in (None, p.model) else 0 for p in pools
    ]
    work = WorkTable([pool.rates for pool in pools]).work_s(
        demand.prompt_tokens, demand.output_tokens[:, None]
    )
    asks = _asks(demand, site, work)
    gpus = {g.name: 10**6 if unlimited or g == HOSTED else g.available for g in site.fleet.gpus}
    replicas, unmet, final = (
        np.ones(len(pools), int),
        1.0,
        dict.fromkeys((p.name for p in pools), 0),
    )
    for _ in range(ROUNDS):
        fullest = [_load_max(p, demand, work[:, i], int(replicas[i])) for i, p in enumerate(pools)]
        offers = [
            _offer(p, filled * full, n) for p, full, n in zip(pools, fullest, most, strict=True)
        ]
        mix = cheapest(asks, offers, gpus, OPTIONS)
        assert mix is not None, "to refuse everything is always possible"
        before = replicas
        replicas = np.maximum(1, np.array(mix.replicas))
        asked = np.array([sum(part.usd for part in ask.unmet) for ask in asks])
        unmet = float((mix.unmet * asked).sum() / max(asked.sum(), 1e-9))
        final = dict(zip((p.name for p in pools), mix.replicas, strict=True))
        if (before == replicas).all():
            break
    own = {p.name: final[p.name] for p in pools if p.gpu != HOSTED}
    usd = sum(p.usd_per_hour * own[p.name] for p in pools if p.name in own)
    return Sized(replicas=own, unmet=unmet, usd_per_h=usd)


def carried_per_s(demand: Demand, site: Site) -> dict[str, float]:
    """By own pool: requests per second that one replica carries, by the queueing model."""
    pools = [pool for pool in site.fleet.pools if pool.gpu != HOSTED]
    work_s = WorkTable([pool.rates for pool in pools]).work_s(
        demand.prompt_tokens, demand.output_tokens[:, None]
    )
    return {
        pool.name: _load_max(pool, demand, work_s[:, i], 1) / max(float(work_s[:, i].mean()), 1e-9)
        for i, pool in enumerate(pools)
    }


def _offer(pool: PoolPlan, load: float, most: int) -> Offer:
    hosted = pool.gpu == HOSTED
    return Offer(
        pool=pool.name,
        gpu=pool.machine.name,
        gpus_per_replica=pool.gpus_per_replica,
        usd_per_s=pool.usd_per_hour / 3600.0,
        start_usd=0.0,
        load_max=NEVER_FULL if hosted else load,
        least=1 if hosted else 0,
        most=pool.replicas if hosted else most,
        now=0,
    )


def _load_max(pool: PoolPlan, demand: Demand, work_s: Floats, replicas: int) -> float:
    if pool.gpu == HOSTED:
        return NEVER_FULL
    mean = float(work_s.mean())
    return load_max(
        pool.rates,
        pool.target,
        float(demand.prompt_tokens.mean()),
        output_tokens_mean=float(demand.output_tokens.mean()),
        cv2=float(work_s.var() / mean**2) if mean else 0.0,
        replicas=max(1, replicas),
    )


def _asks(demand: Demand, site: Site, work_s: Floats) -> list[Ask]:
    """One of each model that some requests prefer, and of the models that rules leave them; losses
    are in US dollars per second.
    """
    quality, per_usd, _, _ = site.preference
    point_usd = 1.0 / per_usd if per_usd else site.placement.value_usd / max(quality, 1e-9)
    utility = quality * demand.worth - per_usd * demand.usd
    left = utility + demand.barred
    preferred, best = left.argmax(axis=1), left.max(axis=1)
    sets, of_set = np.unique(demand.may, axis=0, return_inverse=True)
    column = [site.catalogue.column_of[pool.model] for pool in site.fleet.pools]
    hosted = np.array([pool.gpu == HOSTED for pool in site.fleet.pools])
    asks = []
    for model, of in np.unique(np.stack([preferred, of_set.ravel()]), axis=1).T.tolist():
        rows = (preferred == model) & (of_set.ravel() == of)
        rate = demand.rate * float(rows.mean())
        lost = (best[rows, None] - utility[rows][:, column]) * point_usd
        # Own GPUs are paid by the hour, so their list price is nobody's expense; hosted ones' is.
        paid = np.where(hosted, demand.usd[rows][:, column], 0.0)
        loss = np.where(sets[of][column], rate * (lost + paid).mean(axis=0), np.inf)
        asks.append(
            Ask(
                work_per_s=tuple((rate * work_s[rows].mean(axis=0)).tolist()),
                loss_usd_per_s=tuple(loss.tolist()),
                unmet=(Unmet(share=1.0, usd=UNMET_USD * float(rows.mean())),),
            )
        )
    return asks
