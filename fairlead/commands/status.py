"""`fairlead status` and `fairlead decisions export`: what is known of the loop, for people."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fairlead.commands.fleet_tables import SECTIONS, print_fleet
from fairlead.commands.headline import headline
from fairlead.commands.started import not_taken
from fairlead.commands.terminal import plain
from infra.autoscaling.live.planning import read_record
from infra.errors import InfraError
from infra.pools.site import LocalSite
from infra.settings.edits import read_edits
from infra.settings.settings import Settings
from infra.settings.site_options import SiteOptions
from infra.status.away_log import opened
from infra.status.newcomers import newcomers
from infra.status.status import look
from learners.estimates.learned import MemoryOptions
from learners.policies.newcomers import NewcomerOptions
from streams.clock import now_ms
from streams.feedback.export import export
from streams.telemetry.received import SILENT_MS

EDITS_MAX = 5  # all are in the list: `edits.jsonl` in the state folder
LINES_MAX = 20  # of what the planner did: the last screenful
NOT_TAKEN = "The settings file was edited, and `up` has not taken it (SIGHUP, or a new start): {}"
NO_TELEMETRY = (
    f"No telemetry of a router for {SILENT_MS // 1000} s: either none runs, or its log can't be "
    f"written (decisions may then be served all the same). See the alarms."
)


def show(settings: Settings, path: Path, *, quiet: bool) -> dict[str, Any]:
    """Look once; return the status as JSON. Without `quiet`, print it as tables."""
    site = LocalSite.of(settings, path, looks_only=True)
    log = opened(site.log)
    try:
        silence_s, pools = settings.options(SiteOptions).silence_s, settings.pool_names()
        budgets = settings.budgeted()
        change = settings.trial()[1]
        status = look(site.store(), log, now_ms(), silence_s, pools, budgets, change)
    finally:
        log.close()
    found = status.json() | {
        "scaling": _scaling(site.state_dir),
        "supports": _supports(settings),
        "newcomers": _newcomers(settings, site),
        "edits": _edits(site.edits),
        "not_taken": not_taken(path, site.state_dir),
    }
    if not quiet:
        _print(found, Console(file=sys.stdout, width=100))
    return found


def watched(settings_of: Callable[[], tuple[Settings, Path]], every_s: float) -> None:
    """Look again and again, until Ctrl-C; each time the settings are read anew."""
    out = Console()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            found = show(*settings_of(), quiet=True)
            out.clear()
            _print(found, out)
            time.sleep(every_s)


def _supports(settings: Settings) -> dict[str, list[str]]:
    """What models are stated to support; those of which nothing is stated are left out."""
    models = settings.catalogue().models if settings.models else ()
    return {model.name: list(model.supports) for model in models if model.supports}


def _newcomers(settings: Settings, site: LocalSite) -> dict[str, dict[str, object]]:
    """Models that are not proven yet, and what they have used of their budgets."""
    if not settings.models:
        return {}
    memory, options = settings.options(MemoryOptions), settings.options(NewcomerOptions)
    found = newcomers(site.store(), settings.catalogue(), memory, options)
    return {name: view.json() for name, view in found.items()}


def _edits(path: Path) -> list[dict[str, Any]]:
    """The newest edits of the settings, oldest first; a list that can't be read is an alarm."""
    try:
        return [asdict(edit) for edit in read_edits(path)[-EDITS_MAX:]]
    except InfraError:
        return []


def _scaling(folder: Path) -> list[dict[str, Any]]:
    """What the planner said last, oldest first; nothing where there is none."""
    record = read_record(folder)
    lines = record.lines[-LINES_MAX:] if record else ()
    return [{"at_unix_ms": line.at_ms, "line": line.text} for line in lines]


SHOWN_APART = (
    "alarms",
    "changes",
    "conditions",
    "change",
    "edits",
    "not_taken",
)  # in lines of their own


def _print(found: dict[str, Any], out: Console) -> None:
    """What matters first on top: it is there also where the screen has no room for the rest."""
    out.print(headline(found), highlight=False)
    for alarm in found["alarms"]:
        out.print(f"[bold red]alarm[/] {alarm['name']} since {alarm['since']}", highlight=False)
        out.print(f"  {alarm['cause']}\n  {alarm['remedy']}", highlight=False, markup=False)
    router = found["router"]
    if not router or not router["replicas"]:
        out.print(NO_TELEMETRY)
    out.print()
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        if name in SECTIONS or name in SHOWN_APART:
            continue
        if isinstance(value, dict):
            for label, n in value.items():
                table.add_row(
                    plain(f"{name} {label}"), f"{n:,.6f}" if isinstance(n, float) else f"{n:,}"
                )
        else:
            shown = f"{value:,.1f}" if isinstance(value, float) else value
            table.add_row(name, "unknown" if value is None else str(shown))
    out.print(table)
    print_fleet(found, out)
    _print_lines(found, out)
    for change in found["changes"]:
        out.print(
            f"{change['model']}: {change['target']} moved by {change['shift']:+.2f} over "
            f"{change['outcomes']} outcomes since {change['since']}"
            f"{', its pools being full' if change['by_load'] else ''}",
            highlight=False,
            markup=False,
        )


def _print_lines(found: dict[str, Any], out: Console) -> None:
    """A line for each condition of a pool, each budget and each new model."""
    for one in found["conditions"]:
        out.print(_condition_line(one), highlight=False, markup=False)
    for name, one in found["budgets"].items():
        out.print(_budget_line(name, one), highlight=False, markup=False)
    _print_newcomers(found["newcomers"], out)
    for line in [*_change_lines(found["change"]), *map(_edit_line, found["edits"])]:
        out.print(line, highlight=False, markup=False)
    if waits := found["not_taken"]:
        out.print(NOT_TAKEN.format(", ".join(waits)), highlight=False, markup=False)


def _edit_line(one: dict[str, Any]) -> str:
    """Who changed what, when, and from when it counts."""
    at = datetime.fromtimestamp(one["at_unix_ms"] / 1000, UTC)
    what = " ".join(filter(None, (one["action"], one["kind"], one["name"])))
    settings = ", ".join(f"{key} = {value}" for key, value in one["settings"].items())
    why = f" ({one['reason']})" if one["reason"] else ""
    return (
        f"edit {one['number']}, {at:%Y-%m-%d %H:%M} UTC by {one['by']}: {what}"
        f"{': ' + settings if settings else ''}; counts from {one['counts_from']}{why}"
    )


def _change_lines(one: dict[str, Any] | None) -> list[str]:
    """Where a change is, and the steps that were taken."""
    if one is None:
        return []
    known = ""
    if one["low"] is not None:
        known = f": better by {one['better_by']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
    lines = [
        f"change {one['name']}, {one['mode']} {one['stage']}: {one['share']:.1%} of the requests, "
        f"{one['outcomes']:,} outcomes{known}; margin {one['margin']:g}"
    ]
    for step in one["steps"]:
        at = datetime.fromtimestamp(step["at_unix_ms"] / 1000, UTC)
        lines.append(
            f"  {at:%Y-%m-%d %H:%M} UTC change {step['change']} {step['step']} after "
            f"{step['outcomes']:,} outcomes, better by {step['better_by']:+.4f}"
        )
    return lines


def _condition_line(one: dict[str, Any]) -> str:
    given_up = ", given up" if one["given_up"] else ""
    return f"{one['pool']}: {one['kind']}{given_up} since {one['since']}. {one['cause']}"


def _budget_line(name: str, one: dict[str, Any]) -> str:
    of = f" of {one['scope']} {one['value']}" if one["value"] else ""
    renewed = datetime.fromtimestamp(one["renewed_at_unix_ms"] / 1000, UTC)
    kind = f"hard, then {one['then']}" if one["hard"] else "paced"
    return (
        f"budget {name}{of}: {one['spent']:.6g} of {one['amount']:g} {one['unit']} this "
        f"{one['per']} ({kind}), {one['refused']:,} refused, renewed at {renewed:%H:%M} UTC"
        + (": used up" if one["used_up"] else "")
    )


def _print_newcomers(found: dict[str, Any], out: Console) -> None:
    for name, one in found.items():
        out.print(_newcomer_line(name, one), highlight=False, markup=False)


def _newcomer_line(name: str, one: dict[str, Any]) -> str:
    limit = "" if one["usd_max"] is None else f" of {one['usd_max']:g}"
    return (
        f"new model {name}: {one['outcomes']:.0f} of {one['outcomes_proven']:g} outcomes, "
        f"{one['requests']:,} of {one['requests_max']:,} requests, ${one['usd']:.4f}{limit}"
        + (": its budget is used up, it waits for outcomes" if one["exhausted"] else "")
    )


def export_decisions(
    settings: Settings, path: Path, out: Path, console: Console, *, outcomes: bool
) -> dict[str, int]:
    """Write the decision log to a Parquet file, with a progress bar on `console`."""
    log = LocalSite.of(settings, path, looks_only=True).log()
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("reading decisions", total=None)
            return export(
                log,
                out,
                lambda done, total: progress.update(bar, completed=done, total=total),
                outcomes=outcomes,
            )
    finally:
        log.close()
