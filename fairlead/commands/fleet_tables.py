"""Workload, routers, pools and plans as tables for people: a row per class, model and pool.

It shows what `infra.status.status` gives as JSON, and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fairlead.commands.terminal import plain

SECTIONS = ("workload", "router", "pools", "prices", "budgets", "scaling", "supports", "newcomers")


def print_fleet(found: Mapping[str, Any], out: Console) -> None:
    """Print the sections that have something to say."""
    if found["workload"]:
        out.print(_workload(found["workload"]))
    if found["router"]:
        out.print(_router(found["router"]))
        out.print(_mix(found["router"]["mix"]))
    if found["pools"]:
        out.print(_pools(found["pools"]))
    if found["prices"]:
        out.print(_prices(found["prices"]))
    if found.get("supports"):
        out.print(_supports(found["supports"]))
    if found["scaling"]:
        out.print(_scaling(found["scaling"]))


def _supports(models: Mapping[str, Sequence[str]]) -> Table:
    rows = ((name, ", ".join(abilities)) for name, abilities in models.items())
    return _table("stated of models", ("model", "supports"), rows)


def _workload(classes: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = (
        (
            name,
            *(_number(of["arrivals_per_s"][span], 1) for span in ("10s", "1m", "5m")),
            _number(of["arrivals"]),
            _number(of["shed"]),
            _percentiles(of["prompt_tokens"]),
            _percentiles(of["output_tokens"]),
        )
        for name, of in classes.items()
    )
    rates = ("/s 10 s", "/s 1 min", "/s 5 min")
    heads = ("class", *rates, "in all", "shed", "prompt tokens", "output tokens")
    return _table("workload (lengths: p50 · p95 · p99)", heads, rows)


def _router(router: Mapping[str, Any]) -> Table:
    row = (
        _number(router["replicas"]),
        _number(router["decisions_per_s"], 1),
        _share(router["explored_share"]),
        _number(router["refused"]),
        _number(router["snapshot_version"]),
        _number(router["snapshot_age_ms"] / 1000, 1),
        _number(router["loop_lag_ms_max"], 1),
        _share(router["loop_busy_share"]),
    )
    heads = ("replicas", "/s", "explored", "refused", "snapshot", "age s", "lag ms", "busy")
    return _table("router", heads, [row])


def _mix(mix: Sequence[Mapping[str, Any]]) -> Table:
    rows = (
        (
            of["model"],
            of["pool"],
            _number(of["decisions_per_s"], 1),
            _number(of["decisions"]),
            _number(of["explored"]),
        )
        for of in mix
    )
    return _table("decisions", ("model", "pool", "/s 1 min", "in all", "explored"), rows)


def _pools(pools: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = (
        (
            _pool_name(name, of),
            ", ".join(f"{n} {state}" for state, n in of["replicas"].items()),
            _number(of["queued"]),
            _number(of["running"]),
            _share(of["kv_use"]),
            _percentiles(of["ttft_ms"], ("p50", "p99")),
            _percentiles(of["tpot_ms"], ("p50", "p99")),
            _number(of["tokens_per_s"]),
            _watts(of),
            _number(of["joules"]),
            _can_do(of),
            _first_token(of),
            _number(of["silent_s"], 1),
        )
        for name, of in pools.items()
    )
    heads = ("pool", "replicas", "queue", "run", "kv", "ttft ms", "tpot ms", "tok/s", "W", "J")
    learned = ("each can do /s", "first token ms")
    title = "pools (latencies: p50 · p99; ≈ by the GPUs' figures)"
    return _table(title, (*heads, *learned, "silent s"), rows)


def _pool_name(name: str, of: Mapping[str, Any]) -> str:
    """With what there is to say of it."""
    notes = ["derived"] if of["derived"] else []
    notes += ["refuses " + ", ".join(of["refuses"])] if of["refuses"] else []
    return f"{name} ({'; '.join(notes)})" if notes else name


def _watts(of: Mapping[str, Any]) -> str:
    """Power; about so much where it is by the GPUs' figures."""
    return ("≈ " if of["watts_from"] == "figures" else "") + _number(of["watts"])


def _can_do(of: Mapping[str, Any]) -> str:
    """Requests a second of one server: learned or stated, or at least so many."""
    if of["capacity_per_s"] is None:
        return "–"
    least = "" if of["capacity_seen_full"] else "≥ "
    return f"{least}{of['capacity_per_s']:.2f} ± {of['capacity_deviation_per_s']:.2f}"


def _first_token(of: Mapping[str, Any]) -> str:
    """Of one server while there is room: the median and the 99th percentile, as learned."""
    first = of["first_token"]
    if first is None:
        return "–"
    least, most = (round(ms) for ms in first["p99_ms_bounds"])
    return f"{first['p50_ms']:.0f} · {first['p99_ms']:.0f} ({least} to {most})"


def _prices(prices: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = ((name, _share(of["load"]), _number(of["multiple"], 2)) for name, of in prices.items())
    return _table("prices", ("of", "load", "multiple of its cost"), rows)


def _scaling(lines: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="scaling", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("UTC")
    table.add_column("what changed and why")
    for of in lines:
        at = datetime.fromtimestamp(of["at_unix_ms"] / 1000, tz=UTC)
        table.add_row(f"{at:%m-%d %H:%M:%S}", plain(of["line"]))
    return table


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _percentiles(found: Mapping[str, float | None], names: Sequence[str] = ()) -> str:
    return " · ".join(_number(found[name]) for name in names or found)
