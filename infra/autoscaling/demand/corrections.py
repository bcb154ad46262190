"""What prices say about how much a model's replicas carry: less than was thought, while m > 0.

    every pool of the model has a price, though ─▶ its work counts for more, up to 1.3 times
    it is thought to have room
    one has no price, or is thought full ────────▶ back, half of the way in 5 minutes

A price above zero that lasts means that what is there does not carry what comes. Where that was to
be expected, as replicas are still starting, or as requests are to be priced away to another model,
it says nothing new. But where a pool is thought to have room with what is decided for it, less fits
into it than rates and lengths promised. It is the only signal from the router to the planner.

What is thought has the correction in it. So it rises until it explains the price, and no further.

Between one and 1.3. A price can make the fleet dearer, but not without bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from infra.autoscaling.contract import PoolCondition
from infra.capacity.fleet import PoolPlan

RISE_PER_S = 0.1 / 60.0  # at m = 1, where capacity is worth twice its GPUs: 10 % a minute
M_MAX = 1.0  # what is more only says how much too late it is
# Most of what a price says is that a rise was not foreseen, and that is over when the replicas have
# come. What is wrong for longer is found again at once.
HALF_LIFE_S = 300.0
CORRECTION_MAX = 1.3
PASSED_S_MAX = 60.0  # a silence says nothing about the time it lasted


class Corrections:
    """Of all models that have pools."""

    def __init__(
        self, pools: Mapping[str, PoolPlan], remembered: Mapping[str, Any] | None = None
    ) -> None:
        self._models: dict[str, list[str]] = {}
        for name, pool in pools.items():
            self._models.setdefault(pool.model, []).append(name)
        remembered = remembered or {"at_s": None, "logs": {}}
        self._at_s: float | None = remembered["at_s"]
        logs = remembered["logs"]
        self._logs = {model: float(logs.get(model, 0.0)) for model in self._models}

    def observe(
        self, at_s: float, pools: Mapping[str, PoolCondition], fullness: Mapping[str, float]
    ) -> None:
        """Let the prices of one step count for the time since the last one.

        `fullness` by pool: what its ready replicas are thought to carry now, of what they are
        planned to. Missing: nothing is thought of it, and its price counts.
        """
        before_s, self._at_s = at_s if self._at_s is None else self._at_s, at_s
        passed_s = min(max(0.0, at_s - before_s), PASSED_S_MAX)
        for model, names in self._models.items():
            m = _scarcity([name for name in names if name in pools], pools, fullness)
            if m > 0.0:
                risen = self._logs[model] + RISE_PER_S * passed_s * min(m, M_MAX)
                self._logs[model] = min(risen, math.log(CORRECTION_MAX))
            else:
                self._logs[model] *= 0.5 ** (passed_s / HALF_LIFE_S)

    def factors(self) -> dict[str, float]:
        """By model, from 1 to 1.3; rounded so that a hair's difference makes no new plan."""
        return {model: round(math.exp(log), 2) for model, log in self._logs.items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"at_s": self._at_s, "logs": dict(self._logs)}


def _scarcity(
    names: list[str], pools: Mapping[str, PoolCondition], fullness: Mapping[str, float]
) -> float:
    """The lowest price among pools that have replicas and are thought to have room; one without a
    price has room for all, one that is thought full explains all prices.
    """
    there = [name for name in names if pools[name].ready and pools[name].available]
    if any(fullness.get(name, 0.0) >= 1.0 for name in there):
        return 0.0
    prices = [pools[name].price for name in there]
    if not prices or not all(math.isfinite(price) for price in prices):
        return 0.0
    return max(0.0, min(prices))
