"""What rules and budgets did, and what each tenant, task or other group of requests would see."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

from load.report.figures import Shown, table
from load.shares import part, percent

Found = Mapping[str, Any]
SHOWN = 20  # values of a field; the JSON has more


def refusals(run: Found, shown: Shown, at: str) -> Iterator[str]:
    """Tables, for a run that has any of it; `at` is where the run is in what is shown."""
    if run.get("rules"):
        yield "<h2>Rules</h2>"
        rows = [
            [
                html.escape(name),
                shown(f"{at}rules.{name}.met", "{:,}"),
                shown(f"{at}rules.{name}.refused", "{:,}"),
            ]
            for name in run["rules"]
        ]
        yield table(["rule", "requests that meet it", "of them refused"], rows)
    if run.get("guarded"):
        yield f"<p>{shown(f'{at}guarded', '{:,}')} requests were far from all that is known.</p>"
    if run.get("budgets"):
        yield from _budgets(run, shown, at)
    for field, groups in (run.get("by") or {}).items():
        yield f"<h2>By {html.escape(field)}</h2>"
        yield _groups(groups, shown, f"{at}by.{field}")


def _budgets(run: Found, shown: Shown, at: str) -> Iterator[str]:
    """A row for each of their periods."""
    yield "<h2>Budgets</h2>"
    rows = []
    for name, one in run["budgets"].items():
        of = f" of {one['scope']} {one['value']}" if one["value"] else ""
        limit = f"{one['amount']:,g} {one['unit']} per {one['per']}{of}"
        for i, period in enumerate(one["periods"]):
            key = f"{at}budgets.{name}.periods.{i}"
            rows.append([
                html.escape(name),
                html.escape(limit + ("" if one["hard"] else ", paced alone")),
                html.escape(period["from"].replace("T", " ")),
                shown(f"{key}.spent", "{:,.6g}"),
                shown(f"{key}.spent_share", percent),
                shown(f"{at}budgets.{name}.refused", "{:,}") if i == 0 else "",
            ])  # fmt: skip
    yield table(["budget", "limit", "period from", "spent", "of it", "requests refused"], rows)


def _groups(groups: Found, shown: Shown, at: str) -> str:
    heads = ["", "requests", "ruled out", "refused", "within target", "quality",
             "USD at stated prices", "models"]  # fmt: skip
    rows = [
        [
            html.escape(name or "(none)"),
            shown(f"{at}.{name}.requests", "{:,}"),
            shown(f"{at}.{name}.ruled_out", "{:,}"),
            shown(f"{at}.{name}.refused", "{:,}"),
            shown(f"{at}.{name}.within_target", percent, "–"),
            shown(f"{at}.{name}.quality", "{:.4f}", "–"),
            shown(f"{at}.{name}.listed_usd", "{:,.4f}"),
            html.escape(", ".join(f"{model} {part(n)}" for model, n in one["models"].items())),
        ]
        for name, one in list(groups.items())[:SHOWN]
    ]
    return table(heads, rows)
