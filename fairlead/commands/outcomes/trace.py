"""`fairlead feedback trace TICKET`: what became of one decision's outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.commands.terminal import JsonOption, SettingsOption, console, only_json, visible


def feedback_trace(
    ticket: Annotated[str, typer.Argument(help="In hexadecimal or base64.")],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a decision's outcomes are in the log, and what of them was learned."""
    from fairlead.commands.explain import ticket_of

    with only_json(as_json) as emit:
        found = traced(ticket_of(ticket), settings)
        emit(found)
    if not as_json:
        typer.echo("\n".join(lines_of(found)))


def traced(ticket: bytes, path: Path | None) -> dict[str, Any]:
    """What became of a decision's outcomes. Raises BadTicket, LogUnavailable, SnapshotForeign."""
    from fairlead.commands.started import settings_of
    from infra.pools.site import LocalSite
    from serve.encoders import identity, make_encoder
    from streams.feedback.ticket import check_shape
    from streams.feedback.trace import trace
    from streams.training.state import Loader

    decision_id = check_shape(ticket)
    settings, found_at = settings_of(path, console)
    site = LocalSite.of(settings, found_at, looks_only=True)
    options = settings.deployment()
    encoder = identity(make_encoder(options.encoder))
    newest = Loader(site.store(), encoder, options.trainer.memory).load_newest()
    log = site.log()
    try:
        state = newest[0] if newest else None
        found = trace(
            log, state.seen if state else None, state.offsets if state else {}, decision_id
        )
    finally:
        log.close()
    return found | {"snapshot_version": newest[1].version if newest else 0}


def lines_of(found: dict[str, Any]) -> list[str]:
    """The result for people."""
    learned = ", ".join(name for name, is_so in found["learned"].items() if is_so) or "nothing yet"
    of = f"decision {found['decision_id']}, snapshot {found['snapshot_version']}"
    lines = [f"{of}: learned {learned}"]
    if found["quality"] is not None:
        lines.append(f"quality that counts: {found['quality']:.4f}, revision {found['revision']}")
    elif found["learned"]["quality"]:
        lines.append("its quality was counted, not learned: its weight left it out; or imported")
    for one in found["records"]:
        why = f" ({one['reason']}: {one['detail']})" if one["reason"] else ""
        said = ", ".join(f"{name} {visible(str(value))}" for name, value in one["said"].items())
        lines.append(
            f"partition {one['partition']}, offset {one['offset']}: {one['became']}{why}: {said}"
        )
    return lines if found["records"] else [*lines, "the log has no record of it"]
