"""A day or two of a fleet as a picture: what was asked, what ran, what it was worth.

    Run, Watched ─▶ Curves (a point every few minutes) ─▶ four panels, one PNG

Curves are means over equal stretches of time; nothing is smoothed beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from infra.autoscaling.contract import Observed, Plan, Scaler
from load.bench.fleet.scenario import Scenario
from load.simulation.loop.results import Fate, Run

POINTS = 400
COLOURS = {
    "l4": "#5c7d3a",
    "l40s": "#3a9d5d",
    "a100_sxm": "#8a7a2f",
    "h100_sxm": "#0b6e99",
    "h200_sxm": "#7d5ba6",
    "b200_sxm": "#b5544d",
}


@dataclass(slots=True)
class Watched:
    """A scaler, and the prices that it saw."""

    scaler: Scaler
    at_s: list[float] = field(default_factory=list)
    price: list[float] = field(default_factory=list)  # mean over replicas, multiples of GPUs' cost

    def step(self, observed: Observed) -> Plan:
        """As the scaler says."""
        ready = [condition.ready for condition in observed.pools.values()]
        prices = [condition.price for condition in observed.pools.values()]
        self.at_s.append(observed.at_s)
        self.price.append(float(np.dot(ready, prices) / max(1, sum(ready))))
        return self.scaler.step(observed)


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """t points in time."""

    hours: NDArray[np.float64]  # (t,)
    requests_per_s: NDArray[np.float64]
    gpus: dict[str, NDArray[np.float64]]  # by type, starting and draining ones too
    price: NDArray[np.float64]
    quality: NDArray[np.float64]
    within: NDArray[np.float64]


def curves_of(run: Run, of: Scenario, watched: Watched) -> Curves:
    """What the picture shows of a run."""
    edges = np.linspace(0.0, run.end_s, POINTS + 1)
    at_s, step_s = run.traffic.at_s, edges[1]
    slot = np.minimum((at_s / step_s).astype(int), POINTS - 1)
    n = np.bincount(slot, minlength=POINTS)
    finished = run.requests.fate == Fate.FINISHED
    answered = np.bincount(slot[finished], minlength=POINTS)
    quality = np.bincount(slot[finished], run.requests.quality[finished], minlength=POINTS)
    within = np.bincount(slot, run.requests.within(run.traffic, run.target), minlength=POINTS)
    series = run.replicas
    looks = np.minimum((series.at_s / step_s).astype(int), POINTS - 1)
    there = series.ready + series.starting + series.draining
    gpus: dict[str, NDArray[np.float64]] = {}
    for column, pool in enumerate(of.fleet.pools):
        there_now = there[:, column].astype(np.float64)
        used = _mean(looks, there_now * pool.gpus_per_replica)
        gpus[pool.machine.name] = gpus.get(pool.machine.name, 0.0) + used
    began_s = watched.at_s[0] if watched.at_s else 0.0
    seen = np.minimum(((np.array(watched.at_s) - began_s) / step_s).astype(int), POINTS - 1)
    return Curves(
        hours=(edges[:-1] + step_s / 2) / 3600.0,
        requests_per_s=n / step_s,
        gpus=gpus,
        price=_mean(seen, np.array(watched.price)),
        quality=np.divide(quality, answered, np.full(POINTS, np.nan), where=answered > 0),
        within=np.divide(within, n, np.full(POINTS, np.nan), where=n > 0),
    )


def _mean(slot: NDArray[np.intp], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean per slot; a slot without any has the former one's."""
    n = np.bincount(slot, minlength=POINTS)
    total = np.bincount(slot, values, minlength=POINTS)
    last = np.maximum.accumulate(np.where(n > 0, np.arange(POINTS), 0))
    return (total / np.maximum(n, 1))[last]


def draw(curves: Curves, path: Path) -> None:
    """Save the PNG."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 8), layout="constrained")
        load, gpus, price, quality = figure.subplots(4, 1, sharex=True)
        load.fill_between(curves.hours, curves.requests_per_s, color="#0b6e99", alpha=0.5)
        load.set(ylabel="requests per second", title="A fleet in virtual time")
        shown = {name: of for name, of in curves.gpus.items() if of.any()}
        gpus.stackplot(
            curves.hours,
            list(shown.values()),
            labels=list(shown),
            colors=[COLOURS.get(name, "#555555") for name in shown],
        )
        gpus.legend(loc="upper left", fontsize=8, frameon=False, ncols=len(shown))
        gpus.set(ylabel="GPUs")
        price.plot(curves.hours, curves.price, color="#d08c2e", linewidth=1)
        price.set(ylabel="price of capacity,\nmultiples of its GPUs'")
        quality.plot(curves.hours, curves.quality, color="#3a9d5d", linewidth=1, label="quality")
        quality.plot(
            curves.hours, curves.within, color="#555555", linewidth=1, label="within target"
        )
        quality.legend(loc="lower left", fontsize=8, frameon=False, ncols=2)
        quality.set(ylabel="share", xlabel="hours", ylim=(0.0, 1.02))
        for axes in (load, gpus, price, quality):
            axes.grid(alpha=0.25)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
