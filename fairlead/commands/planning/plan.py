"""`fairlead plan`: which GPUs, how many, which models, at what quality, cost and energy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fairlead.commands.planning.simulate import (
    OutcomesOption,
    ReportOption,
    about,
    settings_of,
    target_in_words,
    times,
    write_report,
)
from fairlead.commands.planning.trace_options import (
    FromOption,
    LengthOption,
    RateOption,
    SeedOption,
    Stretch,
    ToOption,
    TraceArgument,
    pages,
    refuse_overwriting,
    writable,
)
from fairlead.commands.terminal import (
    JsonOption,
    SettingsOption,
    load_kernels,
    only_json,
    print_lines,
    progress,
)
from load.shares import part, percent
from streams.whole_file import whole

if TYPE_CHECKING:
    from infra.capacity.latency_target import LatencyTarget
    from infra.settings.settings import Settings
    from load.planning.site import Site
    from load.planning.sizing import Sized


HOURS = 24 * 30  # of a month, as bills have it


def plan(
    trace: TraceArgument,
    settings: SettingsOption = None,
    target_ttft_ms: Annotated[
        float | None,
        typer.Option(min=1, help="To the first token. Default: the settings' target."),
    ] = None,
    target_ttft_ms_per_1k: Annotated[
        float, typer.Option(min=0, help="And so many more per 1,000 tokens of the prompt.")
    ] = 0.0,
    target_tpot_ms: Annotated[
        float | None,
        typer.Option(min=0.1, help="Per token after it. Default: the settings' target."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Of requests that are to keep both.")
    ] = 0.99,
    budget_usd_per_h: Annotated[
        float | None, typer.Option(min=0, help="At most; then the best quality is looked for.")
    ] = None,
    quality_min: Annotated[
        float | None, typer.Option(min=0, max=1, help="At least; then the cheapest is looked for.")
    ] = None,
    unlimited: Annotated[
        bool, typer.Option("--unlimited", help="As many GPUs as it takes, whatever `available`.")
    ] = False,
    own_pools: Annotated[
        bool, typer.Option("--own-pools", help="Only the settings' pools: no other model on a GPU.")
    ] = False,
    stretch_s: Annotated[
        float, typer.Option(min=10, help="Of the busiest time, which fleets are tried on.")
    ] = 600.0,
    points: Annotated[
        int, typer.Option(min=0, max=20, help="Of the frontier, beside the site's own.")
    ] = 4,
    outcomes: OutcomesOption = None,
    rate: RateOption = 1.0,
    length: LengthOption = 1.0,
    from_s: FromOption = 0.0,
    to_s: ToOption = float("inf"),
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=writable, help="Write the plan there, as settings for `fairlead up`."
        ),
    ] = None,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan a fleet for a trace; exit code 1 if none will do. What is answered was simulated."""
    from fairlead.commands.started import DEFAULT

    stretch = Stretch(rate=rate, length=length, from_s=from_s, to_s=to_s, seed=seed)
    wanted = {
        "share": share,
        "budget_usd_per_h": budget_usd_per_h,
        "quality_min": quality_min,
        "unlimited": unlimited,
        "stretch_s": stretch_s,
        "points": points,
    }
    with only_json(as_json) as emit:
        refuse_overwriting([trace, settings or DEFAULT, outcomes], out, *pages(report))
        stated = settings_of(settings)
        target = _target(stated, target_ttft_ms, target_ttft_ms_per_1k, target_tpot_ms)
        site = _site(stated, target, own_pools=own_pools)
        found, fleet = _planned(site, trace, stretch, outcomes, wanted)
        planned = None if out is None or fleet is None else _fragment(settings, site, fleet)
        found["settings"] = None if planned is None else str(out)
        emit(found)
    if not as_json:
        print_lines(lines_of(found))
    if out is not None and planned is not None:
        with whole(out) as partial:
            partial.write_text(planned)
    write_report(found, report)
    if not found["feasible"]:
        raise typer.Exit(1)


def _target(
    stated: Settings, ttft_ms: float | None, ttft_ms_per_1k: float, tpot_ms: float | None
) -> LatencyTarget:
    """The settings' target, or what the options say instead."""
    from dataclasses import replace

    target = stated.target()
    if ttft_ms is not None:
        per_1k_s = ttft_ms_per_1k / 1e3
        target = replace(target, ttft_s=ttft_ms / 1e3, ttft_s_per_1k_prompt_tokens=per_1k_s)
    return target if tpot_ms is None else replace(target, tpot_s=tpot_ms / 1e3)


def _site(stated: Settings, target: LatencyTarget, *, own_pools: bool) -> Site:
    """What can be bought: the settings' own pools, or every model on every GPU."""
    from load.planning.candidates import with_candidates
    from load.planning.site import site_of

    return site_of(stated if own_pools else with_candidates(stated), target)


def _planned(
    site: Site, trace: str, stretch: Stretch, outcomes: Path | None, wanted: dict[str, Any]
) -> tuple[dict[str, Any], tuple[Sized, float] | None]:
    """The answer as JSON; the fleet and its weight of cost, where there is one."""
    from fairlead.commands.planning.trace_options import trace_of
    from load.planning.figures.summary import target_of
    from load.planning.plan import plan as planned
    from load.planning.questions import encoded_by, questions_of
    from load.planning.ruled import assumed_of
    from load.planning.search import PlanOptions
    from load.planning.sizing import left_to_simulation

    file = trace_of(trace, stretch)
    questions = questions_of(site.catalogue, outcomes, file, encoded_by(site.settings))
    if not questions.quality_known:
        if wanted["quality_min"] is not None:
            what = "nobody knows how good answers are: give --outcomes"
            raise typer.BadParameter(what, param_hint="--quality-min")
        wanted = wanted | {"points": 0}
    options = PlanOptions(**wanted, seed=stretch.seed)
    load_kernels()
    answer, fleet, per_usd = planned(site, file, questions, options, progress)
    found = {
        "command": "plan",
        "trace": about(file),
        "outcomes": questions.source or None,
        "seed": stretch.seed,
        "assumed": [
            *site.assumed,
            *assumed_of(site, file, file.trace.kinds, questions),
            *left_to_simulation(site),
        ],
        "target": target_of(site.target),
        **answer,
    }
    return found, None if fleet is None else (fleet, per_usd)


def _fragment(settings: Path | None, site: Site, planned: tuple[Sized, float]) -> str:
    """The plan in the site's settings."""
    from fairlead.commands.started import settings_of as site_settings
    from load.planning.fragment import fragment

    _, path = site_settings(settings, Console(stderr=True))
    return fragment(path, site, *planned)


def lines_of(found: dict[str, Any]) -> list[str]:
    """What would have to be bought, what it would cost, what users would see."""
    if found["plan"] is None:
        return [f"No plan: {found['reason']}."]
    plan, verified, more = found["plan"], found["verified"], found["autoscaled"]
    cost = verified["cost"]
    lines = [f"Not good enough: {found['reason']}."] if found["reason"] else []
    lines += [
        f"buy            {gpus(plan)}: ${cost['gpu_usd_per_h']:,.2f} per hour",
        *_replicas(plan),
        *_by_token(verified),
        f"cost           ${cost['usd_per_h']:,.2f} per hour, "
        f"${HOURS * cost['usd_per_h']:,.0f} per 30 days",
        f"users          {percent(verified['within_target'])} within target on all of the trace "
        f"({target_in_words(found['target'])}; {percent(found['share'])} wanted)",
        f"first token    {times(verified['ttft_ms'])}",
        f"per token      {times(verified['tpot_ms'])}",
        f"quality        {quality(verified).removeprefix('quality ')}; "
        f"preference.cost = {plan['cost_weight']:g}",
        f"energy         {verified['energy']['joules_per_request']:,.0f} J a request",
        f"if it scales   ${more['usd_per_h']:,.2f} per hour, "
        f"{percent(more['within_target'])} within target",
        *(
            f"frontier       {quality(p)} for ${p['usd_per_h']:,.2f}/h: {gpus(p)}"
            + ("" if p["meets"] else " (too slow)")
            for p in found["frontier"]
        ),
        *(
            f"what if        {one['case']}: {percent(one['within_target'])} within target, "
            f"${one['usd_per_h']:,.2f}/h" + ("" if one["held"] else " (too slow)")
            for one in found["sensitivity"]
        ),
    ]
    hedged = found["hedged"]
    lines += [
        f"hedged         {gpus(hedged)} for ${hedged['usd_per_h']:,.2f}/h: "
        f"{percent(hedged['within_target'])} within target at 1.5 times demand and service times, "
        f"where the plan keeps {percent(hedged['plain_within_target'])}"
        + ("" if hedged["held"] else " (nothing holds: this comes nearest)"),
        *_replicas(hedged),
    ]
    if found["settings"]:
        lines.append(f"settings       fairlead up --settings {found['settings']}")
    return lines + [f"assumed        {text}" for text in found["assumed"]]


def _by_token(run: dict[str, Any]) -> list[str]:
    """Whom requests are bought of, and for how much."""
    shares = ", ".join(
        f"{part(one['share'])} of requests by {name}"
        for name, one in run["pools"].items()
        if one["gpu"] == "hosted" and one["share"]
    )
    usd = run["cost"]["hosted_usd_per_h"]
    return [f"by the token   {shares}: ${usd:,.2f} per hour"] if shares else []


def _replicas(fleet: dict[str, Any]) -> list[str]:
    """A line for each pool."""
    return [
        f"               {one['replicas']} x {name}: {one['model']} on "
        f"{one['gpus_per_replica']} {one['gpu']}"
        for name, one in fleet["pools"].items()
    ]


def gpus(plan: dict[str, Any]) -> str:
    """For people: 4 h100_sxm + 1 l4."""
    return " + ".join(f"{n} {name}" for name, n in plan["gpus"].items()) or "no GPUs"


def quality(found: dict[str, Any]) -> str:
    """To four digits; words where nobody knows."""
    return "quality not known" if found["quality"] is None else f"quality {found['quality']:.4f}"
