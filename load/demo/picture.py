"""The demo's picture: utility by quarter, and where the router stands between quality and cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from load.demo.score import N_QUARTERS, Quarters

COLOURS = {"router": "#0b6e99", "random": "#9a9a9a", "oracle": "#3a9d5d"}
SINGLE = ("#d08c2e", "#b5544d", "#7d5ba6", "#5c7d3a", "#c06090", "#4d6fb5", "#8a7a2f", "#555555")


def draw(lines: Mapping[str, Quarters], subtitle: str, path: Path) -> None:
    """Save a PNG of scores by name (`router`, `random`, `oracle`, then single models)."""
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        colours = COLOURS | dict(zip([n for n in lines if n not in COLOURS], SINGLE, strict=False))
        quarters = range(1, N_QUARTERS + 1)
        for name, scores in lines.items():
            strong = name == "router"
            left.plot(
                quarters,
                [score.utility for score in scores.by_quarter],
                color=colours.get(name, SINGLE[-1]),
                linewidth=3 if strong else 1.4,
                linestyle="-" if strong else "--",
                marker="o" if strong else None,
                label=name,
            )
            right.scatter(
                scores.by_quarter[-1].cost_usd,
                scores.by_quarter[-1].quality,
                s=120 if strong else 45,
                color=colours.get(name, SINGLE[-1]),
                zorder=3,
            )
            right.annotate(
                name,
                (scores.by_quarter[-1].cost_usd, scores.by_quarter[-1].quality),
                xytext=(-10, -16) if strong else (6, 5),
                textcoords="offset points",
                fontsize=9,
                fontweight="bold" if strong else "normal",
            )
        left.set(
            title="Utility by quarter",
            xlabel="quarter of the requests",
            ylabel="utility, quality points",
        )
        left.set_xticks(list(quarters))
        figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=len(lines))
        right.set(
            title="Last quarter: quality against cost",
            xlabel="US dollars per request",
            ylabel="quality",
        )
        right.set_xscale("log")
        right.margins(x=0.25)
        for axes in (left, right):
            axes.grid(alpha=0.25)
        figure.suptitle(subtitle, fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
