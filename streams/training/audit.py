"""Which decisions were never answered: the decision log, read some time behind.

    decision log ──`answer_s` later──▶ has any value of it been seen?  ──no──▶ unanswered, by model

A model whose answers nobody reports can't be learned, and a service that stopped reporting should
be noticed. Decisions younger than `answer_s` may still be answered and are not judged.

The log is read no further than what is old enough, so positions stay simple.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from learners.option import option
from streams.clock import STEP_MS
from streams.errors import LogTruncated
from streams.feedback import decisions
from streams.feedback.ticket import split_ids
from streams.log.contract import DECISIONS, Log, Reader, Record
from streams.training.share import Share
from streams.training.state import State

logger = logging.getLogger(__name__)

DECIDED, UNANSWERED = "decided.", "unanswered."  # followed by a model
AUDIT_LOST = "audit_lost"  # records of decisions that the log dropped before they were judged
RECORDS_MAX = 16  # read ahead; a record holds up to a thousand batches of decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """When a decision counts as unanswered."""

    # Most outcomes are known within the hour.
    answer_s: float = option(
        3600.0, "Seconds until a decision without feedback is unanswered.", ge=1, le=90 * 86_400
    )


class Audit:
    """Counts decisions, and those unanswered, into a state's counters. Used by one thread."""

    def __init__(self, log: Log, state: State, share: Share, options: AuditOptions) -> None:
        self._state, self._share, self._options = state, share, options
        self._log = log
        self._young: deque[Record] = deque()
        self._reader = self._opened()

    def _opened(self) -> Reader:
        """A reader from where the state ends, or from where each partition begins by now.

        Decisions that retention took are not judged. Nothing is learned from them anyway.
        """
        offsets = self._state.audit_offsets
        first, end = self._log.first_offsets(DECISIONS), self._log.end_offsets(DECISIONS)
        for partition in end:
            wanted = offsets.get(partition, first[partition])
            self._state.count(AUDIT_LOST, max(0, first[partition] - wanted))
            offsets[partition] = min(max(wanted, first[partition]), end[partition])
        self._young.clear()
        return self._log.reader(DECISIONS, offsets)

    def step(self, now_ms: int) -> bool:
        """Judge what is old enough by now; whether anything was. Raises LogUnavailable."""
        if not self._young:
            self._read()
        judged = False
        for _ in range(self._n_old(now_ms)):
            record = self._young.popleft()
            self._judge(record)
            self._state.audit_offsets[record.partition] = record.offset + 1
            judged = True
        return judged

    def _read(self) -> None:
        try:
            self._young.extend(self._reader.read(RECORDS_MAX, 0.0))
            self._reader.damaged.clear()  # a batch of decisions that can't be read is not judged
        except LogTruncated as error:
            logger.warning("unanswered decisions are counted from where the log begins: %s", error)
            self._reader.close()
            self._reader = self._opened()

    def refresh(self) -> None:
        """Read partitions that were added, too. Raises LogUnavailable."""
        if set(self._log.end_offsets(DECISIONS)) - set(self._state.audit_offsets):
            self._reader.close()
            self._reader = self._opened()

    def _n_old(self, now_ms: int) -> int:
        """How many of the first are old enough; one from the future is if a later one is."""
        latest_ms = now_ms - self._options.answer_s * 1000
        n_old = 0
        for i, record in enumerate(self._young, 1):
            if record.appended_at_ms <= latest_ms:
                n_old = i
            elif record.appended_at_ms <= now_ms + STEP_MS:
                break
        return n_old

    def _judge(self, record: Record) -> None:
        try:
            table = decisions.decode(record.value or b"")
        except (pa.ArrowInvalid, OSError) as error:
            logger.warning("decisions at offset %d can't be read: %s", record.offset, error)
            return
        # Of arms there may be thousands, so each one's decisions are counted by nobody.
        table = decisions.on_models(table)
        issuers, sequences = split_ids(table["decision_id"].to_pylist())
        mine = self._share.keeps(issuers, sequences)
        models = np.array(table["model"].to_pylist(), object)[mine]
        silent = self._state.seen.claimed(issuers[mine], sequences[mine]) == 0
        for model, n in Counter(models.tolist()).items():
            self._state.count(DECIDED + model, n)
        for model, n in Counter(models[silent].tolist()).items():
            self._state.count(UNANSWERED + model, n)

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()
