"""`fairlead demo`: shows the loop while it turns, then a table, a picture, and what to do next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
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
from load.data.tables import OutcomeTable
from load.demo import picture
from load.demo.demo import DemoOptions, DemoResult, Watcher, run
from load.demo.replay import Replayed
from load.demo.score import Quarters

RECENT = 300  # the latest requests, that progress is shown of


def show(
    table: OutcomeTable, options: DemoOptions, console: Console, *, quiet: bool
) -> dict[str, Any]:
    """Run the demo with a live display; return its JSON. Without `quiet`, print the table too."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
        console=console,
        transient=False,
        redirect_stdout=False,
    ) as progress:
        result = run(table, options, connect, _Display(progress))
    path = options.folder / "demo.png"
    picture.draw(result.scores(), _subtitle(result), path)
    found = result.json()
    if not quiet:
        _print_table(result, found, path)
    return found


class _Display(Watcher):
    """Draws progress: how far, how fast, how well recently, and which snapshot decides."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = progress.add_task("starting", total=None, now="")
        self._bars: dict[int, TaskID] = {}

    def stage(self, text: str) -> None:
        self._progress.update(self._stage, description=text)

    def progress(self, seed: int, done: int, table: OutcomeTable, so_far: Replayed) -> None:
        if seed not in self._bars:
            self.stage(f"seed {seed}: routing")
            self._bars[seed] = self._progress.add_task(f"  seed {seed}", total=len(table), now="")
        if done % 20 and done != len(table):
            return
        recent = np.arange(max(0, done - RECENT), done)
        recent = recent[so_far.chosen[recent] >= 0]
        now = ""
        if len(recent):
            chosen = so_far.chosen[recent]
            quality = table.quality[recent, chosen].mean()
            cost = table.cost_usd[recent, chosen].mean()
            version = so_far.version[recent].max()
            now = f"quality {quality:.3f}  ${cost:.5f} a call  snapshot {version}"
        self._progress.update(self._bars[seed], completed=done, now=now)


def _subtitle(result: DemoResult) -> str:
    quality, cost, _ = result.preference
    return (
        f"{result.table}: {result.requests} requests, mean of {len(result.runs)} orders; "
        f"utility = {quality:g}·quality − {cost:g}·USD (outcomes: ParetoBandit, Apache-2.0)"
    )


def _print_table(result: DemoResult, found: dict[str, Any], path: Path) -> None:
    out = Console(file=sys.stdout, width=110)
    table = Table(title=_subtitle(result), title_justify="left", header_style="bold")
    table.add_column("")
    for title in ("quality", "USD a call", "utility", "by quarter: utility"):
        table.add_column(title, justify="right")
    for name, scores in result.scores().items():
        table.add_row(*_row(name, scores), style="bold cyan" if name == "router" else None)
    out.print(table)
    gain, over = found["utility_gain"], found["utility_over_random"]
    best = found["best_single"]["model"]
    out.print(
        f"Last quarter: {found['last_quarter_quality_share']:.1%} of the best single model's "
        f"quality ({best}) at {found['last_quarter_cost_share']:.1%} of its cost.\n"
        f"Utility against the first quarter {gain['mean']:+.4f} ± {gain['standard_error']:.4f}, "
        f"against random {over['mean']:+.4f} ± {over['standard_error']:.4f} (standard errors over "
        f"seeds).\n"
        f"Outcomes: {found['outcomes_sent']:,} sent in {found['reports_sent']:,} reports, "
        f"{found['outcomes_learned']:,} learned, {found['outcomes_lost']} lost, "
        f"{found['outcomes_counted_twice']} counted twice. {found['wall_s']} s.\n"
        f"Picture: {path}\n"
        f"To keep the last one running, with what it has learned:\n"
        f"  .venv/bin/fairlead up --settings {result.settings}\n"
        f"and call it as that command then shows (embeddings instead of texts).",
        highlight=False,
    )


def _row(name: str, scores: Quarters) -> list[str]:
    overall = scores.overall
    return [
        name,
        f"{overall.quality:.4f}",
        f"{overall.cost_usd:.6f}",
        f"{overall.utility:.4f}",
        "  ".join(f"{quarter.utility:.4f}" for quarter in scores.by_quarter),
    ]
