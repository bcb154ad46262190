"""Feedback records folded a second by one core: the trainer from nothing to the end of a log.

    records in SQLite ──read, open, validate, de-duplicate, learn, save──▶ snapshots

Per second of the process's own processor time, all threads together, reading and snapshots counted
in. `fairlead bench feedback` does the same from Kafka, where another process hands the records out.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from load.bench.recovery.crash_child import ENCODER, KEY, UNSET, trainer_of
from load.bench.recovery.made_feedback import Mix, made_feedback
from load.bench.speed.serving import now_ms
from streams.feedback.ticket import Sealer
from streams.log.contract import FEEDBACK
from streams.log.sqlite_log import SqliteLog
from streams.training.supervision import collect_seldom

MADE_TOGETHER = 10_000


def folded_per_s(records: int, rng: np.random.Generator) -> float:
    """Records learned per second of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        log = SqliteLog(Path(folder) / "log.sqlite", now_ms)
        sealer = Sealer([KEY])
        for first in range(0, records, MADE_TOGETHER):
            n = min(MADE_TOGETHER, records - first)
            log.append(FEEDBACK, made_feedback(n, sealer, ENCODER, now_ms(), rng, Mix()))
        collect_seldom()
        trainer = trainer_of(log, f"{folder}/state", UNSET)
        ends, began_s = log.end_offsets(FEEDBACK), time.process_time()
        trainer.run(lambda: trainer.state.offsets == ends)
        took_s = time.process_time() - began_s
        log.close()
        return records / took_s
