"""`fairlead feedback check`: what would become of records if they were written now, and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from infra.settings.settings import Settings
from infra.settings.site_options import SiteOptions
from serve.encoders import identity, make_encoder
from streams.clock import now_ms
from streams.feedback import check as feedback_check
from streams.feedback.check import Checked
from streams.feedback.ticket import Sealer, key_of

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
