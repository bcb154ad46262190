"""What is needed of each pool: expected demand made work, work made replicas.

    expected rates · work of a request · correction ─┐
    quality lost where another model answers ────────┼─▶ mix: all pools at once
    how full a pool may be, prices, limits ──────────┘

How full a pool may be depends on how many replicas it has: the mix is solved for as many as there
are, and once more if the answer is another number.

The one rule: as long as what was planned carries what is expected now, and not much less than that
is expected, nothing is solved again; but after five minutes it is looked at afresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from infra.autoscaling.expected import ExpectedDemand, Key
from infra.autoscaling.mix import Ask, Mix, MixOptions, Offer, Unmet, cheapest
from infra.autoscaling.needs import Needs, needs_of
from infra.autoscaling.queueing import load_max
from infra.autoscaling.steady import Limits
from infra.fleet import PoolPlan
from infra.latency_target import LatencyTarget
from learners.work import WorkRates, WorkTable

CRITICAL = 2  # of 0 SHEDDABLE, 1 SHEDDABLE_PLUS, 2 CRITICAL, 3 CRITICAL_PLUS
OUTPUT_CV2 = 0.6  # squared variation of answers' lengths: of Azure's and of Mooncake's, alike
WORK_LEAST = 1e-3  # replicas' worth: what is less drowns in the solver's tolerance of 1e-6
WISH_SHARE = 1e-3  # of a request's value: between equals the model that was wished for


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingOptions:
    """What things are worth, and what is taken where nothing is known."""

    value_usd: float = 0.05  # of a point of quality, for one request: as routers take it
    criticality: Mapping[str, int] = field(default_factory=dict)  # by class; missing: CRITICAL
    # Of how full a pool may be, it is planned to be: loads swing within a minute, and where there is
    # nothing to spare the swings have a price.
    filled: float = 0.9
    cv2: float = 1.0  # squared variation of work within a class, where lengths are not told
    lead_s: float = 30.0  # beside the start: until a plan is made and carried out
    lead_s_max: float = 900.0  # forecasts end there
    rate_least: float = 1e-3  # requests/s; less is nothing
    changed: float = 0.02  # relative, of a price, or of a demand that is not met: solve again
    less: float = 0.1  # so much less work of any model: solve again
    solved_s_max: float = 300.0  # a mix is looked at afresh after this in any case
    prompt_tokens: float = 1000.0  # until a length is known
    output_tokens: float = 250.0


class Sizing:
    """Of a fleet's pools with GPUs."""

    def __init__(
        self,
        pools: Mapping[str, PoolPlan],
        rates: Mapping[str, WorkRates],
        target: LatencyTarget,
        quality: Mapping[str, float],
        options: SizingOptions,
        mix: MixOptions,
    ) -> None:
        self._pools, self._names = dict(pools), list(pools)
        self._rates = {name: rates[name] for name in pools}
        self._table = WorkTable([rates[name] for name in pools])
        self._target, self._quality = target, dict(quality)
        self._options, self._mix = options, mix
        self.lead_s = {
            name: min(pool.load_s + _startup_s(pool) + options.lead_s, options.lead_s_max)
            for name, pool in pools.items()
        }
        self._asked: list[Any] | None = None  # solved last: when, for whom, prices, work
        self._shares: list[list[float]] = []  # (asks, pools) of the last mix
        self._needs: Needs | None = None

    # --- all at once

    def together(
        self,
        demand: ExpectedDemand,
        factors: Mapping[str, float],
        usd_per_hour: Mapping[str, float],
        now: Mapping[str, int],
        limits: Mapping[str, Limits],
        gpus: Mapping[str, int],
    ) -> Needs:
        """The cheapest mix; that of the last step where nothing changed, or nothing was found."""
        keys, rate, work = self._work(demand)
        factor = np.array([factors.get(self._pools[name].model, 1.0) for name in self._names])
        work = work * factor
        names = sorted(usd_per_hour)
        exact = [keys, {k: asdict(v) for k, v in limits.items()}, dict(gpus)]
        usd = [usd_per_hour[name] for name in names]
        if not self._holds(demand.at_s, exact, usd, keys, rate * work):
            found = self._solve(keys, rate, work, usd_per_hour, now, limits, gpus)
            if found is not None:
                self._needs = found
                self._asked = [demand.at_s, _plain(exact), usd, (rate * work).tolist()]
        needs = self._needs or needs_of({n: now.get(n, 0) for n in self._names}, self.lead_s)
        needs.now = _by_model(keys, [demand.series[key].rate for key in keys])
        return needs

    def _work(self, demand: ExpectedDemand) -> tuple[list[Key], np.ndarray, np.ndarray]:
        """Who asks; their rates (asks, pools) when pools' replicas are ready; work, likewise."""
        by_lead = {lead: demand.rates(lead) for lead in sorted(set(self.lead_s.values()))}
        least = self._options.rate_least
        some = next(iter(by_lead.values()), {})
        keys = [k for k in some if max(r[k].upper for r in by_lead.values()) >= least]
        rate = np.array(
            [[by_lead[self.lead_s[name]][key].upper for name in self._names] for key in keys]
        ).reshape(len(keys), len(self._names))
        prompt, output = self._lengths(demand, keys)
        work = self._table.work_s(prompt, output[:, None])
        reading = 1.0 - self._table.work_s(0.0 * prompt, output[:, None]) / np.maximum(work, 1e-12)
        self._cv2 = self._variation(demand, keys, reading)
        return keys, rate, work

    def _variation(
        self, demand: ExpectedDemand, keys: Sequence[Key], reading: np.ndarray
    ) -> np.ndarray:
        """Squared variation (asks, pools) of work, of which a share is `reading` prompts."""
        told = [demand.series[key].prompt_cv2 for key in keys]
        known = np.array([one is not None for one in told]).reshape(-1, 1)
        prompts = np.array([one or 0.0 for one in told]).reshape(-1, 1)
        found = reading**2 * prompts + (1.0 - reading) ** 2 * OUTPUT_CV2
        return np.where(known, found, self._options.cv2)

    def _lengths(
        self, demand: ExpectedDemand, keys: Sequence[Key]
    ) -> tuple[np.ndarray, np.ndarray]:
        o, of = self._options, [demand.series[key] for key in keys]
        prompt = np.array([one.prompt_tokens or o.prompt_tokens for one in of], np.float64)
        output = np.array([one.output_tokens or o.output_tokens for one in of], np.float64)
        self._means = dict(
            zip(keys, zip(prompt.tolist(), output.tolist(), strict=True), strict=True)
        )
        return prompt, output

    def _holds(
        self, at_s: float, exact: list[Any], usd: list[float], keys: list[Key], asked: np.ndarray
    ) -> bool:
        """Whether the last mix is still a good one; `asked` (asks, pools): work, if it all came."""
        o, needs = self._options, self._needs
        if needs is None or self._asked is None or at_s - self._asked[0] >= o.solved_s_max:
            return False
        _, exact_then, usd_then, asked_then = self._asked
        if _plain(exact) != exact_then or not np.allclose(usd, usd_then, o.changed, 0.0):
            return False
        if not keys:
            return True
        then = np.array(asked_then)
        if (asked < (1.0 - o.less) * then).any():
            return False
        if needs.unmet > 0.0:
            return np.allclose(asked, then, o.changed, 0.0)
        carried = (asked * np.array(self._shares)).sum(axis=0)
        most = [needs.load_max[name] * needs.replicas[name] for name in self._names]
        return bool((carried <= np.array(most) + 1e-6).all())

    def _solve(
        self,
        keys: list[Key],
        rate: np.ndarray,
        work: np.ndarray,
        usd_per_hour: Mapping[str, float],
        now: Mapping[str, int],
        limits: Mapping[str, Limits],
        gpus: Mapping[str, int],
    ) -> Needs | None:
        asks = self._asks(keys, rate, work, usd_per_hour)
        counts = [max(1, now.get(name, 0)) for name in self._names]
        full = self._full(keys, rate, work, counts)
        mix = cheapest(asks, self._offers(full, usd_per_hour, now, limits), gpus, self._mix)
        if mix is not None:
            again = self._full(keys, rate, work, [max(1, n) for n in mix.replicas])
            if any(
                abs(a - b) > 0.05 for a, b, n in zip(again, full, mix.replicas, strict=True) if n
            ):
                full = again
                offers = self._offers(full, usd_per_hour, now, limits)
                mix = cheapest(asks, offers, gpus, self._mix) or mix
        return mix and self._as_needs(mix, keys, rate, work, full)

    def _full(
        self, keys: list[Key], rate: np.ndarray, work: np.ndarray, counts: Sequence[int]
    ) -> list[float]:
        """How full each pool may be with so many replicas, of those who want its model."""
        found = []
        for k, name in enumerate(self._names):
            mean = self._mean(keys, rate[:, k], work[:, k], k)
            full = load_max(self._rates[name], self._target, mean[0], mean[1], mean[2], counts[k])
            found.append(self._options.filled * full)
        return found

    def _mean(
        self, keys: list[Key], rate: np.ndarray, work: np.ndarray, column: int
    ) -> tuple[float, float, float, float]:
        """Mean prompt, output, squared variation, work of who wants a pool's model, or of all."""
        o, model = self._options, self._pools[self._names[column]].model
        weight = np.array(
            [float(r) if key[1] == model else 0.0 for r, key in zip(rate, keys, strict=True)]
        )
        if not weight.sum():
            weight = np.array(rate, np.float64)
        if not weight.sum():
            return o.prompt_tokens, o.output_tokens, o.cv2, 0.0
        weight = weight / weight.sum()
        lengths = np.array([self._means[key] for key in keys])
        prompt, output = (weight @ lengths).tolist()
        mean_s = float(weight @ work)
        between = float(weight @ work**2) / mean_s**2 if mean_s else 1.0
        within = float(weight @ self._cv2[:, column])
        return prompt, output, (1.0 + within) * between - 1.0, mean_s

    def _offers(
        self,
        full: Sequence[float],
        usd_per_hour: Mapping[str, float],
        now: Mapping[str, int],
        limits: Mapping[str, Limits],
    ) -> list[Offer]:
        found = []
        for name, load in zip(self._names, full, strict=True):
            usd, limit = usd_per_s(self._pools[name], usd_per_hour), limits[name]
            found.append(
                Offer(
                    pool=name,
                    gpu=limit.gpu,
                    gpus_per_replica=limit.gpus_per_replica,
                    usd_per_s=usd,
                    start_usd=usd * self.lead_s[name],
                    load_max=load,
                    least=limit.least,
                    most=limit.most,
                    now=now.get(name, 0),
                )
            )
        return found

    def _asks(
        self,
        keys: list[Key],
        rate: np.ndarray,
        work: np.ndarray,
        usd_per_hour: Mapping[str, float],
    ) -> list[Ask]:
        o = self._options
        usd = np.array([usd_per_s(self._pools[name], usd_per_hour) for name in self._names])
        a_replica = float(usd.max(initial=0.0)) * (self._mix.horizon_s + o.lead_s_max)
        found = []
        for model in sorted({key[1] for key in keys}):
            of = [i for i, key in enumerate(keys) if key[1] == model]
            requests_per_s, asked = rate[of].sum(axis=0), (rate[of] * work[of]).sum(axis=0)
            gap = np.array([self._gap(model, self._pools[name].model) for name in self._names])
            dearest = o.value_usd + 2.0 * float((usd * work[of]).max(initial=0.0))
            requests = float(requests_per_s.max(initial=0.0)) * self._mix.horizon_s
            each = rate[of].max(axis=1)
            found.append(
                Ask(
                    work_per_s=tuple(np.maximum(asked, WORK_LEAST).tolist()),
                    loss_usd_per_s=tuple((requests_per_s * gap * o.value_usd).tolist()),
                    unmet=tuple(
                        Unmet(
                            share=float(one / each.sum()),
                            usd=self._rank(keys[i][0]) * 2.0 * max(requests * dearest, a_replica),
                        )
                        for i, one in zip(of, each, strict=True)
                    ),
                )
            )
        return found

    def _rank(self, class_name: str) -> float:
        """How much worse it is to refuse a class than the least critical one."""
        return float(2.0 ** self._options.criticality.get(class_name, CRITICAL))

    def _gap(self, wished: str, other: str) -> float:
        """Points of quality lost where another model answers."""
        if wished == other:
            return 0.0
        known = self._quality
        lost = known[wished] - known[other] if wished in known and other in known else 0.0
        return max(0.0, lost) + WISH_SHARE

    def _as_needs(
        self, mix: Mix, keys: list[Key], rate: np.ndarray, work: np.ndarray, full: Sequence[float]
    ) -> Needs:
        row = {model: i for i, model in enumerate(sorted({key[1] for key in keys}))}
        of = [row[key[1]] for key in keys]
        self._shares = mix.shares[of].tolist()
        taken = mix.shares[of] * rate  # (asks, pools), requests/s
        models = [self._pools[name].model for name in self._names]
        wish = rate.max(axis=1, initial=0.0)
        work_s = {}
        for k, name in enumerate(self._names):
            carried = float(taken[:, k].sum())
            mean = self._mean(keys, rate[:, k], work[:, k], k)[3]
            work_s[name] = float(taken[:, k] @ work[:, k]) / carried if carried else mean
        return Needs(
            replicas=dict(zip(self._names, mix.replicas, strict=True)),
            load_max=dict(zip(self._names, full, strict=True)),
            work_s=work_s,
            rate=dict(zip(self._names, taken.sum(axis=0).tolist(), strict=True)),
            lead_s=dict(self.lead_s),
            wished=_by_model(keys, wish.tolist()),
            carried=_summed(models, taken.sum(axis=0).tolist()),
            unmet=float(mix.unmet[of] @ wish),
        )

    # --- saved and restored

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        needs = self._needs and asdict(self._needs)
        return {"asked": self._asked, "shares": self._shares, "needs": needs}

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """What `as_dict` said."""
        if saved and saved["needs"]:
            self._asked, self._shares = saved["asked"], saved["shares"]
            self._needs = Needs(**saved["needs"])


def usd_per_s(pool: PoolPlan, usd_per_hour: Mapping[str, float]) -> float:
    """What a replica costs."""
    assert pool.gpu is not None
    return usd_per_hour.get(pool.gpu.name, pool.gpu.usd_per_hour) * pool.gpus_per_replica / 3600.0


def _startup_s(pool: PoolPlan) -> float:
    assert pool.gpu is not None
    return pool.gpu.startup_s


def _by_model(keys: Sequence[Key], values: Sequence[float]) -> dict[str, float]:
    return _summed([key[1] for key in keys], values)


def _summed(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in zip(names, values, strict=True):
        found[name] = found.get(name, 0.0) + value
    return found


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
