"""What an operator wants to know first, in one line: is it up, rate, latency, cost, alarms.

    up: 2 routers · 212.5 decisions/s · p99 4.1 ms · 0.0 refused/s · $12.40 paid · lag 0 s · 1 alarm

It is made from what `fairlead status --json` has, and computes nothing but a sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def headline(found: Mapping[str, Any]) -> str:
    """The line, with rich's marks for colour."""
    router = found["router"]
    if not router or not router["replicas"]:
        return f"[bold red]no router[/] · {_learning(found)} · {_alarms(found)}"
    n = router["replicas"]
    parts = [
        f"[bold green]up[/]: {n} router{'s' if n > 1 else ''}",
        f"{router['decisions_per_s']:,.1f} decisions/s",
        *([f"p99 {p99:,.1f} ms"] if (p99 := router["latency_ms_p99"]) is not None else []),
        _refused(router["refused_per_s"]),
        _learning(found),
        _alarms(found),
    ]
    return " · ".join(parts)


def _refused(per_s: float) -> str:
    said = f"{per_s:,.1f} refused/s"
    return f"[yellow]{said}[/]" if per_s else said


def _learning(found: Mapping[str, Any]) -> str:
    """What answers cost as far as was reported, and how far learning is behind.

    Where the log does not answer nobody knows how far.
    """
    lag_s = found["lag_s"]
    lag = "[bold red]lag unknown[/]" if lag_s is None else f"lag {lag_s:,.0f} s"
    return f"${sum(found['spent_usd'].values()):,.2f} paid · {lag}"


def _alarms(found: Mapping[str, Any]) -> str:
    n = len(found["alarms"])
    return f"[bold red]{n} alarm{'s' if n > 1 else ''}[/]" if n else "[green]no alarms[/]"
