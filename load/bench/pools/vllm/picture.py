"""The run as a picture: what was asked and answered, load and price, engines, over time.

    answers a second by criticality, and what was asked
    load and price of both pools
    engines that were ready

What happened when is a line through all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from load.bench.pools.callers import Asked
from load.bench.pools.vllm.watching import Watched
from load.theme import LINE_TO_BEAT, OTHERS, OURS, save_in_themes

BIN_S = 5.0
WORDS = {
    "overload": "twice what one can do",
    "calm": "nothing",
    "kill": "large is killed",
    "stop": "small is stopped",
}
POOLS = {"small": OURS, "large": LINE_TO_BEAT}
LEVELS = {"critical_plus": OTHERS[0], "critical": OTHERS[3], "sheddable": OTHERS[1]}


@dataclass(frozen=True, slots=True)
class Story:
    """What is shown."""

    asked: Mapping[str, Sequence[Asked]]  # by phase
    watched: Watched
    marks: Mapping[str, float]


def draw(story: Story, path: Path) -> list[Path]:
    """Save a PNG at `path`, and one for dark pages beside it; both paths."""
    return save_in_themes(partial(_figure, story), path)


def _figure(story: Story, ink: str) -> Figure:
    figure = Figure(figsize=(11.0, 7.5), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1))
    _answers(axes[0], story, ink)
    _prices(axes[1], story)
    _engines(axes[2], story)
    for one in axes:
        one.grid(alpha=0.6)
        one.legend(loc="upper right", frameon=False, fontsize=8, ncols=2)
        for at_s in story.marks.values():
            one.axvline(at_s, color=ink, linewidth=0.7, alpha=0.5)
    for name, at_s in story.marks.items():
        if name in WORDS:
            axes[0].text(at_s, axes[0].get_ylim()[1], f" {WORDS[name]}", rotation=20, fontsize=8)
    axes[2].set_xlabel("seconds")
    return figure


def _answers(axes: Axes, story: Story, ink: str) -> None:
    every = [one for of in story.asked.values() for one in of]
    edges = np.arange(0.0, max((one.ended_s for one in every), default=1.0) + BIN_S, BIN_S)
    axes.stairs(
        np.histogram([a.at_s for a in every], edges)[0] / BIN_S, edges, color=ink, label="asked"
    )
    total = np.zeros(len(edges) - 1)
    for level, colour in LEVELS.items():
        of = [a.ended_s for a in every if a.criticality == level and a.outcome == "answered"]
        more = total + np.histogram(of, edges)[0] / BIN_S
        axes.stairs(more, edges, baseline=total, fill=True, color=colour, alpha=0.7, label=level)
        total = more
    axes.set_ylabel("answers a second\nby criticality")


def _prices(axes: Axes, story: Story) -> None:
    for pool, colour in POOLS.items():
        said = story.watched.said.get(pool, ())
        at_s = [one.at_s for one in said]
        axes.plot(at_s, [one.load for one in said], color=colour, label=f"load of {pool}")
        axes.plot(
            at_s,
            [one.price for one in said],
            color=colour,
            linestyle="--",
            label=f"price of {pool}",
        )
    axes.set_ylabel("load, and price\n(of what a GPU costs)")
    axes.set_yscale("symlog", linthresh=1.0)


def _engines(axes: Axes, story: Story) -> None:
    for number, (pool, colour) in enumerate(POOLS.items()):
        at_s = [at for at, _ in story.watched.ready]
        n = [by_pool.get(pool, 0) + 0.04 * number for _, by_pool in story.watched.ready]
        axes.step(at_s, n, where="post", color=colour, label=pool)
    axes.set_ylabel("engines")
    axes.set_ylim(-0.1, 2.4)
