"""What of a bench is done: figures as runs end, and what is left out if it ends before they do.

    runs, under way or done ─▶ Done ─▶ the result: figures, ratios, what rivals were tuned to
                                 └───▶ left_out: by name, why

Every run is a future; a figure is there when its run has ended well. So a bench that is interrupted
says what it knows, and a whole one says all.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from load.bench.fleet.tuning import OURS, Tuned

RIVALS = ("ray_default", "hpa", "homogeneous")
POLICIES = (*OURS, *RIVALS, "clairvoyant")
DIGITS = {
    "within_target": 5,
    "gpu_cost_usd": 3,
    "quality": 4,
    "joules_per_request": 2,
    "replica_changes_per_h": 2,
}
INTERRUPTED = "interrupted"

Figures = Mapping[str, Any]  # of one run
Value = TypeVar("Value")


@dataclass(slots=True)
class TraceRuns:
    """The runs of one trace. Filled in by one thread, read by another when that has ended."""

    runs: dict[str, Future[Figures]] = field(default_factory=dict)  # by policy
    tuned: dict[str, Tuned] = field(default_factory=dict)  # by rival

    def figures(self) -> dict[str, Figures]:
        """By policy, of those that are done."""
        found = {policy: known(self.runs.get(policy)) for policy in POLICIES}
        return {policy: one for policy, one in found.items() if one is not None}

    def result(self) -> dict[str, Any]:
        """What is said of the trace, by key; None where it is not known."""
        figures = self.figures()
        ours, limit = figures.get("fairlead", {}), figures.get("clairvoyant", {})
        return {
            "traces": {policy: rounded(one) for policy, one in figures.items()},
            "ratios": ratios(figures),
            "tuned": {policy: one.as_dict() for policy, one in self.tuned.items()},
            "requests": ours.get("requests"),
            "peak_gpus": ours.get("peak_gpus"),
            "bound_unserved": _digits(limit.get("unserved"), 5),
            "bound_whole_usd": _digits(limit.get("whole_usd"), 3),
            "digests": {p: one["digest"] for p, one in figures.items() if "digest" in one},
        }


@dataclass(slots=True)
class Done:
    """The runs of a bench."""

    traces: dict[str, TraceRuns]
    overloads: bool  # whether it is asked for
    speed: Future[float] | None = None
    overload: dict[str, Any] | None = None

    def result(self) -> dict[str, Any]:
        """All that is known, and what is left out."""
        found = {name: of.result() for name, of in self.traces.items()}
        keys = dict.fromkeys(key for one in found.values() for key in one)
        return {
            "overload": self.overload,
            "simulated_requests_per_s": _digits(known(self.speed), None),
            **{key: {name: one[key] for name, one in found.items()} for key in keys},
            "left_out": dict.fromkeys(self._left_out(), INTERRUPTED),
        }

    def _left_out(self) -> list[str]:
        runs = [
            f"{name}.{policy}"
            for name, of in self.traces.items()
            for policy in POLICIES
            if policy not in of.figures()
        ]
        speed = [] if known(self.speed) is not None else ["simulated_requests_per_s"]
        return speed + runs + (["overload"] if self.overloads and self.overload is None else [])


def known(of: Future[Value] | None) -> Value | None:
    """A run's result, if it has ended well."""
    if of is None or not of.done() or of.cancelled() or of.exception() is not None:
        return None
    return of.result()


def _digits(value: float | None, digits: int | None) -> float | None:
    return None if value is None else round(value, digits)


def rounded(figures: Figures) -> dict[str, float]:
    """The contract's figures, to as many digits as mean something."""
    return {name: round(float(figures[name]), digits) for name, digits in DIGITS.items()}


def ratios(figures: Mapping[str, Figures]) -> dict[str, float]:
    """Fairlead's cost over that of others, and its quality less theirs, of those that are known."""
    ours = figures.get("fairlead")
    others = [policy for policy in (*RIVALS, "clairvoyant") if policy in figures]
    if ours is None:
        return {}
    costs = {
        f"cost_to_{policy}": round(ours["gpu_cost_usd"] / figures[policy]["gpu_cost_usd"], 3)
        for policy in others
        if figures[policy]["gpu_cost_usd"]
    }
    return costs | {
        f"quality_over_{policy}": round(ours["quality"] - figures[policy]["quality"], 4)
        for policy in others
    }
