"""What a page says: three tiles first, then charts and tables, by what the result has.

Each section is for results that have what it shows: a plan has a frontier and what-ifs, a replay a
delivered load, and all have times, mixes and costs.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

from load.report import charts
from load.report.figures import Shown, table

Found = Mapping[str, Any]
TOP = ("p50", "p90", "p95", "p99")


def headline(found: Found, shown: Shown) -> str:
    """What would I have to buy, what would it cost, what would users see."""
    trace, text = found["trace"], html.escape
    source = f" ({text(trace['source'])})" if trace.get("source") else ""
    about = (
        f'<p class="muted">{shown("trace.requests", "{:,}")} requests of '
        f"{text(trace['name'])}{source}, {shown('trace.span_s', '{:,.0f}')} s; seed "
        f"{shown('seed', '{}')}</p>"
    )
    tiles = _plan_tiles(found, shown) if found["command"] == "plan" else _run_tiles(found, shown)
    boxes = "".join(
        f'<section class="tile"><h2>{text(name)}</h2><div class="big">{big}</div>{rest}</section>'
        for name, big, rest in tiles
    )
    return about + f'<div class="tiles">{boxes}</div>' + _alarms(found)


def _plan_tiles(found: Found, shown: Shown) -> list[tuple[str, str, str]]:
    if found["plan"] is None:
        return [("No plan", "nothing will do", f"<p>{html.escape(found['reason'])}</p>")]
    pools = found["plan"]["pools"]
    gpus = " + ".join(
        f"{shown(f'plan.gpus.{g}', '{}')}&nbsp;{html.escape(g)}" for g in found["plan"]["gpus"]
    )
    what = "".join(
        f"<p>{shown(f'plan.pools.{name}.replicas', '{}')} × {html.escape(one['model'])} on "
        f"{one['gpus_per_replica']} {html.escape(one['gpu'])}</p>"
        for name, one in pools.items()
    )
    cost = (
        f"<p>{shown('autoscaled.usd_per_h', '${:,.2f}')} an hour if replicas follow demand "
        f"({shown('autoscaled.within_target', '{:.2%}')} within target)</p>"
        f"<p>hedged against 1.5 times demand and service times: "
        f"{shown('hedged.usd_per_h', '${:,.2f}')} an hour</p>"
    )
    users = (
        f"<p>first token {_times(shown, 'verified.ttft_ms')}</p>"
        f"<p>then {_times(shown, 'verified.tpot_ms')} per token</p>"
        f"<p>quality {shown('verified.quality', '{:.4f}')}</p>"
    )
    return [
        ("What would I have to buy?", gpus or "no GPUs", what),
        ("What would it cost?", shown("plan.usd_per_h", "${:,.2f} an hour"), cost),
        (
            "What would users see?",
            shown("verified.within_target", "{:.2%} within target"),
            users,
        ),
    ]


def _run_tiles(found: Found, shown: Shown) -> list[tuple[str, str, str]]:
    users = (
        f"<p>first token {_times(shown, 'ttft_ms')}</p>"
        + (f"<p>then {_times(shown, 'tpot_ms')} per token</p>" if found.get("tpot_ms") else "")
        + (f"<p>quality {shown('quality', '{:.4f}')}</p>" if "quality" in found else "")
    )
    tiles = []
    if found["command"] == "replay":
        tiles.append(
            (
                "Was the load delivered?",
                shown("delivered_per_s", "{:,.1f} requests/s"),
                f"<p>{shown('intended_per_s', '{:,.1f}')} were intended; "
                f"{shown('unfinished', '{:,}')} never finished</p>",
            )
        )
    if "gpus" in found:
        own = [name for name in found["gpus"] if name != "hosted"]
        gpus = " + ".join(f"{shown(f'gpus.{g}.max', '{}')}&nbsp;{html.escape(g)}" for g in own)
        tiles.append(
            (
                "What would have to run?",
                gpus or "no GPUs",
                f"<p>{shown('replica_changes', '{}')} changes of replicas</p>"
                f"<p>{shown('energy.joules_per_request', '{:,.0f}')} J a request</p>",
            )
        )
    if "cost" in found:
        tiles.append(
            (
                "What would it cost?",
                shown("cost.usd_per_h", "${:,.2f} an hour"),
                f"<p>{shown('cost.usd_per_1k_requests', '${:,.3f}')} per 1,000 requests</p>"
                f"<p>GPUs {shown('cost.gpu_usd', '${:,.2f}')}, by the token "
                f"{shown('cost.hosted_usd', '${:,.2f}')}</p>",
            )
        )
    share = (
        shown("within_target", "{:.2%} within target") if "within_target" in found else "see below"
    )
    return [*tiles, ("What would users see?", share, users)]


def _times(shown: Shown, key: str) -> str:
    return (
        f"{shown(f'{key}.p50', '{:,.0f} ms', 'never')} for half, "
        f"{shown(f'{key}.p99', '{:,.0f} ms', 'never')} for 99 %"
    )


def _alarms(found: Found) -> str:
    said = [found["reason"]] if found.get("reason") else []
    run = found.get("verified") or found
    fates = [fate for fate in ("refused", "lost", "unfinished") if run.get(fate)]
    said += [f"{run[fate]:,} requests were {fate}" for fate in fates]
    return "".join(f'<p class="alarm">{html.escape(text)}</p>' for text in said)


# --- what is below the first screen


def sections(found: Found, shown: Shown) -> Iterator[str]:
    """In the order in which they are read."""
    if found.get("frontier"):
        yield from _frontier(found)
    if found.get("sensitivity"):
        yield from _what_if(found, shown)
    run, at = (found["verified"], "verified.") if found.get("verified") else (found, "")
    if run.get("series"):
        yield from _over_time(run)
    if run.get("ttft_ms"):
        yield _percentiles(run, shown, at)
    if run.get("models"):
        yield from _mix(run, shown, at)
    yield _assumed(found)


def _frontier(found: Found) -> Iterator[str]:
    yield "<h2>Cost against quality, at the target</h2>"
    if found["plan"] is not None and all(p["quality"] is not None for p in found["frontier"]):
        drawn = charts.frontier("Every point was simulated", found["frontier"], found["plan"])
        yield f'<div class="charts">{drawn}</div>'
    rows = [
        [
            html.escape(" + ".join(f"{n} {g}" for g, n in point["gpus"].items()) or "no GPUs"),
            f"${point['usd_per_h']:,.2f}",
            "not known" if point["quality"] is None else f"{point['quality']:.4f}",
            f"{point['within_target']:.2%}",
            f"{point['joules_per_request']:,.0f}",
            f"{point['cost_weight']:g}",
        ]
        for point in found["frontier"]
    ]
    heads = ["GPUs", "USD per hour", "quality", "within target", "J per request", "cost weight"]
    yield table(heads, rows)


def _what_if(found: Found, shown: Shown) -> Iterator[str]:
    yield "<h2>If it turns out otherwise</h2>"
    cases = {one["case"]: one["within_target"] for one in found["sensitivity"]}
    limit = (f"{found['share']:.0%} wanted", found["share"])
    yield f'<div class="charts">{charts.bars("Share within target", cases, "share", limit)}</div>'
    if found.get("hedged"):
        yield (
            f"<p>The hedged plan costs {shown('hedged.usd_per_h_more', '${:,.2f}')} an hour more; "
            f"at 1.5 times demand and service times it keeps "
            f"{shown('hedged.within_target', '{:.2%}')} within target, the plan "
            f"{shown('hedged.plain_within_target', '{:.2%}')}.</p>"
        )


def _over_time(run: Found) -> Iterator[str]:
    series, target = run["series"], run.get("target")
    at_s = series["at_s"]
    drawn = []

    def add(title: str, keys: Mapping[str, str], unit: str, **more: Any) -> None:
        curves = {name: series[key] for name, key in keys.items() if key in series}
        if curves:
            drawn.append(charts.lines(title, at_s, curves, unit, **more))

    loads = {"asked": "requests_per_s", "sent": "sent_per_s", "finished": "finished_per_s"}
    add("Load", loads, "requests/s")
    limit = ("target", target["ttft_ms"]) if target else None
    add(
        "Time to first token",
        {"half": "ttft_ms_p50", "99 %": "ttft_ms_p99"},
        "milliseconds",
        limit=limit,
        logarithmic=True,
    )
    limit = ("target", target["tpot_ms"]) if target else None
    add(
        "Time per token",
        {"half": "tpot_ms_p50", "99 %": "tpot_ms_p99"},
        "milliseconds",
        limit=limit,
    )
    add("Requests in flight", {"in flight": "in_flight"}, "requests")
    if series.get("models"):
        drawn.append(charts.stacked("Models", at_s, series["models"], "share of requests"))
    if series.get("replicas"):
        drawn.append(charts.stacked("Ready replicas", at_s, series["replicas"], "replicas"))
    add("Cost", {"all": "usd_per_h"}, "US dollars per hour")
    if any(value is not None for value in series.get("quality", ())):
        add("Quality of answers", {"quality": "quality"}, "0 to 1")
    yield "<h2>Over time</h2>"
    yield f'<div class="charts">{"".join(drawn)}</div>'


def _percentiles(run: Found, shown: Shown, at: str) -> str:
    names = {"ttft_ms": "first token", "tpot_ms": "per token", "latency_ms": "whole answer"}
    rows = [
        [name, *(shown(f"{at}{key}.{p}", "{:,.1f}", "never") for p in TOP if p in run[key])]
        for key, name in names.items()
        if run.get(key)
    ]
    note = "Of all requests: one that never finished is slower than all others."
    return f"<h2>Times, milliseconds</h2>{table(['', *TOP], rows)}<p class=muted>{note}</p>"


def _mix(run: Found, shown: Shown, at: str) -> Iterator[str]:
    yield "<h2>Models and pools</h2>"
    rows = [
        [
            html.escape(name),
            shown(f"{at}models.{name}.share", "{:.2%}"),
            shown(f"{at}models.{name}.quality", "{:.4f}", "–"),
        ]
        for name in run["models"]
    ]
    yield table(["model", "share of requests", "quality"], rows)
    pools = run.get("pools", {})
    rows = [
        [
            html.escape(name),
            html.escape(f"{one['gpus_per_replica']} × {one['gpu']}"),
            shown(f"{at}pools.{name}.share", "{:.2%}"),
            shown(f"{at}pools.{name}.within_target", "{:.2%}", "–"),
            shown(f"{at}pools.{name}.replicas_mean", "{:.2f}"),
        ]
        for name, one in pools.items()
    ]
    if rows:
        yield table(["pool", "GPUs of a replica", "share", "within target", "replicas"], rows)


def _assumed(found: Found) -> str:
    said = [*found.get("assumed", ())]
    if found.get("outcomes"):
        said.append(f"answers' quality: {found['outcomes']}")
    items = "".join(f"<li>{html.escape(text)}</li>" for text in said)
    return f"<h2>What was assumed</h2><ul>{items}</ul>" if items else ""
