"""`fairlead explain TICKET`: a decision, and why the other models lost, as a table."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from fairlead.client import Client
from fairlead.commands.terminal import plain
from fairlead.errors import InvalidOption, Unavailable
from fairlead.messages import Considered, Explanation

HEX = set("0123456789abcdefABCDEF")


def ticket_of(text: str) -> bytes:
    r"""A ticket as people copy it: in hexadecimal, or in base64 of either alphabet.

    >>> ticket_of("00ff"), ticket_of("AP8="), ticket_of("AP8")
    (b'\x00\xff', b'\x00\xff', b'\x00\xff')

    Raises InvalidOption.
    """
    text = text.strip()
    if len(text) % 2 == 0 and set(text) <= HEX:
        return bytes.fromhex(text)
    padded = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except binascii.Error as error:
        raise InvalidOption("the ticket", f"neither hexadecimal nor base64 ({error})") from error


def asked(
    ticket: bytes, target: str, timeout_s: float, token: str, trusted: bytes | None
) -> Explanation:
    """What a router at host:port says of a ticket. Raises FairleadError.

    Where nothing answers that is said at once: a client's call would wait for a router to come up.
    """
    with Client(target, token=token, root_certificates=trusted) as client:
        if not client.healthy(timeout_s=timeout_s):
            raise Unavailable(f"Explain at {target}", "no router is there that can answer")
        return client.explain(ticket, timeout_s=timeout_s)


def as_json(found: Explanation) -> dict[str, Any]:
    """The explanation with plain values."""
    return {**dataclasses.asdict(found), "context": list(found.context)}


def show(found: Explanation, out: Console) -> None:
    """Print who was considered, the chosen one first."""
    at = datetime.fromtimestamp(found.decided_at_unix_ms / 1000, UTC).isoformat(timespec="seconds")
    tenant = plain(found.tenant) or "no tenant"
    out.print(f"decided {at} for {tenant}, by snapshot {found.snapshot_version}", highlight=False)
    table = Table("", "model", "pool", "quality", "USD", "ms", "utility", "share", "why", box=None)
    for one in sorted(found.models, key=lambda one: (not one.chosen, -one.utility)):
        table.add_row(*map(plain, _row(one)), style="bold" if one.chosen else "")
    out.print(table)


def _row(one: Considered) -> tuple[str, ...]:
    return (
        "▶" if one.chosen else "",
        one.model,
        one.pool,
        f"{one.quality:.3f}",
        f"{one.cost_usd:.6f}",
        f"{one.latency_ms:,.0f}",
        f"{one.utility:.3f}",
        f"{one.propensity:.1%}",
        one.reason,
    )
