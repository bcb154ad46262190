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
from load.report.refusals import refusals
from load.shares import part, percent

Found = Mapping[str, Any]
HOURS = 24 * 30  # of a month, as bills have it
TOP = ("p50", "p90", "p95", "p99")


def headline(found: Found, shown: Shown) -> str:
    """What would I have to buy, what would it cost, what would users see."""
    trace, text = found["trace"], html.escape
    source = f" ({text(trace['source'])})" if trace.get("source") else ""
    about = (
        f'<p class="muted">{shown("trace.requests", "{:,}")} requests of '
        f"{text(trace['name'])}{source}, {shown('trace.span_s', '{:,.0f}')} s; seed "
        f"{shown('seed', '{}')}{_wanted(found, shown)}</p>"
    )
    tiles = _plan_tiles(found, shown) if found["command"] == "plan" else _run_tiles(found, shown)
    boxes = "".join(
        f'<section class="tile"><h2>{text(name)}</h2><div class="big">{big}</div>{rest}</section>'
        for name, big, rest in tiles
    )
    return about + f'<div class="tiles">{boxes}</div>' + _alarms(found)


def _wanted(found: Found, shown: Shown) -> str:
    """What being within target is."""
    target = found.get("target")
    if not target:
        return ""
    per_1k = shown("target.ttft_ms_per_1k_prompt_tokens", "{:,g} ms per 1,000 prompt tokens")
    longer = f" + {per_1k}" if target["ttft_ms_per_1k_prompt_tokens"] else ""
    of = f", for {shown('share', percent)} of requests" if "share" in found else ""
    return (
        f"<br>Target: first token within {shown('target.ttft_ms', '{:,g} ms')}{longer}, then "
        f"{shown('target.tpot_ms', '{:,g} ms')} per token{of}"
    )


def _plan_tiles(found: Found, shown: Shown) -> list[tuple[str, str, str]]:
    if found["plan"] is None:
        return [("No plan", "nothing will do", f"<p>{html.escape(found['reason'])}</p>")]
    gpus = _gpus(found, shown, "plan")
    hosted = "".join(
        f"<p>{html.escape(name)}, by the token: "
        f"{shown(f'verified.pools.{name}.share', part)} of requests</p>"
        for name in _by_token(found["verified"])
    )
    cost = (
        f"<p>{shown('verified.cost.usd_per_h', '${:,.0f}', times=HOURS)} per 30 days</p>"
        + (_parts(shown) if _by_token(found["verified"]) else "")
        + f"<p>{shown('autoscaled.usd_per_h', '${:,.2f}')} an hour if replicas follow demand "
        f"({shown('autoscaled.within_target', percent)} within target)</p>"
    )
    users = (
        f"<p>first token {_times(shown, 'verified.ttft_ms')}</p>"
        f"<p>then {_times(shown, 'verified.tpot_ms')} per token</p>"
        f"<p>quality {shown('verified.quality', '{:.4f}')}</p>"
    )
    within = f"{shown('verified.within_target', percent)} within target"
    return [
        ("What would I have to buy?", gpus, _replicas(found, shown, "plan") + hosted),
        ("What would it cost?", shown("verified.cost.usd_per_h", "${:,.2f} an hour"), cost),
        ("What would users see?", within, users),
    ]


def _parts(shown: Shown) -> str:
    """Of the cost of an hour."""
    return (
        f"<p>GPUs {shown('verified.cost.gpu_usd_per_h', '${:,.2f}')}, by the token "
        f"{shown('verified.cost.hosted_usd_per_h', '${:,.2f}')} an hour</p>"
    )


def _by_token(run: Found) -> list[str]:
    """Pools of others' machines that answered something."""
    return [name for name, one in run["pools"].items() if one["gpu"] == "hosted" and one["share"]]


def _gpus(found: Found, shown: Shown, of: str) -> str:
    gpus = (f"{shown(f'{of}.gpus.{g}', '{}')}&nbsp;{html.escape(g)}" for g in found[of]["gpus"])
    return " + ".join(gpus) or "no GPUs"


def _replicas(found: Found, shown: Shown, of: str) -> str:
    """A line for each pool of a fleet."""
    return "".join(
        f"<p>{shown(f'{of}.pools.{name}.replicas', '{}')} × {html.escape(one['model'])} on "
        f"{one['gpus_per_replica']} {html.escape(one['gpu'])}"
        + (f", {html.escape(one['region'])}" if one["region"] else "")
        + "</p>"
        for name, one in found[of]["pools"].items()
    )


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
                f"{shown('cost.hosted_usd', '${:,.2f}')} in all</p>",
            )
        )
    if "within_target" in found:
        seen = f"{shown('within_target', percent)} within target"
        return [*tiles, ("What would users see?", seen, users)]
    seen = shown("ttft_ms.p50", "{:,.0f} ms to the first token", "nothing")
    return [*tiles, ("What did users see?", seen, users)]


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
    if run.get("ruled_out"):
        said.append(
            f"{run['ruled_out']:,} more are ruled out: no figure but their number counts them"
        )
    words = run.get("failed_said") or {}
    said += [
        f"{n:,} of them: {': '.join(filter(None, (why, words.get(why))))}"
        for why, n in (run.get("failed") or {}).items()
    ]
    if run.get("delivered") is False:
        said.append("The load was not delivered as intended: this measures nothing")
    return "".join(f'<p class="alarm">{html.escape(text)}</p>' for text in said)


# --- what is below the first screen


def sections(found: Found, shown: Shown) -> Iterator[str]:
    """In the order in which they are read."""
    if found.get("frontier"):
        yield from _frontier(found, shown)
    if found.get("sensitivity"):
        yield from _what_if(found, shown)
    run, at = (found["verified"], "verified.") if found.get("verified") else (found, "")
    if run.get("series"):
        yield from _over_time(run)
    if run.get("ttft_ms"):
        yield _percentiles(run, shown, at)
    if run.get("models"):
        yield from _mix(run, shown, at)
    yield from refusals(run, shown, at)
    yield _events(found)
    yield _assumed(found)


def _frontier(found: Found, shown: Shown) -> Iterator[str]:
    yield "<h2>Cost against quality, at the target, in the busiest stretch</h2>"
    if found["plan"] is not None and all(p["quality"] is not None for p in found["frontier"]):
        drawn = charts.frontier("Every point was simulated", found["frontier"], found["plan"])
        yield f'<div class="charts">{drawn}</div>'
    rows = [
        [
            html.escape(_fleet(point)),
            shown(f"frontier.{i}.usd_per_h", "${:,.2f}"),
            shown(f"frontier.{i}.quality", "{:.4f}"),
            shown(f"frontier.{i}.within_target", percent),
            shown(f"frontier.{i}.joules_per_request", "{:,.0f}"),
            shown(f"frontier.{i}.cost_weight", "{:g}"),
        ]
        for i, point in enumerate(found["frontier"])
    ]
    heads = ["fleet", "USD per hour", "quality", "within target", "J per request", "cost weight"]
    yield table(heads, rows)


def _fleet(point: Found) -> str:
    """In words: 2 × llama-3.1-8b on l4, by the token beside it."""
    own = [
        f"{one['replicas']} × {one['model']} on {one['gpus_per_replica']} {one['gpu']}"
        for one in point["pools"].values()
    ]
    return " + ".join([*own, *(["by the token"] if point["hosted_usd_per_h"] else [])])


def _what_if(found: Found, shown: Shown) -> Iterator[str]:
    yield "<h2>If it turns out otherwise, in the busiest stretch</h2>"
    cases = {one["case"]: one["within_target"] for one in found["sensitivity"]}
    limit = (f"{percent(found['share'])} wanted", found["share"])
    yield f'<div class="charts">{charts.bars("Share within target", cases, "share", limit)}</div>'
    rows = [
        [
            html.escape(one["case"]),
            "yes" if one["held"] else '<span class="alarm">no</span>',
            shown(f"sensitivity.{i}.within_target", percent),
            shown(f"sensitivity.{i}.ttft_ms.p99", "{:,.0f}", "never"),
            shown(f"sensitivity.{i}.tpot_ms.p99", "{:,.0f}", "never"),
            shown(f"sensitivity.{i}.quality", "{:.4f}"),
            shown(f"sensitivity.{i}.usd_per_h", "${:,.2f}"),
        ]
        for i, one in enumerate(found["sensitivity"])
    ]
    first, then = "first token, 99 %, ms", "per token, 99 %, ms"
    yield table(["case", "holds", "within target", first, then, "quality", "USD per hour"], rows)
    if found.get("hedged"):
        yield from _hedged(found, shown)


def _hedged(found: Found, shown: Shown) -> Iterator[str]:
    holds = "holds" if found["hedged"]["held"] else "comes nearest"
    yield "<h2>Hedged: what holds if demand and service times are 1.5 times the forecast</h2>"
    yield (
        f"<p>{_gpus(found, shown, 'hedged')} {holds}: "
        f"{shown('hedged.within_target', percent)} are within target then, with the plan "
        f"{shown('hedged.plain_within_target', percent)}. As forecast it costs "
        f"{shown('hedged.usd_per_h', '${:,.2f}')} an hour, "
        f"{shown('hedged.usd_per_h_more', '${:,.2f}')} more than the plan.</p>"
    )
    yield _replicas(found, shown, "hedged")


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
    longer = target and target["ttft_ms_per_1k_prompt_tokens"]
    of = "target of a short prompt" if longer else "target"
    limit = (of, target["ttft_ms"]) if target else None
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
        own = {
            name: n
            for name, n in series["replicas"].items()
            if run["pools"][name]["gpu"] != "hosted"
        }
        drawn.append(charts.stacked("Ready replicas", at_s, own, "replicas"))
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
            shown(f"{at}models.{name}.share", part),
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
            shown(f"{at}pools.{name}.share", part),
            shown(f"{at}pools.{name}.within_target", percent, "–"),
            shown(f"{at}pools.{name}.replicas_mean", "{:.2f}"),
        ]
        for name, one in pools.items()
        if one["share"] or one["replicas_mean"]
    ]
    if rows:
        yield table(["pool", "GPUs of a replica", "share", "within target", "replicas"], rows)
    if idle := len(pools) - len(rows):
        yield f'<p class="muted">Pools without replicas: {idle}.</p>'


def _events(found: Found) -> str:
    """What happened meanwhile."""
    items = "".join(
        f"<li>at {event['at_s']:g} s: {html.escape(str(event['what']))}, "
        + html.escape(", ".join(f"{k} {v}" for k, v in event.items() if k not in ("at_s", "what")))
        + "</li>"
        for event in found.get("events", ())
    )
    return f"<h2>What happened meanwhile</h2><ul>{items}</ul>" if items else ""


def _assumed(found: Found) -> str:
    said = [*found.get("assumed", ())]
    if found.get("outcomes"):
        said.append(f"answers' quality: {found['outcomes']}")
    items = "".join(f"<li>{html.escape(text)}</li>" for text in said)
    return f"<h2>What was assumed</h2><ul>{items}</ul>" if items else ""
