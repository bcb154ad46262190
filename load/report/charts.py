"""Charts as SVG that stands in a page: matplotlib draws, the page's style gives the colours.

    series ─▶ Figure ─▶ SVG text, its ink and lines as var(--ink), var(--faint)

So one drawing is right on a light page, on a dark one, and on paper. Text stays text: it can be
searched, copied and read aloud. The same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from load.shares import percent
from load.theme import LINE_TO_BEAT, OTHERS, OURS, style

INK, FAINT = "#010203", "#040506"  # stand-ins, which the page's variables replace
COLOURS = (OURS, LINE_TO_BEAT, *OTHERS)
SIZE = (6.4, 2.9)  # inches
Values = Sequence[float | None]


def drawn(title: str, draw: Callable[[Axes], None]) -> str:
    """One chart as an SVG element; `title` is what a screen reader says of it."""
    colours = {"page": "none", "ink": INK, "faint": FAINT}
    settings: Any = style(colours) | {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.grid(visible=True, axis="y", linewidth=0.5)
        axes.set_axisbelow(True)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    found = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
    found = found.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    return found.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def lines(
    title: str,
    at_s: Values,
    curves: Mapping[str, Values],
    unit: str,
    *,
    limit: tuple[str, float] | None = None,
    logarithmic: bool = False,
) -> str:
    """Curves over time; where there is no value, a gap. `limit` is drawn across."""

    def draw(axes: Axes) -> None:
        for (name, values), colour in zip(curves.items(), _colours(len(curves)), strict=True):
            axes.plot(minutes(at_s), numbers(values), label=name, color=colour, linewidth=1.4)
        if limit is not None:
            axes.axhline(limit[1], color=INK, linestyle=":", linewidth=1.0, label=limit[0])
        if logarithmic and any(v for values in curves.values() for v in values if v):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0.0)
        _label(axes, "minutes", unit)

    return drawn(title, draw)


def stacked(title: str, at_s: Values, parts: Mapping[str, Values], unit: str) -> str:
    """Parts of a whole over time; where nobody has any, a gap."""

    def draw(axes: Axes) -> None:
        shown = {name: numbers(v) for name, v in parts.items()}
        shown = {name: values for name, values in shown.items() if np.nan_to_num(values).any()}
        if shown:
            axes.stackplot(
                minutes(at_s),
                list(shown.values()),
                labels=list(shown),
                colors=_colours(len(shown)),
                alpha=0.85,
            )
        axes.set_ylim(bottom=0.0)
        _label(axes, "minutes", unit)

    return drawn(title, draw)


def bars(title: str, values: Mapping[str, float], unit: str, limit: tuple[str, float]) -> str:
    """One bar for each name, beside a limit."""

    def draw(axes: Axes) -> None:
        names = list(values)[::-1]
        colours = [OURS if values[name] >= limit[1] else LINE_TO_BEAT for name in names]
        axes.barh(names, [values[name] for name in names], color=colours)
        for place, name in enumerate(names):
            axes.text(1.02, place, percent(values[name]), va="center", fontsize=8)
        axes.set_xlim(0.0, 1.16)  # room for what the bars are labelled with
        axes.axvline(limit[1], color=INK, linestyle=":", linewidth=1.0, label=limit[0])
        axes.grid(visible=False)
        _label(axes, unit, "")

    return drawn(title, draw)


def frontier(title: str, points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> str:
    """Quality over cost; what is too slow is hollow, what was chosen is ringed."""

    def draw(axes: Axes) -> None:
        for meets, face, label in ((True, OURS, "within target"), (False, "none", "too slow")):
            those = [point for point in points if point["meets"] == meets]
            if those:
                axes.scatter(
                    [point["usd_per_h"] for point in those],
                    [point["quality"] for point in those],
                    edgecolors=OURS,
                    facecolors=face,
                    label=label,
                )
        axes.scatter(
            [chosen["usd_per_h"]],
            [chosen["quality"]],
            s=140,
            edgecolors=LINE_TO_BEAT,
            facecolors="none",
            linewidths=1.8,
            label="the plan",
        )
        axes.set_xlim(0.0, 1.08 * max([p["usd_per_h"] for p in (*points, chosen)]) or 1.0)
        _label(axes, "US dollars per hour", "quality (0 to 1)")

    return drawn(title, draw)


def minutes(at_s: Values) -> np.ndarray:
    """Of seconds."""
    return numbers(at_s) / 60.0


def numbers(values: Values) -> np.ndarray:
    """With NaN for what is none."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        below: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.24)}
        axes.legend(handles, labels, frameon=False, fontsize=8, ncols=4, **below)
