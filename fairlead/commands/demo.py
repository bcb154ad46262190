"""`fairlead demo`: shows the loop while it turns, then what it saved, and what to do next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from fairlead.channels import connect
from load.data.tables import BUNDLED, OutcomeTable
from load.demo import picture
from load.demo.demo import DemoOptions, DemoResult, Watcher, run
from load.demo.replay import Replayed

WIDTH = 80  # of a newcomer's terminal
RECENT = 300  # the latest requests, that progress is shown of
PER = 1000  # requests that costs are shown for


def show(
    table: OutcomeTable, options: DemoOptions, console: Console, *, quiet: bool
) -> dict[str, object]:
    """Run the demo with a live display; return its JSON. Without `quiet`, print the table too."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
        console=console,
        transient=False,
        redirect_stdout=False,
    ) as progress:
        result = run(table, options, connect, _Display(progress, options.preference_of(table)))
    path, found = options.folder / "demo.png", result.json()
    picture.draw(_shown(result, found), path)
    if not quiet:
        print_result(result, found, path, Console(file=sys.stdout, width=WIDTH))
    return found


class _Display(Watcher):
    """Draws progress: how far, and how well recently beside the model best on the same."""

    def __init__(self, progress: Progress, preference: tuple[float, float, float]) -> None:
        self._progress, self._preference = progress, preference
        self._stage = progress.add_task("", total=None, now="starting")
        self._bars: dict[int, TaskID] = {}

    def stage(self, text: str) -> None:
        self._progress.update(self._stage, now=text)

    def progress(self, seed: int, done: int, table: OutcomeTable, so_far: Replayed) -> None:
        if seed not in self._bars:
            self.stage(f"seed {seed}: routing")
            self._bars[seed] = self._progress.add_task(f" seed {seed}", total=len(table), now="")
        if done % 20 and done != len(table):
            return
        recent = np.arange(max(0, done - RECENT), done)
        recent = recent[so_far.chosen[recent] >= 0]
        now = ""
        if len(recent):
            quality, usd, _ = self._preference
            worth = quality * table.quality[recent] - usd * table.cost_usd[recent]
            chosen = so_far.chosen[recent]
            mean = table.quality[recent, chosen].mean()
            over = worth[np.arange(len(recent)), chosen].mean() - worth.mean(axis=0).max()
            now = f"quality {mean:.2f}, {over:+.3f} over best fixed"
        self._progress.update(self._bars[seed], completed=done, now=now)


def _shown(result: DemoResult, found: dict[str, Any]) -> picture.Shown:
    """What the picture shows of a result."""
    scores, fixed = result.scores(), found["best_fixed"]["model"]
    single = found["best_single"]["model"]
    rest = [m for m in found["single_models"] if m not in (fixed, single)]
    return picture.Shown(
        message=_message(found),
        source="; ".join(_source(result)),
        requests=result.requests,
        over_best_fixed=np.stack([c.over_single[fixed] for c in result.comparisons]),
        router=scores["router"].second_half,
        best_fixed=(fixed, scores[fixed].second_half),
        best_single=(single, scores[single].second_half),
        others=tuple(scores[model].second_half for model in rest),
    )


def _message(found: dict[str, Any]) -> str:
    saved = found["savings_share"]["mean"]
    if saved >= 0.005:
        return f"Learning from its own choices, the router saves {saved:.0%} at equal quality"
    return "The router saves nothing yet at the best fixed model's quality"


def _source(result: DemoResult) -> tuple[str, str]:
    """What was played and whose figures it is, and what was wanted."""
    whose = f" ({BUNDLED[result.table]})" if result.table in BUNDLED else ""
    played = f"{result.table}{whose}: {result.requests:,} requests, {len(result.runs)} orders"
    return played, f"utility = quality − {result.preference[1]:g} · USD"


def print_result(result: DemoResult, found: dict[str, Any], path: Path, out: Console) -> None:
    """Say what was routed, what it cost, and beside what."""
    for line in _source(result):
        out.print(line, highlight=False)
    out.print(_table(result, found))
    for line in [*_verdict(found), *_accounts(found), *_next(result, path)]:
        out.print(line, highlight=False, soft_wrap=True)


def _table(result: DemoResult, found: dict[str, Any]) -> Table:
    table = Table(
        title="Second half of the requests, after learning on the first",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="bold",
    )
    table.add_column("")
    for title in ("quality", f"USD per {PER:,}", "utility"):
        table.add_column(title, justify="right")
    fixed = found["best_fixed"]["model"]
    scores = {name: one.second_half for name, one in result.scores().items()}
    order = ["router", fixed, *(m for m in found["single_models"] if m != fixed)]
    for name in [*order, "random", "oracle"]:
        one = scores[name]
        table.add_row(
            f"{name} *" if name == fixed else name,
            f"{one.quality:.4f}",
            f"{PER * one.cost_usd:.4f}",
            f"{one.utility:.4f}",
            style={"router": "bold cyan", fixed: "bold"}.get(name),
        )
    return table


def _verdict(found: dict[str, Any]) -> list[str]:
    """What the best fixed model would have cost and given, what the router did, in plain words."""
    fixed, router = found["best_fixed"], found["router_second_half"]
    over, saved = found["utility_over_best_fixed"], found["savings_share"]
    return [
        "* The line to beat: the best fixed model, which is known only in hindsight.",
        f"  {fixed['model']} for everything:",
        f"           {_gave(fixed)}",
        f"  router   {_gave(router)}",
        f"           utility {over['mean']:+.4f} [{over['low']:+.4f}, {over['high']:+.4f}]",
        f"  At that model's quality the router saves {saved['mean']:.1%} of its cost",
        f"           [{saved['low']:.1%}, {saved['high']:.1%}]; intervals: 95 % over the orders.",
        "Router's utility by quarter: "
        + "  ".join(f"{q['utility']:.4f}" for q in found["router"]["by_quarter"]),
    ]


def _gave(score: dict[str, Any]) -> str:
    return f"quality {score['quality']:.4f} for ${PER * score['cost_usd']:.4f} per {PER:,} requests"


def _accounts(found: dict[str, Any]) -> list[str]:
    probes = found["probes"]
    return [
        f"Probes: {probes['answers']:,.0f} extra answers for ${probes['cost_usd']:.4f} an order, "
        "counted above.",
        f"Outcomes: {found['outcomes_sent']:,} sent in {found['reports_sent']:,} reports, "
        f"{found['outcomes_learned']:,} learned,",
        f"  {found['outcomes_lost']} lost, {found['outcomes_counted_twice']} counted twice. "
        f"{found['wall_s']} s.",
    ]


def _next(result: DemoResult, path: Path) -> list[str]:
    return [
        f"Picture: {path}",
        "To keep the last one running, with what it has learned:",
        f"  .venv/bin/fairlead up --settings {result.settings}",
        "and call it as that command then shows (embeddings instead of texts).",
    ]
