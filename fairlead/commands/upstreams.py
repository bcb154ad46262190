"""`fairlead bench upstreams`: what did not go as it should, and one line of totals."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLUMNS = ("answered", "itself", "right", "attempts", "ejected", "problem")


def show(found: Mapping[str, Any]) -> None:
    """Print both."""
    out = Console(file=sys.stdout, width=120)
    table = Table("misbehaviour", "asked by", *COLUMNS)
    for name, ways in found["misbehaviours"].items():
        for way, row in ways.items():
            if not row["expected"]:
                cells = (name, way, *(str(row[column]) for column in COLUMNS))
                table.add_row(*map(escape, cells))
    if table.row_count:
        out.print(table)
    out.print(
        f"{found['n']:,} questions, {found['answered_share']:.1%} answered of those that can be; "
        f"{found['wrong']} answers wrong, {found['ejected_by_callers']} pools ejected for what "
        f"callers did, {found['unexpected']} rows not as they should be",
        highlight=False,
    )
