"""The decision log as one Parquet file, for analysis elsewhere.

Memory holds one record of the log at a time, however long the log is; with outcomes, also those
(`streams.feedback.reported`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streams.errors import LogUnavailable
from streams.feedback import decisions
from streams.feedback.reported import FIELDS, reported, with_outcomes
from streams.log.contract import DECISIONS, Log

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
    records done and records in all. Raises LogUnavailable and OSError.
    """
    found = reported(log) if outcomes else {}
    schema = pa.schema([*decisions.SCHEMA, *FIELDS]) if outcomes else decisions.SCHEMA
    firsts, ends = log.first_offsets(DECISIONS), log.end_offsets(DECISIONS)
    total = sum(ends[p] - firsts[p] for p in ends)
    done = rows = unreadable = 0
    reader = log.reader(DECISIONS, firsts)
    try:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while done < total:
                records = reader.read(RECORDS_MAX, READ_S)
                lost = sum(damage.end_offset - damage.first_offset for damage in reader.damaged)
                reader.damaged.clear()
                if not records and not lost:
                    raise LogUnavailable(f"{total - done} records did not come within {READ_S} s")
                unreadable += lost
                done += lost
                for record in records:
                    done += record.offset < ends[record.partition]
                    try:
                        table = decisions.decode(record.value or b"")
                    except (pa.ArrowInvalid, OSError):
                        unreadable += 1
                        continue
                    table = table.cast(decisions.SCHEMA)
                    writer.write_table(with_outcomes(table, found) if outcomes else table)
                    rows += len(table)
                on_progress(done, total)
    finally:
        reader.close()
    return {"decisions": rows, "records": done, "records_unreadable": unreadable}
