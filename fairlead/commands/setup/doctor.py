"""`fairlead doctor`: what would keep a router from running well here, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.cluster.checkup import Finding, examine
from infra.errors import InfraError, StatePrivate
from infra.settings.settings import Settings


def examined(settings: Settings, path: Path) -> dict[str, Any]:
    """Every finding as JSON, and whether all is well."""
    findings = [finding.as_dict() for finding in examine(settings, path)]
    return {"ok": all(finding["ok"] for finding in findings), "checks": findings}


def refused(problem: InfraError) -> dict[str, Any]:
    """The same where the settings can't be read: nothing else can be examined then."""
    if isinstance(problem, StatePrivate):
        finding = Finding(
            "state folder", str(problem), "Be that user, or set a folder of your own."
        )
    else:
        remedy = "Mend the file; `fairlead settings` explains every key."
        finding = Finding("settings", str(problem), remedy)
    return {"ok": False, "checks": [finding.as_dict()]}


def show(found: dict[str, Any], console: Console) -> None:
    """Print the findings, and what to do."""
    table = Table(box=None, show_header=False)
    for check in found["checks"]:
        mark = "[green]ok[/]" if check["ok"] else "[bold red]no[/]"
        table.add_row(mark, check["name"], check["found"])
        if check["remedy"]:
            table.add_row("", "", f"[bold]{check['remedy']}[/]")
    console.print(table)
