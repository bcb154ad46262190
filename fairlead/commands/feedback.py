"""`fairlead feedback check` and `trace`: what would become of records, and what did, and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from infra.pools.site import LocalSite
from infra.settings.settings import Settings
from infra.settings.site_options import SiteOptions
from serve.deploy.deployment import now_ms
from serve.encoders import identity, make_encoder
from streams.feedback import check as feedback_check
from streams.feedback.check import Checked
from streams.feedback.ticket import Sealer, check_shape, key_of
from streams.feedback.trace import trace
from streams.training.state import Loader

LINES_SHOWN = 20  # of the refused; `--json` has them all


def check_lines(lines: Iterable[bytes], settings: Settings, console: Console) -> Checked:
    """Check records, one per line, with the site's ticket keys if they can be read.

    Nothing is made or changed: a folder without keys stays without.
    """
    options = settings.deployment()
    sealer = _sealer(settings.options(SiteOptions).state_dir / "ticket.keys", console)
    # Only opened tickets say which encoder they were made with, and some encoders load slowly.
    encoder = key_of(identity(make_encoder(options.encoder))) if sealer else 0
    return feedback_check.check(lines, sealer, encoder, options.replica.feedback, now_ms())


def _sealer(path: Path, console: Console) -> Sealer | None:
    try:
        keys = [bytes.fromhex(line) for line in path.read_text().split()]
    except OSError as error:
        console.print(
            f"The router's ticket keys can't be read ({error}), so tickets were checked for their "
            f"shape only: whether they are genuine, and not too old, its trainer will tell.",
            markup=False,
            highlight=False,
        )
        return None
    return Sealer(keys)


def lines_of(found: Checked) -> list[str]:
    """The result for people."""
    refused, n_refused = found.refused[:LINES_SHOWN], len(found.refused)
    said = [f"line {one.line}: {one.reason}: {one.detail}" for one in refused]
    if n_refused > LINES_SHOWN:
        said.append(f"… and {n_refused - LINES_SHOWN:,} more; --json lists them all")
    return [
        *said,
        *(f"{reason:18} {n:,}" for reason, n in found.by_reason().items()),
        f"{found.records:,} records: {found.accepted:,} would be accepted, "
        f"{found.duplicate:,} repeat what earlier lines say, {n_refused:,} would be refused",
    ]


def trace_ticket(ticket: bytes, settings: Settings, path: Path) -> dict[str, Any]:
    """What became of a decision's outcomes. Raises BadTicket, LogUnavailable, SnapshotForeign."""
    decision_id = check_shape(ticket)
    site, options = LocalSite.of(settings, path), settings.deployment()
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


def trace_lines(found: dict[str, Any]) -> list[str]:
    """The result for people."""
    learned = ", ".join(name for name, is_so in found["learned"].items() if is_so) or "nothing yet"
    of = f"decision {found['decision_id']}, snapshot {found['snapshot_version']}"
    lines = [f"{of}: learned {learned}"]
    if found["quality"] is not None:
        lines.append(f"quality that counts: {found['quality']:.4f}, revision {found['revision']}")
    for one in found["records"]:
        why = f" ({one['reason']}: {one['detail']})" if one["reason"] else ""
        said = ", ".join(f"{name} {value}" for name, value in one["said"].items())
        lines.append(
            f"partition {one['partition']}, offset {one['offset']}: {one['became']}{why}: {said}"
        )
    return lines if found["records"] else [*lines, "the log has no record of it"]
