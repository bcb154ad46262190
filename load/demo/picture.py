"""The demo's picture: what the router gains while it learns, and what quality costs with it.

    left     utility over the best fixed model's, along the stream: above the line it has paid
    right    quality and cost of the second half; what is named is named in the legend alone, so
             that no label can lie on another

Drawn for light and for dark pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from load.demo.score import Score
from load.theme import LINE_TO_BEAT, OTHERS, OURS, save_in_themes

USD_SHOWN = 1000.0  # requests that costs are shown for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """What is in the picture."""

    message: str  # the title: one sentence
    source: str  # below it: table, preference, whose figures they are
    requests: int
    over_best_fixed: NDArray[np.float64]  # (seeds, steps) of utility
    router: Score  # of the second half, as all below
    best_fixed: tuple[str, Score]
    best_single: tuple[str, Score]  # of highest quality
    others: tuple[Score, ...]  # the other models


def draw(shown: Shown, path: Path) -> list[Path]:
    """Save a PNG at `path`, and one for dark pages beside it; both paths."""
    return save_in_themes(partial(_figure, shown), path)


def _figure(shown: Shown, ink: str) -> Figure:
    figure = Figure(figsize=(10.5, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _learning(left, shown)
    _trade(right, shown, ink)
    for axes in (left, right):
        axes.grid(alpha=0.6)
    handles, labels = (
        a + b
        for a, b in zip(
            left.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True
        )
    )
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=2, fontsize=9)
    figure.suptitle(f"{shown.message}\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.925, shown.source, ha="center", fontsize=9)
    return figure


def _learning(axes: Axes, shown: Shown) -> None:
    curves = shown.over_best_fixed
    at = (np.arange(curves.shape[1]) + 0.5) * shown.requests / curves.shape[1]
    axes.axhline(0.0, color=LINE_TO_BEAT, linestyle="--", linewidth=2.0, label="best fixed model")
    if len(curves) > 1:
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(at, low, high, color=OURS, alpha=0.2, linewidth=0, label="all orders")
    axes.plot(
        at, curves.mean(axis=0), color=OURS, linewidth=3.0, label="router, mean of the orders"
    )
    axes.set(
        title="What the router gains while it learns",
        xlabel="requests",
        ylabel="utility over the best fixed model's",
    )


def _trade(axes: Axes, shown: Shown, ink: str) -> None:
    def point(score: Score, name: str, **look: Any) -> None:
        cost = USD_SHOWN * score.cost_usd
        label = f"{name}: {score.quality:.3f} for ${cost:.3g}"
        axes.scatter(cost, score.quality, label=label, zorder=3, **look)

    others = [(USD_SHOWN * one.cost_usd, one.quality) for one in shown.others]
    if others:
        axes.scatter(
            [c for c, _ in others],
            [q for _, q in others],
            s=36,
            color=OTHERS[6],
            label="other models",
        )
    best_name, best = shown.best_single
    if best_name != shown.best_fixed[0]:
        point(best, f"{best_name} (highest quality)", s=70, color=ink, marker="s")
    fixed_name, fixed = shown.best_fixed
    point(fixed, f"{fixed_name} (best fixed)", s=90, color=LINE_TO_BEAT, marker="D")
    point(shown.router, "router", s=130, color=OURS)
    axes.set(
        title="What quality costs, second half",
        xlabel=f"US dollars per {USD_SHOWN:,.0f} requests",
        ylabel="quality",
    )
