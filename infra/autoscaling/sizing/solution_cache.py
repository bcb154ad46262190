"""The solution of the last mix, and whether it still holds.

    same pools, limits, GPUs, prices ────┐
    its replicas carry what is expected ─┼─▶ holds: nothing is solved
    not much less comes ─────────────────┤
    younger than five minutes ───────────┘

A solve takes tens of milliseconds, with a dozen pools at times over 50; and solved at every step a
forecast's every tremble would be another plan between mixes that cost nearly the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from infra.autoscaling.demand.workload import Workload
from infra.autoscaling.sizing.requirement import Requirement
from infra.autoscaling.sizing.stabilisation import Limits

ROUNDING = 1e-6  # of replicas' worth of work: the solver's tolerance
LIMITS = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True, slots=True, kw_only=True)
class SolutionCacheOptions:
    """When to solve again."""

    changed: float = 0.02  # relative, of a price, or of a demand that is not met: solve again
    less: float = 0.1  # so much less work of any model: solve again
    solved_s_max: float = 300.0  # a mix is looked at afresh after this in any case


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """What a mix is the solution of."""

    at_s: float
    load: Workload
    usd_per_hour: Mapping[str, float]  # by GPU type
    limits: Mapping[str, Limits]  # by pool
    gpus: Mapping[str, int]  # by type


class SolutionCache:
    """The last solution, if there is one."""

    def __init__(self, options: SolutionCacheOptions) -> None:
        self._options = options
        self.required: Requirement | None = None
        self._shares: list[list[float]] = []  # (asks, pools)
        self._asked: list[Any] | None = None  # when, for whom and within what, prices, work

    def holds(self, now: Problem) -> bool:  # noqa: PLR0911 - a reason each
        """Whether the last mix is still a good one for what is asked now."""
        o, required, load = self._options, self.required, now.load
        if required is None or self._asked is None or now.at_s - self._asked[0] >= o.solved_s_max:
            return False
        _, exact_then, usd_then, asked_then = self._asked
        if _exact(now) != exact_then:
            return False
        if not np.allclose(_sorted(now.usd_per_hour), usd_then, o.changed, 0.0):
            return False
        if not load.keys:
            return True
        then = np.array(asked_then)
        if (load.asked < (1.0 - o.less) * then).any():
            return False
        if required.unmet > 0.0:
            return np.allclose(load.asked, then, o.changed, 0.0)
        carried = (load.asked * np.array(self._shares)).sum(axis=0)
        most = [required.load_max[name] * n for name, n in required.replicas.items()]
        return bool((carried <= np.array(most) + ROUNDING).all())

    def keep(self, required: Requirement, shares: Sequence[Sequence[float]], now: Problem) -> None:
        """Make it the last one; `shares` (asks, pools) of what is asked for."""
        self.required, self._shares = required, [list(row) for row in shares]
        usd, asked = _sorted(now.usd_per_hour), now.load.asked.tolist()
        self._asked = [now.at_s, _exact(now), usd, asked]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        required = self.required and asdict(self.required)
        return {"asked": self._asked, "shares": self._shares, "needs": required}

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """What `as_dict` said."""
        if saved and saved["needs"]:
            self._asked, self._shares = saved["asked"], saved["shares"]
            self.required = Requirement.restored(saved["needs"])


def _exact(now: Problem) -> Any:
    """What is compared as it is, not nearly."""
    bounds = {
        name: {key: getattr(limit, key) for key in LIMITS} for name, limit in now.limits.items()
    }
    return _plain([now.load.keys, bounds, dict(now.gpus), sorted(now.usd_per_hour)])


def _sorted(usd_per_hour: Mapping[str, float]) -> list[float]:
    return [usd_per_hour[name] for name in sorted(usd_per_hour)]


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
