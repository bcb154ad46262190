"""A plan explained: one line for each pool that changes, for whoever watches over the fleet.

    llama-8b-h100: 4 → 6: 31 requests/s expected in 10 min, 4.6 replicas' work of which 90 % may be
    used; h100 is the cheapest at $0.12 per 1,000 requests

A line says what was decided, from what, and in the units of the machine that is paid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.sizing.requirement import Requirement
from infra.autoscaling.sizing.stabilisation import Limits
from infra.capacity.fleet import PoolPlan


class Explanations:
    """Knows the pools."""

    def __init__(self, pools: Mapping[str, PoolPlan]) -> None:
        self._pools = pools

    def lines(
        self,
        before: Mapping[str, int],
        after: Mapping[str, int],
        required: Requirement,
        limits: Mapping[str, Limits],
        gpus: Mapping[str, int],
        usd_per_hour: Mapping[str, float],
    ) -> list[str]:
        """What changed, and why."""
        found = []
        usd = {name: self._usd_per_1k(name, required, usd_per_hour) for name in self._pools}
        for name in self._pools:
            was, is_ = before.get(name, 0), after[name]
            if was != is_:
                why = (
                    self._more(name, is_, required, usd)
                    if is_ > was
                    else self._fewer(name, is_, required, limits, gpus, usd)
                )
                found.append(f"{name}: {was} → {is_}: {why}")
        return found

    @staticmethod
    def left_out(unmet: float, *, expected: float) -> str:
        """Of what no pool is to carry, requests a second."""
        return (
            f"{unmet:.3g} of {expected:.3g} requests/s that are expected are left out: every pool "
            f"is at its bounds, or the GPUs are used up"
        )

    @staticmethod
    def not_sized(pools: Sequence[str]) -> str:
        """Of pools of which nobody knows how much work their replicas carry; of none, too."""
        if not pools:
            return "there are no pools: nothing is sized"
        return (
            f"not sized: {', '.join(pools)}: only pools that are run here, on stated GPUs, are; "
            f"the others keep their replicas, and what only they can answer is not planned for"
        )

    @staticmethod
    def lacking(name: str, there: PoolCondition, n: int) -> str:
        """Of a pool that others size."""
        what = (
            f"{name}: {there.requests_per_s:.3g} requests/s come to {there.ready} servers of "
            f"{there.capacity_per_s:.3g} requests/s each"
        )
        return f"{what}: {n} would be wanted" if n > there.ready else f"{what}: enough again"

    @staticmethod
    def carried_again(expected: float) -> str:
        """That there is nothing of it any more."""
        return f"the {expected:.3g} requests/s that are expected are carried again"

    def _more(
        self, name: str, n: int, required: Requirement, usd: Mapping[str, float | None]
    ) -> str:
        pool, rate, lead_s = self._pools[name], required.rate[name], required.lead_s[name]
        if not rate:
            return "at least so many are wanted by its settings"
        work, most = rate * required.work_s[name], required.load_max[name]
        now = required.demand_now.get(pool.model, 0.0)
        line = (
            f"{rate:.3g} requests/s expected in {lead_s / 60.0:.0f} min (now {now:.3g} want "
            f"{pool.model}), the work of {work:.2f} replicas that may be {most:.0%} full"
        )
        if n < required.replicas[name]:
            line += f"; {required.replicas[name]} are needed, more follow"
        return line + self._price(name, usd)

    def _fewer(
        self,
        name: str,
        n: int,
        required: Requirement,
        limits: Mapping[str, Limits],
        gpus: Mapping[str, int],
        usd: Mapping[str, float | None],
    ) -> str:
        limit, rate = limits[name], required.rate[name]
        if limit.most == n and limit.most < self._pools[name].replicas_max:
            there = gpus.get(limit.gpu, 0)
            return f"its region or its GPUs are gone: {there} {limit.gpu} may be had"
        if not rate:
            return "no requests are expected for it" + self._instead(name, usd)
        work = rate * required.work_s[name]
        return f"{rate:.3g} requests/s expected, the work of {work:.2f} replicas, for minutes now"

    def _price(self, name: str, usd: Mapping[str, float | None]) -> str:
        mine = usd[name]
        if not mine:
            return ""
        model, gpu = self._pools[name].model, self._pools[name].gpu
        others = [usd[o] for o in self._pools if self._pools[o].model == model and o != name]
        rank = sum(1 for other in others if other is not None and other < mine)
        where = f"; {gpu.name if gpu else ''} is "
        where += "the cheapest" if not rank else f"next, {rank} cheaper used up,"
        return f"{where} at ${mine:.3g} per 1,000 requests"

    def _instead(self, name: str, usd: Mapping[str, float | None]) -> str:
        mine, model = usd[name], self._pools[name].model
        same = [o for o in self._pools if self._pools[o].model == model and o != name]
        cheaper = [(each, o) for o in same if (each := usd[o]) is not None]
        if mine is None or not cheaper or min(cheaper)[0] >= mine:
            return ""
        price, other = min(cheaper)
        return f": ${mine:.3g} per 1,000 requests, and {other} takes ${price:.3g}"

    def _usd_per_1k(
        self, name: str, required: Requirement, usd_per_hour: Mapping[str, float]
    ) -> float | None:
        """GPU cost of a thousand mean requests; None: not known."""
        pool = self._pools[name]
        if pool.gpu is None or not required.work_s[name]:
            return None
        usd_per_s = (
            usd_per_hour.get(pool.gpu.name, pool.gpu.usd_per_hour) * pool.gpus_per_replica / 3600.0
        )
        return 1000.0 * usd_per_s * required.work_s[name] / required.load_max[name]
