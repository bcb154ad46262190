"""The decision log as one Parquet file, for analysis elsewhere.

Memory holds one record of the log at a time, however long the log is; with outcomes, also those
(`streams.feedback.reported`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streams.feedback import decisions
from streams.feedback.reported import FIELDS, reported, with_outcomes
from streams.log.contract import DECISIONS, Log
from streams.log.stretch import Stretch
from streams.whole_file import whole

READ_S = 10.0
RECORDS_MAX = 100


def export(
    log: Log,
    path: Path,
    on_progress: Callable[[int, int], None],
    *,
    outcomes: bool = False,
) -> dict[str, int]:
    """Write all decisions the log holds now; return how many, and how many records were unreadable.

    With `outcomes` each has what was reported of it, in columns `outcome_…`. `on_progress` is told
    records done and records in all. The file is there whole, or as it was before. Raises
    LogUnavailable and OSError.
    """
    found = reported(log) if outcomes else {}
    schema = pa.schema([*decisions.SCHEMA, *FIELDS]) if outcomes else decisions.SCHEMA
    firsts, ends = log.first_offsets(DECISIONS), log.end_offsets(DECISIONS)
    stretch = Stretch(log, DECISIONS, firsts, ends)
    total, n_records, rows, unreadable = stretch.left, 0, 0, 0
    with whole(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for records in stretch.batches(RECORDS_MAX, READ_S):
            n_records += len(records)
            for record in records:
                try:
                    table = decisions.decode(record.value or b"")
                except (pa.ArrowInvalid, OSError):
                    unreadable += 1
                    continue
                table = table.cast(decisions.SCHEMA)
                writer.write_table(with_outcomes(table, found) if outcomes else table)
                rows += len(table)
            on_progress(total - stretch.left, total)
    return {
        "decisions": rows,
        "records": n_records + stretch.n_damaged,
        "records_unreadable": unreadable + stretch.n_damaged,
    }
