"""The benchmark's pictures: frontier, learning curve, drift; each for light and dark pages.

Lines are told apart in one legend below the panels, so that no label can collide with another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from load.bench.decisions.streams import BATCH
from load.theme import LINE_TO_BEAT, OTHERS, OURS, THEMES, style

NAMES = {
    "fairlead": "Fairlead",
    "best_fixed": "best fixed model, in hindsight",
    "full_information": "full information",
    "vw_squarecb": "Vowpal Wabbit SquareCB",
    "paretobandit": "ParetoBandit",
    "mabwiser_linucb": "MABWiser LinUCB",
    "river_linucb": "River LinUCB",
    "gittins": "gittins",
    "saverouter_k1": "SAVERouter, K = 1",
    "knn": "kNN",
}
DRIFTS = {
    "fall": "best model falls from 0.9 to 0.3",
    "llmdrift_flip": "GPT versions change (llmdrift)",
}
TO_BEAT: dict[str, Any] = {"color": LINE_TO_BEAT, "linestyle": "--", "linewidth": 2.0}
Found = Mapping[str, Any]


def draw(found: Found, folder: Path) -> list[Path]:
    """Save every picture in both themes; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Found, Mapping[str, str]], Figure]] = {
        "frontier": _frontier,
        "learning": _learning,
        "drift": _drift,
    }
    paths = []
    if not found["stuck"]:  # nor was drift measured
        del pictures["drift"]
    for name, picture in pictures.items():
        for theme, colours in THEMES.items():
            paths.append(folder / f"decisions-{name}-{theme}.png")
            with mpl.rc_context(cast("Any", style(colours))):
                picture(found, colours).savefig(paths[-1], dpi=110)
    return paths


def _panels(n: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(max(5.0, 3.7 * n), 4.6), layout="constrained")
    panels = figure.subplots(1, n, squeeze=False)[0]
    for axes in panels:
        axes.grid(alpha=0.6)
    return figure, panels


def _finish(figure: Figure, panels: Sequence[Axes], message: str) -> Figure:
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 2 * len(panels))
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=columns)
    figure.suptitle(message, fontsize=12, fontweight="bold")
    return figure


def _lines(figures: Found) -> list[tuple[str, dict[str, Any]]]:
    """Contenders to draw, with how: ours last, so that it lies on top."""
    drawn = [name for name in NAMES if name in figures]
    rest = dict(
        zip([n for n in drawn if n not in ("fairlead", "best_fixed")], OTHERS, strict=False)
    )
    looks = []
    for name in reversed(drawn):
        if name == "fairlead":
            look = {"color": OURS, "linewidth": 3.0, "marker": "o", "markersize": 5}
        elif name == "best_fixed":
            look = TO_BEAT
        else:
            look = {"color": rest[name], "linewidth": 1.3}
        looks.append((name, {"label": NAMES[name], **look}))
    return looks


def _frontier(found: Found, colours: Mapping[str, str]) -> Figure:
    del colours
    tables = found["tables"]
    figure, panels = _panels(len(tables))
    for axes, (name, figures) in zip(panels, tables.items(), strict=True):
        for contender, look in _lines(figures):
            points = sorted((p["cost_usd"], p["quality"]) for p in figures[contender]["frontier"])
            axes.plot([c * 1000 for c, _ in points], [q for _, q in points], **look)
        axes.set(title=name, xlabel="US dollars per 1,000 requests", xscale="log")
        _few_ticks(axes)
    panels[0].set_ylabel("quality, second half")
    return _finish(figure, panels, _frontier_message(tables))


def _few_ticks(axes: Axes) -> None:
    """Plain numbers, no more of them than have room."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.12)


def _frontier_message(tables: Found) -> str:
    shares = {name: t["fairlead"]["cost_share_at_98pct"][0] for name, t in tables.items()}
    listed = ", ".join(f"{share:.0%} ({name})" for name, share in shares.items())
    return f"98 % of the best model's quality costs Fairlead this share of it: {listed}"


def _learning(found: Found, colours: Mapping[str, str]) -> Figure:
    tables, settings = found["tables"], found["settings"]
    figure, panels = _panels(len(tables))
    for axes, (name, figures) in zip(panels, tables.items(), strict=True):
        n = settings["prompts"][name]
        for contender, look in _lines(figures):
            if contender != "best_fixed":
                curve = figures[contender]["learning_curve"]
                axes.plot([(i + 0.5) * n / len(curve) for i in range(len(curve))], curve, **look)
        axes.axhline(0.0, **TO_BEAT, label=NAMES["best_fixed"])
        axes.set(title=name, xlabel="requests")
    panels[0].set_ylabel("utility over the best fixed model's")
    del colours
    ours = [figures["fairlead"]["learning_curve"][-1] for figures in tables.values()]
    above = sum(value > 0 for value in ours)
    message = f"Fairlead ends above the best fixed model on {above} of {len(ours)} tables"
    return _finish(figure, panels, message)


def _drift(found: Found, colours: Mapping[str, str]) -> Figure:
    del colours
    shown = [name for name in DRIFTS if any(found["drift"][name].values())]
    figure, panels = _panels(len(shown))
    for axes, name in zip(panels, shown, strict=True):
        for (n_before, run), colour in zip(
            found["drift"][name].items(), (OURS, *OTHERS), strict=False
        ):
            if run:
                at = [i * BATCH for i in range(len(run["curve"]))]
                label = f"after {int(n_before):,} requests"
                axes.plot(at, run["curve"], color=colour, linewidth=2.0, label=label)
        axes.axhline(0.95, **TO_BEAT, label="95 % of the new best")
        axes.set(title=DRIFTS[name], xlabel="requests since the change", ylim=(0.0, 1.1))
    panels[0].set_ylabel("worth over the new best model's")
    return _finish(figure, panels, _drift_message(found["drift"]["fall"]))


def _drift_message(runs: Found) -> str:
    medians = [run["requests_to_95pct"][0] for run in runs.values() if run]
    if None in medians:
        return "A model that breaks is not left within the requests watched"
    return f"A model that breaks is left after {max(medians):,.0f} requests (median order)"
