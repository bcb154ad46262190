"""Replicas over time, real and simulated, side by side under the load that both were given.

    live:       requests per second            simulated:  requests per second
                replicas by pool                           replicas by pool

Both sides have the same axes; what differs is the curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLOURS = ("#3a9d5d", "#0b6e99", "#7d5ba6", "#d08c2e", "#b5544d", "#555555")
APART = 0.04  # of a replica: curves that lie on each other stay visible
BIN_S = 5.0  # of the load's curve


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """What happened in one form; replicas are those that were ready."""

    at_s: Floats  # (t,)
    replicas: Mapping[str, Floats]  # (t,) by pool


def draw(live: Curves, simulated: Curves, dispatched_s: Floats, path: Path) -> None:
    """Save a PNG. `dispatched_s` (n,) are the times of the requests."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(1, 2))
        both = ((live, "Live: raylets, Ray Serve"), (simulated, "Simulated: virtual time"))
        for column, (curves, title) in enumerate(both):
            _load(axes[0, column], dispatched_s, float(curves.at_s[-1]))
            axes[0, column].set_title(title)
            _replicas(axes[1, column], curves)
        axes[0, 0].set_ylabel("requests\nper second")
        axes[1, 0].set_ylabel("ready replicas")
        handles, labels = axes[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=len(labels))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def _load(axes: Axes, dispatched_s: Floats, end_s: float) -> None:
    edges = np.arange(0.0, end_s + BIN_S, BIN_S)
    n, _ = np.histogram(dispatched_s, edges)
    axes.stairs(n / BIN_S, edges, fill=True, color="#0b6e99", alpha=0.5)
    axes.grid(alpha=0.25)


def _replicas(axes: Axes, curves: Curves) -> None:
    for number, (pool, replicas) in enumerate(curves.replicas.items()):
        axes.step(
            curves.at_s,
            replicas + APART * number,
            where="post",
            label=pool,
            color=COLOURS[number % len(COLOURS)],
            linewidth=1.8,
        )
    axes.set(xlabel="seconds")
    axes.yaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # a MaxNLocator
    axes.grid(alpha=0.25)
