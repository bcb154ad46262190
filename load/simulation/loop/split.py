"""Which pool of its model a request goes to where the router does not look at pools.

    model's pools that have replicas ─▶ in turn, each as often as its capacity's share ─▶ pool

It stands for what is common in front of unlike replicas: weighted round robin, the weights set to
what each carries. The order is the smooth one of nginx, by which no pool gets its share in a lump.

Prices, loads and queues are not looked at; whether there is a replica is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from learners.work import WorkRates, WorkTable
from load.data.traffic import Traffic
from load.simulation.machines.fleet import VirtualFleet
from serve.routing.catalogue import Catalogue

SAMPLE = 2000  # requests whose lengths are looked at


class Split:
    """Weighted round robin over the pools of each model. Columns are the catalogue's."""

    def __init__(
        self, traffic: Traffic, catalogue: Catalogue, fleet: VirtualFleet, target: LatencyTarget
    ) -> None:
        by_name = {pool.plan.name: pool for pool in fleet.pools}
        self._pools = [by_name[name] for name in catalogue.pool_names]
        self._columns: list[list[int]] = [[] for _ in catalogue.names]
        for column, model in enumerate(catalogue.model_of_pool.tolist()):
            self._columns[model].append(column)
        plans = [pool.plan for pool in self._pools]
        rates = [
            rates_of(plan.emulation.performance, target) if plan.emulation else WorkRates()
            for plan in plans
        ]
        self._capacity = capacities(rates, traffic)
        self._turn = [0.0] * len(self._pools)

    def pools(self, chosen: NDArray[np.intp], otherwise: NDArray[np.intp]) -> NDArray[np.intp]:
        """The pools (n,) of requests of these models (n,); `otherwise` where none has replicas."""
        found = otherwise.copy()
        weights = [
            len(pool.ready) * capacity
            for pool, capacity in zip(self._pools, self._capacity, strict=True)
        ]
        for row, model in enumerate(chosen.tolist()):
            if model >= 0:
                found[row] = self._next(self._columns[model], weights, int(otherwise[row]))
        return found

    def _next(self, columns: Sequence[int], weights: Sequence[float], otherwise: int) -> int:
        turn, total, best = self._turn, 0.0, -1
        for column in columns:
            weight = weights[column]
            if weight == 0.0:
                turn[column] = 0.0
                continue
            turn[column] += weight
            total += weight
            if best < 0 or turn[column] > turn[best]:
                best = column
        if best < 0:
            return otherwise
        turn[best] -= total
        return best


def capacities(rates: Sequence[WorkRates], traffic: Traffic) -> list[float]:
    """Requests a second that a replica of each carries, of the traffic's lengths."""
    n = len(traffic)
    if n == 0:
        return [1.0] * len(rates)
    rows = np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.intp)
    prompt = traffic.prompt_tokens[rows].astype(np.float64)
    output = traffic.output_tokens[rows].astype(np.float64)
    work_s = WorkTable(rates).work_s(prompt, output[:, None]).mean(axis=0)
    return [1.0 / one if one > 0.0 else 1.0 for one in work_s.tolist()]
