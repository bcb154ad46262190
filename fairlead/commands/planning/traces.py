"""`fairlead traces`: what is in a file, which formats are read, and traces that are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.commands.planning.trace_options import (
    FromOption,
    LengthOption,
    RateOption,
    SeedOption,
    Stretch,
    ToOption,
    TraceArgument,
    refuse_overwriting,
    writable,
)
from fairlead.commands.terminal import JsonOption, only_json, print_lines
from load.shares import part

traces_app = typer.Typer(help="Recorded requests.", no_args_is_help=True)
BARS = " ▁▂▃▄▅▆▇█"
SHOWN = 8  # values of what requests say, by field


@traces_app.command("inspect")
def inspect(
    trace: TraceArgument,
    rate: RateOption = 1.0,
    length: LengthOption = 1.0,
    from_s: FromOption = 0.0,
    to_s: ToOption = float("inf"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what a trace is like: rows, span, rates, lengths, burstiness, holes; and draw it."""
    from fairlead.commands.planning.trace_options import trace_of
    from load.traces.figures import figures

    with only_json(as_json) as emit:
        file = trace_of(
            trace, Stretch(rate=rate, length=length, from_s=from_s, to_s=to_s, seed=seed)
        )
        found = figures(file)
        emit(found)
    if not as_json:
        print_lines(lines_of(found))


@traces_app.command("formats")
def formats() -> None:
    """Print the formats that are read, as Markdown."""
    from load.traces.registry import markdown

    typer.echo(markdown(), nl=False)


@traces_app.command("make")
def make(
    kind: Annotated[str, typer.Argument(help="poisson, gamma, diurnal, flash or growth.")],
    out: Annotated[Path, typer.Option(callback=writable, help="The Parquet file to write.")],
    requests_per_s: Annotated[
        float,
        typer.Option(
            min=1e-4,
            max=1e6,
            help="On average. flash: without the crowd; diurnal: of a working day, without bursts; "
            "growth: the same, in the first month.",
        ),
    ] = 5.0,
    seconds: Annotated[float, typer.Option(min=1, max=1e8, help="How long.")] = 3600.0,
    lengths: Annotated[str, typer.Option(help="The trace that lengths are drawn from.")] = "azure",
    cv: Annotated[
        float, typer.Option(min=0.1, max=20, help="gamma: coefficient of variation of the gaps.")
    ] = 3.0,
    flash_times: Annotated[
        float, typer.Option(min=1, max=1000, help="flash: the crowd's height over the rate.")
    ] = 5.0,
    growth_per_month: Annotated[
        float, typer.Option(min=0.01, max=100, help="growth: each month over the last.")
    ] = 1.2,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Make up arrivals, with the lengths of a real trace."""
    import numpy as np

    from load.data.traces import write
    from load.errors import TraceRefused
    from load.traces.made import KINDS, MadeOptions, made
    from load.traces.reading import read_trace
    from streams.whole_file import whole

    if kind not in KINDS:
        raise TraceRefused("traces make", "", f"has no kind {kind!r}: known are {', '.join(KINDS)}")
    refuse_overwriting([lengths], out)
    options = MadeOptions(
        kind=kind,
        requests_per_s=requests_per_s,
        seconds=seconds,
        cv=cv,
        flash_times=flash_times,
        growth_per_month=growth_per_month,
    )
    with only_json(as_json) as emit:
        found = made(options, read_trace(lengths, seed).trace, np.random.default_rng(seed))
        with whole(out) as partial:
            write(found, partial)
        emit({"out": str(out), "kind": kind, "requests": len(found), "seed": seed})
    if not as_json:
        typer.echo(f"{out}: {len(found):,} requests")


def lines_of(found: dict[str, Any]) -> list[str]:
    """What is said of a trace, line by line."""
    rate, burst, holes = found["requests_per_s"], found["burstiness"], found["holes"]
    curve = found["rate_curve"]["requests_per_s"]
    left = ", ".join(f"{n:,} {why}" for why, n in found["left_out"].items()) or "none"
    lines = [
        f"{found['name']} ({found['format']})"
        + (f": {found['source']}" if found["source"] else ""),
        f"requests       {found['requests']:,} of {found['rows']:,} rows; left out: {left}; "
        f"{found['out_of_order']:,} were out of order",
        f"span           {found['span_s']:,.1f} s"
        + (f" from {found['began']}" if found["began"] else ""),
        f"requests/s     {rate['mean']:g} on average, {rate['busiest_minute']:g} in the busiest "
        f"minute, {rate['busiest_second']:g} in the busiest second",
        f"               {bars(curve)}  0 to {max(curve):g} requests/s, "
        f"{found['rate_curve']['step_s']:g} s each",
        *_lengths("prompts", found["prompt_tokens"]),
        *_lengths("answers", found["output_tokens"]),
        f"burstiness     gaps vary by {burst['gaps_cv']:g} (Poisson: 1)" + _of_counts(burst),
        f"holes          {holes['count']}, {holes['total_s']:,.0f} s in all"
        + "".join(f"; {h['from_s']:,.0f} to {h['to_s']:,.0f} s" for h in holes["longest"][:3]),
    ]
    if found["lengths_drawn"]:
        lines.append(f"lengths        of {found['lengths_drawn']:,} requests drawn from the others")
    if found["prefix_reuse_share"] is not None:
        lines.append(f"prefixes       {part(found['prefix_reuse_share'])} of blocks came before")
    for field, words in found["says"].items():
        each = ", ".join(f"{word} {n:,}" for word, n in [*words.items()][:SHOWN])
        lines.append(f"{field:<14} {each or 'nothing'}")
    return lines + [f"doubt          {text}" for text in found["doubts"]]


def _of_counts(burst: dict[str, float | None]) -> str:
    varied = burst["counts_dispersion"]
    return "" if varied is None else f", counts of 10 s by {varied:g} (Poisson: 1)"


def _lengths(name: str, one: dict[str, Any]) -> list[str]:
    return [
        f"{name:14} {one['mean']:,.0f} on average, half {one['p50']:,.0f}, 90 % {one['p90']:,.0f}, "
        f"99 % {one['p99']:,.0f}, at most {one['max']:,.0f} tokens",
        f"               {bars(one['histogram'])}  1, 2, 4, … 524,288 tokens",
    ]


def bars(values: list[float]) -> str:
    """A line of bars, the highest for the largest value."""
    top = max(values) or 1.0
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in values)
