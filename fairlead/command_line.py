"""The command line: each command's options, and which file of commands/ does the work.

Progress and messages go to standard error, results to standard output.

An error that a person can mend is one message saying what to do, not a trace.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console

    from fairlead.commands.bench import bench_app
    from fairlead.commands.control.apps import CONTROL
    from fairlead.commands.control.arms import arms_app
    from fairlead.commands.control.entries import CaOption
    from fairlead.commands.outcomes.judge import judge_app
    from fairlead.commands.outcomes.trace import feedback_trace
    from fairlead.commands.planning.compare import compare
    from fairlead.commands.planning.evaluate import evaluate
    from fairlead.commands.planning.plan import plan
    from fairlead.commands.planning.replay import replay
    from fairlead.commands.planning.simulate import simulate
    from fairlead.commands.planning.traces import traces_app
    from fairlead.commands.restarts import terminable
    from fairlead.commands.terminal import (
        Commands,
        JsonOption,
        SettingsOption,
        console,
        mendable,
        only_json,
        written_out,
    )
except ImportError:  # the base installation is a client
    sys.exit(
        "The command line needs more than the client: pip install 'fairlead[server]', "
        "or '.[server]' in a clone"
    )

app = typer.Typer(
    cls=Commands,
    help="Fairlead: which model, in which pool, should take each request.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
app.add_typer(traces_app, name="traces")
app.command()(simulate)
app.command()(plan)
app.command()(replay)
app.command()(compare)
app.command()(evaluate)
decisions_app = typer.Typer(help="The decision log.", no_args_is_help=True)
app.add_typer(decisions_app, name="decisions")
feedback_app = typer.Typer(help="For those who report outcomes.", no_args_is_help=True)
app.add_typer(feedback_app, name="feedback")
feedback_app.command("trace")(feedback_trace)
app.add_typer(judge_app, name="judge")
for name, control_app in CONTROL.items():
    app.add_typer(control_app, name=name)
rules_app = typer.Typer(help="Rules that hold before anything learned.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")
app.add_typer(arms_app, name="arms")
tokens_app = typer.Typer(help="Who may call.", no_args_is_help=True)
app.add_typer(tokens_app, name="tokens")
telemetry_app = typer.Typer(help="For those who run pools and routers.", no_args_is_help=True)
app.add_typer(telemetry_app, name="telemetry")


def main() -> None:
    """Run the command line; mendable errors become one message and exit code 1."""
    # One thread per product and search, as in the replicas; read when numpy is first imported.
    from learners.kernels.threads import one_thread

    one_thread()
    try:
        with terminable(), written_out():
            app()
    except mendable() as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fairlead {version('fairlead')}")
        raise typer.Exit


@app.callback()
def everywhere(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say it and exit.")
    ] = False,
) -> None:
    """Fairlead: which model, in which pool, should take each request."""


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The settings file to write.")] = Path(
        "fairlead.toml"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Take the defaults, ask nothing.")] = False,
) -> None:
    """Ask five questions and write a settings file."""
    from fairlead.commands.setup import init as new

    def ask(question: str, default: str) -> str:
        return str(typer.prompt(question, default=default, err=True))

    answers = new.Answers() if yes else new.asked(ask, new.Answers())
    new.write(file, new.settings_text(answers))
    console.print(
        f"{file} is written. Next: `fairlead doctor` checks this machine, `fairlead up` starts."
    )


@app.command()
def doctor(settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Say what would keep a router from running well here. Exit code 1 if anything would."""
    from fairlead.commands.setup.doctor import examined, refused, show
    from fairlead.commands.started import settings_of
    from infra.errors import InfraError

    with only_json(as_json) as emit:
        try:
            found = examined(*settings_of(settings, console))
        except InfraError as error:
            found = refused(error)
        emit(found)
    if not as_json:
        show(found, Console())
    if not found["ok"]:
        raise typer.Exit(1)


@app.command()
def up(settings: SettingsOption = None) -> None:
    """Run the router and its trainer on this machine until Ctrl-C."""
    from fairlead.commands.up import run_until_stopped

    run_until_stopped(settings, console)


@app.command()
def demo(
    requests: Annotated[int, typer.Option(min=40, help="Requests per seed.")] = 5989,
    requests_per_s: Annotated[
        float,
        typer.Option(min=1, max=10_000, help="How fast requests come."),
    ] = 400.0,
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
    from load.demo.replay import ReplayOptions

    options = DemoOptions(
        requests=requests,
        seeds=tuple(range(seeds)),
        folder=folder,
        port=port,
        replay=ReplayOptions(requests_per_s=requests_per_s),
    )
    with only_json(as_json) as emit:
        outcomes = bundled("llmrouter_dc") if table is None else read(table)
        emit(show(outcomes, options, console, quiet=as_json))


@app.command()
def status(
    settings: SettingsOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew until Ctrl-C.")] = False,
    every_s: Annotated[float, typer.Option(min=0.5, max=3600, help="With --watch.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show what the loop is doing: accounts of feedback, lag, alarms. Exit code 1 on an alarm."""
    from fairlead.commands.started import settings_in_force
    from fairlead.commands.status import show, watched

    if watch:
        watched(lambda: settings_in_force(settings, console), every_s)
        return
    with only_json(as_json) as emit:
        found = show(*settings_in_force(settings, console), quiet=as_json)
        emit(found)
    if found["alarms"]:
        raise typer.Exit(1)


@app.command()
def explain(
    ticket: Annotated[str, typer.Argument(help="In hexadecimal or base64.")],
    target: Annotated[
        str, typer.Option(help="A router, HOST:PORT. Default: of the settings.")
    ] = "",
    settings: SettingsOption = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with a token of the scope read.",
            envvar="FAIRLEAD_TOKEN_FILE",
            show_envvar=True,
        ),
    ] = None,
    ca: CaOption = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=60)] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Open a decision's ticket: what was predicted, and why the other models lost."""
    from fairlead.commands import explain as commands
    from fairlead.commands.control.calls import pem_in, token_in
    from fairlead.commands.started import settings_in_force
    from serve.addresses import joined

    if not target:
        site = settings_in_force(settings, console)[0]
        target = joined(*site.addresses()["listener.port"])
    with only_json(as_json) as emit:
        shown, trusted = token_in(token_file), pem_in(ca, "--ca")
        found = commands.asked(commands.ticket_of(ticket), target, timeout_s, shown, trusted)
        emit(commands.as_json(found))
    if not as_json:
        commands.show(found, Console())


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it holds the ticket keys.")],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy what a site has learned, its log and its keys into one file, while it runs."""
    from fairlead.commands.started import settings_in_force
    from infra.pools.backup import back_up
    from infra.pools.site import LocalSite
    from streams.clock import now_ms

    with only_json(as_json) as emit:
        site = LocalSite.of(*settings_in_force(settings, console), looks_only=True)
        found = back_up(site, file, now_ms())
        emit(found)
    if not as_json:
        typer.echo(f"{file}: snapshot {found['snapshot_version']}, {found['bytes']:,} bytes")


@app.command("restore")
def restore_site(
    file: Annotated[Path, typer.Argument(help="What `fairlead backup` wrote.")],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a site from such a file, in the empty state folder that the settings name."""
    from fairlead.commands.started import settings_of
    from infra.pools.backup import restore
    from infra.pools.site import LocalSite

    with only_json(as_json) as emit:
        found = restore(file, LocalSite.of(*settings_of(settings, console)))
        emit(found)
    if not as_json:
        typer.echo(f"Snapshot {found['snapshot_version']} is there: `fairlead up` goes on from it.")


@decisions_app.command("export")
def decisions_export(
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")] = Path(
        "decisions.parquet"
    ),
    outcomes: Annotated[
        bool, typer.Option("--outcomes", help="With what was reported of each, in outcome_….")
    ] = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all decisions the log holds to one Parquet file."""
    from fairlead.commands.started import settings_of
    from fairlead.commands.status import export_decisions

    with only_json(as_json) as emit:
        found = export_decisions(*settings_of(settings, console), out, console, outcomes=outcomes)
        emit(found)
    if not as_json:
        typer.echo(f"{out}: {found['decisions']:,} decisions")


@decisions_app.command("verify")
def decisions_verify(
    log: Annotated[Path, typer.Argument(help="What `fairlead decisions export` wrote.")],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make logged decisions once more. Exit code 1 if one differs, or none can be made."""
    from fairlead.commands.outcomes.verify import said_of, verified
    from fairlead.commands.started import settings_of

    with only_json(as_json) as emit:
        found = verified(log, *settings_of(settings, console))
        emit(found)
    if not as_json:
        typer.echo(said_of(found))
    if not (found["sound"] and found["replayed"]):
        raise typer.Exit(1)


@app.command()
def landmarks(
    out: Annotated[Path, typer.Argument(help="File to write: .npz.")],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit landmarks, typical prompts, to those of this site: for `learning.landmarks`."""
    from fairlead.commands.started import settings_of
    from load.fit.own_landmarks import fit, lines

    with only_json(as_json) as emit:
        found = fit(*settings_of(settings, console), out)
        emit(found)
    if not as_json:
        typer.echo("\n".join(lines(found)))


@rules_app.command("test")
def rules_test(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(help="One request as JSON per line; - is standard input."),
    ],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which rules example requests meet, and what is left. Exit code 1 if not as expected."""
    from fairlead.commands.rules import lines_of, tested
    from fairlead.commands.started import settings_of

    with only_json(as_json) as emit:
        found = tested(file, *settings_of(settings, console))
        emit(found)
    if not as_json:
        typer.echo("\n".join(lines_of(found)))
    if found["unexpected"] or found["unreadable"]:
        raise typer.Exit(1)


@tokens_app.command("new")
def tokens_new(
    name: Annotated[str, typer.Argument(help="For logs and people.")],
    tenant: Annotated[str, typer.Option(help="Whose requests these are; empty: as they say.")] = "",
    scopes: Annotated[
        str, typer.Option(help="Of route, dispatch, feedback, read, admin; with commas.")
    ] = "route,feedback",
    expires_at_unix_s: Annotated[float, typer.Option(min=0, max=1e11, help="0: never.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Make a bearer token: shown once; the settings get its digest alone."""
    from fairlead.commands.setup.tokens import made

    found = made(name, tenant, scopes, expires_at_unix_s)
    if as_json:
        typer.echo(json.dumps(found))
        return
    console.print("The token, for its owner alone; it can't be shown again:")
    typer.echo(found["token"])
    console.print("For the settings file; it counts from SIGHUP on, or the next start:")
    typer.echo(found["settings"])


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
    from fairlead.commands.outcomes.check import check_lines, lines_of
    from fairlead.commands.started import settings_of

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
