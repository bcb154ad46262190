"""The command line: `up`, `demo`, `bench`, `settings`.

Progress and messages go to standard error, results to standard output; with `--json` a result is
one JSON object and nothing else is on standard output, whatever libraries print.

An error that a person can mend is one message saying what to do, not a trace.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
except ImportError:  # the base installation is a client
    sys.exit("The command line needs more than the client: pip install 'fairlead[server]'")

app = typer.Typer(
    help="Fairlead: which model, in which pool, should take each request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(help="Measure, on this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
decisions_app = typer.Typer(help="The decision log.", no_args_is_help=True)
app.add_typer(decisions_app, name="decisions")
feedback_app = typer.Typer(help="For those who report outcomes.", no_args_is_help=True)
app.add_typer(feedback_app, name="feedback")
telemetry_app = typer.Typer(help="For those who run pools and routers.", no_args_is_help=True)
app.add_typer(telemetry_app, name="telemetry")

console = Console(stderr=True)

SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings", "-s", help="Settings file. Default: fairlead.toml, if there is one."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def main() -> None:
    """Run the command line; mendable errors become one message and exit code 1."""
    # One thread per product and search, as in the replicas; read when numpy is first imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    # Imported here, so that `--help` is quick and a client-only installation gets its message.
    from infra.errors import InfraError
    from load.errors import LoadError
    from serve.errors import ServeError
    from streams.errors import StreamError

    try:
        app()
    except (InfraError, LoadError, ServeError, StreamError) as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(1)


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[Callable[[object], None]]:
    """Hand out what prints the result; meanwhile everything else goes to standard error.

    Done on the file descriptor, because Ray's native code and child processes write there too.
    """
    if not wanted:
        yield lambda result: None
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        result: list[object] = []
        yield result.append
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
    for one in result:
        print(json.dumps(one, indent=2))


@app.command()
def up(settings: SettingsOption = None) -> None:
    """Run the router and its trainer on this machine until Ctrl-C."""
    from fairlead.commands.up import run_until_stopped

    run_until_stopped(settings, console)


@app.command()
def demo(
    requests: Annotated[int, typer.Option(min=40, help="Requests per seed.")] = 5989,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many orders to try.")] = 3,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the router listens.")] = 7481,
    folder: Annotated[Path, typer.Option(help="State, settings and picture go here.")] = Path(
        ".fairlead/demo"
    ),
    table: Annotated[
        Path | None,
        typer.Option(help="An outcome table (Parquet) instead of the bundled llmrouter_dc."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole loop on real outcomes and show what it learned."""
    from fairlead.commands.demo import show
    from load.data.tables import bundled, read
    from load.demo.demo import DemoOptions

    options = DemoOptions(requests=requests, seeds=tuple(range(seeds)), folder=folder, port=port)
    with only_json(as_json) as emit:
        outcomes = bundled("llmrouter_dc") if table is None else read(table)
        emit(show(outcomes, options, console, quiet=as_json))


@bench_app.command("loop")
def bench_loop(
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Of each timed part.")] = 8.0,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7482,
    as_json: JsonOption = False,
) -> None:
    """Time the scorer, unary calls, the first decision, and an outcome's way into effect."""
    from fairlead.channels import connect
    from load.bench.loop import measure

    _bench(lambda say: measure(seconds, port, connect, say), as_json)


@bench_app.command("recovery")
def bench_recovery(
    quick: Annotated[bool, typer.Option(help="Fewer records and kills; under a minute.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Kill the trainer at every step and its broker too; count what is lost or counted twice."""
    from load.bench.recovery import bench

    options = bench.quick() if quick else bench.RecoveryOptions()
    _bench(lambda say: bench.measure(options, say), as_json)


@bench_app.command("week")
def bench_week(
    days: Annotated[int, typer.Option(min=2, max=60, help="Of virtual time.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Run the default log and its trainer for days of virtual time: disk and memory level off."""
    from load.bench import week

    _bench(lambda say: week.measure(week.WeekOptions(days=days), say), as_json)


@bench_app.command("feedback")
def bench_feedback(
    quick: Annotated[bool, typer.Option(help="A quarter of the records.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time how fast one trainer learns feedback from Kafka, and how fast it could read it."""
    from load.bench.recovery.feedback_rate import FeedbackBench, measure

    options = FeedbackBench(records=50_000) if quick else FeedbackBench()
    _bench(lambda say: measure(options, say), as_json)


@bench_app.command("dispatch")
def bench_dispatch(
    tokens: Annotated[int, typer.Option(min=1000, help="Streamed and checked.")] = 100_000,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7493,
    as_json: JsonOption = False,
) -> None:
    """Time what dispatching adds to a direct call, and check every streamed token."""
    from fairlead.channels import connect
    from load.bench.dispatch import DispatchBench, measure

    options = DispatchBench(tokens=tokens, port=port)
    _bench(lambda say: measure(options, connect, say), as_json)


@bench_app.command("faults")
def bench_faults(
    quick: Annotated[bool, typer.Option(help="Each fault once, for a shorter time.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7496,
    as_json: JsonOption = False,
) -> None:
    """Break pools under load, one fault after another; count what callers notice."""
    from fairlead.channels import connect
    from load.bench.faults import FaultsBench, measure

    options = FaultsBench(port=port, rounds=1, fault_s=8.0) if quick else FaultsBench(port=port)
    _bench(lambda say: measure(options, connect, say), as_json)


@bench_app.command("decisions")
def bench_decisions(
    quick: Annotated[
        bool, typer.Option(help="Few prompts, orders and preferences; under a minute.")
    ] = False,
    table: Annotated[
        list[Path] | None,
        typer.Option(help="An outcome table (Parquet); may be repeated. See docs/decisions.md."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help="Encode `prompt` anew: wordllama, minilm, hashing. Default: embeddings."),
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(min=2, max=100, help="Orders by chance. Default: 8.")
    ] = None,
    lambdas: Annotated[
        str,
        typer.Option(help="Weights of cost, as 0.03,0.1,0.4. Default: ten from 0 to 3."),
    ] = "",
    rows: Annotated[
        int | None, typer.Option(min=64, help="Prompts of each table at most. Default: all.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw frontier, learning and drift, into this folder.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes. Default: one per core.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Route whole outcome tables, beside simple rules, bounds and other projects' bandits."""
    from dataclasses import replace

    from fairlead.commands.decisions import show
    from load.bench.decisions import bench, options
    from load.bench.decisions.report.picture import draw

    run = options.quick() if quick else options.DecisionsBench()
    run = replace(
        run,
        tables=tuple(table or ()),
        encoder=encoder,
        seeds=seeds or run.seeds,
        experiment_seeds=seeds or run.experiment_seeds,
        penalties=options.preferences(lambdas) if lambdas else run.penalties,
        prompts_max=rows or run.prompts_max,
        workers=workers or run.workers,
    )
    with only_json(as_json) as emit:
        found = bench.measure(run, lambda text: console.print(f"[dim]{text}[/]"))
        for path in draw(found, picture) if picture else ():
            console.print(f"[dim]{path}[/]")
        emit(found)
    if not as_json:
        show(found, Console())


@bench_app.command("upstreams")
def bench_upstreams(
    quick: Annotated[bool, typer.Option(help="Each question twice instead of six times.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask servers that misbehave in a hundred ways; exit code 1 if an answer comes out wrong."""
    from fairlead.channels import connect
    from fairlead.commands.upstreams import show
    from load.bench.upstreams import bench

    options = bench.quick() if quick else bench.UpstreamsBench()
    with only_json(as_json) as emit:
        found = bench.measure(options, connect, lambda text: console.print(f"[dim]{text}[/]"))
        emit(found)
    if not as_json:
        show(found)
    if found["wrong"] or found["ejected_by_callers"]:
        raise typer.Exit(1)


@bench_app.command("emulator")
def bench_emulator(as_json: JsonOption = False) -> None:
    """Compare the emulated engine with measurements that it was not fitted to."""
    from load.bench.emulator import measure

    _bench(measure, as_json)


@bench_app.command("fleet")
def bench_fleet(
    quick: Annotated[
        bool, typer.Option(help="A few minutes of each trace; under a minute.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw a trace's fleet over time, into this PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Size a mixed fleet in virtual time, beside tuned rivals and a clairvoyant bound."""
    from dataclasses import replace

    from load.bench.fleet import bench

    options = replace(bench.quick() if quick else bench.FleetBench(), picture=picture)
    _bench(lambda say: bench.measure(options, say), as_json)


@bench_app.command("autoscaling")
def bench_autoscaling(
    quick: Annotated[bool, typer.Option(help="Only up; about a minute.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw both runs' replicas, into this PNG.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7500,
    as_json: JsonOption = False,
) -> None:
    """Scale pools on raylets under live load, through Ray's interface; and in virtual time."""
    from dataclasses import replace

    from fairlead.channels import connect
    from load.bench.autoscaling import bench

    options = bench.quick() if quick else bench.AutoscalingBench()
    options = replace(options, picture=picture, port=port)
    _bench(lambda say: bench.measure(options, connect, say), as_json)


def _bench(measure: Callable[[Callable[[str], None]], dict[str, Any]], as_json: bool) -> None:
    """Measure and print, with progress on standard error."""
    with only_json(as_json) as emit:
        found = measure(lambda text: console.print(f"[dim]{text}[/]"))
        emit(found)
    if as_json:
        return
    for name, value in found.items():
        if isinstance(value, dict) and all(isinstance(row, dict) for row in value.values()):
            _table(name, value)
        else:
            typer.echo(f"{name:28} {value}")


def _table(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a nested result: a row per key."""
    from rich.table import Table

    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table(name, *columns)
    for key, row in rows.items():
        table.add_row(key, *(_cell(row.get(column, "")) for column in columns))
    Console().print(table)


def _cell(value: object) -> str:
    """As it is; of a dictionary, what it says line by line."""
    if not isinstance(value, dict):
        return str(value)
    return "\n".join(f"{key} {_cell(one)}" for key, one in value.items())


@app.command()
def status(settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Show what the loop is doing: accounts of feedback, lag, alarms. Exit code 1 on an alarm."""
    from fairlead.commands.status import show
    from fairlead.commands.up import settings_of

    with only_json(as_json) as emit:
        found = show(*settings_of(settings, console), quiet=as_json)
        emit(found)
    if found["alarms"]:
        raise typer.Exit(1)


@decisions_app.command("export")
def decisions_export(
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")] = Path(
        "decisions.parquet"
    ),
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all decisions the log holds to one Parquet file."""
    from fairlead.commands.status import export_decisions
    from fairlead.commands.up import settings_of

    with only_json(as_json) as emit:
        found = export_decisions(*settings_of(settings, console), out, console)
        emit(found)
    if not as_json:
        typer.echo(f"{out}: {found['decisions']:,} decisions")


@feedback_app.command("schema")
def feedback_schema() -> None:
    """Print the JSON schema of a feedback record; docs/feedback.md is the whole contract."""
    from streams.feedback.schema import published

    typer.echo(json.dumps(published(), indent=2))


@telemetry_app.command("schema")
def telemetry_schema() -> None:
    """Print the JSON schema of a telemetry record; docs/telemetry.md is the whole contract."""
    from streams.telemetry.schema import published

    typer.echo(json.dumps(published(), indent=2))


@feedback_app.command("check")
def feedback_check(
    file: Annotated[
        typer.FileBinaryRead, typer.Argument(help="One JSON record per line; - is standard input.")
    ],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would be accepted, and what refused and why. Exit code 1 if anything would be."""
    from fairlead.commands.feedback import check_lines, lines_of
    from fairlead.commands.up import settings_of

    with only_json(as_json) as emit:
        found = check_lines(file, settings_of(settings, console)[0], console)
        emit(found.as_dict())
    if not as_json:
        typer.echo("\n".join(lines_of(found)))
    if found.refused:
        raise typer.Exit(1)


@app.command()
def settings(
    check: Annotated[
        Path | None, typer.Option(help="Say whether this settings file is valid instead.")
    ] = None,
) -> None:
    """Explain every setting, as Markdown; or check a file."""
    from infra.settings.settings import read_settings
    from infra.settings.settings_docs import markdown

    if check is None:
        typer.echo(markdown(), nl=False)
        return
    found = read_settings(check)
    typer.echo(f"{check} is valid: {len(found.models)} models, {len(found.pools)} pools stated.")
