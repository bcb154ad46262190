"""`fairlead simulate`: a trace under the site's own settings, on the virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.commands.planning.trace_options import (
    FromOption,
    LengthOption,
    RateOption,
    SeedOption,
    Stretch,
    ToOption,
    TraceArgument,
    page_file,
    pages,
    refuse_overwriting,
)
from fairlead.commands.terminal import (
    JsonOption,
    SettingsOption,
    console,
    load_kernels,
    only_json,
    print_lines,
    progress,
)
from load.shares import part, percent

if TYPE_CHECKING:
    from infra.settings.settings import Settings
    from load.traces.parts import TraceParts

SHOWN = 8  # values of a field, on a terminal
OutcomesOption = Annotated[
    Path | None,
    typer.Option(help="An outcome table (Parquet, CSV, JSON lines): answers have its quality."),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(callback=page_file, help="Write a page (HTML) there, and its JSON beside it."),
]


def simulate(
    trace: TraceArgument,
    settings: SettingsOption = None,
    outcomes: OutcomesOption = None,
    events: Annotated[
        Path | None, typer.Option(help="What happens meanwhile (TOML), see docs/planning.md.")
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a live site's snapshots: begin with its means, and with how fast pools "
            "of real servers were."
        ),
    ] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Routers begin without knowledge.")] = False,
    autoscale: Annotated[
        bool | None,
        typer.Option("--autoscale/--fixed", help="Follow demand. Default: as the settings say."),
    ] = None,
    rate: RateOption = 1.0,
    length: LengthOption = 1.0,
    from_s: FromOption = 0.0,
    to_s: ToOption = float("inf"),
    seed: SeedOption = 0,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate a trace under the site's own settings: what users would see, and what it costs."""
    from fairlead.commands.started import DEFAULT

    with only_json(as_json) as emit:
        from fairlead.commands.planning.trace_options import parts_of
        from load.planning.events import Events, read_events
        from load.planning.figures.summary import summed_up
        from load.planning.questions import encoded_by, questions_of
        from load.planning.ruled import assumed_of
        from load.planning.simulating import SimulateOptions, added_up
        from load.planning.site import site_of
        from load.planning.snapshot import means_of, servers_of

        refuse_overwriting([trace, settings or DEFAULT, outcomes, events], *pages(report))
        stated = settings_of(settings)
        site = site_of(stated, learned=None if snapshot is None else servers_of(snapshot, stated))
        parts = parts_of(
            trace, Stretch(rate=rate, length=length, from_s=from_s, to_s=to_s, seed=seed)
        )
        questions = questions_of(site.catalogue, outcomes, parts, encoded_by(site.settings))
        happening = Events() if events is None else read_events(events, site)
        options = SimulateOptions(
            seed=seed,
            warm=not cold,
            scales=autoscale,
            means=None if snapshot is None else means_of(snapshot, site.catalogue, site.settings),
        )
        progress(f"{parts.requests:,} requests over {parts.span_s:,.0f} s")
        load_kernels()
        run, totals = added_up(site, parts, questions, happening, options, progress)
        progress(f"{run.simulated_requests_per_s:,.0f} requests simulated a second, of one core")
        found = {
            "command": "simulate",
            "trace": about_parts(parts),
            "outcomes": questions.source or None,
            "seed": seed,
            "assumed": [
                *site.assumed,
                *assumed_of(site, parts, parts.kinds, questions),
                *happening.late(parts.span_s),
            ],
            "events": [dict(event) for event in happening.listed],
            **summed_up(run, totals, site, quality_known=questions.quality_known),
        }
        emit(found)
    if not as_json:
        print_lines(lines_of(found))
    write_report(found, report)


def settings_of(path: Path | None) -> Settings:
    """The settings of a file, or of `fairlead.toml` here. Raises SettingsInvalid."""
    from fairlead.commands.started import settings_of as found

    return found(path, console)[0]


def about(file: Any) -> dict[str, Any]:
    """What is said of the trace in every result."""
    trace = file.trace
    return {
        "name": trace.name,
        "source": file.source or None,
        "requests": len(trace),
        "span_s": round(float(trace.at_s[-1]), 3),
        "left_out": file.left_out,
    }


def about_parts(parts: TraceParts) -> dict[str, Any]:
    """The same of a trace that is read in parts."""
    return {
        "name": parts.name,
        "source": parts.source or None,
        "requests": parts.requests,
        "span_s": round(parts.span_s, 3),
        "left_out": dict(parts.left_out),
    }


def write_report(found: dict[str, Any], path: Path | None) -> None:
    """The page and the JSON beside it, if wanted: last, so that a full disk costs no result.

    Raises OSError.
    """
    if path is not None:
        from load.report.page import write

        for written in write(found, path):
            progress(f"written: {written}")


def lines_of(found: dict[str, Any]) -> list[str]:
    """What a person wants to know first."""
    cost, energy = found["cost"], found["energy"]
    quality = "not known" if found["quality"] is None else f"{found['quality']:.4f}"
    mix = ", ".join(
        f"{name} {part(one['share'])}" for name, one in found["models"].items() if one["share"]
    )
    own = {name: one["max"] for name, one in found["gpus"].items() if name != "hosted"}
    gpus = ", ".join(f"{n} {name}" for name, n in own.items())
    return [
        f"requests       {found['requests']:,}: {found['finished']:,} finished, "
        f"{found['refused']:,} refused, {found['lost']:,} lost, {found['unfinished']:,} unfinished"
        + (f", {found['ruled_out']:,} ruled out" if found["ruled_out"] else ""),
        f"within target  {percent(found['within_target'])} ({target_in_words(found['target'])})",
        f"first token    {times(found['ttft_ms'])}",
        f"per token      {times(found['tpot_ms'])}",
        f"quality        {quality}; models: {mix}",
        f"cost           ${cost['usd']:,.2f}, ${cost['usd_per_h']:,.2f}/h "
        f"(GPUs ${cost['gpu_usd']:,.2f}, by the token ${cost['hosted_usd']:,.2f})",
        f"GPUs           at most {gpus or 'none'}; {found['replica_changes']} changes of replicas",
        f"energy         {energy['kwh']:,.2f} kWh, {energy['joules_per_request']:,.0f} J a request",
        *refusals_of(found),
        *(f"assumed        {text}" for text in found["assumed"]),
    ]


def refusals_of(found: dict[str, Any]) -> Iterator[str]:
    """What rules and budgets did, and what each tenant, task, … would see."""
    for name, one in found["rules"].items():
        yield f"rule           {name}: {one['met']:,} meet it, {one['refused']:,} are refused"
    if found["guarded"]:
        yield f"guard          {found['guarded']:,} are far from what is known"
    for name, one in found["budgets"].items():
        spent = ", ".join(
            f"{period['spent']:,.6g} from {period['from'][:16]}" for period in one["periods"]
        )
        yield (
            f"budget         {name}, {one['amount']:,g} {one['unit']} per {one['per']}: spent "
            f"{spent or 'nothing'}; refuses {one['refused']:,}"
        )
    for field, table in found["by"].items():
        for word, one in list(table.items())[:SHOWN]:
            yield f"{field:<14} {word or '(none)'}: {_of_some(one)}"


def _of_some(one: dict[str, Any]) -> str:
    """What those of one tenant, or task, … see."""
    within = "none wanted" if one["within_target"] is None else percent(one["within_target"])
    quality = "" if one["quality"] is None else f", quality {one['quality']:.4f}"
    mix = ", ".join(f"{name} {part(share)}" for name, share in one["models"].items())
    gone = f", {one['ruled_out']:,} ruled out" if one["ruled_out"] else ""
    return (
        f"{one['requests']:,} requests{gone}, {one['refused']:,} refused, {within} within target"
        f"{quality}, ${one['listed_usd']:,.4g} at stated prices; {mix or 'no model'}"
    )


def target_in_words(target: dict[str, float]) -> str:
    """What being within target is."""
    more = target["ttft_ms_per_1k_prompt_tokens"]
    longer = f" + {more:g} ms per 1,000 prompt tokens" if more else ""
    return f"first token {target['ttft_ms']:g} ms{longer}, then {target['tpot_ms']:g} ms per token"


def times(found: dict[str, float | None]) -> str:
    """Percentiles; those among requests that never finished are called so."""
    shown = {p: "never" if ms is None else f"{ms:,.0f} ms" for p, ms in found.items()}
    return ", ".join(f"{p} {text}" for p, text in shown.items())
