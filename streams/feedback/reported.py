"""What was reported of decisions, by decision: for analysis, where only the log is at hand.

    feedback topic ─▶ decision id ─▶ quality, US dollars, milliseconds, tokens

Each value counts once, the first that was reported, as the trainer counts it. Whether a ticket is
ours only its key can tell, which an analyst need not have: so what is here was *reported*, and the
trainer's accounts (`fairlead status`) say what was believed.

The one rule: memory holds one line for each decision that was reported on.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

import msgspec
import pyarrow as pa

from streams.errors import BadTicket
from streams.feedback.report import Report
from streams.feedback.ticket import check_shape
from streams.log.contract import FEEDBACK, Log
from streams.log.stretch import Stretch

VALUES = ("quality", "cost_usd", "latency_ms", "output_tokens")
FIELDS = [pa.field(f"outcome_{name}", pa.float64()) for name in VALUES]
READ_S, RECORDS_MAX = 10.0, 1000

Values = list[float | None]  # in the order of VALUES


def reported(log: Log) -> dict[bytes, Values]:
    """All that the log holds now. Raises LogUnavailable."""
    found: dict[bytes, Values] = {}
    for value in _records(log):
        try:
            report = msgspec.json.decode(value, type=Report)
            decision_id = check_shape(base64.urlsafe_b64decode(report.ticket))
        except (msgspec.DecodeError, BadTicket, binascii.Error, ValueError):
            continue  # the trainer has set it aside and said why
        of = found.setdefault(decision_id, [None] * len(VALUES))
        for i, name in enumerate(VALUES):
            said = getattr(report, name)
            if of[i] is None and said is not None:
                of[i] = float(said)
    return found


def with_outcomes(table: pa.Table, found: dict[bytes, Values]) -> pa.Table:
    """Decisions, each with what was reported of it; null where nothing was."""
    nothing: Values = [None] * len(VALUES)
    rows = [found.get(one, nothing) for one in table["decision_id"].to_pylist()]
    for i, field in enumerate(FIELDS):
        table = table.append_column(field, pa.array([row[i] for row in rows], pa.float64()))
    return table


def _records(log: Log) -> Iterator[bytes]:
    firsts, ends = log.first_offsets(FEEDBACK), log.end_offsets(FEEDBACK)
    for records in Stretch(log, FEEDBACK, firsts, ends).batches(RECORDS_MAX, READ_S):
        yield from (record.value or b"" for record in records)
