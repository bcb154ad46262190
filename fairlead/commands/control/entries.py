"""`fairlead models|pools|budgets|policy …`: what holds on a running site, and changes of it.

    list, show                            what holds, edits included
    add, set, drain, resume, remove       one edit each, checked before it counts
    reset                                 back to what the settings file says

Every command is one call of `Admin` (serve/proto/fairlead/v1/admin.proto).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.commands.terminal import JsonOption, SettingsOption, console, only_json

NameArgument = Annotated[str, typer.Argument(help="Of the entry; of a snapshot its version.")]
PairsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE…", help="As in docs/settings.md; JSON, or text."),
]
TargetOption = Annotated[str, typer.Option(help="A router, HOST:PORT. Default: of the settings.")]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        help="File with a token of the scope admin.", envvar="FAIRLEAD_TOKEN_FILE", show_envvar=True
    ),
]
CaOption = Annotated[Path | None, typer.Option(help="PEM file: call with TLS, trusting these.")]
ShownOption = Annotated[
    Path | None,
    typer.Option(
        "--certificate",
        help="PEM file with your certificate and its key, for listener.tls_client_ca.",
        envvar="FAIRLEAD_CERTIFICATE",
        show_envvar=True,
    ),
]
ReasonOption = Annotated[str, typer.Option(help="Why, for the list of edits.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only check; change nothing.")]
SINCE = {
    "now": "Routers take it within a second.",
    "rolling update": "`fairlead up` replaces its replicas now, one after the other.",
    "next start": "It counts from the next start of `fairlead up`.",
}


def app_of(kind: str, about: str, actions: Sequence[str]) -> typer.Typer:
    """The commands of one kind."""
    app = typer.Typer(help=about, no_args_is_help=True)
    _add_reading(app, kind)
    with_settings = {"add": "Add one.", "set": "Set keys of one; a value of null leaves it out."}
    without = {
        "drain": "Give it no more requests; those under way are answered.",
        "resume": "Give it requests again.",
        "remove": "Remove it.",
        "reset": "Back to what the settings file says of it.",
        "rollback": "Go back to it: what was learned since is forgotten, and not learned again.",
    }
    for action in actions:
        if action in with_settings:
            _add_changing(app, kind, action, with_settings[action])
        else:
            _add_naming(app, kind, action, without[action])
    return app


def policy_app() -> typer.Typer:
    """The commands of the policy, which has settings and no entries."""
    app = typer.Typer(help="How models are chosen, on a running site.", no_args_is_help=True)
    _add_reading(app, "policy")

    @app.command("set")
    def set_(
        settings_: PairsArgument,
        settings: SettingsOption = None,
        target: TargetOption = "",
        token_file: TokenOption = None,
        ca: CaOption = None,
        certificate: ShownOption = None,
        reason: ReasonOption = "",
        dry_run: DryOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Set keys, such as router.policy=thompson."""
        desk = _desk(settings, target, token_file, ca, certificate)
        _change(desk, "policy", "", "set", settings_ or [], reason, dry_run, as_json)

    @app.command("reset")
    def reset(
        keys: Annotated[list[str], typer.Argument(metavar="KEY…")],
        settings: SettingsOption = None,
        target: TargetOption = "",
        token_file: TokenOption = None,
        ca: CaOption = None,
        certificate: ShownOption = None,
        reason: ReasonOption = "",
        dry_run: DryOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Back to what the settings file says of these keys."""
        desk = _desk(settings, target, token_file, ca, certificate)
        _change(desk, "policy", "", "reset", keys, reason, dry_run, as_json)

    return app


def _add_reading(app: typer.Typer, kind: str) -> None:
    @app.command("list")
    def list_(
        settings: SettingsOption = None,
        target: TargetOption = "",
        token_file: TokenOption = None,
        ca: CaOption = None,
        certificate: ShownOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """What holds now, edits included."""
        with only_json(as_json) as emit:
            found = _desk(settings, target, token_file, ca, certificate).listed(kind)
            emit(found)
        if not as_json:
            typer.echo("\n".join(lines_of(found)))

    @app.command("show")
    def show(
        name: NameArgument,
        settings: SettingsOption = None,
        target: TargetOption = "",
        token_file: TokenOption = None,
        ca: CaOption = None,
        certificate: ShownOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """One entry alone. Exit code 1 if there is none of this name."""
        with only_json(as_json) as emit:
            found = _one(_desk(settings, target, token_file, ca, certificate).listed(kind), name)
            emit(found)
        if not as_json:
            typer.echo("\n".join(lines_of({"entries": [found]})))


def _add_changing(app: typer.Typer, kind: str, action: str, about: str) -> None:
    @app.command(action, help=about)
    def changing(
        name: NameArgument,
        settings_: PairsArgument = None,
        settings: SettingsOption = None,
        target: TargetOption = "",
        token_file: TokenOption = None,
        ca: CaOption = None,
        certificate: ShownOption = None,
        reason: ReasonOption = "",
        dry_run: DryOption = False,
        as_json: JsonOption = False,
    ) -> None:
        desk = _desk(settings, target, token_file, ca, certificate)
        _change(desk, kind, name, action, settings_ or [], reason, dry_run, as_json)


def _add_naming(app: typer.Typer, kind: str, action: str, about: str) -> None:
    @app.command(action, help=about)
    def naming(
        name: NameArgument,
        settings: SettingsOption = None,
        target: TargetOption = "",
        token_file: TokenOption = None,
        ca: CaOption = None,
        certificate: ShownOption = None,
        reason: ReasonOption = "",
        dry_run: DryOption = False,
        as_json: JsonOption = False,
    ) -> None:
        desk = _desk(settings, target, token_file, ca, certificate)
        asked = "roll back" if action == "rollback" else action
        _change(desk, kind, name, asked, [], reason, dry_run, as_json)


def _desk(
    settings: Path | None,
    target: str,
    token_file: Path | None,
    ca: Path | None,
    certificate: Path | None,
) -> Any:
    from fairlead.commands.control.calls import Desk, pem_in, token_in
    from fairlead.commands.started import settings_in_force
    from serve.addresses import joined, reachable

    if not target:
        host, port = settings_in_force(settings, console)[0].addresses()["listener.port"]
        target = joined(reachable(host), port)
    shown = pem_in(certificate, "--certificate")
    return Desk(target, token_in(token_file), pem_in(ca, "--ca"), shown)


def _change(
    desk: Any,
    kind: str,
    name: str,
    action: str,
    settings: list[str],
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    with only_json(as_json) as emit:
        found = desk.change(kind, name, action, settings, reason, dry_run=dry_run)
        emit(found)
    if not as_json:
        done = f"Edit {found['number']}, by {found['by']}." if found["number"] else "It is valid."
        typer.echo(f"{done} {SINCE.get(found['counts_from'], '')}".rstrip())


def _one(found: dict[str, Any], name: str) -> dict[str, Any]:
    from fairlead.errors import InvalidOption

    known = {entry["name"]: entry for entry in found["entries"]}
    if name not in known:
        raise InvalidOption(found["kind"], f"there is no {name!r}; there are {', '.join(known)}")
    return dict(known[name])


def lines_of(found: dict[str, Any]) -> list[str]:
    """Entries for people: a line for each, and one for each of its settings."""
    lines = []
    for entry in found["entries"]:
        marks = [mark for mark in ("draining", "edited") if entry[mark]]
        lines.append(entry["name"] + (f"  ({', '.join(marks)})" if marks else ""))
        said = entry["settings"].items()
        lines += [f"  {key} = {value}" for key, value in said if key != "name"]
    return lines or ["none"]
