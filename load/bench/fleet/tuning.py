"""Rivals at their best: what can be set, and how the best setting of each is found.

    grid of layouts and targets ─▶ runs on a tuning stretch ─▶ best so far
                                       └─ around it: delays ─▶ runs ─▶ best

*Best* is the cheapest of those that keep the promise (99 % within the target); where none does, the
one that comes nearest to it. The stretch is a part of the very trace that is then measured, so a
rival may know what is coming; Fairlead is not tuned at all.

How a setting is judged does not depend on whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

WITHIN_MIN = 0.99

Scaling = Literal["fairlead", "queue_length", "utilisation", "static"]
Layout = Literal["side_by_side", "cheapest_first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A system that can be run: a way of scaling, a router, a fleet."""

    scaling: Scaling
    layout: Layout = "cheapest_first"
    target: float = 0.7  # of a full replica: its load, or the requests that run in it
    down_s: float | None = None  # delay or window before there are fewer; None: its default
    gpu: str | None = None  # the only type of its fleet; None: all pools of the market
    router_priced: bool = False
    sized_by_mix: bool = False  # by Fairlead's planner; else each pool on its own

    def settings(self) -> dict[str, Any]:
        """For JSON: what was tuned."""
        names = ("scaling", "layout", "target", "down_s", "gpu")
        return {name: asdict(self)[name] for name in names}

    @property
    def label(self) -> str:
        """Its name, of ours; of others, what they are set to."""
        ours = [name for name, one in OURS.items() if one == self]
        return ours[0] if ours else ", ".join(f"{one}" for one in self.settings().values() if one)


FAIRLEAD = Contender(scaling="fairlead", router_priced=True, sized_by_mix=True)
ROUTER_BLIND = replace(FAIRLEAD, router_priced=False)
AUTOSCALER_BLIND = replace(FAIRLEAD, sized_by_mix=False)
BOTH_BLIND = replace(FAIRLEAD, router_priced=False, sized_by_mix=False)
OURS = {
    "fairlead": FAIRLEAD,
    "router_blind": ROUTER_BLIND,
    "autoscaler_blind": AUTOSCALER_BLIND,
    "both_blind": BOTH_BLIND,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is tried for one way of scaling."""

    scaling: Scaling
    targets: tuple[float, ...]
    layouts: tuple[Layout, ...] = ("cheapest_first", "side_by_side")
    downs_s: tuple[float, ...] = ()  # beside the default


# Requests in a replica rise much faster than its load, so targets for them lie lower.
QUEUE_LENGTH = Grid(scaling="queue_length", targets=(0.08, 0.15, 0.25, 0.4), downs_s=(120.0, 300.0))
UTILISATION = Grid(scaling="utilisation", targets=(0.45, 0.55, 0.65, 0.75), downs_s=(900.0,))

Figures = Mapping[str, float]
RunAll = Callable[[Sequence[Contender]], Sequence[Figures]]  # in the same order


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best setting, what it reached on the stretch, and how many were tried."""

    contender: Contender
    figures: Figures
    tried: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        reached = {name: round(self.figures[name], 4) for name in ("within_target", "gpu_cost_usd")}
        return {**self.contender.settings(), "on_tuning_stretch": reached, "tried": self.tried}


def tune(grid: Grid, run_all: RunAll, gpu: str | None = None) -> Tuned:
    """The best of a grid: first layouts and targets, then delays around the best of those."""
    # With one pool per model the layouts are the same.
    layouts = grid.layouts[:1] if gpu else grid.layouts
    first = [
        Contender(scaling=grid.scaling, layout=layout, target=target, gpu=gpu)
        for layout in layouts
        for target in grid.targets
    ]
    tried = list(zip(first, run_all(first), strict=True))
    around, _ = best(tried)
    then = [replace(around, down_s=down_s) for down_s in grid.downs_s]
    tried += zip(then, run_all(then), strict=True)
    return Tuned(*best(tried), len(tried))


def best(tried: Sequence[tuple[Contender, Figures]]) -> tuple[Contender, Figures]:
    """The cheapest that keeps the promise, or the nearest to it; of equals the first."""
    kept = [one for one in tried if one[1]["within_target"] >= WITHIN_MIN]
    if kept:
        return min(kept, key=lambda one: one[1]["gpu_cost_usd"])
    return max(tried, key=lambda one: one[1]["within_target"])


def best_homogeneous(grids: Sequence[Grid], gpus: Sequence[str], run_all: RunAll) -> Tuned:
    """The best type of GPU, with the better way of scaling it."""
    found = [tune(grid, run_all, gpu) for gpu in gpus for grid in grids]
    contender, figures = best([(one.contender, one.figures) for one in found])
    return Tuned(contender, figures, sum(one.tried for one in found))
