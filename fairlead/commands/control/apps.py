"""The command groups of a running site: which kinds there are, and what can be done with each.

Models have two commands that need no running site: answers imported, and what one would do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.commands.control.entries import app_of, policy_app
from fairlead.commands.terminal import JsonOption, SettingsOption, console, only_json

CHANGES = ("add", "set", "drain", "resume", "remove", "reset")
models_app = app_of("models", "The models: add, change, drain, remove; import answers.", CHANGES)
CONTROL = {
    "models": models_app,
    "pools": app_of("pools", "The pools: add, change, drain, remove.", CHANGES),
    "budgets": app_of("budgets", "What may be spent.", ("add", "set", "remove", "reset")),
    "policy": policy_app(),
    "snapshots": app_of("snapshots", "What was learned, as it was: list, go back.", ("rollback",)),
}


@models_app.command("import")
def models_import(
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV, JSON lines or Parquet: text, model, quality, cost_usd[, latency_ms]."
        ),
    ],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn from answers that were judged already, of new models too. Each counts once."""
    from fairlead.commands.control.new_models import import_answers, imported_lines
    from fairlead.commands.started import settings_of

    with only_json(as_json) as emit:
        found = import_answers(file, *settings_of(settings, console))
        emit(found)
    if not as_json:
        typer.echo("\n".join(imported_lines(found)))


@models_app.command("predict")
def models_predict(
    name: Annotated[str, typer.Argument(help="A model of the catalogue, called before or not.")],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a model would do: share of requests, quality, cost, and the effect on all."""
    from fairlead.commands.control.new_models import predict_model, predicted_lines
    from fairlead.commands.started import settings_of

    with only_json(as_json) as emit:
        found = predict_model(name, *settings_of(settings, console))
        emit(found.json())
    if not as_json:
        typer.echo("\n".join(predicted_lines(found)))
