"""The newest decisions of the log, newest first: who was chosen, how likely, and what was expected.

Read from the end of each partition, so that a log of weeks costs no more than one of minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa

from streams.errors import LogTruncated, LogUnavailable
from streams.feedback import decisions
from streams.log.contract import DECISIONS, Log
from streams.log.stretch import Stretch

RECORDS_MAX, READ_S = 64, 2.0  # of each partition: a record has what was decided in 0.25 s


def recent(log: Log, n: int) -> list[dict[str, object]]:
    """At most `n` of them. Raises LogUnavailable."""
    first, ends = log.first_offsets(DECISIONS), log.end_offsets(DECISIONS)
    offsets = {p: max(first[p], end - RECORDS_MAX) for p, end in ends.items()}
    tables = [table for value in _values(log, offsets, ends) if (table := _table(value))]
    if not tables:
        return []
    newest = pa.concat_tables(tables).sort_by([("decided_at_ms", "descending")]).slice(0, n)
    return [_shown(row) for row in newest.to_pylist()]


def _values(log: Log, offsets: dict[int, int], ends: dict[int, int]) -> Iterator[bytes]:
    # Retention passed just now, or an end that does not come: the rest is enough.
    with suppress(LogTruncated, LogUnavailable):
        for records in Stretch(log, DECISIONS, offsets, ends).batches(RECORDS_MAX, READ_S):
            yield from (record.value or b"" for record in records)


def _table(value: bytes) -> pa.Table | None:
    with suppress(pa.ArrowInvalid):
        return decisions.decode(value).cast(decisions.SCHEMA)
    return None


def _shown(row: dict[str, object]) -> dict[str, object]:
    """Without its prompt, if that was logged: the page is for those who run the site."""
    models, propensities = row["models"], row["propensities"]
    assert isinstance(models, list) and isinstance(propensities, list)
    decision_id = row["decision_id"]
    assert isinstance(decision_id, bytes)
    chances = {name: round(p, 6) for name, p in zip(models, propensities, strict=True)}
    figures = ("propensity", "utility", "quality", "cost_usd", "latency_ms", "prompt_tokens")
    return {
        "decision_id": decision_id.hex(),
        "decided_at_unix_ms": row["decided_at_ms"],
        **{name: row[name] for name in ("tenant", "model", "pool", "snapshot_version", "policy")},
        **{name: row[name] for name in figures},
        "preference": row["preference"],
        "propensities": chances,
        "context": row["context"],
    }
